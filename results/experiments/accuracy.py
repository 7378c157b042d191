"""How well does each system answer? The accuracy table of one experiment, built from records alone.

Rows are systems by number of passages (none is "closed-book"), columns are suites by data root. A cell holds a score
with its interval, the chance level where the suite knows one, and the record that both come from; a cell that nobody
measured stays, and says so. Nothing depends on the clock or on the order of the files, so that the same records give
the same bytes. ``formats`` writes a table down.

A published number has no way in here: a cell is filled from a ``Record`` or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from harness.errors import InputError, unknown
from harness.statistics import Interval
from results.experiments.variants import flat, variants
from results.records import PASSAGES_READ, READ_NOTE, Record, read_of

QA_SUITES = {
    "nq": "NQ",
    "triviaqa": "TriviaQA",
    "popqa": "PopQA",
    "same_relation": "Same relation",
    "gold_position": "NQ, gold passage placed",
    "topiocqa": "TopiOCQA",
    "qrecc": "QReCC",
    "orconvqa": "ORConvQA",
}
SUMMARY_SUITES = {"arxiv_summary": "arXiv summaries", "pubmed_summary": "PubMed summaries"}
SUITES = QA_SUITES | SUMMARY_SUITES
SYSTEMS = {
    "standard_rag": "Standard RAG",
    "no_context": "No context",
    "llama_k": "LLaMA_K",
    "replug": "REPLUG",
    "extract": "Extract",
    "kv_reuse_plain": "KV reuse, untrained",
    "kv_reuse": "KV reuse",
    "cepe": "CEPE",
    "refrag_v1": "REFRAG v1",
    "refrag_v2": "REFRAG v2",
}
QA_METRICS = {
    "em": "exact match, SQuAD dialect",
    "em_re": "exact match, CEPE dialect",
    "em_triviaqa": "exact match, TriviaQA dialect",
    "em_lmeval_nq": "exact match, lm-eval's NQ filters",
    "em_lmeval_triviaqa": "exact match, lm-eval's TriviaQA filters",
    "f1": "token F1, SQuAD dialect",
    "f1_yesno0": "token F1, CEPE dialect",
    "f1_triviaqa": "token F1, TriviaQA dialect",
    "sub_em": "normalised substring match",
    "acc_popqa": "accuracy, PopQA dialect",
    "match_selfrag": "raw substring match, Self-RAG dialect",
    "has_answer_dpr": "token subsequence match, DPR dialect",
    **{f"em@{turn}": f"exact match, SQuAD dialect, turns >= {turn}" for turn in (2, 4, 6)},
    **{f"f1@{turn}": f"token F1, SQuAD dialect, turns >= {turn}" for turn in (2, 4, 6)},
}
_ROUGE = {
    "rouge1": "ROUGE-1, F-measure, stemmed",
    "rouge2": "ROUGE-2, F-measure, stemmed",
    "rougeL": "ROUGE-L of the whole text, F-measure, stemmed",
}
METRICS = QA_METRICS | _ROUGE
CHANCE, CHECKPOINT = "chance", "checkpoint="
NO_NAMES: Mapping[str, str] = MappingProxyType({})
MANY_ROWS = 6  # from here on a note counts them


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A system answering from ``passages`` passages. ``variant`` is empty unless the system has several (``k=16``)."""

    system: str
    variant: str
    passages: int

    @property
    def name(self) -> str:
        title = SYSTEMS.get(self.system, self.system)
        return f"{title} ({self.variant})" if self.variant else title

    @property
    def context(self) -> str:
        return str(self.passages) if self.passages else "closed-book"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A suite, read from the data root of that name."""

    suite: str
    root: str

    @property
    def name(self) -> str:
        return f"{SUITES[self.suite]} ({self.root})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one row scored on one column. No ``record``: not run. No ``score``: run, but not scored by this metric."""

    row: Row
    column: Column
    record: Record | None
    score: Interval | None
    chance: Interval | None

    @property
    def status(self) -> str:
        if self.record is None:
            return "not run"
        return "measured" if self.score else "not scored"

    @property
    def passages_read(self) -> float | None:
        """The mean number of passages that the system read, None where its record does not tell."""
        read = self.record.metrics.get(PASSAGES_READ) if self.record else None
        return read.mean if read else None

    @property
    def read(self) -> str:
        """How many passages the system read where not all that the row says ("read 6.3 of 8"), else empty."""
        return read_of(self.record.spec, self.passages_read) if self.record else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The cells row by row, ``len(rows) * len(columns)`` of them, and the notes that name their conditions."""

    experiment: str
    metric: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.experiment}: {METRICS[self.metric]} (%)"


def suites_of(metric: str) -> dict[str, str]:
    """The suites that a table of ``metric`` shows: summaries under ROUGE, questions under everything else."""
    return SUMMARY_SUITES if metric in _ROUGE else QA_SUITES


def experiments(records: Iterable[Record], metric: str = "em") -> list[str]:
    """The experiments that a table of ``metric`` can be drawn of: those with a record of one of its suites."""
    shown = suites_of(metric)
    return sorted({name for record in records if record.suite in shown for name in record.experiments})


def build_table(
    records: Sequence[Record], *, experiment: str, metric: str = "em", called: Mapping[str, str] = NO_NAMES
) -> Table:
    """The accuracy table of ``experiment``, showing ``metric``, one of ``METRICS``.

    Runs that would share a cell get a row each where their settings tell them apart. If that takes the checkpoint,
    whose digest tells nobody anything, rows are named as ``called`` has it, by run id, where it has. Raises
    ``InputError`` naming both records where nothing does, on records of different metric versions, and on an
    experiment or a metric that no record has.
    """
    shown = suites_of(metric)
    if experiment not in (known := experiments(records, metric)):
        raise unknown("experiment", experiment, known)
    ours = sorted((record for record in records if experiment in record.experiments), key=lambda record: record.path)
    answered = [record for record in ours if record.suite in shown]
    _refuse_mixed_metric_versions(answered)
    scored = {name for record in answered for name in record.metrics if name in METRICS}
    # Where every example of every run raised, any metric will do: the table has to say so.
    if metric not in (valid := scored or METRICS):
        raise unknown(f"metric of experiment {experiment!r}:", metric, valid)

    names = variants(answered)
    placed: dict[tuple[Row, Column], Record] = {}
    for record in answered:
        variant = names[record.path]
        if CHECKPOINT in variant:
            variant = called.get(record.run_id, variant)
        row = Row(system=record.system, variant=variant, passages=record.passages)
        placed.setdefault((row, Column(suite=record.suite, root=record.root)), record)
    rows = tuple(sorted({row for row, _ in placed}, key=row_order))
    columns = tuple(sorted({column for _, column in placed}, key=_column_order))
    cells = tuple(_cell(row, column, placed.get((row, column)), metric) for row in rows for column in columns)
    return Table(
        experiment=experiment,
        metric=metric,
        rows=rows,
        columns=columns,
        cells=cells,
        notes=(
            *_conditions(cells, metric),
            *_left_out(ours, shown),
            *dict.fromkeys(note for r in answered for note in r.notes),
        ),
    )


def _refuse_mixed_metric_versions(records: Sequence[Record]) -> None:
    first = records[0]
    for record in records:
        if record.metric_version != first.metric_version:
            raise InputError(
                f"scores of two metric versions do not belong in one table: {first.path} has version "
                f"{first.metric_version}, {record.path} has version {record.metric_version}; run the older one again"
            )


def _cell(row: Row, column: Column, record: Record | None, metric: str) -> Cell:
    metrics: Mapping[str, Interval] = record.metrics if record else {}
    return Cell(row=row, column=column, record=record, score=metrics.get(metric), chance=metrics.get(CHANCE))


def row_order(row: Row) -> tuple[Any, ...]:
    # Numbers by size, so that k=8 stands before k=16, and 0.05 before 0.5.
    variant = [(float(number or 0), rest) for number, rest in re.findall(r"(\d+(?:\.\d+)?|)(\D*)", row.variant)]
    return (*_known_first(row.system, SYSTEMS), variant, row.passages)


def _column_order(column: Column) -> tuple[Any, ...]:
    return (column.root, *_known_first(column.suite, SUITES))


def _known_first(name: str, known: Mapping[str, str]) -> tuple[int, str]:
    return list(known).index(name) if name in known else len(known), name


def _conditions(cells: Sequence[Cell], metric: str) -> list[str]:
    """What the numbers depend on, in words. A condition that varies is listed with the rows or columns it holds for."""
    ran = [(cell, cell.record) for cell in cells if cell.record is not None]
    methods = sorted({cell.score.method for cell in cells if cell.score})
    version = ran[0][1].metric_version
    notes = [f"Metric: {metric} ({METRICS[metric]}), metric version {version}, over the n examples that were scored."]
    notes.append(f"Brackets: the 95 % interval ({', '.join(methods) or 'nothing was scored'}).")
    if any(cell.chance for cell in cells):
        notes.append(
            "Chance: the expected exact match of a reader that finds a value of the asked relation in a passage "
            "at random, ignoring whose it is."
        )
    if any(cell.read for cell in cells):
        notes.append(READ_NOTE)
    if any(record.n_errors for _, record in ran):
        notes.append("Errors: examples that raised an exception. They count neither as right nor as wrong.")
    if empty := sum(record.n_empty_golds for _, record in ran):
        notes.append(f"Empty golds: {empty} examples have an answer that normalises to nothing.")
    notes.append("Data: " + _said([(cell.column.name, _data(record)) for cell, record in ran]))
    retrieved = [(cell.row.name, said) for cell, record in ran if (said := _retrieval(record))]
    notes.append("Retrieval: " + (_said(retrieved) if retrieved else "none, every run is closed-book"))
    for system in dict.fromkeys(cell.row.system for cell in cells):
        of_system = [(cell.row, record) for cell, record in ran if cell.row.system == system]
        names = list(dict.fromkeys(cell.row.name for cell in cells if cell.row.system == system))
        if len(names) > MANY_ROWS:
            notes.append(f"{SYSTEMS.get(system, system)}: {_in_common([record for _, record in of_system])}")
            continue
        for name in names:
            notes.append(f"{name}: " + _said([(row.context, _system(r)) for row, r in of_system if row.name == name]))
    for title, say in (("Decoding", _decoding), ("Code", _commit)):
        notes.append(f"{title}: " + _said([(cell.row.name, say(record)) for cell, record in ran]))
    if len(ran) < len(cells):
        notes.append("not run: no record exists; refrag-bench run, with this experiment and that suite, makes one.")
    if any(cell.status == "not scored" for cell in cells):
        notes.append(f"not scored: that run's record holds no {metric}.")
    return notes


def _said(sayings: Iterable[tuple[str, str]]) -> str:
    """``[(who, what), ...]`` as "what" where all agree, else as "what (who, who); what (who)"."""
    who_by_what: dict[str, list[str]] = {}
    for who, what in sayings:
        names = who_by_what.setdefault(what, [])
        if who not in names:
            names.append(who)
    if len(who_by_what) == 1:
        return next(iter(who_by_what))
    return "; ".join(f"{what} ({_names(names)})" for what, names in who_by_what.items())


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MANY_ROWS else f"{len(names)} rows"


def _data(record: Record) -> str:
    suite = record.spec["suite"]
    words = [str(suite[key]) for key in ("dataset", "split") if suite.get(key)]
    limit = [f"first {suite['limit']} examples"] if suite.get("limit") else []
    revision = [f"revision {suite['revision']}"] if suite.get("revision") else []
    return ", ".join([" ".join(words) or record.suite, *limit, *revision])


def _retrieval(record: Record) -> str:
    retrieval = record.spec.get("retrieval")
    return f"{retrieval['retriever']}, {retrieval['setting']}" if retrieval else ""


def _system(record: Record) -> str:
    system = record.spec["system"]
    checkpoint = f"checkpoint {system['checkpoint']}" if system.get("checkpoint") else "no checkpoint"
    return ", ".join([checkpoint, *(f"{key}={value}" for key, value in flat(system.get("config") or {}))])


def _in_common(records: Sequence[Record]) -> str:
    """The settings that all share; the others are in the names of the rows, or in the records."""
    each = [_system(record).split(", ") for record in records]
    shared = [word for word in each[0] if all(word in words for words in each)]
    return ", ".join([*shared, "what differs is in the rows' names, and whole in the records"])


def _decoding(record: Record) -> str:
    settings = [*flat(record.spec.get("decode") or {})]
    settings += [(key, str(record.spec.get(key))) for key in ("seed", "prompt_version")]
    return ", ".join(f"{key}={value}" for key, value in settings)


def _commit(record: Record) -> str:
    commit = str(record.provenance.get("commit") or "unknown")[:12]
    return f"commit {commit}" + (" with uncommitted changes" if record.provenance.get("dirty") else "")


def _left_out(records: Sequence[Record], shown: Mapping[str, str]) -> list[str]:
    """The note on records of this experiment that belong to suites which the table does not show."""
    suites = sorted({record.suite for record in records if record.suite not in shown})
    why = "they do not answer questions" if shown is QA_SUITES else "they are no summaries"
    return [f"Not in this table, because {why}: {', '.join(suites)}."] if suites else []
