"""Is one run better than another on the same questions? Any finished runs against the first of them.

Of each figure that the suite has (``FIGURES``) and each run: the difference of the means over the same questions, with
the test that ``harness.statistics`` has for such scores: exact McNemar where each is 0 or 1, a paired bootstrap of
questions otherwise. p-values are Holm's over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import plain
from harness.errors import InputError
from harness.statistics import PairedTest, holm, mcnemar_exact, paired_bootstrap
from harness.summary import BINARY
from results.grids import percent
from results.pairs import ASKED, Flip, Run, conditions, flipped, having, paired_values, read_run, refuse_other_questions
from results.records import read_record

FIGURES: Mapping[str, str] = {"em": "EM", "f1": "F1", "rougeL": "ROUGE-L"}
TESTS: Mapping[str, str] = {"mcnemar": "exact McNemar", "paired bootstrap": "paired bootstrap"}
HEAD = ("", "figure", "first", "this", "difference", "test", "p", "p (Holm)", "detectable", "n")


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One figure of one run against the first one's: the means, and ``test`` of this one minus the first (fractions).

    ``p_holm`` is Holm's over all contrasts; ``flips`` are the questions that the two score differently.
    """

    figure: str
    run: int
    first_mean: float
    mean: float
    test: PairedTest
    p_holm: float
    flips: Sequence[Flip]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """``runs`` in the order given; ``contrasts`` by run, then by figure. A contrast's ``run`` counts from 0."""

    runs: Sequence[Run]
    contrasts: Sequence[Contrast]

    def text(self, flips: int) -> str:
        """For a terminal, with the first ``flips`` questions that only one of two answered right."""
        return "\n".join(self._lines(flips)).rstrip() + "\n"

    def as_json(self, flips: int) -> dict[str, Any]:
        """Differences, means and intervals as fractions."""
        first = self.runs[0]
        return {
            **{name: first.spec.get(name) for name in ASKED},
            "questions": len(first.rows),
            "runs": [
                {"run_id": run.run_id, "system": plain(run.spec["system"]), "differs": differing(first, run)}
                for run in self.runs
            ],
            "tests": [
                {
                    "figure": one.figure,
                    "first": first.run_id,
                    "run": self.runs[one.run].run_id,
                    "means": [one.first_mean, one.mean],
                    **plain(one.test),
                    "p_holm": one.p_holm,
                    "flips": plain(one.flips[:flips]),
                }
                for one in self.contrasts
            ],
        }

    def _lines(self, flips: int) -> Iterator[str]:
        from tabulate import tabulate

        first = self.runs[0]
        suite, retrieval = first.spec["suite"], first.spec.get("retrieval")
        found = f"{retrieval['retriever']}, {retrieval['setting']}, " if retrieval else ""
        passages = f"{first.spec['passages']} passages" if first.spec["passages"] else "closed-book"
        yield f"{suite['name']} ({suite['root']}), {found}{passages}, {len(first.rows)} questions"
        for place, run in enumerate(self.runs):
            said = (
                "; ".join(differing(first, run)) or "differs in nothing that its spec names" if place else "the first"
            )
            yield f"[{place + 1}] {run.spec['system']['name']} {run.run_id}: {said}"
        yield ""
        yield tabulate([_line(one) for one in self.contrasts], headers=HEAD, disable_numparse=True)
        yield "Points of 100; this - first with its 95 % interval; p: two-sided, Holm over this table;"
        yield "detectable: what so many questions, as noisy as these, would have shown in 80 % of repetitions."
        yield ""
        for one in self.contrasts:
            if one.figure == self.contrasts[0].figure:
                what = "right" if one.figure in BINARY else f"higher {FIGURES[one.figure]}"
                yield f"{what} in [1] alone: {one.test.b_higher}; in [{one.run + 1}] alone: {one.test.a_higher}"
                for flip in one.flips[:flips]:
                    yield from _flip_lines(flip, one.run)


def compare(places: Sequence[str], runs: Path) -> Compared:
    """The runs ``places`` (folders, or run ids below ``runs``) against the first.

    Raises ``InputError`` where they do not answer the same questions over the same passages by one metric version, one
    is given twice, is not finished, has examples in error or no journal, or scores no answers.
    """
    found = [_read(folder_of(place, runs)) for place in places]
    if len(found) < 2:
        raise InputError(f"expected at least two runs to compare, got {len(found)}")
    first, *others = found
    for place, run in enumerate(found):
        if run.run_id in {other.run_id for other in found[:place]}:
            raise InputError(f"run {run.run_id} is given twice; a run differs in nothing from itself")
    refuse_other_questions(found)
    tested = [
        (figure, place, _tested(first, run, figure))
        for place, run in enumerate(others, start=1)
        for figure in FIGURES
        if _both_have(first, run, figure)
    ]
    adjusted = holm([test.p_value for _, _, (_, _, test) in tested])
    return Compared(
        runs=found,
        contrasts=[
            Contrast(
                figure=figure,
                run=place,
                first_mean=before,
                mean=after,
                test=test,
                p_holm=p,
                flips=[*flipped(first, found[place], figure)],
            )
            for (figure, place, (before, after, test)), p in zip(tested, adjusted, strict=True)
        ],
    )


def folder_of(place: str, runs: Path) -> Path:
    """The folder ``place``, or of the run of that id below ``runs``. Raises ``InputError`` where there is neither."""
    if (folder := Path(place)).is_dir():
        return folder
    below = [path for path in runs.glob("*/*/*") if path.name == place and path.is_dir()]
    if len(below) != 1:
        raise InputError(f"expected a run's folder or the id of a run below {runs}, got {place!r}")
    return below[0]


def differing(first: Run, run: Run) -> list[str]:
    """Every value of the two specs that is not the same, by its name."""
    return list(conditions(first.spec, run.spec))


def _read(folder: Path) -> Run:
    if not (folder / "record.json").is_file():
        below = next(folder.glob("**/record.json"), None)
        hint = f"; the folder of a run is {below.parent}, say" if below else ""
        raise InputError(f"{folder} holds no finished run (record.json){hint}")
    record = read_record(folder / "record.json")
    run = read_run(folder, record.run_id, record.spec)
    if not run.rows or not any(figure in run.rows[0]["scores"] for figure in FIGURES):
        raise InputError(
            f"run {run.run_id} on {record.suite} answers no questions; expected runs with one of "
            f"{', '.join(FIGURES)} (log-perplexities are compared by the experiment that measures them)"
        )
    return run


def _both_have(first: Run, run: Run, figure: str) -> bool:
    """Whether the figure is there to test. Raises ``InputError`` where it is of other questions in the one."""
    if (questions := having(first, figure)) != having(run, figure):
        raise InputError(f"runs {first.run_id} and {run.run_id} have {figure} of other questions")
    return bool(questions)


def _tested(first: Run, run: Run, figure: str) -> tuple[float, float, PairedTest]:
    """Both means, the first one's first, and the test."""
    after, before = paired_values(first, run, figure)
    paired = mcnemar_exact if figure in BINARY else paired_bootstrap
    return sum(before) / len(before), sum(after) / len(after), paired(after, before)


def _line(one: Contrast) -> list[str]:
    test = one.test
    return [
        f"[{one.run + 1}] - [1]",
        FIGURES[one.figure],
        percent(one.first_mean),
        percent(one.mean),
        f"{100 * test.difference:+z.1f} [{100 * test.low:+z.1f}, {100 * test.high:+z.1f}]",
        TESTS[test.method],
        f"{test.p_value:.2g}",
        f"{one.p_holm:.2g}",
        "-" if test.detectable is None else f"{100 * test.detectable:.1f}",
        str(test.n),
    ]


def _flip_lines(flip: Flip, run: int) -> Iterator[str]:
    yield f"  {flip.id}  {_short(flip.question)}"
    yield f"    gold {_short(' | '.join(flip.golds))!r}"
    for place, answer, score in ((1, flip.base, flip.before), (run + 1, flip.candidate, flip.after)):
        yield f"    [{place}]  {_short(answer)!r}: {percent(score)}"


def _short(text: str, most: int = 300) -> str:
    """``text`` in one line, cut after ``most`` letters: a question can hold a whole conversation."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."
