"""What does reading a context this way cost, and what does it buy? One line per system and setting, at one context.

Scores come from the accuracy run, speed from a race on the same prompts (suite ``ttft``); the two are joined by system,
settings, checkpoint and number of passages. A line without a race says so. Where the experiment has other suites with
as many passages, each gives a column of exact match; cost is that of the suite which raced.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config import digest
from harness.errors import InputError
from harness.statistics import Interval
from results.experiments.accuracy import QA_SUITES, Row, row_order
from results.experiments.variants import variants
from results.grids import Grid, linked, percent
from results.records import Record

RACE = "ttft"
SCORES = {"em": "EM (%)", "f1": "F1 (%)", "oracle_hit": "Fact expanded (%)"}
COUNTS = {"effective_rate": "Effective rate", "decoder_positions": "Decoder positions"}
STORED, EXPANDED = "stored_bytes", "chunks_expanded"
SHARES = {STORED: "Stored bytes per passage", EXPANDED: "Chunks expanded (%)"}
SHARE_NAMES = {STORED: "stored_bytes_per_passage", EXPANDED: "share_expanded"}
SHARE_OF = {STORED: "passages_read", EXPANDED: "chunks"}
SPEEDS = {"ttft_speedup": "TTFT speed-up, cached", "ttft_not_cached_speedup": "TTFT speed-up, not cached"}
FIGURES = SCORES | SHARES | COUNTS | SPEEDS
CSV_HEAD = ("experiment", "suite", "passages", "system", "variant", "figure", "mean", "low", "high", "n", "run_id")
NOISY = 1.2  # an A/A interval wider than this says that the machine was busy with something else
NOTES = (
    "Fact expanded: how often a chunk that states the asked fact was among the expanded ones.",
    "Effective rate: k / (1 - p + k p) at the share p of chunks that was expanded (arXiv:2509.01092v2, p. 5).",
    "Decoder positions: of self-attention. KV reuse attends over them all and computes the question's alone; CEPE's "
    "passages stand in its encoder; REPLUG's are of all its prompts together.",
    "TTFT speed-up: the first system's median time to the first token over this one's, prompts interleaved, batch size "
    "1; cached: what can be made of the passages without the question is there already (REFRAG v1's chunks cross "
    "passages, so of these in this order), not cached: making it is inside. The first line's own figure is its A/A "
    "pair: what differs from 1 by less than that is noise.",
    "Stored bytes per passage: what a store would keep of a passage's encoding (chunk embeddings, keys and values), at "
    "the precision of the run; 0: nothing that belongs to one passage.",
    "At this size a forward pass is mostly overhead, so speed-ups are far below those of a large decoder.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One system with its settings: the accuracy record, the race's where there is one, and those of other suites."""

    row: Row
    record: Record
    race: Record | None
    others: Mapping[str, Record]

    def share(self, name: str) -> float | None:
        """The ratio of two means; None where the record has not both, or there is nothing to divide by."""
        part, whole = (self.record.metrics.get(figure) for figure in (name, SHARE_OF[name]))
        return part.mean / whole.mean if part and whole and whole.mean else None

    def source(self, name: str) -> Record | None:
        """The record that a figure, or the exact match of another suite, is from."""
        if name in QA_SUITES:
            return self.others.get(name)
        return self.race if name in SPEEDS else self.record

    def value(self, name: str) -> Interval | None:
        source = self.source(name)
        return source.metrics.get(name) if source else None


@dataclass(frozen=True, kw_only=True, slots=True)
class CostTable:
    """All lines of one experiment at one suite and number of passages."""

    experiment: str
    suite: str
    root: str
    passages: int
    lines: tuple[Line, ...]

    @property
    def name(self) -> str:
        return f"{self.experiment}-cost"

    @property
    def columns(self) -> dict[str, str]:
        """What is shown: other suites, then figures, each with its title."""
        suites = [suite for suite in QA_SUITES if any(suite in line.others for line in self.lines)]
        shown = {name: title for name, title in FIGURES.items() if any(_shows(line, name) for line in self.lines)}
        return {suite: f"EM, {QA_SUITES[suite]} (%)" for suite in suites} | shown

    @property
    def title(self) -> str:
        return f"{self.experiment}: what {self.passages} passages cost, {QA_SUITES[self.suite]} ({self.root})"


def build_cost_table(records: Iterable[Record], experiment: str) -> CostTable | None:
    """The table of ``experiment``; None where it had no race. All its races have to be of one context."""
    ours = [record for record in records if experiment in record.experiments]
    races = [record for record in ours if record.suite == RACE]
    if not races:
        return None
    first = races[0]
    for race in races[1:]:
        if _context(race) != _context(first):
            raise InputError(
                f"two races of experiment {experiment!r} are of different contexts: {first.path} and {race.path}; "
                "give only one of them to --records"
            )
    scored = [record for record in ours if record.suite in QA_SUITES and _context(record) == _context(first)]
    if not scored:
        return None
    by_system = {_system(race): race for race in races}
    elsewhere: dict[str, dict[str, Record]] = {}
    for record in ours:
        same = record.root == first.root and record.passages == first.passages
        if same and record.suite in QA_SUITES and record.suite != scored[0].suite:
            elsewhere.setdefault(_system(record), {})[record.suite] = record
    names = variants(scored)
    by_row: dict[Row, Line] = {}
    for record in scored:  # copies of a record share a row
        row = Row(system=record.system, variant=names[record.path], passages=record.passages)
        system = _system(record)
        line = Line(row=row, record=record, race=by_system.get(system), others=elsewhere.get(system, {}))
        by_row.setdefault(row, line)
    lines = list(by_row.values())
    return CostTable(
        experiment=experiment,
        suite=lines[0].record.suite,
        root=first.root,
        passages=first.passages,
        lines=tuple(sorted(lines, key=lambda line: row_order(line.row))),
    )


def to_grid(table: CostTable, folder: Path) -> Grid:
    """The table as text, for Markdown and LaTeX."""
    n = sorted({line.record.n_examples - line.record.n_errors for line in table.lines})
    prompts = sorted({line.race.n_examples for line in table.lines if line.race})
    return Grid(
        title=table.title,
        head=["System", *table.columns.values()],
        lines=[[line.row.name, *(_cell(line, name, folder) for name in table.columns)] for line in table.lines],
        notes=[
            f"n = {', '.join(map(str, n))} questions, {', '.join(map(str, prompts))} prompts timed.",
            *_noisy(table.lines),
            *NOTES,
        ],
    )


def to_csv(table: CostTable) -> str:
    """One line a system and figure, scores as fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for line in table.lines:
        for suite, record in sorted(line.others.items()):
            if (em := record.metrics.get("em")) is None:
                continue
            key = [table.experiment, suite, table.passages, line.row.system, line.row.variant, "em"]
            writer.writerow([*key, em.mean, em.low, em.high, em.n, record.run_id])
        for name in SHARES:
            if (share := line.share(name)) is not None:
                figure = SHARE_NAMES[name]
                key = [table.experiment, table.suite, table.passages, line.row.system, line.row.variant, figure]
                writer.writerow([*key, share, "", "", line.record.n_examples, line.record.run_id])
        for name in SCORES | COUNTS | SPEEDS:
            if (value := line.value(name)) is not None:
                source = line.race if name in SPEEDS and line.race else line.record
                key = [table.experiment, table.suite, table.passages, line.row.system, line.row.variant, name]
                writer.writerow([*key, value.mean, value.low, value.high, value.n, source.run_id])
    return text.getvalue()


def _noisy(lines: Sequence[Line]) -> list[str]:
    """A warning where the race's A/A pair is wide: the own figure of the run that its notes name as the reference."""
    races = [line.race for line in lines if line.race]
    pairs = [race.metrics["ttft_speedup"] for race in races if any(race.run_id in note for note in race.notes)]
    return [
        f"NOISY: the A/A pair spans {pair.low:.2f} to {pair.high:.2f}; race again on an idle machine."
        for pair in pairs
        if pair.high > NOISY * pair.low
    ]


def _shows(line: Line, name: str) -> bool:
    return (line.share(name) if name in SHARES else line.value(name)) is not None


def _cell(line: Line, name: str, folder: Path) -> str:
    if name in QA_SUITES:
        return _elsewhere(line, name, folder)
    if name in SHARES:
        share = line.share(name)
        return "-" if share is None else percent(share) if name == EXPANDED else f"{share:,.0f}"
    value = line.value(name)
    if value is None:
        return "not run" if name in SPEEDS else "-"
    if name in COUNTS:
        return f"{value.mean:.1f}"
    if name in SPEEDS:
        return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
    return linked(_score(value), line.record.path, folder) if name == "em" else _score(value)


def _elsewhere(line: Line, suite: str, folder: Path) -> str:
    record = line.others.get(suite)
    if record is None or "em" not in record.metrics:
        return "not run"
    return linked(_score(record.metrics["em"]), record.path, folder)


def _score(value: Interval) -> str:
    return f"{percent(value.mean)} [{percent(value.low)}, {percent(value.high)}]"


def _context(record: Record) -> tuple[int, str]:
    """What was asked over how many passages."""
    return record.passages, str(record.spec["suite"]["revision"])


def _system(record: Record) -> str:
    """A system on a device in a precision: whose score and whose race belong together."""
    decode = record.spec["decode"]
    return digest([record.spec["system"], decode["device"], decode["dtype"]])
