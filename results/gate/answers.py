"""Does a commit answer worse than another? Journals of the same questions, question by question.

Judged of each cell, every figure that both journals have:

- ``em`` (``rougeL`` of summaries) and ``oracle_hit``, whether a chunk that states the asked fact was expanded: a
  regression where the drop is beyond the margin and the paired test rejects "no difference" at ``ALPHA``, Holm over all
  cells and figures of the gate (exact McNemar of 0/1 scores, else paired bootstrap: ``harness.statistics``);
- ``decoder_positions``, which a prompt of given text has without any chance: a regression where its mean rises by more
  than ``COST_MARGIN``.

And of the metric itself: fixed predictions, scored by both commits, have to get the same scores under the same
METRIC_VERSION. An answer of the synthetic world is one word, spelt as its gold, so that its questions would not show a
normalisation that broke.

Nothing is left out in silence: questions that one side has no answer to, because it raised an error or never came to
it, leave their cell not judged, and so do specs that differ, by what differs. A cell of a system that the base does not
have is new: the candidate's means are told, and nothing is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.config import plain
from harness.statistics import PairedTest, holm, mcnemar_exact, minimal_detectable_difference, paired_bootstrap
from results.gate.verdicts import NEW, NOT_JUDGED, PASS, REGRESSION
from results.pairs import Answers, Flip, conditions, flipped, having, paired_values, value_of

MARGIN = 0.02  # a smaller drop of a score is no regression
COST_MARGIN = 0.02  # nor a smaller rise of the positions
ALPHA = 0.01  # two-sided, of all cells and figures together: 0.5 % towards a false regression
SCORES: Mapping[str, str] = {"em": "EM", "rougeL": "ROUGE-L", "oracle_hit": "fact expanded"}
BINARY = ("em", "oracle_hit")
COST = "decoder_positions"
PROBES: Sequence[tuple[str, tuple[str, ...]]] = (
    ("Paris", ("Paris",)),
    ("paris", ("Paris",)),
    ("PARIS", ("paris",)),
    ("The Paris", ("Paris",)),
    ("the answer", ("an answer",)),
    ("Paris.", ("Paris",)),
    ("  Paris  ", ("Paris",)),
    ("St. John's", ("St Johns",)),
    ("state-of-the-art", ("state of the art",)),
    ("rock 'n' roll", ("Rock n Roll",)),
    ("Paris, Texas", ("Paris",)),
    ("Paris", ("Paris, Texas",)),
    ("London", ("Paris", "London")),
    ("Iran", ("Ira",)),
    ("theatre", ("atre",)),
    ("a b", ("b",)),
    ("1,000", ("1000",)),
    ("Café", ("Cafe",)),
    ("“Paris”", ("Paris",)),
    ("New_York", ("New York",)),
    ("", ("Paris",)),
    ("", ("The",)),
    ("yes", ("yes",)),
    ("no it is not", ("no",)),
    ("Paris Paris London", ("Paris London",)),
)


@dataclass(frozen=True, kw_only=True)
class Absent:
    """In place of the base's answers: it has no such system, for the reason ``why``."""

    why: str


Base = Answers | Absent | str


@dataclass(frozen=True, kw_only=True)
class AnswerVerdict:
    """One figure of one cell; means and the difference (candidate - base) are fractions, of positions counts.

    ``p`` is Holm's and None where nothing was tested; so are the other numbers where there are none. ``changed`` counts
    the questions whose answer has another text, whatever it scores.
    """

    cell: str
    figure: str | None
    n: int
    base: float | None
    candidate: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    changed: int
    flips: Sequence[Flip]
    verdict: str
    why: str

    @property
    def what(self) -> str:
        names = {**SCORES, COST: "decoder positions"}
        return f"{self.cell}: {names[self.figure]}" if self.figure else self.cell


def judge(cells: Mapping[str, tuple[Base, Answers | str]], *, margin: float = MARGIN) -> list[AnswerVerdict]:
    """Every figure of every cell, (base, candidate); a text in place of answers is why there are none."""
    verdicts: list[AnswerVerdict] = []
    tested: list[tuple[str, str, Answers, Answers, PairedTest]] = []
    for cell, (base, candidate) in cells.items():
        if isinstance(base, Absent):
            verdicts += _new(cell, base, candidate)
            continue
        problem = incomparable(base, candidate)
        if isinstance(base, str) or isinstance(candidate, str) or problem:
            verdicts.append(_not_judged(cell, problem))
            continue
        known = [figure for figure in (*SCORES, COST) if having(base, figure) or having(candidate, figure)]
        if not set(known) & set(SCORES):
            verdicts.append(_nothing(cell, NOT_JUDGED, f"none of its scores is judged ({', '.join(SCORES)})"))
        for figure in known:
            if having(base, figure) != having(candidate, figure):
                why = f"{figure} is there for other questions at the candidate than at the base"
                verdicts.append(_nothing(cell, NOT_JUDGED, why))
            elif figure == COST:
                verdicts.append(_cost(cell, base, candidate))
            else:
                paired = mcnemar_exact if figure in BINARY else paired_bootstrap
                tested.append((cell, figure, base, candidate, paired(*paired_values(base, candidate, figure))))
    adjusted = holm([test.p_value for *_, test in tested])
    for (cell, figure, base, candidate, test), p in zip(tested, adjusted, strict=True):
        verdicts.append(_score(cell, figure, base, candidate, test, p, margin=margin, tests=len(tested)))
    order = list(cells)
    return sorted(verdicts, key=lambda verdict: order.index(verdict.cell))


def incomparable(base: Answers | str, candidate: Answers | str) -> str:
    """Why the two cannot be compared, a sentence; empty where they can."""
    reasons = [f"{name}: {side}" for name, side in (("base", base), ("candidate", candidate)) if isinstance(side, str)]
    if isinstance(base, str) or isinstance(candidate, str):
        return "; ".join(reasons)
    if differing := list(conditions(plain(base.spec), plain(candidate.spec))):
        return f"not comparable, conditions differ: {'; '.join(differing)}"
    for name, side in (("base", base), ("candidate", candidate)):
        reasons += _errors(name, side)
    ids = {name: [row["id"] for row in side.rows] for name, side in (("base", base), ("candidate", candidate))}
    for name, other in (("base", "candidate"), ("candidate", "base")):
        if missing := [id_ for id_ in ids[other] if id_ not in set(ids[name])]:
            reasons.append(f"the {name} has no row of {len(missing)} questions of the {other}, the first {missing[0]}")
        if len(set(ids[name])) < len(ids[name]):
            reasons.append(f"the {name} has {len(ids[name]) - len(set(ids[name]))} questions twice")
    return "; ".join(reasons) or ("" if base.rows else "no questions")


def _errors(name: str, side: Answers) -> Iterator[str]:
    """A sentence if questions of the side ``name`` raised an error."""
    if errors := [row for row in side.rows if "error" in row]:
        yield (
            f"{len(errors)} of {len(side.rows)} questions raised an error at the {name}, "
            f"the first of them {errors[0]['id']}: {errors[0]['error']}"
        )


def judge_metric(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> AnswerVerdict:
    """``PROBES`` as both commits score them: {"metric_version", "scores": [{dialect: score}]}."""
    names = [name for name in base["scores"][0] if name in candidate["scores"][0]]
    flips = [
        Flip(
            id=name,
            question=f"probe of {name}",
            golds=golds,
            base=said,
            candidate=said,
            before=before[name],
            after=after[name],
        )
        for (said, golds), before, after in zip(PROBES, base["scores"], candidate["scores"], strict=True)
        for name in names
        if before[name] != after[name]
    ]
    versions = [side["metric_version"] for side in (base, candidate)]
    verdict, why = PASS, ""
    if versions[0] != versions[1]:
        verdict, why = NOT_JUDGED, f"not comparable, conditions differ: metric_version {versions[0]} and {versions[1]}"
    elif flips:
        dialects = ", ".join(dict.fromkeys(flip.id for flip in flips))
        verdict, why = (
            REGRESSION,
            (
                f"{len(flips)} of {len(names) * len(PROBES)} scores of fixed predictions changed ({dialects}), and "
                "METRIC_VERSION did not"
            ),
        )
    return _nothing("metric", verdict, why, n=len(PROBES), flips=flips)


def _score(
    cell: str,
    figure: str,
    base: Answers,
    candidate: Answers,
    test: PairedTest,
    p: float,
    *,
    margin: float,
    tests: int,
) -> AnswerVerdict:
    after, before = paired_values(base, candidate, figure)
    detectable = _detectable(figure, test, tests)
    verdict, why = PASS, ""
    if detectable is None and figure in BINARY:
        verdict, why = NOT_JUDGED, f"{test.n} questions cannot show any drop in {tests} tests"
    elif test.difference < -margin and p < ALPHA:
        verdict, why = (
            REGRESSION,
            (
                f"{100 * sum(before) / test.n:.1f} to {100 * sum(after) / test.n:.1f}: "
                f"{test.b_higher} questions lost, {test.a_higher} won, p {p:.2g}"
            ),
        )
    return AnswerVerdict(
        cell=cell,
        figure=figure,
        n=test.n,
        base=sum(before) / test.n,
        candidate=sum(after) / test.n,
        difference=test.difference,
        low=test.low,
        high=test.high,
        p=p,
        detectable=None if detectable is None else max(detectable, margin),
        changed=_changed(base, candidate),
        flips=sorted(flipped(base, candidate, figure), key=lambda flip: flip.after > flip.before),
        verdict=verdict,
        why=why,
    )


def _detectable(figure: str, test: PairedTest, tests: int) -> float | None:
    """As ``PairedTest.detectable``, at the level that the first step of Holm asks for."""
    if figure not in BINARY:
        return test.detectable
    flips = (test.a_higher + test.b_higher) / test.n
    return minimal_detectable_difference(test.n, discordance=flips, alpha=ALPHA / tests)


def _cost(cell: str, base: Answers, candidate: Answers) -> AnswerVerdict:
    pairs = paired_values(base, candidate, COST)
    after, before = (sum(values) / len(values) for values in pairs)
    rise = after / before - 1 if before else 0.0
    worse = rise > COST_MARGIN
    why = f"{before:.1f} to {after:.1f} decoder positions, the margin is {100 * COST_MARGIN:g} %" if worse else ""
    return AnswerVerdict(
        cell=cell,
        figure=COST,
        n=len(pairs[0]),
        base=before,
        candidate=after,
        difference=after - before,
        low=None,
        high=None,
        p=None,
        detectable=None,
        changed=_changed(base, candidate),
        flips=[],
        verdict=REGRESSION if worse else PASS,
        why=why,
    )


def _changed(base: Answers, candidate: Answers) -> int:
    before = {row["id"]: row["prediction"] for row in base.rows}
    return sum(row["prediction"] != before[row["id"]] for row in candidate.rows)


def _new(cell: str, base: Absent, candidate: Answers | str) -> list[AnswerVerdict]:
    """The candidate's means; not judged where it does not answer every question."""
    problem = f"candidate: {candidate}" if isinstance(candidate, str) else "; ".join(_errors("candidate", candidate))
    if isinstance(candidate, str) or problem:
        return [_not_judged(cell, problem)]
    verdicts = []
    for figure in (*SCORES, COST):
        values = [value for row in candidate.rows if (value := value_of(row, figure)) is not None]
        if values:
            blank = _nothing(cell, NEW, f"nothing to compare with, {base.why}", n=len(values))
            verdicts.append(replace(blank, figure=figure, candidate=sum(values) / len(values)))
    return verdicts or [_not_judged(cell, "no questions")]


def _not_judged(cell: str, why: str) -> AnswerVerdict:
    return _nothing(cell, NOT_JUDGED, why)


def _nothing(cell: str, verdict: str, why: str, n: int = 0, flips: Sequence[Flip] = ()) -> AnswerVerdict:
    """A verdict without numbers."""
    return AnswerVerdict(
        cell=cell,
        figure=None,
        n=n,
        base=None,
        candidate=None,
        difference=None,
        low=None,
        high=None,
        p=None,
        detectable=None,
        changed=0,
        flips=flips,
        verdict=verdict,
        why=why,
    )
