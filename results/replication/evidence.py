"""Which of our measurements fills a cell? Records and latency journals, looked up by what was run.

Folders are searched in order and the first that has an answer gives it, so that a run of one's own goes before the
accepted records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.statistics import Interval
from results.experiments.comparison import FILE, Comparison, read_comparisons
from results.grids import percent
from results.latency.journals import PREFILL, SAMPLES, Journal, Line, read
from results.records import Record, read_each, read_records
from results.replication import losses
from results.replication.layouts import Own
from results.replication.losses import Losses

RACE = "ttft"
FILES = (FILE, "differences.json")  # of comparisons
WORLD = "world-0"  # the data root that the captions speak of


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """``records`` of each folder, every latency journal with its path; comparisons and losses of trainings by name."""

    records: Sequence[Sequence[Record]]
    journals: Sequence[tuple[Path, Journal]]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    losses: Mapping[str, Losses] = field(default_factory=dict)

    def find(
        self, experiment: str, suite: str, system: str, passages: int, *, root: str = WORLD, **config: Any
    ) -> Record | None:
        """The run of that system with those settings over the data root ``root``.

        Of several in one folder the one of the most questions, then the newest.
        """
        for records in self.records:
            found = [
                record
                for record in records
                if (record.suite, record.system, record.passages, record.root) == (suite, system, passages, root)
                and experiment in record.experiments
                and has(record, config)
            ]
            if found:
                return max(found, key=lambda r: (r.n_examples, str(r.provenance.get("created")), r.run_id))
        return None

    def all(self, experiment: str, suite: str) -> list[Record]:
        """The records of that suite in ``WORLD``, of the first folder that has any, by path."""
        for records in self.records:
            if found := [r for r in records if (r.suite, r.root) == (suite, WORLD) and experiment in r.experiments]:
                return found
        return []

    def score(
        self, metric: str, experiment: str, suite: str, system: str, passages: int, *, root: str = WORLD, **config: Any
    ) -> Own | None:
        """A score in percent."""
        record = self.find(experiment, suite, system, passages, root=root, **config)
        return percents(record, metric) if record else None

    def number(self, metric: str, experiment: str, suite: str, system: str, passages: int, **config: Any) -> Own | None:
        """Any other figure, such as a speed-up."""
        record = self.find(experiment, suite, system, passages, **config)
        value = record.metrics.get(metric) if record else None
        return figure(value, record.path) if record and value else None

    def by_seed(self, name: str, way: str) -> Own | None:
        """Exact match of a way of training in the comparison ``name``, one number a seed; its value is their mean."""
        found = self.comparisons.get(name)
        if found is None or way not in found.document.get("means", {}):
            return None
        scores: Sequence[float] = found.document["means"][way]["em"]
        return Own(
            text=" / ".join(percent(score) for score in scores),
            how="measured",
            value=100 * sum(scores) / len(scores),
            n=next((test["n"] for test in found.document["tests"] if way in (test["a"], test["b"])), None),
            path=found.path,
            at=f"{way}; value: mean of {len(scores)} seeds",
        )

    def runs(self, name: str, line: str) -> list[Record]:
        """The runs that the differences ``name`` call ``line``, in the first folder that has all of them."""
        found = self.comparisons.get(name)
        named = found.document.get("names", {}) if found else {}
        wanted = [run_id for run_id, own in named.items() if own == line]
        for records in self.records:
            by_id = {record.run_id: record for record in records}
            if wanted and all(run_id in by_id for run_id in wanted):
                return [by_id[run_id] for run_id in wanted]
        return []

    def race(self, of: Record) -> Record | None:
        """The race in which the system of ``of`` was timed over as many passages."""
        return next(
            (
                record
                for records in self.records
                for record in records
                if record.suite == RACE
                and (record.system, record.passages) == (of.system, of.passages)
                and record.spec["system"] == of.spec["system"]
            ),
            None,
        )

    def of(self, *experiments: str) -> Evidence:
        """The same with the records of these experiments and races alone, light enough for another process."""
        kept = [
            [r for r in records if r.suite == RACE or not set(experiments).isdisjoint(r.experiments)]
            for records in self.records
        ]
        return replace(self, records=kept)

    @property
    def journal(self) -> tuple[Path, Journal] | None:
        """The one nearest to the paper's conditions: a GPU before a CPU, then the larger decoder, then bfloat16.

        Of several alike the one of most repetitions at its longest context.
        """

        def nearness(found: tuple[Path, Journal]) -> tuple[bool, int, bool, int]:
            header, rows = found[1].header, [row for row in found[1].rows if row["batch"] == 1 and not row["error"]]
            longest = max((row["length"] for row in rows), default=0)
            repeated = min(
                (len(row["samples"][SAMPLES[PREFILL]]) for row in rows if row["length"] == longest), default=0
            )
            return header["device"] != "cpu", header["decoder"]["parameters"], header["dtype"] == "bfloat16", repeated

        return max(self.journals, key=nearness) if self.journals else None

    def timed(self, label: str, boundary: str, length: int) -> tuple[Path, Line] | None:
        """That row of ``journal``, batch size 1; None where there is none or it raised an error."""
        if self.journal is None:
            return None
        path, journal = self.journal
        line = journal.line(label, boundary, length)
        return (path, line) if line and not line.error else None

    @property
    def length(self) -> int:
        """The longest context of ``journal`` at batch size 1; 0 where there is none."""
        rows = self.journal[1].rows if self.journal else []
        return max((row["length"] for row in rows if row["batch"] == 1), default=0)


def read_evidence(folders: Iterable[Path]) -> Evidence:
    """All records and latency journals below ``folders``. A folder without a record may hold journals alone."""
    folders = list(folders)
    return Evidence(
        records=read_each(
            (folder for folder in folders if next(folder.rglob("record.json"), None)),
            lambda folder: read_records([folder]),
        ),
        journals=[(path, read(path)) for path in _journals(folders)],
        comparisons=_comparisons(folders),
        losses=losses.read_all(folders),
    )


def _comparisons(folders: Iterable[Path]) -> dict[str, Comparison]:
    """By name, of the first folder that has it. Raises ``InputError`` for a damaged file."""
    found: dict[str, Comparison] = {}
    for comparison in (one for folder in folders for file in FILES for one in read_comparisons([folder], file)):
        found.setdefault(comparison.name, comparison)
    return found


def _journals(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("latency.jsonl"))


def has(record: Record, config: Mapping[str, Any]) -> bool:
    """Whether the system ran with these settings."""
    own = record.spec["system"].get("config") or {}
    return all(own.get(key) == value for key, value in config.items())


def percents(record: Record, metric: str) -> Own | None:
    """A score of ``record`` in percent, None where it was not scored so."""
    value = record.metrics.get(metric)
    if value is None:
        return None
    return Own(
        text=f"{percent(value.mean)} [{percent(value.low)}, {percent(value.high)}]",
        how="measured",
        value=100 * value.mean,
        low=100 * value.low,
        high=100 * value.high,
        n=value.n,
        path=record.path,
    )


def figure(value: Interval, path: Path, *, digits: int = 2, at: str = "") -> Own:
    """A number with its interval; ``at`` says under what, where that is not the column's own."""
    return Own(
        text=f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]",
        how="measured",
        value=value.mean,
        low=value.low,
        high=value.high,
        n=value.n,
        path=path,
        at=at,
    )


def spread(values: tuple[float, float, float], scale: float, n: int, path: Path) -> Own:
    """A median with p10 and p90, in units of ``scale``; of one value, itself alone."""
    low, median, high = (value * scale for value in values)
    return Own(
        text=f"{median:.1f} [{low:.1f}, {high:.1f}]" if n > 1 else f"{median:.1f}",
        how="measured",
        value=median,
        low=low,
        high=high,
        n=n,
        path=path,
    )
