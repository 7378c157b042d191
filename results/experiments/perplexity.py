"""How well does each system foretell the next tokens? Log-perplexity by system, length of output and of context.

Three measured tables, and below the first two what the paper printed (Tables 1 and 2), each in a table of its own: no
published number stands among measured ones, and no measured one is compared with them, for they differ in everything
but the layout: a decoder of a million parameters against LLaMA-2-7B, other text, other tokens, other lengths.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError, unknown
from harness.statistics import Interval
from results.grids import Grid, linked
from results.records import Record

if TYPE_CHECKING:
    from results.ledger.entries import Entry

SUITE = "perplexity"
DIFFERENCES = Path("comparisons") / "{}" / "differences.json"
PUBLISHED = "published, LLaMA-2-7B"
SETS = {"arxiv": "Arxiv", "book": "Book"}
NOT_RUN, WITHOUT = "not run", "No context"
SYSTEMS = {
    "standard_rag": "Full context",
    "no_context": WITHOUT,
    "llama_k": "LLaMA_K",
    "replug": "REPLUG",
    "cepe": "CEPE",
    "refrag_v2": "REFRAG",
}
# The experiments on real text and the parameters of their decoder.
DECODERS = {"perplexity": "1.1 M", "perplexity-mini": "91 M"}
ABLATIONS = "text_"  # how experiments with lines of their own (results.experiments.text_ablation) are called
UNMEASURED = {"LLaMA-32K": "a decoder trained on windows as long as the longest context"}


@dataclass(frozen=True, kw_only=True)
class Perplexities:
    """The records of one experiment, with the name of each one's row."""

    experiment: str
    records: Sequence[Record]
    names: Mapping[str, str]
    tests: Sequence[Mapping[str, Any]]

    def by(self, name: str, set_: str, context: int) -> Record | None:
        """The record of a row on a set at a context; that without context at any."""
        for record in self.records:
            at = record.spec["suite"]["context"]
            if self.names[record.run_id] == name and record.spec["suite"]["set"] == set_ and at in (0, context):
                return record
        return None

    def score(self, name: str, set_: str, context: int, output: int) -> Interval | None:
        """Log-perplexity of that cell over the first ``output`` tokens."""
        record = self.by(name, set_, context)
        return _score(record, output) if record else None

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(self.names[record.run_id] for record in self.records))

    @property
    def sets(self) -> list[str]:
        found = {record.spec["suite"]["set"] for record in self.records}
        return [*(name for name in SETS if name in found), *sorted(found - SETS.keys())]

    @property
    def contexts(self) -> list[int]:
        return sorted({record.spec["suite"]["context"] for record in self.records} - {0})

    @property
    def outputs(self) -> list[int]:
        return list(self.records[0].spec["suite"]["outputs"])


def experiments(records: Iterable[Record]) -> list[str]:
    """Those with a record of this suite, in the layout of the paper's Tables 1 and 2: no ablation."""
    found = {name for record in records if record.suite == SUITE for name in record.experiments}
    return sorted(name for name in found if not name.startswith(ABLATIONS))


def build(records: Sequence[Record], folders: Iterable[Path], *, experiment: str) -> Perplexities:
    """The records of ``experiment`` and, from below ``folders``, its paired differences (none where there are none).

    Raises ``InputError`` on an experiment without records, and on records of different windows or two for one cell.
    """
    if experiment not in (known := experiments(records)):
        raise unknown("experiment", experiment, known)
    ours = [record for record in records if record.suite == SUITE and experiment in record.experiments]
    windows = {json.dumps(_windows(record), sort_keys=True) for record in ours}
    if len(windows) > 1:
        raise InputError(f"records of {experiment} predict other tokens; give only one of {' and '.join(windows)}")
    names = _names(ours)
    ours.sort(key=lambda record: (_order(record, names), record.path))
    cells: dict[tuple[str, str, int], Record] = {}
    for record in ours:
        key = names[record.run_id], record.spec["suite"]["set"], record.spec["suite"]["context"]
        if (other := cells.setdefault(key, record)).run_id != record.run_id:
            raise InputError(f"two records for one cell: {other.path} and {record.path}; give only one of them")
    return Perplexities(
        experiment=experiment, records=list(cells.values()), names=names, tests=_tests(folders, experiment)
    )


def to_grids(found: Perplexities, folder: Path) -> list[Grid]:
    """The tables, in the order in which they are to be read; links are relative to ``folder``."""
    if not found.contexts:
        raise InputError(f"experiment {found.experiment!r} has no record with a context yet; there is no table to draw")
    first, *longer = found.contexts
    grids = [_by_output(found, first, folder), _published("Table 1", "s = 2048")]
    if longer:
        grids += [_by_context(found, folder), _published("Table 2", "o = 2048")]
    if found.tests:
        grids.append(_differences(found))
    return grids


def to_csv(found: Perplexities) -> str:
    """Every cell a line, the published ones too: ``source`` tells them apart."""
    text = io.StringIO()
    head = ["source", "row", "set", "context", "output", "mean", "low", "high", "n", "decoder_positions", "run_id"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for record in found.records:
        suite, positions = record.spec["suite"], record.metrics.get("decoder_positions")
        for n in found.outputs:
            score = _score(record, n)
            writer.writerow(
                [
                    "measured",
                    found.names[record.run_id],
                    suite["set"],
                    suite["context"],
                    n,
                    *([score.mean, score.low, score.high, score.n] if score else [None] * 4),
                    positions.mean if positions else None,
                    record.run_id,
                ]
            )
    for table in ("Table 1", "Table 2"):
        for entry in _printed(table):
            row = [f"{PUBLISHED}, {table}: {entry.column}", entry.row, *[None] * 3, entry.value, *[None] * 5]
            writer.writerow(row)
    return text.getvalue()


def _by_output(found: Perplexities, context: int, folder: Path) -> Grid:
    columns = [(name, n) for name in found.sets for n in found.outputs]
    lines = [
        [row, *(cell(found.by(row, name, context), n, folder) for name, n in columns), _positions(found, row, context)]
        for row in found.rows
    ]
    lines += [[row, *([NOT_RUN] * (len(columns) + 1))] for row in UNMEASURED]
    return Grid(
        title=f"Small, real-language version of the paper's Table 1: log-perplexity at s = {context}, measured here",
        head=["System", *(f"{SETS.get(name, name)} P{n}" for name, n in columns), "Decoder positions"],
        lines=lines,
        notes=_notes(found),
    )


def _by_context(found: Perplexities, folder: Path) -> Grid:
    longest = found.outputs[-1]
    columns = [(name, context) for context in found.contexts for name in found.sets]
    trained = found.contexts[0]
    lines = [[row, *(cell(found.by(row, name, s), longest, folder) for name, s in columns)] for row in found.rows]
    lines += [[row, *([NOT_RUN] * len(columns))] for row in UNMEASURED]
    return Grid(
        title=f"Small, real-language version of the paper's Table 2: log-perplexity at o = {longest}, measured here",
        head=["System", *(f"{SETS.get(name, name)} s={s}" for name, s in columns)],
        lines=lines,
        notes=[
            f"Nobody was trained beyond s = {trained} and o = {longest}: longer contexts are extrapolation, for full "
            "context in positions, for REFRAG in the number of chunks, for CEPE and REPLUG in the number of passages."
        ],
    )


def _printed(table: str) -> list[Entry]:
    """What the paper printed. The ledger is opened here alone: no other table comes near a published number."""
    from results.ledger.entries import filter, read_ledger

    return filter(read_ledger(), table=table, source_class="paper")


def _published(table: str, at: str) -> Grid:
    entries = _printed(table)
    columns = list(dict.fromkeys(entry.column for entry in entries))
    cells = {(entry.row, entry.column): entry.printed for entry in entries}
    return Grid(
        title=f"{PUBLISHED}: the paper's {table}, {at}",
        head=["System", *(column.removesuffix(" (s=2048)").removesuffix(" o=2048") for column in columns)],
        lines=[[row, *(cells[row, c] for c in columns)] for row in dict.fromkeys(entry.row for entry in entries)],
        notes=[
            f"{PUBLISHED}: arXiv:2509.01092v2, p. {entries[0].page}. Not measured here, and not comparable with what "
            "is: other decoder, text, tokens and lengths."
        ],
    )


def _differences(found: Perplexities) -> Grid:
    by_id = {record.run_id: record for record in found.records}
    lines = []
    for test in found.tests:
        a, b = by_id.get(test["a"]), by_id.get(test["b"])
        if a is None or b is None:
            raise InputError(f"a difference of {test['a']} and {test['b']}, of which one has no record here")
        suite = a.spec["suite"]
        lines.append(
            [
                f"{found.names[a.run_id]} - {found.names[b.run_id]}",
                SETS.get(suite["set"], suite["set"]),
                str(suite["context"]),
                f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]",
                f"{test['p_holm']:.2g}",
                f"{test['documents_lower']} of {test['documents']}",
                str(test["n"]),
            ]
        )
    return Grid(
        title=f"{found.experiment}: paired differences at o = {found.outputs[-1]}",
        head=["Contrast", "Set", "s", "Nats per token", "p", "Documents in which the first is lower", "Windows"],
        lines=lines,
        notes=[
            "The same windows on both sides; 95 % interval and p of a paired bootstrap over windows, p Holm's over "
            "this table. Windows of one document are not independent, and the books are few: hence the count by "
            "document."
        ],
    )


def conditions(found: Perplexities) -> list[str]:
    """Which text, how the systems read it, how long each was trained, and the commit."""
    suite = found.records[0].spec["suite"]
    commits = sorted({str(r.provenance.get("commit"))[:12] for r in found.records})
    dirty = any(r.provenance.get("dirty") for r in found.records)
    return [
        f"Text: {suite['dataset']} ({suite['split']}), revision {suite['revision']}, tokenised as {suite['root']}; "
        f"every context length precedes the same {suite['output']} tokens.",
        *dict.fromkeys(note for record in found.records for note in record.notes),
        "LLaMA_K reads the last s/8 tokens. REPLUG and CEPE read the context in passages of "
        f"{suite['passage']} tokens; REFRAG expands nothing.",
        f"Code: commit {', '.join(commits)}{' with uncommitted changes' if dirty else ''}.",
    ]


def _notes(found: Perplexities) -> list[str]:
    *text, commit = conditions(found)
    return [
        "Nats per token, lower is better; Pn: over the first n tokens after the context. Brackets: 95 % bootstrap over "
        "windows.",
        *text,
        "X's decoder: no context, read with the decoder of X, which was trained on with X; CEPE's stays as it was "
        "before.",
        *(f"{row}: {NOT_RUN}; it would take {what}." for row, what in UNMEASURED.items()),
        "PG19 and Proof-pile have no column: they would take a folder of either with `--data`.",
        commit,
    ]


def cell(record: Record | None, n: int, folder: Path) -> str:
    """Log-perplexity over the first ``n`` tokens with its interval, linked to its record."""
    score = _score(record, n) if record else None
    if record is None or score is None:
        return NOT_RUN
    return linked(f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]", record.path, folder)


def _positions(found: Perplexities, row: str, context: int) -> str:
    record = found.by(row, found.sets[0], context)
    positions = record.metrics.get("decoder_positions") if record else None
    return f"{positions.mean:.0f}" if positions else "-"


def _score(record: Record, n: int) -> Interval | None:
    return record.metrics.get(f"log_perplexity_{n}")


def _windows(record: Record) -> dict[str, Any]:
    keys = ("dataset", "split", "limit", "root", "revision", "output", "outputs", "longest", "passage")
    return {key: record.spec["suite"][key] for key in keys}


def _names(records: Sequence[Record]) -> dict[str, str]:
    """What each run's row is called: the system, its k, and for a decoder that is another system's, whose."""
    own = {_weights(record): _name(record) for record in records if record.system in ("cepe", "refrag_v2")}
    return {
        record.run_id: _name(record)
        if record.system in ("cepe", "refrag_v2") or _weights(record) not in own
        else f"{_name(record)}, {own[_weights(record)]}'s decoder"
        for record in records
    }


def _weights(record: Record) -> str:
    return str(record.spec["system"]["checkpoint"])


def _name(record: Record) -> str:
    name = SYSTEMS.get(record.system, record.system)
    config = record.spec["system"]["config"]
    if record.system != "refrag_v2":
        return name
    expanded = f" ({config['select']}, p = {config['expand']:g})" if config["expand"] else ""
    return f"{name}_{config['k']}{expanded}"


def _order(record: Record, names: Mapping[str, str]) -> tuple[Any, ...]:
    systems = list(SYSTEMS)
    name = names[record.run_id]
    place = systems.index(record.system) if record.system in systems else len(systems)
    numbers = [int(digits) for digits in re.findall(r"\d+", name)]  # REFRAG_8 before REFRAG_16
    return "decoder" in name, place, numbers, name


def _tests(folders: Iterable[Path], experiment: str) -> Sequence[Mapping[str, Any]]:
    for folder in folders:
        path = folder / str(DIFFERENCES).format(experiment)
        if path.exists():
            try:
                tests: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["tests"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is damaged: {error}") from error
            return tests
    return []
