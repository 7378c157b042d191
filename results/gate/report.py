"""What a gate found, as text, JSON, and one page of HTML: the verdict first, then every number that it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import plain
from harness.statistics import ratio_of_medians
from results.gate import answers as gate_answers
from results.gate import times as gate_times
from results.gate.answers import AnswerVerdict
from results.gate.times import FIGURES, Seconds, TimeVerdict
from results.gate.verdicts import EXIT_CODES, NEW, NOT_JUDGED, PASS, REGRESSION, worst
from results.grids import Grid
from results.pages import page
from results.pairs import Flip

TEMPLATE = Path(__file__).parent / "gate.html.jinja"
FLIPS_SHOWN = 10  # of a cell, in the text; the others are in the JSON and on the page


@dataclass(frozen=True, kw_only=True)
class Times:
    """``problem`` is why nothing was timed; ``speeds`` are the candidate's, standard RAG's median over each lane's.

    ``untimed`` are lanes that were left out, each with its verdict and why.
    """

    verdicts: Sequence[TimeVerdict]
    problem: str
    speeds: Mapping[str, Any]
    untimed: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """``times`` is None, and ``answers`` empty, where they were not asked for. ``records`` are the candidate's."""

    suites: str
    base: Mapping[str, Any]
    candidate: Mapping[str, Any]
    settings: Mapping[str, Any]
    answers: Sequence[AnswerVerdict]
    times: Times | None
    records: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        return worst(verdict for verdict, _ in self.reasons)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Every part's verdict, and what it is of and why."""
        found = [(one.verdict, f"{one.cell if one.verdict == NEW else one.what}: {one.why}") for one in self.answers]
        found = list(dict.fromkeys(found))  # of a new cell every figure has the same to say
        found += self.times.untimed if self.times else ()
        if self.times and self.times.problem:
            found.append((NOT_JUDGED, f"times: {self.times.problem}"))
        timed = self.times.verdicts if self.times else ()
        if timed and all(one.p is None for one in timed):
            widest = max(timed, key=lambda one: one.same[2] / one.same[1])
            found.append((NOT_JUDGED, f"times: none of {len(timed)}; {widest.what}: {widest.why}"))
        else:
            found += [(one.verdict, f"{one.what}: {one.why}") for one in timed]
        return found

    @property
    def named(self) -> list[tuple[str, str]]:
        """The reasons that are no pass, regressions first and what is new last."""
        order = (REGRESSION, NOT_JUDGED, NEW)
        return sorted((one for one in self.reasons if one[0] != PASS), key=lambda one: order.index(one[0]))

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = plain(self)
        return {
            "schema_version": 1,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "named": self.named,
        } | found

    def golden(self) -> dict[str, Any]:
        """What is accepted of a candidate: its records by cell, and its speeds."""
        speed = self.times.speeds if self.times else {}
        return {
            "schema_version": 1,
            "suites": self.suites,
            "commit": self.candidate["commit"],
            "date": self.candidate["date"],
            "subject": self.candidate["subject"],
            "settings": plain(self.settings),
            "records": plain(self.records),
            "speeds": plain(speed),
            "provenance": plain(self.provenance),
        }

    def text(self) -> str:
        """For a terminal or a log."""
        lines = [f"gate {self.suites}: {self.verdict.upper()}", ""]
        lines += [f"base       {self.base['said']}", f"candidate  {self.candidate['said']}", ""]
        lines += [f"{verdict}: {what}" for verdict, what in self.named]
        parts = [*lines, "", *(grid.markdown() for grid in self.grids()), *self._flip_lines()]
        return "\n".join(parts).rstrip() + "\n"

    def html(self) -> str:
        return page(TEMPLATE, it=self)

    def grids(self) -> Iterator[Grid]:
        if self.answers:
            yield self._answer_grid()
        if self.times and self.times.verdicts:
            yield self._time_grid()

    @property
    def flipped(self) -> list[tuple[str, Sequence[Flip]]]:
        """What has questions with another score, and those."""
        return [(one.what, one.flips) for one in self.answers if one.flips]

    def _flip_lines(self) -> Iterator[str]:
        for what, flips in self.flipped:
            yield f"flips, {what}: {len(flips)}"
            for flip in flips[:FLIPS_SHOWN]:
                change = "lost" if flip.after < flip.before else "won"
                why = f" ({flip.why})" if flip.why else ""
                yield (
                    f"  {change}  {flip.question}  base {flip.base!r}, candidate {flip.candidate!r}, "
                    f"gold {' | '.join(flip.golds)!r}{why}"
                )
            if len(flips) > FLIPS_SHOWN:
                yield f"  and {len(flips) - FLIPS_SHOWN} more (--json and --html have all)"
            yield ""

    def _answer_grid(self) -> Grid:
        margin = 100 * self.settings["margin"]
        return Grid(
            title="Answers",
            head=("What", "Base", "Candidate", "Difference", "p", "Detectable", "n", "Other answers", "Verdict"),
            lines=[_answer_line(one) for one in self.answers],
            notes=[
                f"Scores in percent, differences in points with their 95 % interval. Regression: a drop beyond "
                f"{margin:g} points with p below {gate_answers.ALPHA} (paired on the questions, Holm's over this "
                f"table); decoder positions: a rise beyond {100 * gate_answers.COST_MARGIN:g} %.",
                "Detectable: the smallest drop that so many questions would have shown in 80 % of repetitions.",
                "Other answers: questions whose answer has another text, whatever it scores.",
            ],
        )

    def _time_grid(self) -> Grid:
        assert self.times
        margin = 100 * self.settings["time_margin"]
        return Grid(
            title="Times",
            head=("What", "Candidate / base", "95 %", "A/A", "p", "Detectable", "Verdict"),
            lines=[_time_line(one) for one in self.times.verdicts],
            notes=[
                f"Above 1 is slower, of {self.settings['rounds']} rounds in turn on this machine, batch size 1. "
                f"Regression: slower by more than {margin:g} % with p below {gate_times.ALPHA} (Holm's over this "
                "table).",
                "A/A: the base against itself in a second process. Where its interval reaches beyond the margin, the "
                "figure is not judged.",
                "Detectable: the smallest slow-down that would have been a regression in 80 % of repetitions.",
            ],
        )


def speeds(seconds: Seconds) -> dict[str, Any]:
    """Standard RAG's median time over each lane's, by lane and figure, with its interval; its own seconds too."""
    reference = next(iter(seconds))
    return {
        lane: {figure: plain(ratio_of_medians(seconds[reference][figure], own[figure])) for figure in FIGURES}
        for lane, own in seconds.items()
        if lane != reference
    }


def _answer_line(one: AnswerVerdict) -> list[str]:
    if one.verdict == NEW and one.candidate is not None:
        mean = f"{one.candidate:.1f}" if one.figure == gate_answers.COST else f"{100 * one.candidate:.1f}"
        return [one.what, "-", mean, "-", "-", "-", str(one.n), "-", one.verdict]
    if one.base is None or one.candidate is None or one.difference is None:
        return [one.what, "-", "-", "-", "-", "-", str(one.n) if one.n else "-", "-", one.verdict]
    if one.figure == gate_answers.COST:
        numbers = [f"{one.base:.1f}", f"{one.candidate:.1f}", f"{one.difference:+z.1f}"]
    else:
        numbers = [f"{100 * one.base:.1f}", f"{100 * one.candidate:.1f}", f"{100 * one.difference:+z.1f}"]
    if one.low is not None and one.high is not None:
        numbers[-1] += f" [{100 * one.low:+z.1f}, {100 * one.high:+z.1f}]"
    p = "-" if one.p is None else f"{one.p:.2g}"
    detectable = "-" if one.detectable is None else f"{100 * one.detectable:.1f}"
    return [one.what, *numbers, p, detectable, str(one.n), str(one.changed), one.verdict]


def _time_line(one: TimeVerdict) -> list[str]:
    same = f"{one.same[0]:.3f} [{one.same[1]:.3f}, {one.same[2]:.3f}]"
    measured = ["-", "-"]
    if one.ratio is not None and one.low is not None and one.high is not None:
        measured = [f"{one.ratio:.3f}", f"[{one.low:.3f}, {one.high:.3f}]"]
    p = "-" if one.p is None else f"{one.p:.2g}"
    detectable = "-" if one.detectable is None else f"{100 * one.detectable:.1f} %"
    return [one.what, *measured, same, p, detectable, one.verdict]
