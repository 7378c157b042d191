"""Finished runs, question by question: may they be compared, and where do they differ?

For whatever compares: the gate two commits, an experiment its ways of answering, ``refrag-bench compare`` any runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.record import read_rows

JOURNAL = "predictions.jsonl"
ASKED = ("suite", "retrieval", "passages", "metric_version")  # of a spec: what is asked, over what, and how scored


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A finished run: its spec and the rows of its journal."""

    spec: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Run(Answers):
    """The same with its name."""

    run_id: str


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A question whose score is another one now."""

    id: str
    question: str
    golds: Sequence[str]
    base: str
    candidate: str
    before: float
    after: float

    @property
    def why(self) -> str:
        return "the same answer, scored otherwise" if self.base == self.candidate else ""


def read_run(folder: Path, run_id: str, spec: Mapping[str, Any]) -> Run:
    """The finished run in ``folder``, which is not touched.

    Raises ``InputError`` where it is not finished, has no journal (accepted records have none), a damaged one, one that
    holds a question twice, or examples in error: an error is no wrong answer.
    """
    if not (folder / "record.json").is_file():
        raise InputError(f"run {run_id} is not finished; evaluate it before it is compared")
    if not (folder / JOURNAL).is_file():
        raise InputError(f"run {run_id} has no {JOURNAL} in {folder}; accepted records have none, evaluate it again")
    rows = read_rows(folder / JOURNAL, run_id)
    if broken := [row["id"] for row in rows if "error" in row]:
        raise InputError(f"run {run_id} has {len(broken)} examples in error, the first of them {broken[0]}")
    if twice := [name for name, n in Counter(row["id"] for row in rows).items() if n > 1]:
        raise InputError(f"run {run_id} has {len(twice)} questions twice, the first of them {twice[0]}")
    return Run(run_id=run_id, spec=spec, rows=rows)


def refuse_other_questions(runs: Sequence[Run]) -> None:
    """Raise ``InputError``, naming what differs, unless all answer the questions of the first over its passages."""
    first = runs[0]
    for run in runs[1:]:
        asked, also = ({name: one.spec.get(name) for name in ASKED} for one in (first, run))
        differing = list(conditions(asked, also))
        ids = [{row["id"] for row in one.rows} for one in (first, run)]
        if not differing and ids[0] != ids[1]:
            differing = [f"{len(ids[0] - ids[1])} questions of the one alone, {len(ids[1] - ids[0])} of the other"]
        if differing:
            raise InputError(
                "runs that are compared have to answer the same questions over the same passages, by one metric "
                f"version; {first.run_id} and {run.run_id} differ: {'; '.join(differing)}"
            )


def conditions(base: Any, candidate: Any, name: str = "") -> Iterator[str]:
    """Every value of the spec that is not the same on both sides, by its name."""
    if isinstance(base, Mapping) and isinstance(candidate, Mapping):
        for key in dict.fromkeys((*base, *candidate)):
            inner = f"{name}.{key}" if name else key
            yield from conditions(base.get(key, "nothing"), candidate.get(key, "nothing"), inner)
    elif base != candidate:
        yield f"{name} {base} and {candidate}"


def having(side: Answers, figure: str) -> set[str]:
    """The questions that have the figure."""
    return {row["id"] for row in side.rows if value_of(row, figure) is not None}


def paired_values(base: Answers, candidate: Answers, figure: str) -> tuple[list[float], list[float]]:
    """Candidate's and base's values of the questions that have the figure, paired."""
    before, after = ({row["id"]: value_of(row, figure) for row in side.rows} for side in (base, candidate))
    pairs = [(after[id_], value) for id_, value in before.items() if value is not None]
    return [float(new or 0) for new, _ in pairs], [old for _, old in pairs]


def value_of(row: Mapping[str, Any], figure: str) -> float | None:
    """The score or usage figure of one question; None where it has none of that name."""
    value = row["scores"].get(figure, row["usage"].get(figure))
    return None if value is None else float(value)


def flipped(base: Answers, candidate: Answers, figure: str) -> Iterator[Flip]:
    """Questions whose figure differs, in the order of the candidate's journal."""
    earlier = {row["id"]: row for row in base.rows}
    for row in candidate.rows:
        old = earlier[row["id"]]
        before, after = value_of(old, figure), value_of(row, figure)
        if before is not None and after is not None and before != after:
            yield Flip(
                id=row["id"],
                question=row["question"],
                golds=row["answers"],
                base=old["prediction"],
                candidate=row["prediction"],
                before=before,
                after=after,
            )
