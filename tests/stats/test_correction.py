"""Corrections: exact cases, formulas against simulation, validity where the truth is known, tests against intervals."""

from itertools import product

import numpy as np
import pytest
from scipy import stats as sps

from stats.worlds import propensities
from truing.stats.correction import holm, p_above, prediction_powered, rogan_gladen
from truing.stats.rates import share_difference, share_of

GOOD_JUDGE = {"sensitivity": (45, 48), "false_positive": (3, 300)}


def equal(hits, n):
    """A share over prompts with n answers each."""
    return share_of(np.asarray(hits, float), np.full(len(hits), float(n)))


# -- misclassification


def test_the_corrected_value_is_rogan_and_gladens():
    share = equal(np.repeat([4, 1, 0], [10, 20, 90]), 4)
    e = rogan_gladen(share, **GOOD_JUDGE)
    assert e.value == pytest.approx((60 / 480 - 0.01) / (45 / 48 - 0.01))
    assert e.low <= e.set_low < e.value < e.set_high <= e.high
    assert (e.n, e.clusters, e.seed, e.level) == (480, 120, 0, 0.95)
    assert e == rogan_gladen(share, **GOOD_JUDGE) and e != rogan_gladen(share, **GOOD_JUDGE, seed=1)


def test_a_judge_known_to_be_perfect_changes_nothing_but_the_method():
    share = equal(np.repeat([4, 1, 0], [10, 20, 90]), 4)
    e = rogan_gladen(share, (10**7, 10**7), (0, 10**7))
    assert e.value == share.value
    # The melded limits at a perfect judge are Clopper and Pearson's at the effective number.
    exact = sps.beta.ppf([0.025, 0.975], [60, 61], [421, 420])
    assert (e.set_low, e.set_high) == pytest.approx(exact, rel=0.03)


def test_less_known_of_the_judge_means_wider():
    share = equal(np.repeat([2, 0], [40, 80]), 4)
    wide = [rogan_gladen(share, (k * 9, k * 10), (k * 1, k * 50)) for k in (1, 3, 10, 1000)]
    widths = [e.set_high - e.set_low for e in wide]
    assert widths == sorted(widths, reverse=True) and widths[0] > 1.3 * widths[-1]
    assert all(e.value == pytest.approx(wide[0].value) for e in wide)


@pytest.mark.parametrize(
    ("sensitivity", "false_positive", "why"),
    [((3, 10), (3, 10), "tell them apart"), ((1, 10), (9, 10), "tell them apart"), ((0, 0), (0, 9), "not measured")],
)
def test_a_judge_that_cannot_tell_has_no_corrected_share(sensitivity, false_positive, why):
    e = rogan_gladen(equal([2] * 50, 4), sensitivity, false_positive)
    assert (e.value, e.low, e.high, e.set_low, e.set_high) == (None,) * 5
    assert why in e.warning


def test_the_ends_of_the_scale():
    none, every = equal([0] * 50, 4), equal([4] * 50, 4)
    e = rogan_gladen(none, **GOOD_JUDGE)
    assert (e.value, e.set_low, e.low) == (0.0, 0.0, 0.0) and 0 < e.set_high <= e.high
    assert rogan_gladen(every, **GOOD_JUDGE).value == rogan_gladen(every, **GOOD_JUDGE).set_high == 1.0
    # Fewer alarms than on good answers: the test does not describe these answers; still no zero width.
    neutral = rogan_gladen(equal([0] * 240, 4), (45, 48), (60, 300))
    assert neutral.value == 0 and neutral.set_high > 0 and "fewer of these answers" in neutral.warning
    assert rogan_gladen(share_of(np.zeros(2), np.zeros(2)), **GOOD_JUDGE).value is None
    one = rogan_gladen(equal([3], 10), **GOOD_JUDGE)
    assert one.low is None and one.set_low < one.value < one.set_high
    for bad in ((5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="impossible"):
            rogan_gladen(none, bad, (0, 4))
    with pytest.raises(ValueError, match="level"):
        rogan_gladen(none, (1, 1), (0, 1), level=0.9)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.2])
@pytest.mark.parametrize(("sensitivity", "alarm"), [(0.95, 0.0), (0.9, 0.01), (0.8, 0.05)])
def test_both_intervals_cover_the_true_share(rate, sensitivity, alarm):
    rng = np.random.default_rng(int(1000 * rate) + 7)
    runs, of_set, of_kind = 80, 0, 0
    for _ in range(runs):
        p = propensities(rng, 120, rate)
        called = equal(rng.binomial(4, p * sensitivity + (1 - p) * alarm), 4)
        e = rogan_gladen(called, (rng.binomial(48, sensitivity), 48), (rng.binomial(300, alarm), 300))
        assert e.value is not None
        of_set += e.set_low <= p.mean() <= e.set_high
        of_kind += e.low <= rate <= e.high
    assert of_set / runs >= 0.93 and of_kind / runs >= 0.93


# -- a cheap judge on all, a strong one on some


def world(rng, prompts, n, rate, sensitivity, alarm):
    """True rates per prompt, flags of a cheap and a strong judge and prompts, one entry per answer."""
    prompt = np.repeat(np.arange(prompts), n)
    p = propensities(rng, prompts, rate)
    strong = (rng.random(len(prompt)) < p[prompt]).astype(float)
    cheap = (rng.random(len(prompt)) < np.where(strong == 1, sensitivity, alarm)).astype(float)
    return p, cheap, strong, prompt


def sample(rng, cheap, q):
    rate = np.where(cheap == 1, q[1], q[0]) if isinstance(q, tuple) else q
    return rng.random(len(cheap)) < rate


def tuned(cheap, strong, sampled):
    """PPI++ for a mean, as written there: labelled mean plus a tuned difference of the means of the cheap flags."""
    y, f, f_rest = strong[sampled], cheap[sampled], cheap[~sampled]
    ratio = len(f) / len(f_rest)
    best = np.cov(y, f)[0, 1] / (1 + ratio) / f.var(ddof=1)
    return y.mean() + best * (f_rest.mean() - f.mean())


def test_with_equal_draws_it_is_the_published_tuned_estimator():
    rng = np.random.default_rng(0)
    _, cheap, strong, prompt = world(rng, 60, 10, 0.2, 0.8, 0.1)
    sampled = sample(rng, cheap, 0.3)
    e = prediction_powered(cheap, strong, sampled, prompt, 60, q=0.3)
    assert e.value == pytest.approx(tuned(cheap, strong, sampled), abs=1e-9)
    hidden = prediction_powered(cheap, np.where(sampled, strong, np.nan), sampled, prompt, 60, q=0.3)
    assert hidden == e, "strong flags of answers that were not drawn are never read"
    assert e.n == sampled.sum() and e.clusters == 60 and e.warning == ""


def test_everything_drawn_is_the_strong_judges_own_share():
    rng = np.random.default_rng(1)
    _, cheap, strong, prompt = world(rng, 50, 4, 0.2, 0.8, 0.1)
    e = prediction_powered(cheap, strong, np.ones(200, bool), prompt, 50, q=1.0)
    assert e.value == pytest.approx(strong.mean())


def test_prompts_count_alike_however_many_answers_they_have():
    cheap, strong = np.array([1, 0, 0, 0, 0, 0.0]), np.array([1, 0, 0, 0, 0, 0.0])
    e = prediction_powered(cheap, strong, np.ones(6, bool), np.array([0, 1, 1, 1, 1, 1]), 3, q=1.0)
    assert e.value == pytest.approx(0.5)
    assert e.left_out == {"prompts without answers": 1}


@pytest.mark.parametrize("q", [0.25, (0.15, 1.0)])
@pytest.mark.parametrize(
    ("prompts", "n", "rate", "sensitivity", "alarm"),
    [(120, 8, 0.02, 0.8, 0.05), (120, 8, 0.2, 0.97, 0.02), (48, 20, 0.02, 0.9, 0.02), (120, 8, 0.1, 0.5, 0.5)],
)
def test_it_is_unbiased_and_both_intervals_cover(prompts, n, rate, sensitivity, alarm, q):
    rng = np.random.default_rng(5)
    runs, of_set, of_kind, error = 200, 0, 0, []
    for _ in range(runs):
        p, cheap, strong, prompt = world(rng, prompts, n, rate, sensitivity, alarm)
        e = prediction_powered(cheap, strong, sample(rng, cheap, q), prompt, prompts, q=q)
        of_set += e.set_low <= p.mean() <= e.set_high
        of_kind += e.low <= rate <= e.high
        error.append(e.value - p.mean())
    assert of_set / runs >= 0.93 and of_kind / runs >= 0.93
    assert abs(np.mean(error)) < 3.5 * np.std(error) / np.sqrt(runs)


def test_a_useful_cheap_judge_narrows_and_a_useless_one_does_not_harm():
    rng = np.random.default_rng(6)
    _, cheap, strong, prompt = world(rng, 240, 10, 0.2, 0.97, 0.02)
    at = sample(rng, cheap, 0.1)
    hits = np.bincount(prompt[at], weights=strong[at], minlength=240)
    alone = share_of(hits, np.bincount(prompt[at], minlength=240))
    e = prediction_powered(cheap, strong, at, prompt, 240, q=0.1)
    assert e.set_high - e.set_low < 0.6 * (alone.set_high - alone.set_low)
    for useless in (1 - cheap, 0 * cheap):  # upside down, silent
        other = prediction_powered(useless, strong, at, prompt, 240, q=0.1)
        assert (other.value, other.set_low, other.high) == (alone.value, alone.set_low, alone.high)
        assert "strong judge alone" in other.method


def test_misses_that_no_draw_showed_stay_possible():
    cheap, prompt = np.zeros(1200), np.arange(1200) % 60
    cheap[:60] = 1
    sampled = np.zeros(1200, bool)
    sampled[:60] = sampled[100:200] = True
    e = prediction_powered(cheap, cheap, sampled, prompt, 60, q=(100 / 1140, 1.0))
    assert e.value == pytest.approx(0.05)
    assert e.set_high > 0.05 + 0.9 * 3 / 100, "no miss among 100 allows 3 in 100"
    none = prediction_powered(np.zeros(1200), np.zeros(1200), sampled, prompt, 60, q=0.13)
    assert none.value == 0 and none.set_high > 0 and none.high > none.set_high


def test_what_is_missing_is_counted_and_doubtful_draws_are_named():
    rng = np.random.default_rng(7)
    _, cheap, strong, prompt = world(rng, 60, 10, 0.2, 0.8, 0.1)
    sampled = sample(rng, cheap, 0.5)
    gone = np.flatnonzero(sampled)[:40]
    strong[gone], cheap[:5] = np.nan, np.nan
    e = prediction_powered(cheap, strong, sampled, prompt, 60, q=0.5)
    assert e.left_out["answers without a cheap flag"] == 5
    assert e.left_out["strong judge gave no flag"] == (sampled[5:] & np.isnan(strong[5:])).sum()
    assert "gave no flag for" in e.warning
    skewed = prediction_powered(cheap, strong, sampled, prompt, 60, q=(0.5, 1.0))
    assert "cheap positives were drawn where 100.0% was planned" in skewed.warning
    nobody = prediction_powered(cheap, strong, np.zeros(600, bool), prompt, 60, q=0.5)
    assert nobody.value is None and nobody.method == "no strong flags"
    unlucky = prediction_powered(cheap, strong, sampled & (cheap == 0), prompt, 60, q=0.5)
    assert unlucky.value is not None and "one kind of cheap flag only" in unlucky.warning
    silent = prediction_powered(0 * cheap, strong, sampled, prompt, 60, q=0.5)
    assert "one kind" not in silent.warning, "a cheap judge with one kind of flag leaves nothing undrawn"
    only = prediction_powered(cheap, strong, sampled & (cheap == 1), prompt, 60, q=(0.5, 0.6))
    assert only.value is None and "one kind of cheap flag only" in only.warning


def test_impossible_inputs_are_refused():
    flags, prompt = np.zeros(4), np.zeros(4, int)
    every = np.ones(4, bool)
    half = flags + 0.5
    for cheap, strong, q in ((half, flags, 0.5), (flags, half, 0.5), (flags, flags, 0.0), (flags, flags, 1.5)):
        with pytest.raises(ValueError):
            prediction_powered(cheap, strong, every, prompt, 1, q=q)
    with pytest.raises(ValueError, match="one entry per answer"):
        prediction_powered(flags, flags[:3], every, prompt, 1, q=0.5)
    with pytest.raises(ValueError, match="outside"):
        prediction_powered(flags, flags, every, prompt + 1, 1, q=0.5)


# -- tests


def excess_p(a, n_a, b, n_b, lo):
    return p_above(lambda level: share_difference(a, n_a, b, n_b, level=level), lo)


def test_holm_by_its_closure():
    # Holm is the shortcut of the closed test with Bonferroni on every intersection.
    rng = np.random.default_rng(9)
    for _ in range(50):
        p = np.round(rng.random(5) ** 3, 3)
        closed = []
        for i in range(5):
            sets = [s for s in product((0, 1), repeat=5) if s[i]]
            closed.append(max(min(1.0, sum(s) * min(p[j] for j in range(5) if s[j])) for s in sets))
        assert holm(list(p)) == pytest.approx(closed)
    assert holm([]) == [] and holm([0.03]) == [0.03]
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    with pytest.raises(ValueError):
        holm([0.5, 1.2])


def test_p_is_the_interval_inverted():
    rng = np.random.default_rng(10)
    for _ in range(40):
        n_a, n_b = rng.integers(1, 6, (2, 30)).astype(float)
        a, b = rng.binomial(n_a.astype(int), 0.3).astype(float), rng.binomial(n_b.astype(int), 0.15).astype(float)
        lo = float(rng.choice([0.0, 0.01, 0.1, 0.3]))
        p = excess_p(a, n_a, b, n_b, lo)
        e = share_difference(a, n_a, b, n_b)
        assert (p < 0.025) == (e.set_low > lo)
        assert (p > 0.975) == (e.set_high < lo)
        if 1e-9 < p < 0.499:
            assert share_difference(a, n_a, b, n_b, level=1 - 2 * p).set_low == pytest.approx(lo, abs=1e-6)
        if e.value > 0:
            assert excess_p(a, n_a, b, n_b, e.value) == pytest.approx(0.5, abs=1e-6)


def test_p_at_its_ends():
    n = np.full(40, 50.0)
    assert excess_p(n, n, np.zeros(40), n, 0.01) == pytest.approx(1e-12, rel=1e-3)
    assert excess_p(np.zeros(40), n, n, n, 0.01) == pytest.approx(1)
    assert excess_p(np.zeros(2), np.zeros(2), np.zeros(2), np.ones(2), 0.01) is None
    assert 0.3 < excess_p(np.zeros(40), n, np.zeros(40), n, 0.0) <= 0.5
    found = [excess_p(np.full(40, 5.0), n, np.full(40, 1.0), n, lo) for lo in (0.0, 0.01, 0.03, 0.06, 0.09, 0.2)]
    assert found == sorted(found)


@pytest.mark.parametrize("rho", [0.01, 0.3])
def test_false_alarms_at_the_threshold_stay_under_the_level(rho):
    rng = np.random.default_rng(11)
    n, alarms, runs = np.full(60, 8.0), 0, 300
    for _ in range(runs):
        p = propensities(rng, 60, 0.05, rho)
        base = np.maximum(p - 0.01, 0)
        excess = float((p - base).mean())
        hits = rng.binomial(8, p).astype(float), rng.binomial(8, base).astype(float)
        alarms += excess_p(hits[0], n, hits[1], n, excess) < 0.05
    assert alarms / runs <= 0.065
