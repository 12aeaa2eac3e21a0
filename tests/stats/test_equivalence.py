"""Equivalence: the two tests against the interval definition, their error by simulation, and what gives no finding."""

from math import sqrt

import numpy as np
import pytest
from scipy import stats as sps

from truing.stats.equivalence import equivalence, p_above, p_under, paired_equivalence, t_limits, undetermined


def textbook(d, delta):
    """The two one-sided t tests, by scipy: the larger p."""
    upper = sps.ttest_1samp(d, delta, alternative="less").pvalue
    lower = sps.ttest_1samp(d, -delta, alternative="greater").pvalue
    return max(upper, lower)


def test_against_two_one_sided_t_tests_and_the_interval():
    rng = np.random.default_rng(1)
    seen = set()
    for mean in (0.0, 0.01, 0.02, 0.03, 0.06, -0.05):
        for spread in (0.02, 0.1):
            d = rng.normal(mean, spread, 40)
            found = paired_equivalence(d, 0.03)
            low, high = sps.t.interval(0.90, 39, d.mean(), sps.sem(d))
            assert (found.low, found.high) == pytest.approx((low, high))
            assert found.p == pytest.approx(textbook(d, 0.03), rel=1e-6, abs=1e-11)
            assert (found.status == "equivalent") == (found.p < 0.05) == (low > -0.03 and high < 0.03)
            differs = sps.ttest_1samp(d, 0).pvalue < 0.05
            assert found.excludes_zero == differs
            assert (found.status == "different") == (differs and found.p >= 0.05)
            seen.add(found.status)
    assert seen == {"equivalent", "different", "undetermined"}


def test_equivalent_and_not_zero_is_said():
    found = equivalence(0.01, t_limits(0.01, 0.001, 200), 0.03)
    assert found.status == "equivalent" and found.excludes_zero
    assert found.words == "equivalent within 3 points, though not 0"
    assert equivalence(0.2, t_limits(0.2, 0.01, 20), 0.03).words == "different: more"
    assert equivalence(-0.2, t_limits(-0.2, 0.01, 20), 0.03).words == "different: less"


@pytest.mark.parametrize("bound", [-0.03, 0.0, 0.011, 0.05])
def test_one_sided_p_against_t(bound):
    limits = t_limits(0.011, 0.01, 7)
    t = (0.011 - bound) / 0.01
    assert p_above(0.011, limits, bound) == pytest.approx(sps.t.sf(t, 7), rel=1e-6)
    assert p_under(0.011, limits, bound) == pytest.approx(sps.t.cdf(t, 7), rel=1e-6)


def test_a_true_difference_of_delta_is_called_equivalent_at_most_as_often_as_alpha():
    rng = np.random.default_rng(7)
    runs = 200
    wrong = sum(paired_equivalence(rng.normal(0.03, 0.05, 30), 0.03).status == "equivalent" for _ in range(runs))
    assert wrong / runs <= 0.05 + 3 * sqrt(0.05 * 0.95 / runs)
    right = sum(paired_equivalence(rng.normal(0.0, 0.05, 60), 0.03).status == "equivalent" for _ in range(runs))
    assert right / runs > 0.95  # a null that is a finding


@pytest.mark.parametrize("d", [[], [0.01], [0.0] * 40])
def test_no_variation_is_no_finding(d):
    """All zero may be nothing, or too few answers to see anything."""
    found = paired_equivalence(np.array(d), 0.03)
    assert found.status == "undetermined" and found.p is None and found.low is None and found.reason
    assert found.reason in found.words


@pytest.mark.parametrize(("delta", "alpha"), [(0, 0.05), (-0.1, 0.05), (0.03, 0.5), (0.03, 0.0), (float("nan"), 0.05)])
def test_bad_margins_are_refused(delta, alpha):
    with pytest.raises(ValueError, match=r"delta|alpha"):
        paired_equivalence(np.array([0.1, 0.2]), delta, alpha=alpha)
    with pytest.raises(ValueError, match=r"delta|alpha"):
        undetermined(delta, "x", alpha=alpha)
