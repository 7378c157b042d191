"""Do the records say what their journals say? Every figure of every record, recomputed from its rows.

The journal is read, its answers are scored again, and the record's metrics are drawn from the rows by the functions
that wrote the record (``harness.metrics``, ``harness.summary``), so that agreement is to the last bit. What a row's
text and golds do not give (usage, likelihoods, the chance line, which needs the passages) is averaged as it stands.
Times are no part of a journal and are not checked.

Records of one experiment share a table, so they have to come from one commit and one metric version. A run that was
made again says so by having a record in a second folder: accepted records, which carry no journal, are held against a
rerun's, to the last bit, and a run counts as of every commit that made it. So an experiment that took some of its runs
over from an older commit is no mixture once they were made again with the others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Any

from harness.config import digest, plain
from harness.errors import InputError, unknown
from harness.metrics import DIALECTS, METRIC_VERSION, normalises_to_nothing, score_answer
from harness.record import read_rows
from harness.statistics import Interval
from harness.summary import columns, summarise_all
from results.records import Record, read_record, record_paths

JOURNAL = "predictions.jsonl"
HOW_TO_MAKE_JOURNALS = (
    "accepted records carry no journal; run the experiment into another folder and name both with --records"
)

COUNTS = ("n_examples", "n_errors", "n_empty_golds")

Progress = Callable[[int, int, str], None]
Columns = Mapping[str, Sequence[float]]
Take = Callable[[Mapping[str, float]], Any]

# Runs whose intervals are drawn together: bounds the memory (80 kB a metric, and the figures of every row).
_RUNS_AT_ONCE, _ROWS_AT_ONCE = 64, 100_000
# Pairs of an answer and its golds whose scores are kept, because systems are asked the same questions.
_SCORES_KEPT = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What the record at ``record`` (or a row of its journal) holds, and what its journal gives instead."""

    record: Path
    what: str
    recorded: Any
    recomputed: Any

    @property
    def line(self) -> str:
        return f"{self.record}: {self.what}: recorded {_said(self.recorded)}, recomputed {_said(self.recomputed)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """No ``what`` is common to all runs of ``experiment``; ``found`` counts the runs by what each was made at."""

    experiment: str
    what: str
    found: Mapping[str, int]

    @property
    def line(self) -> str:
        found = ", ".join(f"{name} ({n} runs)" for name, n in self.found.items())
        return f"experiment {self.experiment}: more than one {self.what}: {found}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """``verified`` of ``records`` agree with their journals, or with the journal of the same run made again.

    ``rows`` are those of the journals.

    ``without_journal`` are the records that nothing can be said of, ``dirty`` those whose code was no commit's,
    ``as_they_stand`` the figures that were averaged but not scored again.
    """

    records: int
    verified: int
    rows: int
    differences: tuple[Difference, ...]
    mixtures: tuple[Mixture, ...]
    without_journal: tuple[Path, ...]
    dirty: tuple[Path, ...]
    as_they_stand: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.differences and not self.mixtures

    @property
    def lines(self) -> Iterator[str]:
        """Everything that was found, a line each; the sum comes last."""
        yield from (difference.line for difference in self.differences)
        yield from (mixture.line for mixture in self.mixtures)
        yield from (f"{path}: the tree was dirty, its commit does not hold the code that ran" for path in self.dirty)
        yield from (f"{path}: not verifiable, no {JOURNAL} beside it" for path in self.without_journal)
        if self.without_journal:
            yield f"{len(self.without_journal)} records are not verifiable ({HOW_TO_MAKE_JOURNALS})"
        if self.as_they_stand:
            yield f"averaged as the rows have them, not scored again: {', '.join(self.as_they_stand)}"
        yield (
            f"{self.verified} of {self.records} records verified, {self.rows:,} rows; "
            f"{len(self.differences)} differences, {len(self.mixtures)} mixtures"
        )

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = plain(self)
        return {"passed": self.passed} | document


def verify(
    folders: Sequence[Path], *, experiments: Sequence[str] | None = None, progress: Progress | None = None
) -> Verification:
    """Verify the records below ``folders`` (of ``experiments``, None: all) against the journals beside them.

    A damaged record is a difference, whatever experiment it was of. Raises ``InputError`` where ``record_paths`` does,
    for an experiment without a record, and where there is not a single journal to verify with.
    """
    whole, differences = _read(folders)
    records = _of(experiments, whole)
    damaged = len(differences)
    if not damaged and not any(next(folder.rglob(JOURNAL), None) for folder in folders):
        where = " or ".join(map(str, folders))
        raise InputError(f"no {JOURNAL} below {where}, so nothing can be verified: {HOW_TO_MAKE_JOURNALS}")
    checked = [record for record in records if _journal(record).is_file()]
    as_they_stand: set[str] = set()
    rows = done = 0
    for found in _each(list(_batches(checked))):
        differences += found.differences
        as_they_stand |= found.as_they_stand
        rows += found.rows
        done += found.records
        if progress:
            progress(done, len(checked), f"{rows:,} rows")
    again, held = _held_against_reruns(records, checked)
    differences += again
    without = [record.path for record in records if not _journal(record).is_file()]
    named = {record.path for record in checked} | held
    return Verification(
        records=len(records) + damaged,
        verified=len(named - {difference.record for difference in differences}),
        rows=rows,
        differences=tuple(sorted(differences, key=lambda difference: difference.record)),
        mixtures=tuple(_mixtures(records)),
        without_journal=tuple(path for path in without if path not in held),
        dirty=tuple(record.path for record in records if record.provenance.get("dirty")),
        as_they_stand=tuple(sorted(as_they_stand)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """What the journals of a batch of records gave."""

    records: int
    rows: int
    differences: list[Difference]
    as_they_stand: set[str]


def _each(batches: Sequence[Sequence[Record]]) -> Iterator[_Checked]:
    """Every batch checked, in order; several at a time where there are several, in processes of their own."""
    if len(batches) < 2:
        yield from map(_check, batches)
        return
    # Spawned: who calls this may have threads, which a fork would leave behind holding their locks.
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(batches)), get_context("spawn")) as pool:
        yield from pool.map(_check, batches)


def _check(batch: Sequence[Record]) -> _Checked:
    differences: list[Difference] = []
    as_they_stand: set[str] = set()
    rows = 0
    waiting: list[tuple[Record, Columns]] = []
    for record in batch:
        try:
            found = read_rows(_journal(record), record.run_id)
            differences += _row_differences(record, found)
            waiting.append((record, columns(found)))
        except (InputError, KeyError, TypeError, AttributeError) as error:  # a row of another form
            differences.append(_damaged(record, error))
        else:
            rows += len(found)
            as_they_stand |= {name for name in waiting[-1][1] if not _dialect(name)}
    differences += _metric_differences(waiting)
    return _Checked(records=len(batch), rows=rows, differences=differences, as_they_stand=as_they_stand)


def _read(folders: Sequence[Path]) -> tuple[list[Record], list[Difference]]:
    """The records below ``folders``, and those that cannot be read as differences."""
    records, damaged = [], []
    for path in record_paths(folders):
        try:
            records.append(read_record(path))
        except InputError as error:
            why = str(error).removeprefix(f"{path}: ")
            damaged.append(
                Difference(
                    record=path, what="the record", recorded=f"nothing that can be read ({why})", recomputed=None
                )
            )
    return records, damaged


def _of(experiments: Sequence[str] | None, records: Sequence[Record]) -> list[Record]:
    if experiments is None:
        return list(records)
    known = {name for record in records for name in record.experiments}
    for name in experiments:
        if name not in known:
            raise unknown("experiment", name, known)
    return [record for record in records if not set(experiments).isdisjoint(record.experiments)]


def _journal(record: Record) -> Path:
    return record.path.parent / JOURNAL


def _batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """``records`` in order, so many together as memory allows; a long one goes alone."""
    batch: list[Record] = []
    for record in records:
        if batch and (len(batch) == _RUNS_AT_ONCE or sum(r.n_examples for r in (*batch, record)) > _ROWS_AT_ONCE):
            yield batch
            batch = []
        batch.append(record)
    if batch:
        yield batch


def _damaged(record: Record, error: Exception) -> Difference:
    message = f"a row without {error}" if isinstance(error, KeyError) else str(error)
    return Difference(
        record=record.path, what="journal", recorded=f"{record.n_examples} examples", recomputed=f"nothing: {message}"
    )


def _row_differences(record: Record, rows: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    """What the record counts, and the first row of each score that its answer does not get again."""
    empty_golds = sum(any(map(normalises_to_nothing, row.get("answers", ()))) for row in rows)
    for what, recorded, recomputed in (
        ("run_id", record.run_id, digest(record.spec)),
        ("metric_version", record.metric_version, METRIC_VERSION),
        ("n_examples", record.n_examples, len(rows)),
        ("n_errors", record.n_errors, sum("error" in row for row in rows)),
        ("n_empty_golds", record.n_empty_golds, empty_golds),
    ):
        if recorded != recomputed:
            yield Difference(record=record.path, what=what, recorded=recorded, recomputed=recomputed)
    wrong: dict[str, list[tuple[int, float, float]]] = {}
    for number, row in enumerate(rows):
        scores = row.get("scores", {})
        if (compared := _compared(tuple(scores))) is None:
            continue
        again = _scores(row["prediction"], tuple(row["answers"]))
        dialects, of_row, of_text = compared
        if of_row(scores) == of_text(again):  # all at once: nearly every row
            continue
        for name, dialect in dialects.items():
            if scores[name] != again[dialect]:
                wrong.setdefault(name, []).append((number, scores[name], again[dialect]))
    for name, ((number, written, score), *others) in wrong.items():
        more = f" and {len(others)} more" if others else ""
        yield Difference(record=record.path, what=f"{name} of row {number}{more}", recorded=written, recomputed=score)


@lru_cache
def _compared(names: tuple[str, ...]) -> tuple[dict[str, str], Take, Take] | None:
    """Those of the scores ``names`` that a text gives, each with its dialect, and what takes all of them out of a row
    and out of ``_scores``; None where there are none."""
    dialects = {name: dialect for name in names if (dialect := _dialect(name))}
    return (dialects, itemgetter(*dialects), itemgetter(*dialects.values())) if dialects else None


@lru_cache
def _dialect(name: str) -> str | None:
    """What an answer's text gives the score ``name`` by, also of some examples only (``em@4``); None for another."""
    dialect = name.partition("@")[0]
    return dialect if dialect in DIALECTS else None


@lru_cache(_SCORES_KEPT)
def _scores(prediction: str, answers: tuple[str, ...]) -> dict[str, float]:
    return score_answer(prediction, answers)


def _metric_differences(runs: Sequence[tuple[Record, Columns]]) -> Iterator[Difference]:
    """Every metric of the records that their rows do not give."""
    try:
        summaries = summarise_all([figures for _, figures in runs])
    except ValueError as error:  # a figure that is no number, or a score that is neither 0 nor 1
        if len(runs) == 1:
            yield _damaged(runs[0][0], error)
            return
        for run in runs:
            yield from _metric_differences([run])
        return
    for (record, _), summary in zip(runs, summaries, strict=True):
        recomputed = {name: Interval(**fields) for name, fields in summary.items()}
        for name in sorted(record.metrics.keys() | recomputed.keys()):
            ours, theirs = record.metrics.get(name), recomputed.get(name)
            if ours != theirs:
                yield Difference(record=record.path, what=name, recorded=ours, recomputed=theirs)


def _held_against_reruns(records: Sequence[Record], checked: Sequence[Record]) -> tuple[list[Difference], set[Path]]:
    """What the records of one run differ in, and the records without a journal whose run has one elsewhere."""
    with_journal = {record.run_id: record for record in checked}
    differences: list[Difference] = []
    held: set[Path] = set()
    for record in records:
        other = with_journal.get(record.run_id)
        if other is None or other is record or other.path == record.path:
            continue
        if not _journal(record).is_file():
            held.add(record.path)
        counts = [(name, getattr(record, name), getattr(other, name)) for name in COUNTS]
        names = sorted(record.metrics.keys() | other.metrics.keys())
        metrics = [(name, record.metrics.get(name), other.metrics.get(name)) for name in names]
        for name, ours, theirs in [*counts, *metrics]:
            if ours != theirs:
                what = f"{name} (the same run: {other.path})"
                differences.append(Difference(record=record.path, what=what, recorded=ours, recomputed=theirs))
    return differences, held


def _mixtures(records: Iterable[Record]) -> Iterator[Mixture]:
    """Where the runs of an experiment have no commit, or no metric version, in common."""
    by_experiment: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        for experiment in record.experiments:
            by_experiment.setdefault(experiment, {}).setdefault(record.run_id, []).append(record)
    for experiment, runs in sorted(by_experiment.items()):
        for what, name in (("commit", _commit), ("metric version", lambda record: str(record.metric_version))):
            made_at = [set(map(name, made)) for made in runs.values()]
            if not set.intersection(*made_at):
                found = Counter(" and ".join(sorted(names)) for names in made_at)
                yield Mixture(experiment=experiment, what=what, found=dict(sorted(found.items())))


def _commit(record: Record) -> str:
    """A dirty tree is another code than its commit's."""
    commit = str(record.provenance.get("commit") or "unknown")[:12]
    return f"{commit}, dirty" if record.provenance.get("dirty") else commit


def _said(value: Any) -> str:
    if isinstance(value, Interval):
        return f"{value.mean!r} [{value.low!r}, {value.high!r}] of {value.n} ({value.method})"
    return "nothing" if value is None else str(value)
