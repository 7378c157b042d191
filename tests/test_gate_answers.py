"""Whether a commit answers worse: lost questions are counted and listed, and nothing is left out in silence."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from harness.metrics import METRIC_VERSION, score_answer
from results.gate import answers as gate_answers
from results.gate.answers import ALPHA, PROBES, Absent, AnswerVerdict, judge, judge_metric
from results.gate.verdicts import EXIT_CODES, NEW, NOT_JUDGED, PASS, REGRESSION, worst
from results.pairs import Answers

SPEC = {"suite": {"name": "nq", "limit": 60}, "prompt_version": 1, "metric_version": 1}


def row(number: int, em: float = 1, **changes: Any) -> dict[str, Any]:
    usage = {"decoder_positions": 50} | ({"oracle_hit": changes.pop("hit")} if "hit" in changes else {})
    said = changes.pop("said", "yes" if em else f"no {number}")
    known = {"id": f"q{number}", "question": f"question {number}", "answers": ["yes"]}
    return known | {"prediction": said, "scores": {"em": em}, "usage": usage | changes.pop("usage", {})} | changes


def answers(ems: Sequence[float], spec: Mapping[str, Any] = SPEC, **changes: Any) -> Answers:
    return Answers(spec=spec, rows=[row(number, em, **changes) for number, em in enumerate(ems)])


def only(verdicts: Sequence[AnswerVerdict], figure: str | None = "em") -> AnswerVerdict:
    (one,) = [one for one in verdicts if one.figure == figure]
    return one


def test_a_commit_against_itself_has_no_flip() -> None:
    side = answers([1] * 50 + [0] * 10)
    verdicts = judge({"cell": (side, side)})
    assert {one.verdict for one in verdicts} == {PASS}
    assert only(verdicts).difference == 0
    assert [one.flips for one in verdicts] == [[], []]
    assert [one.changed for one in verdicts] == [0, 0]


def test_lost_questions_are_a_regression_and_are_listed() -> None:
    base, candidate = answers([1] * 60), answers([0] * 20 + [1] * 40)
    one = only(judge({"cell": (base, candidate)}))
    assert (one.verdict, one.what) == (REGRESSION, "cell: EM")
    assert one.why.startswith("100.0 to 66.7: 20 questions lost, 0 won, p ")
    assert [flip.id for flip in one.flips] == [f"q{number}" for number in range(20)]
    flip = one.flips[0]
    assert (flip.question, flip.base, flip.candidate, flip.golds) == ("question 0", "yes", "no 0", ["yes"])
    assert (one.changed, one.base, one.candidate) == (20, 1.0, pytest.approx(2 / 3))
    mixed = only(judge({"cell": (answers([0, 0] + [1] * 58), answers([1] * 57 + [0] * 3))}))
    assert [flip.id for flip in mixed.flips] == ["q57", "q58", "q59", "q0", "q1"], "lost ones first"
    better = only(judge({"cell": (candidate, base)}))
    assert (better.verdict, better.difference) == (PASS, pytest.approx(1 / 3))


def test_the_margin_and_chance_are_both_allowed() -> None:
    few = only(judge({"cell": (answers([1] * 60), answers([0] * 5 + [1] * 55))}))
    assert (few.verdict, few.p) == (PASS, pytest.approx(2 * 0.5**5)), "8 points, but by chance as well"
    assert few.detectable and few.detectable > 5 / 60
    base, candidate = answers([1] * 2000), answers([0] * 30 + [1] * 1970)
    assert only(judge({"cell": (base, candidate)})).verdict == PASS, "surely worse, by less than the margin of 2 points"
    assert only(judge({"cell": (base, candidate)}, margin=0.01)).verdict == REGRESSION


def test_holm_counts_every_cell_and_figure() -> None:
    base, candidate = answers([1] * 60), answers([0] * 9 + [1] * 51)
    assert only(judge({"cell": (base, candidate)})).verdict == REGRESSION
    others = {f"cell {number}": (base, base) for number in range(9)}
    (one,) = [v for v in judge({"cell": (base, candidate)} | others) if v.cell == "cell" and v.figure == "em"]
    assert (one.verdict, one.p) == (PASS, pytest.approx(10 * 2 * 0.5**9))


def test_refactorings_that_flip_answers_both_ways_raise_at_most_1_in_100_alarms() -> None:
    rng = random.Random(5)
    alarms = 0
    for _ in range(200):
        flipped = {number: rng.randrange(2) for number in rng.sample(range(40), rng.randrange(25))}
        base = answers([flipped.get(number, 1) for number in range(40)])
        candidate = answers([1 - flipped.get(number, 0) for number in range(40)])
        alarms += only(judge({"cell": (base, candidate)})).verdict == REGRESSION
    assert alarms <= 2


def test_a_policy_that_is_ignored_shows_in_the_facts_that_it_expands() -> None:
    """Every answer stays right: only what was expanded is another chunk."""
    base, candidate = answers([1] * 60, hit=1.0), answers([1] * 60, hit=0.0)
    verdicts = judge({"refrag_v2": (base, candidate)})
    assert only(verdicts).verdict == PASS
    one = only(verdicts, "oracle_hit")
    assert (one.verdict, one.what) == (REGRESSION, "refrag_v2: fact expanded")
    assert one.changed == 0


def test_more_positions_are_a_regression_without_any_chance() -> None:
    base = answers([1] * 60)
    for positions, verdict in ((274, REGRESSION), (51.1, REGRESSION), (50.9, PASS), (20, PASS)):
        candidate = answers([1] * 60, usage={"decoder_positions": positions})
        assert only(judge({"cell": (base, candidate)}), "decoder_positions").verdict == verdict


def test_conditions_that_differ_are_named() -> None:
    base = answers([1] * 60)
    other = answers([1] * 60, {**SPEC, "metric_version": 2, "suite": {"name": "nq", "limit": 61, "root": "world"}})
    one = only(judge({"cell": (base, other)}), None)
    assert one.verdict == NOT_JUDGED
    assert one.why == (
        "not comparable, conditions differ: suite.limit 60 and 61; suite.root nothing and world; metric_version 1 and 2"
    )


def test_a_new_system_is_judged_only_where_it_fails() -> None:
    absent = Absent(why="the base has no such system")
    verdicts = judge({"mine": (absent, answers([1] * 45 + [0] * 15, hit=1.0))})
    assert [(one.figure, one.verdict, one.candidate, one.n) for one in verdicts] == [
        ("em", NEW, 0.75, 60),
        ("oracle_hit", NEW, 1.0, 60),
        ("decoder_positions", NEW, 50.0, 60),
    ]
    assert {one.base for one in verdicts} == {None}
    error = {"id": "q7", "question": "question 7", "answers": ["yes"], "error": "RuntimeError: out of memory"}
    for candidate, why in (
        ("a crash", "candidate: a crash"),
        (Answers(spec=SPEC, rows=[*answers([1] * 7).rows, error]), "1 of 8 questions raised an error at the candidate"),
        (answers([]), "no questions"),
    ):
        (one,) = judge({"mine": (absent, candidate)})
        assert one.verdict == NOT_JUDGED and one.why.startswith(why)
    assert worst([NEW, PASS]) == PASS
    assert worst([NEW]) == NOT_JUDGED, "nothing was judged"


@pytest.mark.parametrize("swapped", [False, True])
def test_rows_that_one_side_does_not_have_are_said(swapped: bool) -> None:
    whole = answers([1] * 60)
    error = {"id": "q7", "question": "question 7", "answers": ["yes"], "error": "RuntimeError: out of memory"}
    broken = Answers(spec=SPEC, rows=[error if r["id"] == "q7" else r for r in whole.rows])
    short = Answers(spec=SPEC, rows=whole.rows[:-2])
    twice = Answers(spec=SPEC, rows=[*whole.rows, whole.rows[0]])
    name, other = ("base", "candidate") if swapped else ("candidate", "base")
    for side, why in (
        (broken, f"1 of 60 questions raised an error at the {name}, the first of them q7: RuntimeError: out of memory"),
        (short, f"the {name} has no row of 2 questions of the {other}, the first q58"),
        (twice, f"the {name} has 1 questions twice"),
        ("ImportError: no module", f"{name}: ImportError: no module"),
    ):
        pair = (side, whole) if swapped else (whole, side)
        one = only(judge({"cell": pair}), None)
        assert (one.verdict, one.why) == (NOT_JUDGED, why)
        # Beside it the other cells are judged.
        assert only([v for v in judge({"cell": pair, "b": (whole, whole)}) if v.cell == "b"]).verdict == PASS


def test_a_figure_that_one_side_does_not_have_is_said() -> None:
    with_hits, without = answers([1] * 60, hit=1.0), answers([1] * 60)
    one = only(judge({"cell": (with_hits, without)}), None)
    assert (one.verdict, one.why) == (
        NOT_JUDGED,
        "oracle_hit is there for other questions at the candidate than at the base",
    )
    strange = Answers(spec=SPEC, rows=[{**r, "scores": {"bleu": 1.0}} for r in without.rows])
    assert "none of its scores is judged" in only(judge({"cell": (strange, strange)}), None).why


def test_too_few_questions_are_not_judged() -> None:
    side = answers([1] * 7)
    one = only(judge({"cell": (side, side)}))
    assert (one.verdict, one.why) == (NOT_JUDGED, "7 questions cannot show any drop in 1 tests")
    assert only(judge({"cell": (answers([1] * 8), answers([0] * 8))})).verdict == REGRESSION
    assert 2 * 0.5**7 > ALPHA > 2 * 0.5**8


def scored(metric_version: int = METRIC_VERSION) -> dict[str, Any]:
    return {"metric_version": metric_version, "scores": [score_answer(said, golds) for said, golds in PROBES]}


def test_a_metric_that_scores_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import metrics

    before = scored()
    assert judge_metric(before, scored()).verdict == PASS
    assert judge_metric(before, scored(METRIC_VERSION + 1)).verdict == NOT_JUDGED
    kept = metrics.normalise_squad
    breaks = {
        "case": lambda text: " ".join(text.translate(metrics._DELETE_PUNCTUATION).split()),
        "punctuation": lambda text: " ".join(metrics._ARTICLES_REGEX.sub(" ", text.lower()).split()),
        "articles": lambda text: " ".join(text.lower().translate(metrics._DELETE_PUNCTUATION).split()),
        "space": lambda text: metrics._ARTICLES_REGEX.sub(" ", text.lower().translate(metrics._DELETE_PUNCTUATION)),
    }
    for what, broken in breaks.items():
        monkeypatch.setattr(metrics, "normalise_squad", broken)
        one = judge_metric(before, scored())
        assert one.verdict == REGRESSION, what
        assert "em" in {flip.id for flip in one.flips}, what
        assert "scores of fixed predictions changed (em" in one.why and "METRIC_VERSION did not" in one.why
        assert {flip.why for flip in one.flips} == {"the same answer, scored otherwise"}
    monkeypatch.setattr(metrics, "normalise_squad", kept)
    assert judge_metric(before, scored()).verdict == PASS


def test_the_same_answers_scored_otherwise_say_so() -> None:
    base, candidate = answers([1] * 60, said="yes"), answers([0] * 60, said="yes")
    one = only(judge({"cell": (base, candidate)}))
    assert (one.verdict, one.changed, one.flips[0].why) == (REGRESSION, 0, "the same answer, scored otherwise")


def test_the_worst_of_all() -> None:
    assert [worst(found) for found in ([PASS], [PASS, NOT_JUDGED], [NOT_JUDGED, REGRESSION, PASS], [])] == [
        PASS,
        NOT_JUDGED,
        REGRESSION,
        NOT_JUDGED,
    ]
    assert EXIT_CODES == {PASS: 0, REGRESSION: 1, NOT_JUDGED: 2}
    assert set(gate_answers.BINARY) < set(gate_answers.SCORES)
