"""Intervals and tests against scipy, statsmodels and closed forms; their promises (95 %, 80 %) by simulation."""

import math
from functools import cache

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness.errors import InputError
from harness.statistics import (
    RESAMPLES,
    _bonett_price,
    bootstrap_mean,
    bootstrap_means,
    holm,
    interval,
    mcnemar_exact,
    minimal_detectable_difference,
    paired_bootstrap,
    ratio_of_medians,
    wilson,
)


def flips(a_only: int, b_only: int, n: int) -> tuple[list[float], list[float]]:
    """Paired 0/1 scores with these flips; the rest is half right in both and half wrong in both."""
    agree = n - a_only - b_only
    same = [1.0] * (agree // 2) + [0.0] * (agree - agree // 2)
    return [1.0] * a_only + [0.0] * b_only + same, [0.0] * a_only + [1.0] * b_only + same


# Wilson


def test_wilson_of_a_perfect_score() -> None:
    perfect = wilson(100, 100)
    assert (round(100 * perfect.low, 1), perfect.high, perfect.mean, perfect.n) == (96.3, 1.0, 1.0, 100)
    # At p = 1 the formula is n / (n + z²).
    assert perfect.low == pytest.approx(100 / (100 + stats.norm.ppf(0.975) ** 2), rel=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (7, 30), (251, 500), (3600, 3610)])
def test_wilson_against_statsmodels(successes: int, n: int) -> None:
    ours = wilson(successes, n)
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)
    assert 0 <= ours.low <= ours.mean <= ours.high <= 1
    assert ours.low < ours.high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(InputError, match="successes"):
        wilson(successes, n)


# Bootstrap of a mean


def test_bootstrap_covers_the_mean_in_95_of_100_samples() -> None:
    """Uniform on [0, 1], n = 60, 400 samples: 0.95 with a standard error of 0.011."""
    samples = np.random.default_rng(0).random((400, 60))
    found = [bootstrap_mean(sample.tolist(), seed=index) for index, sample in enumerate(samples)]
    coverage = np.mean([each.low <= 0.5 <= each.high for each in found])
    assert 0.915 <= coverage <= 0.975


def test_bootstrap_is_near_the_normal_interval_for_many_values() -> None:
    values = np.random.default_rng(1).beta(2, 5, 2_000)
    ours = bootstrap_mean(values.tolist())
    half = stats.norm.ppf(0.975) * values.std() / math.sqrt(len(values))
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_bootstrap_is_exactly_the_resampled_means() -> None:
    """Drawn with the same generator by hand; the batches in which it draws do not matter."""
    values = np.random.default_rng(2).random(700)  # more than one batch of draws
    generator = np.random.default_rng(5)
    means = [values[generator.integers(0, 700, 700)].mean() for _ in range(RESAMPLES)]
    ours = bootstrap_mean(values.tolist(), seed=5)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 50, 701])
def test_many_samples_at_once_are_the_bootstrap_of_each_to_the_bit(n: int) -> None:
    """Also where many resamples tie but for rounding: few values, constant values, rare values."""
    rng = np.random.default_rng(16)
    samples = [
        rng.choice([0, 2 / 3, 0.8, 1], n),
        rng.choice([0, 1 / 3, 1e5], n, p=[0.01, 0.98, 0.01]),
        np.full(n, 0.15),
        rng.choice([0, 1], n).astype(float),
        rng.integers(9, 500, n).astype(float),
        np.full(n, 2.0**53 + 2),
        -rng.random(n),
    ]
    for sample, ours in zip(samples, bootstrap_means([sample.tolist() for sample in samples], seed=5), strict=True):
        resampled = sample.repeat(RESAMPLES)
        if n > 1:  # of which scipy refuses one
            resampled = stats.bootstrap(
                (sample,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile", rng=np.random.default_rng(5)
            ).bootstrap_distribution
        assert (ours.mean, ours.low, ours.high) == (sample.mean(), *np.quantile(resampled, [0.025, 0.975]))
        assert ours == bootstrap_mean(sample.tolist(), seed=5)


@pytest.mark.parametrize("values", [[0.3] * 50, [0.0, 0.0], [1.0], [0.7]])
def test_bootstrap_of_constant_data_is_that_constant(values: list[float]) -> None:
    ours = bootstrap_mean(values)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((values[0],) * 3)
    assert ours.n == len(values)


def test_bootstrap_repeats_itself_with_a_seed() -> None:
    values = [0.0, 0.2, 0.5, 0.9, 1.0, 0.1]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)


def test_interval_chooses_by_the_kind_of_score() -> None:
    assert interval([1.0, 0.0, 1.0, 1.0], binary=True) == wilson(3, 4)
    assert interval([1.0, 0.0, 0.5, 1.0], binary=False) == bootstrap_mean([1.0, 0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("values", "binary", "message"),
    [
        ([], True, "at least one value"),
        ([], False, "at least one value"),
        ([0.5, 1.0], True, "only 0 and 1"),
        ([float("nan"), 1.0], False, "finite"),
        ([float("inf"), 1.0], True, "finite"),
    ],
)
def test_interval_refuses(values: list[float], binary: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        interval(values, binary=binary)


# McNemar


@pytest.mark.parametrize(("a_only", "b_only", "n"), [(6, 0, 20), (5, 0, 20), (14, 3, 100), (3, 14, 100), (8, 8, 40)])
def test_mcnemar_against_the_binomial_and_statsmodels(a_only: int, b_only: int, n: int) -> None:
    ours = mcnemar_exact(*flips(a_only, b_only, n))
    m = a_only + b_only
    closed_form = min(1.0, 2 * sum(math.comb(m, k) for k in range(min(a_only, b_only) + 1)) / 2**m)
    assert ours.p_value == pytest.approx(closed_form, rel=1e-12)
    assert ours.p_value == pytest.approx(mcnemar([[0, a_only], [b_only, 0]], exact=True).pvalue, rel=1e-12)
    assert (ours.a_higher, ours.b_higher, ours.n) == (a_only, b_only, n)
    assert ours.difference == (a_only - b_only) / n
    assert ours.low < ours.difference < ours.high


def test_mcnemar_of_equal_systems_claims_neither_a_difference_nor_certainty() -> None:
    a, _ = flips(0, 0, 500)
    same = mcnemar_exact(a, a)
    assert (same.difference, same.p_value, same.a_higher, same.b_higher) == (0.0, 1.0, 0, 0)
    assert same.low < 0 < same.high
    # The exact test needs 6 flips in one direction: P(Bin(500, d) >= 6) = 0.8.
    assert same.detectable is not None
    assert stats.binom.sf(5, 500, same.detectable) == pytest.approx(0.8, abs=1e-4)


def test_mcnemar_swapped_is_mirrored() -> None:
    a, b = flips(20, 7, 200)
    there, back = mcnemar_exact(a, b), mcnemar_exact(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert (back.p_value, back.detectable) == (there.p_value, there.detectable)


def test_interval_of_a_paired_proportion_by_hand() -> None:
    """One flip added to each side and two questions to n; the variance of a difference of two trinomial shares."""
    ours = mcnemar_exact(*flips(14, 3, 100))
    p1, p2 = 15 / 102, 4 / 102
    half = 1.959963984540054 * math.sqrt((p1 * (1 - p1) + p2 * (1 - p2) + 2 * p1 * p2) / 102)
    assert (ours.low, ours.high) == pytest.approx((p1 - p2 - half, p1 - p2 + half), rel=1e-12)


@pytest.mark.parametrize(("p1", "p2"), [(0.02, 0.02), (0.1, 0.05), (0.3, 0.1), (0.1, 0.0)])
def test_interval_of_a_paired_proportion_covers_the_truth(p1: float, p2: float) -> None:
    """Coverage summed exactly over every outcome at n = 60."""
    n = 60
    coverage = 0.0
    for a_only in range(n + 1):
        for b_only in range(n + 1 - a_only):
            low, high = _bonett_price(a_only, b_only, n)
            if low <= p1 - p2 <= high:
                coverage += stats.multinomial.pmf([a_only, b_only, n - a_only - b_only], n, [p1, p2, 1 - p1 - p2])
    assert 0.935 <= coverage <= 1


def test_mcnemar_refuses_what_is_not_paired_or_not_binary() -> None:
    with pytest.raises(InputError, match="same questions, got 2 and 1"):
        mcnemar_exact([1.0, 0.0], [1.0])
    with pytest.raises(InputError, match="only 0 and 1 in b, got 0.5"):
        mcnemar_exact([1.0, 0.0], [1.0, 0.5])
    with pytest.raises(InputError, match="at least one value in a"):
        mcnemar_exact([], [])


# Paired bootstrap


def test_paired_bootstrap_is_the_bootstrap_of_the_differences() -> None:
    generator = np.random.default_rng(6)
    a = generator.random(200)
    b = a - 0.02 + 0.1 * generator.standard_normal(200)
    ours, mean = paired_bootstrap(a.tolist(), b.tolist(), seed=4), bootstrap_mean((a - b).tolist(), seed=4)
    assert (ours.difference, ours.low, ours.high) == pytest.approx((mean.mean, mean.low, mean.high), rel=1e-9)
    assert (ours.a_higher, ours.b_higher) == ((a > b).sum(), (a < b).sum())
    # Many pairs, no outliers: the p-value of the t-test, up to resampling noise.
    assert ours.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.01)


def test_paired_bootstrap_agrees_with_its_own_interval() -> None:
    generator = np.random.default_rng(7)
    for shift in np.linspace(0, 0.05, 12):
        difference = shift + 0.1 * generator.standard_normal(60)
        ours = paired_bootstrap(difference.tolist(), [0.0] * 60)
        assert (ours.p_value < 0.05) == (not ours.low <= 0 <= ours.high)


def test_equal_systems_differ_by_nothing_and_tell_nothing_of_noise() -> None:
    same = paired_bootstrap([0.1, 0.5, 1.0], [0.1, 0.5, 1.0])
    assert (same.difference, same.low, same.high, same.p_value, same.detectable) == (0.0, 0.0, 0.0, 1.0, None)


def test_p_value_is_never_0() -> None:
    assert paired_bootstrap([1.0] * 30, [0.0] * 30).p_value == pytest.approx(2 / 10_001)


def test_repeating_every_row_of_a_question_adds_no_evidence() -> None:
    """Five equal rows per question: clustered, nothing changes; unclustered, the interval shrinks by the square root
    of five, which is the false confidence that clustering is there to prevent."""
    generator = np.random.default_rng(8)
    a, b = generator.random(80).tolist(), generator.random(80).tolist()
    five_a, five_b = a * 5, b * 5
    questions = [f"q{index}" for index in range(80)] * 5
    once, clustered = paired_bootstrap(a, b), paired_bootstrap(five_a, five_b, clusters=questions)
    assert (clustered.n, clustered.a_higher, clustered.p_value) == (once.n, once.a_higher, once.p_value)
    assert (clustered.low, clustered.high, clustered.detectable) == pytest.approx(
        (once.low, once.high, once.detectable)
    )
    naive = paired_bootstrap(five_a, five_b)
    assert (naive.high - naive.low) * math.sqrt(5) == pytest.approx(once.high - once.low, rel=0.05)


def test_clusters_of_unequal_size_keep_the_mean_over_rows() -> None:
    ours = paired_bootstrap([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], clusters=["x", "x", "x", "y"])
    assert (ours.difference, ours.n, ours.a_higher, ours.b_higher) == (0.75, 2, 1, 0)
    # Resamples are xx, xy, yy: means 1, 0.75, 0.
    assert (ours.low, ours.high) == (0.0, 1.0)


def test_clusters_are_drawn_whole() -> None:
    """By hand with the same generator: draw questions, pool all their rows, take the mean."""
    generator = np.random.default_rng(14)
    rows = [generator.normal(size, 1, size) for size in generator.integers(1, 6, 30)]  # long clusters differ from short
    names = [index for index, cluster in enumerate(rows) for _ in cluster]
    differences = np.concatenate(rows).tolist()
    ours = paired_bootstrap(differences, [0.0] * len(differences), seed=15, clusters=names)
    generator = np.random.default_rng(15)
    means = [np.concatenate([rows[i] for i in generator.integers(0, 30, 30)]).mean() for _ in range(RESAMPLES)]
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-9)


def test_clusters_must_name_every_pair() -> None:
    with pytest.raises(InputError, match="one cluster per pair, got 1 for 2"):
        paired_bootstrap([1.0, 0.0], [0.0, 0.0], clusters=["q"])


# Power


def detectable(n: int, **noise: float) -> float:
    difference = minimal_detectable_difference(n, **noise)
    assert difference is not None
    return difference


@cache
def mcnemar_p(a_only: int, b_only: int) -> float:
    return float(stats.binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


@pytest.mark.parametrize(
    ("n", "discordance"),
    [
        (500, 0.1),
        (500, 0.01),  # less than the difference needs: all flips in one direction
        (100, 0.3),  # few flips, where the normal formula is too hopeful
        (3610, 0.15),
    ],
)
def test_a_detectable_flip_rate_is_found_in_80_of_100_runs(n: int, discordance: float) -> None:
    difference = detectable(n, discordance=discordance)
    discordance = max(discordance, difference)
    rates = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    outcomes = np.random.default_rng(9).multinomial(n, rates, size=5_000)
    found = np.mean([mcnemar_p(int(a_only), int(b_only)) < 0.05 for a_only, b_only, _ in outcomes])
    assert found == pytest.approx(0.8, abs=0.023)  # four standard errors


def test_a_detectable_mean_difference_is_found_in_80_of_100_runs() -> None:
    n, sd = 400, 0.35
    difference = detectable(n, sd=sd)
    runs = np.random.default_rng(10).normal(difference, sd, (10_000, n))
    assert np.mean(stats.ttest_1samp(runs, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.016)


def test_what_the_paired_bootstrap_calls_detectable_is_found_in_80_of_100_runs() -> None:
    """The spread taken from one sample; then 200 samples with exactly that difference (standard error 0.028)."""
    n = 60
    generator = np.random.default_rng(11)
    noise = generator.uniform(-0.5, 0.5, n)
    difference = paired_bootstrap((noise - noise.mean()).tolist(), [0.0] * n).detectable
    assert difference is not None
    scale = noise.std() / math.sqrt(1 / 12)
    samples = difference + scale * generator.uniform(-0.5, 0.5, (200, n))
    found = np.mean([paired_bootstrap(sample.tolist(), [0.0] * n).p_value < 0.05 for sample in samples])
    assert found == pytest.approx(0.8, abs=0.08)


def test_detectable_approaches_the_normal_formula() -> None:
    """Connor 1987: n = (z_alpha sqrt(psi) + z_power sqrt(psi - d²))² / d²."""
    n, discordance = 50_000, 0.2
    difference = detectable(n, discordance=discordance)
    z_alpha, z_power = stats.norm.ppf([0.975, 0.8])
    needed = ((z_alpha * math.sqrt(discordance) + z_power * math.sqrt(discordance - difference**2)) / difference) ** 2
    assert needed == pytest.approx(n, rel=0.02)


def test_more_questions_or_less_power_detect_less() -> None:
    sizes = [detectable(n, discordance=0.2) for n in (50, 100, 500, 3610)]
    assert sizes == sorted(sizes, reverse=True)
    assert detectable(100, sd=0.3, power=0.5) < detectable(100, sd=0.3)
    assert detectable(400, sd=0.3) == pytest.approx(detectable(100, sd=0.3) / 2)


def test_where_nothing_can_be_detected() -> None:
    """Five flips are never significant at 5 % (2·0.5⁵ = 0.0625), six are (0.03125)."""
    assert minimal_detectable_difference(5, discordance=1.0) is None
    assert minimal_detectable_difference(6, discordance=1.0) is not None
    assert minimal_detectable_difference(10, sd=0.0) is None
    with pytest.raises(InputError, match="n = 0"):
        minimal_detectable_difference(0, sd=1.0)


# Holm


@pytest.mark.parametrize("m", [1, 2, 7, 20])
def test_holm_against_statsmodels(m: int) -> None:
    p_values = (np.random.default_rng(m).random(m) ** 3).round(2).tolist()  # rounded: some are equal
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


# Ratio of medians


def test_ratio_of_a_constant_speed_up_is_certain() -> None:
    """Prompts differ by a factor of 100 and the systems by exactly 2: pairing leaves no doubt."""
    times = np.random.default_rng(12).uniform(0.01, 1.0, 40)
    ours = ratio_of_medians((2 * times).tolist(), times.tolist())
    assert (ours.ratio, ours.low, ours.high, ours.n) == pytest.approx((2.0, 2.0, 2.0, 40))


def test_ratio_of_medians_against_scipy() -> None:
    generator = np.random.default_rng(13)
    a, b = generator.lognormal(0.4, 0.3, 51), generator.lognormal(0.0, 0.3, 51)
    ours = ratio_of_medians(a.tolist(), b.tolist(), seed=1)
    reference = stats.bootstrap(
        (a, b),
        lambda a, b: np.median(a) / np.median(b),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4_000,
        rng=2,
    ).confidence_interval
    assert ours.ratio == np.median(a) / np.median(b)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), rel=0.03)


def test_ratio_of_medians_refuses_what_is_no_time() -> None:
    with pytest.raises(InputError, match="above 0, got 0.0"):
        ratio_of_medians([1.0, 0.0], [1.0, 1.0])
    with pytest.raises(InputError, match="same questions"):
        ratio_of_medians([1.0], [1.0, 1.0])
