"""Several runs put together: a published example, a direct second implementation, coverage by simulation."""

from itertools import product
from math import comb, inf, sqrt

import numpy as np
import pytest
from scipy import stats as sps

from truing.stats.meta import (
    Mean,
    equivalence,
    exact_limits,
    exact_share,
    implied_variance,
    mean_over_cases,
    paule_mandel,
    random_effects,
)
from truing.types.verdicts import Estimate

# BCG vaccine trials (Colditz et al. 1994): cases and healthy, vaccinated and not. The standard worked example.
BCG = np.array(
    [
        (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
        (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
        (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
    ],
    dtype=float,
)  # fmt: skip


def test_the_published_bcg_example():
    """As printed in Viechtbauer (2010, J. Stat. Softw. 36(3)) and its manual: method EB, which is PM."""
    a, b, c, d = BCG.T
    y, v = np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    found = random_effects(y, v)
    assert found.tau2 == paule_mandel(y, v) == pytest.approx(0.3181, abs=5e-4)
    assert found.i2 == pytest.approx(0.9212, abs=5e-4)
    assert found.mean.value == pytest.approx(-0.7150, abs=1e-3)


def direct(y, v, tau2, level):
    """Modified Hartung-Knapp, written out with loops."""
    w = [1 / (x + tau2) for x in v]
    mean = sum(a * b for a, b in zip(w, y, strict=True)) / sum(w)
    q = sum(a * (b - mean) ** 2 for a, b in zip(w, y, strict=True)) / (len(y) - 1)
    half = sps.t.ppf((1 + level) / 2, len(y) - 1) * sqrt(max(1.0, q) / sum(w))
    return mean - half, mean + half


def test_against_a_direct_second_implementation():
    rng = np.random.default_rng(3)
    for k in (3, 4, 7, 12):
        y, v = rng.normal(0.05, 0.03, k), rng.uniform(1e-5, 4e-4, k)
        found = random_effects(y, v)
        for level in (0.9, 0.95):
            assert found.mean.limits(level) == pytest.approx(direct(y, v, found.tau2, level), rel=1e-9)


def test_paule_mandel_solves_its_equation_and_is_zero_without_excess_spread():
    rng = np.random.default_rng(5)
    y, v = rng.normal(0, 1, 9), rng.uniform(0.01, 0.2, 9)
    t = paule_mandel(y, v)
    w = 1 / (v + t)
    assert (w * (y - (w * y).sum() / w.sum()) ** 2).sum() == pytest.approx(8, rel=1e-6)
    assert paule_mandel(y, v * 1000) == 0


def test_runs_that_agree_by_chance_are_never_narrower_than_their_own_error():
    """Unmodified, identical estimates would give an interval of width zero."""
    rng = np.random.default_rng(11)
    for k in range(50):
        y, v = rng.normal(0, 0.01 if k else 0, 5), rng.uniform(1e-5, 1e-3, 5)
        low, high = random_effects(y, v).mean.limits(0.95)
        assert (high - low) / 2 >= sps.norm.ppf(0.975) / sqrt((1 / v).sum())


@pytest.mark.parametrize(
    ("y", "v"), [([0.1, 0.2], [1.0, 1.0]), ([0.1] * 3, [0.0, 1, 1]), ([0.1] * 3, [np.nan, 1, 1]), ([0.1] * 3, [1, 1])]
)
def test_what_cannot_be_pooled_is_refused(y, v):
    with pytest.raises(ValueError, match="estimates"):
        random_effects(np.array(y), np.array(v))


@pytest.mark.parametrize("k", [3, 5, 10])
def test_coverage(k):
    rng, runs, inside = np.random.default_rng(k), 300, 0
    v = np.linspace(0.5, 2.0, k) * 2e-4
    for _ in range(runs):
        low, high = random_effects(rng.normal(0.05, np.sqrt(0.03**2 + v)), v).mean.limits(0.95)
        inside += low <= 0.05 <= high
    assert inside / runs >= 0.95 - 3 * sqrt(0.95 * 0.05 / runs)


def test_a_further_normal_error_is_covered_and_p_is_the_interval_inverted():
    rng, inside, runs = np.random.default_rng(2), 0, 2000
    for _ in range(runs):
        a = rng.normal(0, 1, 5)
        found = Mean(a.mean() + rng.normal(0, 0.6), sps.sem(a), 4).plus(0.36)
        low, high = found.limits(0.95)
        inside += low <= 0 <= high
    assert 0.94 <= inside / runs <= 0.975
    wide, plain = Mean(0.3, 0.1, 4, 0.01), Mean(0.3, 0.1, 4)
    assert wide.limits(0.9)[0] < plain.limits(0.9)[0]
    assert wide.limits(1 - 2 * wide.p_above(0.1))[0] == pytest.approx(0.1)
    assert plain.p_above(0.1) == pytest.approx(sps.t.sf(2, 4))
    assert plain.p_above(0.5) == pytest.approx(sps.t.cdf(2, 4))


def test_equivalence_is_two_one_sided_t_tests_and_the_interval():
    rng, seen = np.random.default_rng(1), set()
    for mean in (0.0, 0.01, 0.02, 0.03, 0.06, -0.05):
        for spread in (0.02, 0.1):
            d = rng.normal(mean, spread, 40)
            found = equivalence(Mean(float(d.mean()), float(sps.sem(d)), 39), 0.03)
            low, high = sps.t.interval(0.90, 39, d.mean(), sps.sem(d))
            upper = sps.ttest_1samp(d, 0.03, alternative="less").pvalue
            lower = sps.ttest_1samp(d, -0.03, alternative="greater").pvalue
            differs = sps.ttest_1samp(d, 0).pvalue < 0.05
            assert (found.low, found.high) == pytest.approx((low, high))
            assert found.p == pytest.approx(max(upper, lower))
            assert (found.status == "equivalent") == (found.p < 0.05) == (low > -0.03 and high < 0.03)
            assert (found.excludes_zero, found.status == "different") == (differs, differs and found.p >= 0.05)
            seen.add(found.status)
    assert seen == {"equivalent", "different", "undetermined"}
    assert equivalence(Mean(0.01, 0.001, inf), 0.03).excludes_zero, "equivalent, and not 0"
    assert equivalence(None, 0.03, reason="2 seeds").status == "undetermined"
    for delta in (0, -0.1, float("nan"), inf):
        with pytest.raises(ValueError, match="delta"):
            equivalence(None, delta)


# ---------------------------------------------------------------------------------------------------------------------


def test_exact_limits_by_enumeration_and_against_scipy():
    for n in (3, 5, 12):
        for k in range(n + 1):
            ci = sps.binomtest(k, n).proportion_ci(0.95, "exact")
            assert exact_limits(k, n, 0.95) == pytest.approx((ci.low, ci.high), abs=1e-9)
        for p in (0.05, 0.3, 0.5, 0.71):
            inside = sum(
                comb(n, k) * p**k * (1 - p) ** (n - k)
                for k in range(n + 1)
                if exact_limits(k, n, 0.95)[0] <= p <= exact_limits(k, n, 0.95)[1]
            )
            assert inside >= 0.95


def test_unknown_cases_count_both_ways():
    """The ends are the outermost over every way in which the unknown could turn out."""
    yes, no, unknown = 3, 2, 2
    found = exact_share(yes, no, unknown)
    every = [exact_limits(yes + sum(w), 7, 0.95) for w in product((0, 1), repeat=unknown)]
    assert found.value == pytest.approx(3 / 5)
    assert found.set_low == pytest.approx(min(low for low, _ in every))
    assert found.set_high == pytest.approx(max(high for _, high in every))
    assert found.left_out == {"unknown": 2}


def test_several_seeds_of_a_model_are_worth_less():
    nine, three = exact_share(6, 3), exact_share(6, 3, groups=3)
    assert (nine.low, nine.high) == (nine.set_low, nine.set_high) == (three.set_low, three.set_high)
    assert (three.low, three.high) == pytest.approx(exact_limits(2, 3, 0.95))
    assert three.low < nine.low and three.high > nine.high


def test_shares_of_nothing():
    assert exact_share(0, 0).value is None
    only = exact_share(0, 0, 3)
    assert only.value is None and only.low is None
    for counts in ((-1, 2), (1, -2), (1, 1, -1)):
        with pytest.raises(ValueError, match="unknown"):
            exact_share(*counts)
    with pytest.raises(ValueError, match="5 groups"):
        exact_share(1, 1, groups=5)


def test_mean_over_cases_is_t_over_cases_and_over_models():
    x = np.array([0.9, 0.8, 0.95, 0.7])
    apart = mean_over_cases(x, np.arange(4))
    assert (apart.set_low, apart.set_high) == pytest.approx(sps.t.interval(0.95, 3, x.mean(), sps.sem(x)))
    assert (apart.low, apart.high) == pytest.approx((apart.set_low, apart.set_high))
    # Copies of a case add nothing over models: the interval is that of the models alone.
    copies = mean_over_cases(np.repeat(x, 5), np.repeat(np.arange(4), 5))
    assert (copies.low, copies.high) == pytest.approx((apart.low, apart.high))
    assert mean_over_cases(x, np.array([3, 3, 7, 7])).clusters == 2, "numbers of models may have gaps"
    assert copies.set_high - copies.set_low < (copies.high - copies.low) / 2


@pytest.mark.parametrize("values", [[], [0.9], [0.9, 0.8], [0.9, 0.9, 0.9, 0.9]])
def test_too_few_cases_or_no_spread_give_no_interval(values):
    found = mean_over_cases(np.array(values), np.arange(len(values)))
    assert found.low is None and found.set_low is None
    assert found.value == (pytest.approx(np.mean(values)) if values else None)


def test_implied_variance_of_a_known_interval():
    half = sps.norm.ppf(0.975) * 0.02
    e = Estimate(0.1, None, None, 0.1 - half, 0.1 + half)
    assert implied_variance(e) == pytest.approx(0.02**2)
    assert implied_variance(e, like_these=True) is None
