"""Rates: exact cases, independent definitions, invariances, and coverage by simulation."""

import numpy as np
import pytest
from scipy import stats as sps
from scipy.optimize import brentq
from scipy.stats import binomtest

from stats.worlds import propensities, sampled, table
from truing.stats.labelled import Bound, excess, rate
from truing.stats.rates import counts, mean_difference, mean_of, score_interval, share_difference, share_of
from truing.types.judging import ScoreStatus
from truing.types.records import AnswerStatus
from truing.types.traits import Rule
from truing.types.verdicts import Estimate


def full(*values):
    return np.array(values, dtype=float)


# -- the score interval


@pytest.mark.parametrize(("k", "n"), [(20, 60), (30, 60), (100, 400), (399, 800)])
def test_score_interval_is_wilsons_away_from_the_ends(k, n):
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert score_interval(k / n, n, 0.95) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("n", [8, 24, 240])
def test_score_interval_covers_at_every_rate_by_enumeration(n):
    rates = np.linspace(0.0005, 0.5, 700)[:, None]
    mass = sps.binom.pmf(np.arange(n + 1), n, rates)

    def worst(limits):
        low, high = np.array(limits).T
        return (mass * ((low <= rates) & (rates <= high))).sum(axis=1).min()

    assert worst([score_interval(k / n, n, 0.95) for k in range(n + 1)]) >= 0.92
    plain = [binomtest(k, n).proportion_ci(method="wilson") for k in range(n + 1)]
    assert worst(plain) < 0.9, "Wilson's own dips are what the limits are widened for"


@pytest.mark.parametrize("share", [0.0, 0.013, 0.3, 0.5, 1.0])
def test_score_interval_mirrors_and_nests(share):
    last = (share, share)
    for level in (0.01, 0.5, 0.8, 0.95, 0.999):
        low, high = score_interval(share, 37.5, level)
        assert score_interval(1 - share, 37.5, level) == pytest.approx((1 - high, 1 - low), abs=1e-9)
        assert low <= last[0] + 1e-12 and high >= last[1] - 1e-12
        last = low, high


# -- shares


def test_share_counts_prompts_alike_and_leaves_out_those_without_answers():
    e = share_of(full(1, 0, 9, 0), full(1, 4, 10, 0))
    assert e.value == pytest.approx((1 + 0 + 0.9) / 3)
    assert (e.n, e.clusters, e.left_out) == (15, 3, {"prompts without answers": 1})
    assert e.warning == "only 3 prompts and 2 prompts with misses: the interval for prompts like these is rough"


def test_the_interval_for_these_prompts_is_the_score_interval_at_the_effective_number():
    pooled = share_of(full(3, 0, 5, 2, 7, 0, 1, 4), np.full(8, 20.0))
    assert pooled.value == pytest.approx(22 / 160)
    assert (pooled.set_low, pooled.set_high) == pytest.approx(score_interval(22 / 160, 160, 0.95))
    n = full(2, 5, 10, 10, 40, 3, 8, 9)
    e = share_of(np.zeros(8), n)
    assert e.set_high == pytest.approx(score_interval(0.0, 1 / sum((1 / 8) ** 2 / k for k in n), 0.95)[1])


def kurtosis_df(x):
    """2 s^4 / var(s^2) with the sample's own fourth moment in the exact variance of a sample variance."""
    n, v = len(x), x.var(ddof=1)
    return min(2 * v**2 / (sps.moment(x, 4) / n - v**2 * (n - 3) / (n * (n - 1))), n - 1)


@pytest.mark.parametrize("prompts", [24, 120])
def test_logit_t_between_is_the_delta_method(prompts):
    rng = np.random.default_rng(0)
    n = np.full(prompts, 10.0)
    hits = rng.binomial(10, rng.beta(0.6, 2.4, prompts)).astype(float)
    p = hits / 10
    m, se = p.mean(), p.std(ddof=1) / np.sqrt(prompts)
    df = kurtosis_df(p) if prompts >= 40 else min(kurtosis_df(p), (hits > 0).sum() - 1)
    half = sps.t.ppf(0.975, df) * se / (m * (1 - m))
    expected = 1 / (1 + np.exp(-(np.log(m / (1 - m)) + np.array([-half, half]))))
    e = share_of(hits, n)
    cap = score_interval(m, prompts, 0.95)
    assert (e.low, e.high) == pytest.approx((max(expected[0], cap[0]), min(expected[1], cap[1])))
    assert (e.warning == "") == (prompts >= 40)


@pytest.mark.parametrize("prompts", [2, 8, 240])
@pytest.mark.parametrize("n", [1, 50])
def test_none_positive_and_all_positive_are_mirror_images_with_width(prompts, n):
    samples = np.full(prompts, float(n))
    none, every = share_of(np.zeros(prompts), samples), share_of(samples, samples)
    assert (none.value, none.low, none.set_low) == (0.0, 0.0, 0.0)
    assert (every.low, every.set_low) == pytest.approx((1 - none.high, 1 - none.set_high))
    assert every.high == every.set_high == 1.0
    assert none.high == pytest.approx(score_interval(0.0, prompts, 0.95)[1]), "as if a prompt gave one answer"
    assert "0 prompts with hits" in none.warning and "0 prompts with misses" in every.warning


def test_too_little_data_gives_no_interval():
    assert share_of(np.zeros(3), np.zeros(3)).left_out == {"prompts without answers": 3}
    assert share_of(np.zeros(0), np.zeros(0)).value is None
    one = share_of(full(3, 0), full(10, 0))
    assert (one.low, one.high) == (None, None)
    assert one.set_low < 0.3 < one.set_high
    assert "only 1 prompt" in one.warning


@pytest.mark.parametrize(
    ("hits", "n"),
    [([1.0], [0.0]), ([3.0], [2.0]), ([-1.0], [2.0]), ([np.nan], [2.0]), ([1.0], [np.inf]), ([1.0, 0.0], [2.0])],
)
def test_impossible_counts_are_refused(hits, n):
    bad, good = (np.array(hits), np.array(n)), (full(1.0), full(1.0))
    for call in (lambda: share_of(*bad), lambda: share_difference(*bad, *good), lambda: share_difference(*good, *bad)):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize("prompts", [1, 2, 5, 39, 40, 60])
def test_the_warning_is_there_exactly_where_prompts_or_positives_are_few(prompts):
    n = np.full(prompts, 3.0)
    for firing in range(prompts + 1):
        hits = np.where(np.arange(prompts) < firing, 3.0, 0.0)
        rarer = min(firing, prompts - firing) if 2 * firing != prompts else firing
        found, differ = share_of(hits, n).warning, share_difference(hits, n, np.zeros(prompts), n).warning
        assert bool(found) == (prompts < 40 or rarer < 5) and bool(differ) == (prompts < 40 or firing < 5)
        assert (f"only {prompts} prompt{'s' * (prompts > 1)}" in found) == (prompts < 40)
        what = "misses" if 2 * firing > prompts else "hits"
        assert (f"{rarer} prompt{'s' * (rarer != 1)} with {what}" in found) == (rarer < 5)
        # One answer from each of ever more prompts does not make them fewer than five.
        alone = share_of(np.minimum(hits, 1), n)
        assert bool(alone.warning) == (prompts < 40 or firing < 5)


def test_mirror_order_and_nesting_hold_on_random_counts():
    rng = np.random.default_rng(5)
    for _ in range(100):
        prompts = int(rng.integers(2, 60))
        n = rng.integers(0, 8, prompts).astype(float)
        hits = rng.binomial(n.astype(int), propensities(rng, prompts, rng.choice([0.02, 0.3, 0.8]), 0.3)).astype(float)
        e, m, order = share_of(hits, n), share_of(n - hits, n), rng.permutation(prompts)
        if e.value is None:
            continue
        assert e.set_low <= e.value <= e.set_high and e.set_high > e.set_low
        assert m.value == pytest.approx(1 - e.value)
        assert (m.set_low, m.set_high) == pytest.approx((1 - e.set_high, 1 - e.set_low), abs=1e-9)
        other = share_of(hits[order], n[order])
        assert other.value == pytest.approx(e.value)
        assert (other.set_low, other.set_high) == pytest.approx((e.set_low, e.set_high))
        if e.clusters > 1:
            assert 0 <= e.low <= e.set_low and e.set_high <= e.high <= 1
            assert (m.low, m.high) == pytest.approx((1 - e.high, 1 - e.low), abs=1e-9)
            assert (other.low, other.high) == pytest.approx((e.low, e.high))
        else:
            assert e.low is None


# -- differences


def test_difference_is_paired_by_prompt_and_antisymmetric():
    rng = np.random.default_rng(1)
    for _ in range(80):
        prompts = int(rng.integers(2, 60))
        n_a, n_b = rng.integers(0, 6, (2, prompts)).astype(float)
        a = rng.binomial(n_a.astype(int), propensities(rng, prompts, 0.3, 0.3)).astype(float)
        b = rng.binomial(n_b.astype(int), propensities(rng, prompts, 0.1, 0.3)).astype(float)
        e, back = share_difference(a, n_a, b, n_b), share_difference(b, n_b, a, n_a)
        both = (n_a > 0) & (n_b > 0)
        if not both.any():
            assert e.value is None
            continue
        assert e.value == pytest.approx((a[both] / n_a[both] - b[both] / n_b[both]).mean())
        assert e.clusters == both.sum() and e.n == n_a[both].sum() + n_b[both].sum()
        assert sum(e.left_out.values()) == prompts - both.sum()
        assert (back.set_low, back.set_high) == pytest.approx((-e.set_high, -e.set_low), abs=1e-9)
        assert e.set_low < e.value < e.set_high or e.value in (-1.0, 1.0)
        if e.clusters > 1:
            assert (back.low, back.high) == pytest.approx((-e.high, -e.low), abs=1e-9)
            assert -1 <= e.low <= e.set_low and e.set_high <= e.high <= 1


def test_newcombes_example():
    # Newcombe (1998, Statistics in Medicine 17:873), example (a): 56/70 - 48/80, method 10.
    e = share_difference(full(56), full(70), full(48), full(80))
    assert e.value == pytest.approx(0.2) and (e.low, e.high) == (None, None)
    assert (e.set_low, e.set_high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_equal_sides_still_have_width():
    n = np.full(60, 4.0)
    e = share_difference(np.zeros(60), n, np.zeros(60), n)
    assert e.value == 0
    assert e.low == pytest.approx(-e.high)
    assert e.high == pytest.approx(score_interval(0.0, 60, 0.95)[1])
    assert e.warning.startswith("0 prompts with a difference")
    with pytest.raises(ValueError, match="paired by prompt"):
        share_difference(n, n, np.zeros(59), np.ones(59))


# -- means


def test_mean_of_prompt_means_with_missing_values_counted():
    e = mean_of(full(1, 3, np.nan, 10, np.nan), np.array([0, 0, 0, 1, 2]), 4)
    assert e.value == pytest.approx((2 + 10) / 2)
    assert (e.n, e.clusters) == (3, 2)
    assert e.left_out == {"prompts without answers": 2, "answers without a value": 2}


def halls(x):
    """Limits of a mean where Hall's cubic of the t statistic meets the quantiles of t, found by bisection."""
    n, m, se = len(x), x.mean(), sps.sem(x)
    c = sps.skew(x) / np.sqrt(n)
    t = sps.t.ppf(0.975, n - 1)

    def cubic(u, q):
        return u + c * u**2 / 3 + c**2 * u**3 / 27 + c / 6 - q

    up, down = (brentq(cubic, -1e4, 1e4, args=(q,)) for q in (t, -t))
    return m - up * se, m - down * se


def test_intervals_of_a_mean_are_the_t_intervals():
    rng = np.random.default_rng(3)
    means = rng.normal(70, 15, 50)
    values = means[:, None] + rng.normal(0, 5, (50, 6))
    e = mean_of(values.ravel(), np.repeat(np.arange(50), 6), 50)
    m = values.mean(axis=1)
    assert (e.low, e.high) == pytest.approx(halls(m), rel=1e-6)
    v = values.var(axis=1, ddof=1) / 6 / 50**2
    half = sps.t.ppf(0.975, v.sum() ** 2 / (v**2 / 5).sum()) * np.sqrt(v.sum())
    assert (e.set_low, e.set_high) == pytest.approx((m.mean() - half, m.mean() + half))


def test_one_prompt_is_the_one_sample_t_and_two_prompts_are_welchs():
    x, y = full(3, 5, 9, 4), full(1, 0, 2)
    one = mean_of(x, np.zeros(4, int), 1)
    assert (one.set_low, one.set_high) == pytest.approx(sps.t.interval(0.95, 3, x.mean(), sps.sem(x)))
    e = mean_difference(x, np.zeros(4, int), y, np.zeros(3, int), 1)
    welch = sps.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert (e.set_low, e.set_high) == pytest.approx((welch.low, welch.high))


def test_paired_difference_of_means_is_the_paired_t():
    rng = np.random.default_rng(4)
    base = rng.normal(70, 20, 60)
    a, b = base + rng.normal(3, 5, 60), base + rng.normal(0, 5, 60)
    index = np.arange(60)
    e = mean_difference(a, index, b[::-1], index[::-1], 60)
    low, high = halls(a - b)
    plain = sps.ttest_rel(a, b).confidence_interval(0.95)
    assert (low, high) == pytest.approx((plain.low, plain.high), abs=0.1 * (plain.high - plain.low))
    assert e.value == pytest.approx((a - b).mean())
    # With one answer per prompt the spread within cannot be known; that between stands in for it, unpaired.
    assert e.low <= low and e.high >= high
    many = mean_difference(
        np.repeat(a, 2) + np.tile([-0.1, 0.1], 60), np.repeat(index, 2), np.repeat(b, 2), np.repeat(index, 2), 60
    )
    assert (many.low, many.high) == pytest.approx((low, high), rel=1e-6)


def test_a_skewed_mean_reaches_further_where_its_rare_values_lie():
    values = np.full(60, 90.0) + np.resize([-2.0, 0.0, 2.0], 60)
    values[:4] = 10
    index = np.arange(60)
    e = mean_of(np.repeat(values, 2) + np.tile([-1.0, 1.0], 60), np.repeat(index, 2), 60)
    assert e.value - e.low > 2 * (e.high - e.value) > 0
    assert e.warning.startswith("under 5 prompts carry the spread")
    few = mean_of(np.repeat(values[:30], 2) + np.tile([-1.0, 1.0], 30), np.repeat(index[:30], 2), 30)
    plain = sps.t.interval(0.95, 29, values[:30].mean(), sps.sem(values[:30]))
    assert few.low < plain[0] and few.high == pytest.approx(plain[1]), "30 prompts: never inside plain t"
    assert few.warning == "only 30 prompts: the interval for prompts like these is rough"


def test_means_without_spread_or_data_give_no_interval():
    same = mean_of(np.full(12, 100.0), np.repeat(np.arange(4), 3), 4)
    assert same.value == 100 and same.low is None and same.set_low is None
    assert "do not vary" in same.warning
    empty = mean_of(full(np.nan), np.array([0]), 1)
    assert empty.value is None and empty.left_out == {"prompts without answers": 1, "answers without a value": 1}
    single = mean_of(full(5), np.array([0]), 1)
    assert (single.value, single.low, single.set_low) == (5.0, None, None)
    for values, index in ((full(np.inf), [0]), (full(1), [1]), (full(1), [-1]), (full(1, 2), [0])):
        with pytest.raises(ValueError):
            mean_of(values, np.array(index), 1)


# -- too little data, through what audits call


def assert_honest(e: Estimate):
    """No NaN, no interval without width, none without the value inside, and a reason where one is missing."""
    for low, high in ((e.low, e.high), (e.set_low, e.set_high)):
        assert (low is None) == (high is None)
        if low is not None:
            assert e.value is not None and np.isfinite([low, high]).all()
            assert low <= e.value <= high and high - low > 1e-9
    if e.value is None:
        assert e.low is None and e.set_low is None and e.method == "no answers" and e.n == 0
    else:
        assert np.isfinite(e.value)
        if e.low is None or e.set_low is None:
            assert e.warning
    if e.value is not None and e.clusters < 40:
        assert e.warning


def turned_into(prompts, status, answer=AnswerStatus.OK, n=3):
    return table([(p, status, None, answer) for p in range(prompts) for _ in range(n)])


TABLES = {
    "zero rows": (table([]), 4, None),
    "one prompt": (sampled(np.array([2]), 5), 1, 0.4),
    "one prompt of many": (sampled(np.array([0, 2, 0]), np.array([0, 5, 0])), 3, 0.4),
    "all positive": (sampled(np.full(50, 4), 4), 50, 1.0),
    "all negative": (sampled(np.zeros(50), 4), 50, 0.0),
    "all unparsed": (turned_into(50, ScoreStatus.UNPARSED), 50, 0.0),
    "none scored": (turned_into(50, None), 50, None),
    "none sampled": (turned_into(50, None, AnswerStatus.FAILED), 50, None),
    "unequal draws": (sampled(np.array([0, 1, 9, 0, 3]), np.array([1, 1, 30, 2, 3])), 5, 0.46),
}


@pytest.mark.parametrize("kind", ["threshold", "mean"])
@pytest.mark.parametrize("name", TABLES)
def test_odd_evidence_gives_honest_records(name, kind):
    group, prompts, share = TABLES[name]
    rule = Rule(kind=kind)
    for e in (rate(group, prompts, rule, level=0.95), rate(group, prompts, rule, level=0.95, unparsed=True)):
        assert_honest(e)
    if kind == "threshold":
        assert rate(group, prompts, rule, level=0.95).value == (None if share is None else pytest.approx(share))
    for other_name, (other, p, _) in TABLES.items():
        if p == prompts or other_name == "zero rows":
            for bound in Bound:
                assert_honest(excess(group, other, prompts, rule, level=0.95, bound=bound))
                assert_honest(excess(other, group, prompts, rule, level=0.95, bound=bound))


def test_all_unparsed_is_no_positive_answer_or_all_of_them():
    group, prompts, _ = TABLES["all unparsed"]
    least, most = (rate(group, prompts, Rule(), level=0.95, unparsed=u) for u in (False, True))
    assert (least.value, most.value) == (0.0, 1.0)
    assert least.high < 0.2 and most.low > 0.8
    assert rate(group, prompts, Rule(kind="mean"), level=0.95).value is None


def test_counts_by_brute_force():
    rng = np.random.default_rng(6)
    flags, prompt = rng.random(200) < 0.3, rng.integers(0, 9, 200)
    hits, n = counts(flags, prompt, 11)
    assert list(hits) == [flags[prompt == p].sum() for p in range(11)]
    assert list(n) == [(prompt == p).sum() for p in range(11)]
    for flag, index in ((0.5, 0), (np.nan, 0), (1, 2), (1, 0.0)):
        with pytest.raises(ValueError):
            counts(full(flag), np.array([index]), 2)


# -- coverage


@pytest.mark.parametrize("prompts", [40, 60])
def test_coverage_with_one_answer_a_prompt_by_enumeration(prompts):
    n = np.ones(prompts)
    found = [share_of((np.arange(prompts) < k).astype(float), n) for k in range(prompts + 1)]
    low, high = np.array([[e.low, e.high] for e in found]).T
    rates = np.linspace(0.01, 0.99, 393)[:, None]
    mass = sps.binom.pmf(np.arange(prompts + 1), prompts, rates)
    covered = (mass * ((low <= rates) & (rates <= high))).sum(axis=1)
    assert covered.min() >= 0.92 and 0.94 < covered.mean() < 0.97
    silent = np.array([not e.warning for e in found])
    mostly = (mass * silent).sum(axis=1) > 0.98
    assert mostly.sum() > 100
    unwarned = (mass * silent * ((low <= rates) & (rates <= high))).sum(axis=1) / (mass * silent).sum(axis=1)
    assert unwarned[mostly].min() >= 0.92 and unwarned[mostly].max() <= 0.98, "counts are whole numbers"


@pytest.mark.parametrize(("fire", "rate"), [(0.3, 0.9), (0.6, 0.5), (0.9, 0.2)])
def test_coverage_with_prompts_that_fire_or_not_by_enumeration(fire, rate):
    # 14 prompts x 2 answers: every split into prompts with 0, 1 and 2 hits, with its multinomial probability.
    prompts, total, covered = 14, 0.0, 0.0
    chance = [1 - fire + fire * (1 - rate) ** 2, 2 * fire * rate * (1 - rate), fire * rate**2]
    for one in range(prompts + 1):
        for two in range(prompts + 1 - one):
            mass = sps.multinomial.pmf([prompts - one - two, one, two], prompts, chance)
            hits = np.repeat([0.0, 1.0, 2.0], [prompts - one - two, one, two])
            e = share_of(hits, np.full(prompts, 2.0))
            assert "only 14 prompts" in e.warning
            total, covered = total + mass, covered + mass * (e.low <= fire * rate <= e.high)
    assert total == pytest.approx(1)
    assert 0.93 <= covered <= 0.995


def share_world(kind, prompts, rate, rho, n):
    """A draw of a share, the prompts' own mean, and that of prompts like these."""
    fire, samples = rate + rho * (1 - rate), np.full(prompts, float(n))

    def draw(rng):
        p = propensities(rng, prompts, rate, rho)
        if kind == "few fire":
            p = fire * (rng.random(prompts) < rate / fire)
        return share_of(rng.binomial(n, p).astype(float), samples), p.mean(), rate

    return draw


def difference_world(prompts, n, rate_b):
    samples = np.full(prompts, float(n))

    def draw(rng):
        a, b = propensities(rng, prompts, 0.02, 0.3), propensities(rng, prompts, rate_b, 0.3)
        hits = [rng.binomial(n, p).astype(float) for p in (a, b)]
        return share_difference(hits[0], samples, hits[1], samples), (a - b).mean(), 0.02 - rate_b

    return draw


def unequal_world(rng):
    """Unequal draws that go with the rate, of prompts that are given."""
    n, p = np.repeat([2, 40], 48), np.repeat([0.3, 0.01], 48)
    return share_of(rng.binomial(n, p).astype(float), n.astype(float)), p.mean(), p.mean()


def mean_world(rng):
    index, means = np.repeat(np.arange(48), 4), 100 * rng.beta(4, 1, 48)
    return mean_of(means[index] + rng.normal(0, 8, 48 * 4), index, 48), means.mean(), 80


SHARES = [(24, 0.02, 0.3, 50), (48, 0.02, 0.1, 4), (120, 0.02, 0.3, 50), (120, 0.2, 0.3, 4)]
WORLDS = {
    **{f"{kind} {x}": (7, share_world(kind, *x)) for kind in ("beta", "few fire") for x in SHARES},
    **{f"difference {x}": (8, difference_world(*x)) for x in ((48, 50, 0.0), (120, 50, 0.02), (240, 4, 0.002))},
    "unequal": (9, unequal_world),
    "skewed mean": (10, mean_world),
}


@pytest.mark.parametrize("world", WORLDS)
def test_both_intervals_cover(world):
    seed, draw = WORLDS[world]
    rng, runs, of_set, of_kind = np.random.default_rng(seed), 200, 0, 0
    for _ in range(runs):
        e, of_these, of_all = draw(rng)
        of_set += e.set_low <= of_these <= e.set_high
        of_kind += e.low <= of_all <= e.high
    assert of_set / runs >= 0.93 and of_kind / runs >= (0.925 if world == "skewed mean" else 0.93)


def test_pairing_makes_use_of_prompts_that_are_alike_under_both():
    rng = np.random.default_rng(2)
    p = propensities(rng, 120, 0.3, 0.5)
    a, b = rng.binomial(50, p).astype(float), rng.binomial(50, p).astype(float)
    n = np.full(120, 50.0)
    paired = share_difference(a, n, b, n)
    apart = share_of(a, n).high - share_of(a, n).low
    assert paired.high - paired.low < 0.4 * apart


def test_hits_where_draws_are_few_widen_the_interval_for_these_prompts():
    n = np.where(np.arange(100) < 25, 2.0, 50.0)
    few = share_of(np.where(np.arange(100) < 10, 2.0, 0.0), n)
    many = share_of(np.where(np.arange(100) >= 90, 50.0, 0.0), n)
    assert few.value == many.value
    assert few.set_high - few.set_low > 1.5 * (many.set_high - many.set_low)
