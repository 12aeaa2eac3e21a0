"""Sequential tests: the betting sequence against brute force and exact enumeration, its error, intervals that hold at
every look."""

from itertools import product
from math import exp, inf, log

import numpy as np
import pytest
from scipy import special

from truing.stats.sequential import Sampled, limits, log_evidence, log_evidence_below, weakest

hits = Sampled.hits


def sampled(values):
    """Any values within [0, 1]."""
    found, counts = np.unique(values, return_counts=True)
    return Sampled(tuple(found.tolist()), tuple(counts.tolist()))


def mixture(values, null, shares, weights):
    """Wealth of fixed stakes by hand: product over answers, mean over stakes."""
    wealth = 0.0
    for p, w in zip(shares, weights, strict=True):
        stake = (p - null) / (null * (1 - null))
        product_ = 1.0
        for y in values:
            product_ *= 1 + stake * (y - null)
        wealth += w * product_
    return wealth


def bets(null, scale, above):
    """The stakes of the module docstring's two sides, written out again."""
    far = min(1.0, scale / null)
    if above:
        odds = (1.0, 1.05, 1.15, 1.5, 2.5, 5.0, 18.0)
        near, rest = (0.02, 0.01, 0.04, 0.13, 0.30, 0.32, 0.18), (0.04, 0.18, 0.28, 0.28, 0.10, 0.06, 0.06)
    else:
        odds = (1.0, 0.95, 0.85, 0.65, 0.4, 0.15)
        near, rest = (0.02, 0.01, 0.04, 0.10, 0.20, 0.63), (0.04, 0.22, 0.34, 0.25, 0.10, 0.05)
    weights = [far * a + (1 - far) * b for a, b in zip(near, rest, strict=True)]
    shares = [r * null / (1 - null) / (1 + r * null / (1 - null)) for r in odds]
    return shares, weights


@pytest.mark.parametrize("above", [True, False])
def test_every_bet_is_fair_at_its_null_and_loses_beyond(above):
    """Exact: the mean wealth of one answer over its two outcomes."""
    for null in (0.01, 0.2, 0.7):
        shares, weights = bets(null, 0.01, above)
        for p in (null, null * 0.5 if above else (1 + null) / 2):
            mean = p * mixture([1.0], null, shares, weights) + (1 - p) * mixture([0.0], null, shares, weights)
            assert mean == pytest.approx(1.0) if p == null else mean < 1


def test_two_arms_are_the_least_product_over_the_reference_mean():
    """Against a fine grid of the reference's mean, cell by cell as it is defined."""
    for x, n, y, m in ((3, 60, 1, 100), (0, 40, 0, 40), (20, 50, 4, 200)):
        for bound in (0.01, -0.03):
            found, where = weakest(hits(x, n), hits(y, m), bound)
            run, other = [1.0] * x + [0.0] * (n - x), [1.0] * y + [0.0] * (m - y)
            scale, least, limit = max(abs(bound), 0.005), inf, max(0.0, -bound)
            while limit < 1:
                following = min(1.0, limit + max(scale / 20, 0.04 * limit))
                null = following + bound
                ours = 1.0 if null >= 1 else mixture(run, null, *bets(null, scale, True))
                theirs = 1.0 if limit <= 0 else mixture(other, limit, *bets(limit, scale, False))
                least, limit = min(least, ours * theirs), following
            assert found == pytest.approx(log(least), abs=1e-9)
            assert 0 <= where <= 1
            assert log_evidence(hits(x, n), hits(y, m), bound) == found
            assert log_evidence_below(hits(y, m), hits(x, n), -bound) == found


def test_the_mean_e_value_is_at_most_one_by_enumeration():
    """All outcomes of 5 answers in each arm, truth on the null: E[e] <= 1 whatever the reference's share."""
    bound, n = 0.1, 5
    e = np.array([[exp(log_evidence(hits(x, n), hits(y, n), bound)) for y in range(n + 1)] for x in range(n + 1)])
    for base in (0.0, 0.05, 0.3, 0.6, 0.9):
        p = special.binom(n, np.arange(n + 1)) * (base + bound) ** np.arange(n + 1)
        p = p * (1 - base - bound) ** (n - np.arange(n + 1))
        q = special.binom(n, np.arange(n + 1)) * base ** np.arange(n + 1) * (1 - base) ** (n - np.arange(n + 1))
        assert p @ e @ q <= 1 + 1e-9


def test_every_order_of_looks_holds_by_enumeration():
    """Ville's bound for short sequences: the share of all sequences that ever reach the level, arms taking turns."""
    bound, base, length, level = 0.2, 0.3, 6, log(4)
    total = 0.0
    for outcome in product((0, 1), repeat=2 * length):
        run, other = outcome[:length], outcome[length:]
        p = np.prod([base + bound if y else 1 - base - bound for y in run])
        p *= np.prod([base if y else 1 - base for y in other])
        looks = [(k, k) for k in range(1, length + 1)] + [(k + 1, k) for k in range(length)]
        ever = any(log_evidence(hits(sum(run[:i]), i), hits(sum(other[:j]), j), bound) >= level for i, j in looks if i)
        total += p * ever
    assert total <= 1 / 4


@pytest.mark.parametrize("base", [0.0, 0.02])
def test_looking_after_every_batch_is_wrong_rarely(base):
    """The excess is exactly lo; a look after each 24 answers of each arm, 60 times; 200 runs."""
    wrong = 0
    for r in range(200):
        rng = np.random.default_rng([5, r])
        a, b = np.cumsum(rng.random(1440) < base + 0.01), np.cumsum(rng.random(1440) < base)
        wrong += any(
            log_evidence(hits(int(a[n - 1]), n), hits(int(b[n - 1]), n), 0.01) >= log(20) for n in range(24, 1441, 24)
        )
    assert wrong / 200 <= 0.05


def test_a_bounded_score_is_tested_as_a_share_is():
    rng = np.random.default_rng(3)
    low, high = rng.beta(2, 18, 400), rng.beta(4, 16, 400)
    assert log_evidence(sampled(high), sampled(low), 0.03) > log(100)
    assert log_evidence_below(sampled(low), sampled(high), 0.03) > log(100)
    assert log_evidence(sampled(low), sampled(low[::-1]), 0.03) < 0
    ones = sampled([0.0, 0.0, 1.0])
    assert log_evidence(ones, hits(1, 9), 0.01) == pytest.approx(log_evidence(hits(1, 3), hits(1, 9), 0.01))


def test_limits_hold_at_every_look():
    """80 runs of up to 400 answers a group; a miss is an interval at either of 2 looks without the truth."""
    missed, enough = 0, log(2 / 0.2)
    for r in range(80):
        rng = np.random.default_rng([6, r])
        base, excess = rng.choice([0.0, 0.05]), rng.choice([0.0, 0.02, 0.2])
        a, b = rng.random(400) < base + excess, rng.random(400) < base
        ends = [limits(hits(int(a[:n].sum()), n), hits(int(b[:n].sum()), n), enough, enough) for n in (40, 400)]
        missed += any(not low - 1e-9 <= excess <= high + 1e-9 for low, high in ends)
    assert missed / 80 <= 0.2


def test_limits_are_what_the_tests_do_not_reject():
    run, other, enough = hits(12, 120), hits(1, 150), (log(40), log(40))
    low, high = limits(run, other, *enough)
    assert low < run.mean - other.mean < high
    assert log_evidence(run, other, low - 0.003) > log(40) > log_evidence(run, other, low + 0.003)
    assert log_evidence_below(run, other, high + 0.003) > log(40) > log_evidence_below(run, other, high - 0.003)
    assert limits(hits(0, 0), other, *enough) == (-1.0, 1.0)
    low, high = limits(hits(9, 9), hits(0, 0), *enough)
    assert -1 < low < 0 and high == 1.0, "nine of nine bound the excess even against a reference of ones"
    assert limits(hits(9, 9), hits(0, 9), *enough)[1] == 1.0


@pytest.mark.parametrize("bound", [-1, 1, 1.5, float("nan")])
def test_an_excess_lies_between_minus_one_and_one(bound):
    for found in (log_evidence, log_evidence_below):
        with pytest.raises(ValueError, match="between -1 and 1"):
            found(hits(1, 3), hits(0, 3), bound)


def test_more_hits_than_answers_are_refused_and_nothing_says_nothing():
    with pytest.raises(ValueError, match="4 hits of 3"):
        hits(4, 3)
    assert log_evidence(hits(0, 0), hits(0, 0), 0.01) == pytest.approx(0, abs=1e-9)


def test_more_answers_of_the_reference_sharpen_the_test():
    few, many = (log_evidence(hits(10, 60), hits(0, n), 0.01) for n in (20, 400))
    assert many > few + 1
