"""Several runs put together: a published example, a direct second implementation, coverage by simulation."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from scipy import stats as sps

from truing.stats.meta import (
    dersimonian_laird,
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


def bcg():
    a, b, c, d = BCG.T
    return np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_the_published_bcg_example():
    """As printed in Viechtbauer (2010, J. Stat. Softw. 36(3)) and its manual: method DL; and EB, which is PM."""
    y, v = bcg()
    found = random_effects(y, v, tau="dersimonian-laird")
    assert found.q == pytest.approx(152.2330, abs=5e-4)
    assert found.tau2 == pytest.approx(0.3088, abs=5e-4)
    assert found.i2 == pytest.approx(0.9212, abs=5e-4)
    assert found.value == pytest.approx(-0.7141, abs=5e-4)
    assert paule_mandel(y, v) == pytest.approx(0.3181, abs=5e-4)
    w = 1 / (v + found.tau2)
    assert 1 / sqrt(w.sum()) == pytest.approx(0.1787, abs=5e-4)


def direct(y, v, tau2, level):
    """Modified Hartung-Knapp, written out with loops."""
    w = [1 / (x + tau2) for x in v]
    mean = sum(a * b for a, b in zip(w, y, strict=True)) / sum(w)
    q = sum(a * (b - mean) ** 2 for a, b in zip(w, y, strict=True)) / (len(y) - 1)
    half = sps.t.ppf((1 + level) / 2, len(y) - 1) * sqrt(max(1.0, q) / sum(w))
    return mean - half, mean + half


@pytest.mark.parametrize("tau", ["paule-mandel", "dersimonian-laird"])
def test_against_a_direct_second_implementation(tau):
    rng = np.random.default_rng(3)
    for k in (3, 4, 7, 12):
        y, v = rng.normal(0.05, 0.03, k), rng.uniform(1e-5, 4e-4, k)
        found = random_effects(y, v, tau=tau)
        for level in (0.9, 0.95):
            assert found.limits(level) == pytest.approx(direct(y, v, found.tau2, level), rel=1e-9)


def test_equal_variances_and_true_spread_give_the_t_interval_of_the_mean():
    y = np.array([0.1, 0.3, 0.2, 0.6])
    found = random_effects(y, np.full(4, 1e-4))
    assert found.limits(0.95) == pytest.approx(sps.t.interval(0.95, 3, y.mean(), sps.sem(y)), rel=1e-6)
    assert found.tau2 == pytest.approx(y.var(ddof=1) - 1e-4, rel=1e-6)


def test_paule_mandel_solves_its_equation_and_both_are_zero_without_excess_spread():
    rng = np.random.default_rng(5)
    y, v = rng.normal(0, 1, 9), rng.uniform(0.01, 0.2, 9)
    t = paule_mandel(y, v)
    w = 1 / (v + t)
    assert (w * (y - (w * y).sum() / w.sum()) ** 2).sum() == pytest.approx(8, rel=1e-6)
    assert paule_mandel(y, v * 1000) == dersimonian_laird(y, v * 1000) == 0


def test_runs_that_agree_by_chance_are_never_narrower_than_their_own_error():
    """Unmodified, identical estimates would give an interval of width zero."""
    v = np.array([1e-4, 2e-4, 4e-4])
    low, high = random_effects(np.full(3, 0.05), v).limits(0.95)
    fixed = sps.norm.ppf(0.975) / sqrt((1 / v).sum())
    assert (high - low) / 2 > fixed
    rng = np.random.default_rng(11)
    for _ in range(100):
        y = rng.normal(0, 0.01, 5)
        v = rng.uniform(1e-5, 1e-3, 5)
        low, high = random_effects(y, v).limits(0.95)
        assert (high - low) / 2 >= sps.norm.ppf(0.975) / sqrt((1 / v).sum())


def test_too_few_runs_give_a_mean_and_no_interval():
    two = random_effects(np.array([0.1, 0.2]), np.array([0.01, 0.01]))
    assert two.value == pytest.approx(0.15) and two.se is None and "3" in two.reason
    with pytest.raises(ValueError, match="no interval"):
        two.limits(0.95)
    one, none = random_effects(np.array([0.1]), np.array([0.01])), random_effects(np.empty(0), np.empty(0))
    assert (one.value, one.se, one.reason) == (0.1, None, "one run")
    assert (none.value, none.se) == (None, None)


@pytest.mark.parametrize("v", [[0.0, 1.0, 1.0], [-1.0, 1.0, 1.0], [np.nan, 1.0, 1.0]])
def test_a_variance_that_is_none_is_refused(v):
    with pytest.raises(ValueError, match="varian"):
        random_effects(np.array([0.1, 0.2, 0.3]), np.array(v))


def covers(k, runs, seed, tau=0.03):
    """(share of runs in which the interval holds the truth, the same for DerSimonian-Laird with z)"""
    rng = np.random.default_rng(seed)
    v = np.linspace(0.5, 2.0, k) * 2e-4
    ours = plain = 0
    for _ in range(runs):
        y = rng.normal(0.05, np.sqrt(tau**2 + v))
        low, high = random_effects(y, v).limits(0.95)
        ours += low <= 0.05 <= high
        w = 1 / (v + dersimonian_laird(y, v))
        mean = (w * y).sum() / w.sum()
        plain += abs(mean - 0.05) <= 1.96 / sqrt(w.sum())
    return ours / runs, plain / runs


@pytest.mark.parametrize("k", [3, 5, 10])
def test_coverage_small(k):
    ours, _ = covers(k, 200, k)
    assert ours >= 0.95 - 3 * sqrt(0.95 * 0.05 / 200)


@pytest.mark.slow
@pytest.mark.parametrize("k", [3, 5, 10])
def test_coverage(k):
    ours, plain = covers(k, 4000, k)
    assert 0.94 <= ours <= 0.985
    assert plain < ours
    if k == 3:
        assert plain < 0.90  # why z is not used


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
    with pytest.raises(ValueError, match="unknown"):
        exact_share(-1, 2)


def test_mean_over_cases_is_t_over_cases_and_over_models():
    x = np.array([0.9, 0.8, 0.95, 0.7])
    apart = mean_over_cases(x, np.arange(4))
    assert (apart.set_low, apart.set_high) == pytest.approx(sps.t.interval(0.95, 3, x.mean(), sps.sem(x)))
    assert (apart.low, apart.high) == pytest.approx((apart.set_low, apart.set_high))
    # Copies of a case add nothing over models: the interval is that of the models alone.
    copies = mean_over_cases(np.repeat(x, 5), np.repeat(np.arange(4), 5))
    assert (copies.low, copies.high) == pytest.approx((apart.low, apart.high))
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
