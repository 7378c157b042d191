"""How sure a number is: intervals, paired tests, and what a sample of that size could have shown.

A thin layer over scipy. Everything is at the 95 % level and two-sided, every resampling takes a seed and gives the same
answer twice, and nothing ever reports ±0 for a proportion. Which test a comparison gets follows from its scores:

- a mean of 0/1 scores: ``wilson``; of anything else: ``bootstrap_mean`` (``interval`` chooses);
- the same questions answered twice: ``mcnemar_exact`` for 0/1 scores, ``paired_bootstrap`` for F1 or log-perplexity,
  and for every score of which a question has several (seeds, passages);
- a whole table of such differences: ``holm`` over its p-values;
- the same prompts timed twice: ``ratio_of_medians``.

The unit that is resampled, and that ``n`` counts, is the independent one: a question, or a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import InputError

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 10_000
_QUANTILES = (ALPHA / 2, 1 - ALPHA / 2)

# Draws that are held at once: bounds the memory (8 bytes each, a few copies) and keeps them in the cache.
_DRAWS_PER_BATCH = 500_000

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its 95 % interval. ``n`` is the number of values; ``method`` is "wilson" or "bootstrap"."""

    mean: float
    low: float
    high: float
    n: int
    method: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """Two systems, a and b, on the same questions.

    ``difference`` is mean(a) - mean(b), with its 95 % interval; ``p_value`` is two-sided. ``n`` counts questions, of
    which ``a_higher`` and ``b_higher`` are those where one system scored higher (for 0/1 scores: the flips).
    ``detectable`` is the smallest absolute difference that pairs as noisy as these would have shown to be significant
    in 80 % of repetitions, or None (see ``minimal_detectable_difference``).
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    a_higher: int
    b_higher: int
    detectable: float | None
    method: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """A ratio of two medians with its 95 % interval, over ``n`` prompts."""

    ratio: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], binary: bool) -> Interval:
    """The mean of ``values`` with its 95 % interval: Wilson's where every value is 0 or 1, else the bootstrap's.

    Raises ``InputError`` when there is no value, when one is not finite, or when ``binary`` and one is not 0 or 1.
    """
    if not binary:
        return bootstrap_mean(values)
    scores = _zero_one("values", values)
    return wilson(int(scores.sum()), len(scores))


@lru_cache(1 << 14)
def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a proportion: (p + z²/2n ± z·sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n), p = successes/n.

    Never of width 0: 100 of 100 is [0.963, 1]. Source: Wilson 1927, JASA 22(158):209-212. Raises ``InputError`` unless
    0 <= successes <= n and n >= 1.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    bounds = binomtest(successes, n).proportion_ci(confidence_level=1 - ALPHA, method="wilson")
    return Interval(mean=successes / n, low=float(bounds.low), high=float(bounds.high), n=n, method="wilson")


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """The percentile bootstrap of a mean: the 2.5 % and 97.5 % quantiles of 10,000 resampled means.

    Percentile and not BCa, which is NaN on constant data. Constant data and a single value give an interval of width 0:
    the sample holds no sign of spread. Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13.
    Raises ``InputError`` when there is no value or one is not finite.
    """
    return bootstrap_means([values], seed)[0]


def bootstrap_means(samples: Sequence[Sequence[float]], seed: int = 0) -> list[Interval]:
    """``bootstrap_mean`` of each of ``samples``, to the bit, in far less time than one by one.

    All samples are of one size n, so the same rows are drawn for each, and the resampled means of all are one product
    of matrices: samples (M, n) times how often each row was drawn (n, RESAMPLES). The product adds in another order
    than a mean does. So those means that can be a quantile, as far as rounding leaves that open, are then taken again
    as the mean of the drawn values. ``scipy.stats.bootstrap``, which gives the same, draws for one sample at a time.
    """
    scores = np.stack([_finite("values", sample) for sample in samples])
    means = scores.mean(axis=1)
    lows, highs = means.copy(), means.copy()
    varied = scores.min(axis=1) < scores.max(axis=1)  # every resample of the others is the sample
    if varied.any():
        lows[varied], highs[varied] = np.quantile(_resampled_means(scores[varied], seed), _QUANTILES, axis=1)
    return [
        Interval(mean=float(mean), low=float(low), high=float(high), n=scores.shape[1], method="bootstrap")
        for mean, low, high in zip(means, lows, highs, strict=True)
    ]


def mcnemar_exact(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Exact McNemar test of paired 0/1 scores: the questions that only one system got right, as flips of a fair coin.

    With r questions right only in a and s only in b, p = min(1, 2·P(X <= min(r, s))), X ~ Bin(r + s, 1/2); without
    flips p = 1. The interval is Bonett and Price's: with p1 = (r + 1)/(n + 2) and p2 = (s + 1)/(n + 2),
    p1 - p2 ± z·sqrt((p1 + p2 - (p1 - p2)²)/(n + 2)). It is not the test inverted, so that next to p = 0.05 the two can
    disagree: significance is the p-value's, a margin is the interval's.

    Sources: McNemar 1947, Psychometrika 12:153-157; Bonett and Price 2012, JEBS 37(4):479-488. Raises ``InputError``
    when the lengths differ, there is no pair, or a score is not 0 or 1.
    """
    from scipy.stats import binomtest

    a_scores, b_scores = _paired(_zero_one("a", a), _zero_one("b", b))
    n = len(a_scores)
    a_only = int((a_scores > b_scores).sum())
    b_only = int((b_scores > a_scores).sum())
    flips = a_only + b_only
    low, high = _bonett_price(a_only, b_only, n)
    return PairedTest(
        difference=(a_only - b_only) / n,
        low=low,
        high=high,
        p_value=float(binomtest(a_only, flips).pvalue) if flips else 1.0,
        n=n,
        a_higher=a_only,
        b_higher=b_only,
        detectable=minimal_detectable_difference(n, discordance=flips / n),
        method="mcnemar",
    )


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> PairedTest:
    """Paired bootstrap of mean(a) - mean(b), resampling questions: for F1 and log-perplexity.

    ``clusters`` names each row's question, where one question has several rows (seeds, passages): whole questions are
    then resampled, since rows of one question are not independent evidence. The statistic stays the mean over rows,
    sum of differences over number of rows; without ``clusters`` every row is its own question. The p-value is the level
    at which the percentile interval reaches 0, 2·min(P(d* <= 0), P(d* >= 0)), with one added to both counts so that it
    is never 0: 2/10,001 is the smallest.

    Sources: Efron and Tibshirani 1993, ch. 13 and §15.4; Davison and Hinkley 1997, Bootstrap Methods and their
    Application, §3.8 (clusters) and §4.2 (the added one). Raises ``InputError`` when the lengths differ, there is no
    pair, or a score is not finite.
    """
    a_scores, b_scores = _paired(_finite("a", a), _finite("b", b))
    totals, rows = _by_question(a_scores - b_scores, clusters)

    def mean_difference(totals: Array, rows: Array, axis: int = -1) -> Array:
        return np.asarray(totals.sum(axis=axis) / rows.sum(axis=axis))

    resampled = _bootstrap((totals, rows), mean_difference, seed)
    low, high = _percentiles(resampled)
    tail = 1 + min((resampled <= 0).sum(), (resampled >= 0).sum())
    n = len(totals)
    return PairedTest(
        difference=float(totals.sum() / rows.sum()),
        low=low,
        high=high,
        p_value=min(1.0, float(2 * tail / (RESAMPLES + 1))),
        n=n,
        a_higher=int((totals > 0).sum()),
        b_higher=int((totals < 0).sum()),
        # The spread of the estimate itself, so that unequal clusters are allowed for.
        detectable=minimal_detectable_difference(n, sd=float(resampled.std()) * math.sqrt(n)),
        method="paired bootstrap",
    )


def minimal_detectable_difference(
    n: int,
    *,
    discordance: float | None = None,
    sd: float | None = None,
    power: float = POWER,
    alpha: float = ALPHA,
) -> float | None:
    """The smallest true difference that a paired test over ``n`` questions finds with probability ``power``.

    Exactly one of the two says how noisy the pairs are:

    - ``discordance``, for 0/1 scores: the share of questions that exactly one system gets right. The power is the exact
      McNemar test's own, summed over the binomial number of flips (the usual normal formula promises more than the
      exact test keeps). A difference above ``discordance`` needs as many flips, all in one direction.
    - ``sd``, for other scores: the standard deviation of the per-question differences. The answer is
      (z_{1-alpha/2} + z_{power})·sd/√n.

    None when no difference reaches ``power`` (the exact test needs 6 flips to say anything at 5 %), or when ``sd`` is
    0: pairs without spread do not tell how noisy another sample would be. Sources: Connor 1987, Biometrics 43:207-211
    (the power of McNemar's test given the discordance); Cohen 1988, Statistical Power Analysis, ch. 2. Raises
    ``InputError`` when n < 1.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    assert (discordance is None) != (sd is None), "give exactly one of discordance and sd"
    if n < 1:
        raise InputError(f"expected at least one question, got n = {n}")
    if sd is not None:
        return None if sd == 0 else float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * sd / math.sqrt(n))
    assert discordance is not None and 0 <= discordance <= 1, discordance

    def shortfall(difference: float) -> float:
        return power - _mcnemar_power(n, max(discordance, difference), difference, alpha)

    if shortfall(1.0) > 0:
        return None
    return float(brentq(shortfall, 1e-9, 1.0, xtol=1e-7))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given: reject where the result is below 0.05.

    The i-th smallest of m becomes max over j <= i of min(1, (m - j + 1)·p_j): the chance of any false rejection in the
    whole table stays below 5 %, whatever the dependence. Source: Holm 1979, Scand. J. Statist. 6(2):65-70.
    """
    assert all(0 <= p <= 1 for p in p_values), p_values
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def ratio_of_medians(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Ratio:
    """median(a) / median(b) with the percentile bootstrap's interval, resampling prompts: for speed ratios.

    ``a[i]`` and ``b[i]`` are times of prompt i, so a resample draws both together and what they share cancels.
    Source: Efron and Tibshirani 1993, ch. 13. Raises ``InputError`` when the lengths differ, there is no pair, or a
    time is not finite and above 0.
    """
    a_times, b_times = _paired(_finite("a", a), _finite("b", b))
    if min(a_times.min(), b_times.min()) <= 0:
        raise InputError(f"expected times above 0, got {min(a_times.min(), b_times.min())}")

    def ratio(a_times: Array, b_times: Array, axis: int = -1) -> Array:
        return np.asarray(np.median(a_times, axis=axis) / np.median(b_times, axis=axis))

    low, high = _percentiles(_bootstrap((a_times, b_times), ratio, seed))
    return Ratio(ratio=float(ratio(a_times, b_times)), low=low, high=high, n=len(a_times))


def _bootstrap(columns: tuple[Array, ...], statistic: Callable[..., Any], seed: int) -> Array:
    """``statistic`` of 10,000 resamples of the rows of ``columns``, shape (RESAMPLES,)."""
    from scipy.stats import bootstrap

    n = len(columns[0])
    if n == 1:  # scipy refuses, though every resample of one row is that row
        return np.full(RESAMPLES, statistic(*columns, axis=-1))
    result = bootstrap(
        columns,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _DRAWS_PER_BATCH // n),
        paired=len(columns) > 1,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return np.asarray(result.bootstrap_distribution)


def _percentiles(resampled: Array) -> tuple[float, float]:
    low, high = np.quantile(resampled, _QUANTILES)
    return float(low), float(high)


def _resampled_means(scores: Array, seed: int) -> Array:
    """The means of 10,000 resamples of each row of ``scores`` (M, n), shape (M, 10,000); exact where a quantile is."""
    n = scores.shape[1]
    means = np.concatenate([scores @ _counts(rows).T / n for rows in _draws(n, seed)], axis=1)
    open_to_rounding = _near_quantiles(means, rounding=n * np.finfo(np.float64).eps * np.abs(scores).max(axis=1))
    open_to_rounding[_sums_exactly(scores)] = False
    start = 0
    for rows in _draws(n, seed) if open_to_rounding.any() else ():
        batch = slice(start, start := start + len(rows))
        for sample in np.flatnonzero(open_to_rounding[:, batch].any(axis=1)):
            taken = open_to_rounding[sample, batch]
            means[sample, batch][taken] = scores[sample][rows[taken]].mean(axis=1)
    return means


def _draws(n: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The rows of 10,000 resamples of ``n`` rows, shape (some, n) each: those that ``_bootstrap`` draws."""
    generator, most = np.random.default_rng(seed), max(1, _DRAWS_PER_BATCH // n)
    for start in range(0, RESAMPLES, most):
        yield generator.integers(0, n, (min(most, RESAMPLES - start), n))


def _counts(rows: NDArray[np.int64]) -> Array:
    """How often each of n rows is among each of the resamples ``rows`` (R, n), shape (R, n)."""
    resamples, n = rows.shape
    places = rows + n * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=rows.size).reshape(rows.shape).astype(np.float64)


def _near_quantiles(means: Array, rounding: Array) -> NDArray[np.bool_]:
    """Which of ``means`` (M, RESAMPLES), each off by at most ``rounding`` (M,), can be one that a quantile is read off.

    Where each is off by at most r, so is the k-th smallest; so a mean that is more than 2r from it is on the same side
    of it as before rounding.
    """
    ranks = [math.floor(quantile * (RESAMPLES - 1)) + above for quantile in _QUANTILES for above in (0, 1)]
    at = np.partition(means, ranks, axis=1)[:, ranks]
    near = np.zeros(means.shape, dtype=np.bool_)
    for column in at.T:
        near |= np.abs(means - column[:, None]) <= 2 * rounding[:, None]
    return near


def _sums_exactly(scores: Array) -> NDArray[np.bool_]:
    """Which samples of ``scores`` (M, n) add up without rounding in any order: multiples of 1/1024, not too large."""
    units = np.abs(scores) * 1024
    return np.asarray((units % 1 == 0).all(axis=1) & (units.max(axis=1) * scores.shape[1] < 2**53))


def _by_question(differences: Array, clusters: Sequence[Hashable] | None) -> tuple[Array, Array]:
    """The sum of differences and the number of rows of each question, in order of first appearance."""
    if clusters is None:
        return differences, np.ones_like(differences)
    if len(clusters) != len(differences):
        raise InputError(f"expected one cluster per pair, got {len(clusters)} for {len(differences)} pairs")
    numbers: dict[Hashable, int] = {}
    question = [numbers.setdefault(name, len(numbers)) for name in clusters]
    totals, rows = np.bincount(question, differences), np.bincount(question)
    return totals.astype(np.float64), rows.astype(np.float64)


def _bonett_price(a_only: int, b_only: int, n: int) -> tuple[float, float]:
    from scipy.stats import norm

    p1, p2 = (a_only + 1) / (n + 2), (b_only + 1) / (n + 2)
    half = norm.ppf(1 - ALPHA / 2) * math.sqrt((p1 + p2 - (p1 - p2) ** 2) / (n + 2))
    return max(-1.0, float(p1 - p2 - half)), min(1.0, float(p1 - p2 + half))


def _mcnemar_power(n: int, discordance: float, difference: float, alpha: float) -> float:
    """P(exact p < alpha) when each of n questions flips with probability ``discordance``, towards a more often than
    towards b by ``difference``: given m flips, those towards a are Bin(m, (1 + difference/discordance)/2)."""
    from scipy.stats import binom

    # Numbers of flips beyond these have less than 1e-9 of the probability.
    flips = np.arange(binom.ppf(1e-9, n, discordance), binom.isf(1e-9, n, discordance) + 1)
    towards_a = (1 + difference / discordance) / 2
    most_rejected = binom.ppf(alpha / 2, flips, 0.5) - 1  # the test rejects at most this many on one side; -1: never
    rejects = binom.cdf(most_rejected, flips, towards_a) + binom.sf(flips - most_rejected - 1, flips, towards_a)
    return float((binom.pmf(flips, n, discordance) * rejects).sum())


def _finite(name: str, values: Sequence[float]) -> Array:
    array = np.asarray(values, dtype=np.float64)
    assert array.ndim <= 1, array.shape
    if array.size == 0:
        raise InputError(f"expected at least one value in {name}, got none")
    if not np.isfinite(array).all():
        raise InputError(f"expected finite values in {name}, got {array[~np.isfinite(array)][0]}")
    return array


def _zero_one(name: str, values: Sequence[float]) -> Array:
    array = _finite(name, values)
    if not np.isin(array, (0, 1)).all():
        raise InputError(f"expected only 0 and 1 in {name}, got {array[~np.isin(array, (0, 1))][0]}")
    return array


def _paired(a: Array, b: Array) -> tuple[Array, Array]:
    if len(a) != len(b):
        raise InputError(f"expected both systems on the same questions, got {len(a)} and {len(b)} scores")
    return a, b
