"""Trend with size: correlations against scipy, permutations by enumeration, and the models that carry it."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest
from scipy import stats as sps

from truing.stats.trend import trend

NAMES = ("a", "b", "c", "d", "e", "f")


def brute_force(x, y):
    r = abs(np.corrcoef(x, y)[0, 1])
    every = [abs(np.corrcoef(x, p)[0, 1]) for p in permutations(y)]
    return np.mean([e >= r - 1e-9 for e in every])


def test_correlations_against_scipy_and_exact_p_against_enumeration():
    rng = np.random.default_rng(2)
    for ties in (False, True):
        size = 10 ** rng.uniform(8, 12, 6)
        y = rng.normal(0, 1, 6).round(0 if ties else 6)
        found = trend(NAMES, list(size), list(y))
        x = np.log10(size)
        assert found.pearson == pytest.approx(sps.pearsonr(x, y).statistic)
        assert found.spearman == pytest.approx(sps.spearmanr(x, y).statistic)
        assert found.pearson_p == pytest.approx(brute_force(x, y))
        assert found.spearman_p == pytest.approx(brute_force(sps.rankdata(x), sps.rankdata(y)))
        assert found.method == "all orders"
        for k, name in enumerate(NAMES):
            r = np.corrcoef(np.delete(x, k), np.delete(y, k))[0, 1]
            assert found.without[name] == pytest.approx(r)


def test_a_perfect_order_has_the_least_p_there_is():
    for k in (4, 5):
        found = trend(NAMES[:k], [10.0**n for n in range(k)], [float(-n) for n in range(k)])
        assert found.pearson_p == found.spearman_p == pytest.approx(2 / factorial(k))


def test_drawn_orders_have_a_seed():
    rng = np.random.default_rng(4)
    names, size = [f"m{k}" for k in range(12)], list(10.0 ** np.arange(12))
    y = list(np.arange(12.0) + rng.normal(0, 4, 12))
    found = trend(names, size, y, seed=1)
    assert found.method == "40320 orders"
    assert found.pearson_p == trend(names, size, y, seed=1).pearson_p
    assert found.pearson_p == pytest.approx(trend(names, size, y, seed=2).pearson_p, abs=0.01)


def test_a_trend_that_rests_on_two_large_models_says_so():
    """As one published r = 0.67 does: small models show nothing, two large ones much; losing either leaves it."""
    size = [8e9, 8e9, 14e9, 20e9, 30e9, 32e9, 70e9, 70e9, 120e9, 235e9, 671e9]
    names = [f"m{k}" for k in range(11)]
    y = [0.002, 0.0, 0.004, 0.001, 0.003, 0.0, 0.002, 0.004, 0.0, 0.2, 0.22]
    found = trend(names, size, y)
    assert found.pearson > 0.6 and found.pearson_p < 0.05
    assert set(found.pair) == {"m9", "m10"}
    assert abs(found.without_pair) < 0.3
    assert "m9 and m10 together" in found.warning


def test_one_model_that_carries_it_is_named():
    found = trend(NAMES, [1e9, 2e9, 3e9, 4e9, 5e9, 500e9], [0.01, 0.0, 0.012, 0.004, 0.008, 0.3])
    assert "without f" in found.warning


def test_models_left_out_are_named_and_few_models_get_no_p():
    found = trend(["a", "b", "c", "d", "e"], [1e9, 2e9, 4e9, None, 5e9], [0.1, 0.2, 0.25, 0.3, None])
    assert found.models == 3 and found.pearson is not None
    assert found.pearson_p is None and found.spearman_p is None and "no p" in found.method
    assert found.left_out == {"d": "no parameter count", "e": "no excess"}


@pytest.mark.parametrize(
    ("size", "y", "why"),
    [
        ([1e9, 2e9], [0.1, 0.2], "2 models"),
        ([None, None], [0.1, 0.2], "0 models"),
        ([8e9] * 4, [0.1, 0.2, 0.3, 0.4], "vary"),
        ([1e9, 2e9, 3e9, 4e9], [0.0] * 4, "vary"),
    ],
)
def test_no_trend_where_nothing_varies(size, y, why):
    found = trend(NAMES[: len(size)], size, y)
    assert (found.pearson, found.pearson_p, found.spearman) == (None, None, None)
    assert why in found.warning
