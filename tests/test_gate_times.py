"""Whether a commit is slower: it is not itself, by the noise of a real gate; a slower decode loop is, and named."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT

from harness.errors import InputError
from harness.statistics import POWER
from results.gate.times import BLOCK, FIGURES, Rounds, TimeVerdict, batch_mean, calm, judge, log_ratios
from results.gate.verdicts import NOT_JUDGED, PASS, REGRESSION
from slurm.gate.rounds import PROMPTS, TOKENS, WARM_UP, measure

RECORDED: dict[str, Any] = json.loads((PROJECT / "tests" / "golden" / "gate_times.json").read_text())
LANES = tuple(RECORDED["same"]["first"])
ROUNDS = 240
RUN = 30  # rounds that are drawn as they followed each other: noise lasts longer than a block
PAIRS = [RECORDED[part] for part in ("same", "compared")]
RECORDED_ROUNDS = len(PAIRS[0]["first"][LANES[0]]["ttft"])


def drawn(rng: np.random.Generator, scale: float, slower: dict[tuple[str, str], float] | None = None) -> Rounds:
    """A pair of one commit: runs of recorded rounds, either process the first; deviations shrunk to ``scale``.

    A whole round is drawn, so that all lanes and figures keep what they share. The second is ``slower`` by factors.
    """
    starts = rng.integers(0, RECORDED_ROUNDS - RUN + 1, ROUNDS // RUN)
    chosen = np.concatenate([np.arange(start, start + RUN) for start in starts])
    pair = PAIRS[rng.integers(len(PAIRS))]
    order = rng.permutation(["first", "second"])
    sides: list[dict[str, dict[str, list[float]]]] = [{}, {}]
    for lane in LANES:
        for figure in FIGURES:
            logs = [np.log(np.asarray(pair[name][lane][figure])) for name in order]
            centre = np.median(np.concatenate(logs))
            for side, log in enumerate(logs):
                value = centre + scale * (log[chosen] - centre)
                if side and slower:
                    value = value + math.log(slower.get((lane, figure), 1.0))
                sides[side].setdefault(lane, {})[figure] = np.exp(value).tolist()
    return Rounds(first=sides[0], second=sides[1])


def failed(verdicts: list[TimeVerdict]) -> list[tuple[str, str]]:
    return [(one.lane, one.figure) for one in verdicts if one.verdict == REGRESSION]


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.1])
def test_200_gates_of_one_commit_raise_at_most_1_in_100_alarms(scale: float) -> None:
    """By the noise that was recorded on a machine that others used, and by a third and a tenth of it."""
    rng = np.random.default_rng(7)
    gates = [judge(drawn(rng, scale), drawn(rng, scale)) for _ in range(200)]
    assert sum(bool(failed(gate)) for gate in gates) <= 2
    judged = sum(one.verdict != NOT_JUDGED for gate in gates for one in gate)
    if scale == 0.1:
        assert judged > 0.9 * 200 * len(gates[0]), "a gate that refuses everything raises no alarm either"


def test_a_decode_loop_that_is_10_percent_slower_is_caught_and_named() -> None:
    """In every system alike, so that no ratio to standard RAG shows it: standard RAG's own time does."""
    rng = np.random.default_rng(8)
    slower = {(lane, "ttit"): 1.1 for lane in LANES}
    gates = [judge(drawn(rng, 0.1), drawn(rng, 0.1, slower)) for _ in range(50)]
    assert sum(failed(gate) == [("standard_rag", "ttit")] for gate in gates) >= 48
    (one,) = [one for one in gates[0] if one.verdict == REGRESSION]
    assert one.what == "standard_rag: TTIT (decode loop)"
    assert one.why.startswith("slower by ") and one.why.endswith("the margin is 5 %")
    assert one.ratio == pytest.approx(1.1, abs=0.03)


def test_a_lane_that_is_slower_alone_is_named_and_no_other() -> None:
    rng = np.random.default_rng(9)
    lane = "refrag_v2 k=8 policy"
    (found,) = {tuple(failed(judge(drawn(rng, 0.05), drawn(rng, 0.05, {(lane, "ttft"): 1.2})))) for _ in range(5)}
    assert found == ((lane, "ttft"),)


def test_a_lane_that_is_slower_alone_is_seen_in_the_ratio_to_standard_rag() -> None:
    pair = drawn(np.random.default_rng(1), 0.1, {("cepe", "ttft"): 1.5})
    plain = drawn(np.random.default_rng(1), 0.1)
    assert log_ratios(pair, "cepe", "ttft") - log_ratios(plain, "cepe", "ttft") == pytest.approx(math.log(1.5))
    everything = drawn(np.random.default_rng(1), 0.1, {(lane, "ttft"): 1.5 for lane in LANES})
    assert log_ratios(everything, "cepe", "ttft") == pytest.approx(log_ratios(plain, "cepe", "ttft"))
    gained = log_ratios(everything, "standard_rag", "ttft") - log_ratios(plain, "standard_rag", "ttft")
    assert gained == pytest.approx(math.log(1.5))


def normal(rng: np.random.Generator, sd: float, slower: float = 1.0, rounds: int = ROUNDS) -> Rounds:
    """Standard RAG alone, log-normal noise."""
    sides = [
        {"standard_rag": {f: np.exp(rng.normal(0, sd, rounds) + shift).tolist() for f in FIGURES}}
        for shift in (0.0, math.log(slower))
    ]
    return Rounds(first=sides[0], second=sides[1])


def test_the_detectable_slow_down_is_detected_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    quiet = normal(rng, 0.001)
    printed = np.mean([one.detectable for _ in range(30) for one in judge(quiet, normal(rng, 0.1))])
    assert 0.06 < printed < 0.1
    found = [
        one.verdict == REGRESSION for _ in range(100) for one in judge(quiet, normal(rng, 0.1, 1 + float(printed)))
    ]
    assert POWER - 0.1 < np.mean(found) < 1.0


def test_a_machine_that_cannot_tell_a_commit_from_itself_is_told_so() -> None:
    rng = np.random.default_rng(4)
    slower, noisy, quiet = normal(rng, 0.02, 1.2), normal(rng, 0.9), normal(rng, 0.02)
    faster, differs = normal(rng, 0.02, 1 / 1.2), "A/A differs by more than a margin of 5 %"
    for same, why in ((slower, differs), (faster, differs), (noisy, "A/A too noisy for a margin")):
        assert not calm(same)
        verdicts = judge(same, None)
        assert {one.verdict for one in verdicts} == {NOT_JUDGED}
        assert all(one.why.startswith(why) and one.ratio is None and one.p is None for one in verdicts)
        # Whatever the candidate is.
        assert {one.verdict for one in judge(same, normal(rng, 0.02, 2.0))} == {NOT_JUDGED}
    assert calm(quiet)
    assert {one.verdict for one in judge(quiet, normal(rng, 0.02))} == {PASS}
    assert {one.verdict for one in judge(quiet, normal(rng, 0.02, 1.2))} == {REGRESSION}
    assert {one.verdict for one in judge(quiet, normal(rng, 0.02, 1.03))} == {PASS}, "less than the margin"
    (one, *_) = judge(quiet, normal(rng, 0.9))
    assert (one.verdict, one.why[:9]) == (NOT_JUDGED, "too noisy"), "a pass says that there was something to see"


def test_batch_means() -> None:
    values = np.concatenate([np.full(BLOCK, float(number)) for number in range(8)])
    values[::BLOCK] = 1e6  # one interrupted round of every block
    mean = batch_mean(np.concatenate([values, [99.0] * (BLOCK - 1)]))  # the rest of a block is left out
    assert (mean.value, mean.blocks) == (3.5, 8)
    assert mean.error == pytest.approx(np.std(range(8), ddof=1) / math.sqrt(8))
    from scipy.stats import ttest_1samp

    tested = ttest_1samp(range(8), math.log1p(0.05), alternative="greater")
    assert mean.slower_than(0.05) == pytest.approx(tested.pvalue)
    assert mean.interval == pytest.approx(ttest_1samp(range(8), 0).confidence_interval(0.95))
    with pytest.raises(InputError, match="at least 80 rounds, got 79"):
        batch_mean(np.zeros(79))


class Simulated:
    """A commit whose answers take what its clock says."""

    def __init__(self, name: str, calls: list[tuple[str, str, int]], ttit_s: float) -> None:
        self.name, self.calls, self.ttit_s = name, calls, ttit_s
        self.rng = np.random.default_rng(len(name))

    def ask(self, what: str, **given: Any) -> Any:
        assert (what, given["tokens"]) == ("answer", TOKENS)
        self.calls.append((self.name, given["lane"], given["prompt"]))
        noise = float(np.exp(self.rng.normal(0, 0.02)))
        steps = [self.ttit_s * noise] * (TOKENS - 1)
        steps[0] = 10.0  # one interrupted step
        return {"ttft_s": 0.2 * noise, "ttft_with_encode_s": 0.3 * noise, "ttit_s": steps}


def test_both_answer_the_same_prompts_in_turn_and_a_slow_loop_is_found() -> None:
    calls: list[tuple[str, str, int]] = []
    one, other = Simulated("one", calls, 0.010), Simulated("other", calls, 0.011)
    measured = measure(one, other, LANES, 80, PROMPTS)
    assert len(calls) == 2 * len(LANES) * (80 + WARM_UP)
    starts = []
    for first, second in zip(calls[::2], calls[1::2], strict=True):
        assert first[1:] == second[1:], "the same lane and prompt, one after the other"
        assert {first[0], second[0]} == {"one", "other"}
        starts.append(first[0])
    assert starts.count("one") == pytest.approx(len(starts) / 2, abs=len(LANES)), "neither is always the first"
    assert {len(times) for lane in measured.first.values() for times in lane.values()} == {80}
    same = measure(Simulated("one", [], 0.010), Simulated("again", [], 0.010), LANES, 80, PROMPTS)
    assert failed(judge(same, measured)) == [("standard_rag", "ttit")]
