"""Is a commit slower than another? Times of rounds in which both answered the same prompt, one after the other.

What is judged of a round is a logarithm, so that factors add up. Of standard RAG, the reference, it is that of the one
commit's time over the other's, ln(t₂ / t₁); of every other lane that of its time relative to standard RAG's of the same
commit in the same round, ln(t₂ / rag₂) - ln(t₁ / rag₁). So what slows everything down shows in the reference, and what
slows one system down shows in its lane alone.

Neighbouring rounds share what else the machine does, so they are not independent. Their mean gets its interval by batch
means: the median of each block of ``BLOCK`` rounds (which a few interrupted rounds do not move), and Student's t over
the blocks. Source: Law 2015, Simulation Modeling and Analysis, 5th ed., §9.5.3.

A slow-down is a regression where the hypothesis "no slower than the margin" is rejected: one-sided t-test of the blocks
against ln(1 + margin), Holm over all lanes and figures at ``ALPHA``. The margin is what two processes of one and the
same commit may differ by (where their memory lies, say), which no number of rounds averages out. Two such processes
are measured first (A/A); a figure of theirs whose 95 % interval reaches beyond the margin is one that this machine
cannot tell from noise, and it is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import InputError
from harness.statistics import POWER, holm
from results.gate.verdicts import NOT_JUDGED, PASS, REGRESSION

# What is timed, each in seconds: passages encoded before, or inside; a step of the decode loop.
FIGURES: Mapping[str, str] = {
    "ttft": "TTFT, cached",
    "ttft_not_cached": "TTFT, not cached",
    "ttit": "TTIT (decode loop)",
}
BLOCK = 10  # rounds
FEWEST_BLOCKS = 8
MARGIN = 0.05  # slower by less than this is no regression
ALPHA = 0.005  # of all times of a gate together; with that of the answers (``results.gate.answers``) below 1 in 100

Array = NDArray[np.float64]
Seconds = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Seconds of both commits by lane, figure and round; the first lane is the reference."""

    first: Seconds
    second: Seconds


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean log ratio over ``blocks`` blocks, and its standard error."""

    value: float
    error: float
    blocks: int

    @property
    def interval(self) -> tuple[float, float]:
        """At 95 %, as a logarithm."""
        from scipy.stats import t

        half = float(t.ppf(0.975, self.blocks - 1)) * self.error
        return self.value - half, self.value + half

    def slower_than(self, margin: float) -> float:
        """The one-sided p-value of "no slower than ``margin``"."""
        from scipy.stats import t

        beyond = self.value - math.log1p(margin)
        if self.error == 0:
            return float(beyond <= 0)
        return float(t.sf(beyond / self.error, self.blocks - 1))

    def detectable(self, margin: float, alpha: float) -> float:
        """The smallest slow-down (0.1 is 10 %) that is found in ``POWER`` of repetitions, at about ``alpha``."""
        from scipy.stats import t

        df = self.blocks - 1
        return math.expm1(math.log1p(margin) + float(t.ppf(1 - alpha, df) + t.ppf(POWER, df)) * self.error)


@dataclass(frozen=True, kw_only=True)
class TimeVerdict:
    """One figure of one lane. Ratios are the candidate's over the base's: 1.1 is 10 % slower; the A/A pair's beside.

    ``p`` is Holm's; None, like the ratio, where the candidate was not measured. ``detectable`` is a share.
    """

    lane: str
    figure: str
    reference: str | None
    same: tuple[float, float, float]
    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    verdict: str
    why: str

    @property
    def what(self) -> str:
        return f"{self.lane}: {FIGURES[self.figure]}{f' over that of {self.reference}' if self.reference else ''}"


def log_ratios(rounds: Rounds, lane: str, figure: str) -> Array:
    """What is judged of every round (see above), shape (rounds,)."""
    reference = next(iter(rounds.first))
    ratios = _log(rounds.second, lane, figure) - _log(rounds.first, lane, figure)
    if lane == reference:
        return ratios
    return np.asarray(ratios - log_ratios(rounds, reference, figure))


def batch_mean(values: Array) -> Mean:
    """The mean of the medians of blocks of ``BLOCK``. Raises ``InputError`` for fewer than ``FEWEST_BLOCKS`` blocks."""
    blocks = len(values) // BLOCK
    if blocks < FEWEST_BLOCKS:
        raise InputError(f"expected at least {FEWEST_BLOCKS * BLOCK} rounds, got {len(values)}")
    medians = np.median(values[: blocks * BLOCK].reshape(blocks, BLOCK), axis=1)
    return Mean(value=float(medians.mean()), error=float(medians.std(ddof=1) / math.sqrt(blocks)), blocks=blocks)


def judge(same: Rounds, compared: Rounds | None, *, margin: float = MARGIN) -> list[TimeVerdict]:
    """Every lane and figure of ``compared`` (base, candidate), after the A/A pair ``same`` (base, base again).

    ``compared`` is None where it was not measured, because no figure of the A/A pair allows it (``calm``).
    """
    names = [(lane, figure) for lane in same.first for figure in FIGURES]
    noise = {name: batch_mean(log_ratios(same, *name)) for name in names}
    means = {name: batch_mean(log_ratios(compared, *name)) for name in names} if compared else {}
    judged = [name for name in means if _within(noise[name], margin)]
    adjusted = dict(zip(judged, holm([means[name].slower_than(margin) for name in judged]), strict=True))
    reference = next(iter(same.first))
    verdicts = []
    for name in names:
        mean, p = means.get(name), adjusted.get(name)
        detectable = mean.detectable(margin, ALPHA / max(1, len(judged))) if mean and p is not None else None
        verdict, why = _verdict(noise[name], mean, p, margin)
        low, high = mean.interval if mean else (None, None)
        floor, ceiling = noise[name].interval
        verdicts.append(
            TimeVerdict(
                lane=name[0],
                figure=name[1],
                reference=None if name[0] == reference else reference,
                same=(math.exp(noise[name].value), math.exp(floor), math.exp(ceiling)),
                ratio=math.exp(mean.value) if mean else None,
                low=None if low is None else math.exp(low),
                high=None if high is None else math.exp(high),
                p=p,
                detectable=detectable,
                verdict=verdict,
                why=why,
            )
        )
    return verdicts


def calm(same: Rounds, *, margin: float = MARGIN) -> bool:
    """Whether any figure of the A/A pair lets the candidate's be judged."""
    return any(_within(batch_mean(log_ratios(same, lane, figure)), margin) for lane in same.first for figure in FIGURES)


def _verdict(noise: Mean, mean: Mean | None, p: float | None, margin: float) -> tuple[str, str]:
    if mean is None or p is None:
        low, high = (math.exp(end) for end in noise.interval)
        what = "too noisy for" if low < 1 < high else "differs by more than"
        return NOT_JUDGED, f"A/A {what} a margin of {100 * margin:g} %: the base over itself is {low:.3f} to {high:.3f}"
    if p < ALPHA:
        return REGRESSION, f"slower by {100 * math.expm1(mean.value):.1f} %, the margin is {100 * margin:g} %"
    if (mean.interval[1] - mean.interval[0]) / 2 > math.log1p(margin):
        low, high = (math.exp(end) for end in mean.interval)
        return NOT_JUDGED, f"too noisy: {low:.3f} to {high:.3f} could be a slow-down beyond the margin, or none"
    return PASS, ""


def _within(noise: Mean, margin: float) -> bool:
    low, high = noise.interval
    return max(-low, high) <= math.log1p(margin)


def _log(seconds: Seconds, lane: str, figure: str) -> Array:
    return np.asarray(np.log(np.asarray(seconds[lane][figure], dtype=np.float64)))
