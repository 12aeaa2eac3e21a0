"""The cluster bootstrap: against a loop over the same resamples, the formula it replaces, and exact small cases."""

import dataclasses

import numpy as np
import pytest

from truing.stats.bootstrap import Resamples
from truing.stats.rates import cluster_bootstrap, share_of

LEVEL = (0.025, 0.975)


def world(seed, checkpoints=4, prompts=30, missing=False):
    rng = np.random.default_rng(seed)
    n = rng.integers(0 if missing else 1, 7, (checkpoints, prompts)).astype(float)
    hits = rng.binomial(n.astype(int), rng.beta(0.5, 2, (checkpoints, prompts))).astype(float)
    return hits, n


def one_by_one(resamples, hits, n, by, other=None):
    """Shares (or differences from `other`) of every resample, prompt by prompt, from the same counts of prompts."""
    out = []
    for column in resamples.weights.T:
        sampled = [p for p, times in enumerate(column) for _ in range(int(times))]
        if other is not None:
            sampled = [p for p in sampled if n[p] > 0 and other[1][p] > 0]
        shares = []
        for k, m in ((hits, n),) if other is None else ((hits, n), other):
            there = [p for p in sampled if m[p] > 0]
            if not there:
                break
            if by == "prompts":
                shares.append(sum(k[p] / m[p] for p in there) / len(there))
            else:
                shares.append(sum(k[p] for p in there) / sum(m[p] for p in there))
        else:
            out.append(shares[0] - (shares[1] if other is not None else 0))
    return np.array(out)


@pytest.mark.parametrize("categories", [None, tuple("abc"[i % 3] for i in range(30))])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("by", ["prompts", "answers"])
def test_limits_are_those_of_a_loop_over_the_same_resamples(by, missing, categories):
    hits, n = world(3, missing=missing)
    samples = Resamples(30, 300, 5, categories)
    pairs = [(0, 1), (3, 2), (1, 1)]
    shares, differences = samples.table(hits, n, pairs, by=by)
    for c, e in enumerate(shares):
        expected = np.quantile(one_by_one(samples, hits[c], n[c], by), LEVEL)
        assert (e.low, e.high) == pytest.approx(expected, abs=1e-9)
        assert (e.n, e.clusters, e.seed) == (n[c].sum(), (n[c] > 0).sum(), 5)
        assert sum(e.left_out.values()) == (n[c] == 0).sum()
    for (a, b), e in zip(pairs[:2], differences, strict=False):
        expected = one_by_one(samples, hits[a], n[a], by, (hits[b], n[b]))
        assert (e.low, e.high) == pytest.approx(np.quantile(expected, LEVEL), abs=1e-9)
        both = (n[a] > 0) & (n[b] > 0)
        assert e.clusters == both.sum() and e.n == n[a][both].sum() + n[b][both].sum()
    assert (differences[2].value, differences[2].low) == (0.0, None), "a checkpoint differs from itself by nothing"
    assert samples.shares(hits, n, by=by) == shares
    assert samples.differences(hits, n, pairs, by=by) == differences


@pytest.mark.parametrize("samples", [1, 50])
def test_with_equal_draws_it_is_the_formula_it_replaces(samples):
    rng = np.random.default_rng(8)
    hits = rng.binomial(samples, rng.beta(0.5, 3, 60)).astype(float)
    n = np.full(60, float(samples))
    weights = np.random.default_rng(4).multinomial(60, np.full(60, 1 / 60), size=2000)
    expected = np.quantile((weights @ hits) / (weights @ n), LEVEL)
    assert cluster_bootstrap(hits, n, resamples=2000, seed=4) == pytest.approx(tuple(expected), abs=1e-15)
    for by in ("prompts", "answers"):
        e = Resamples(60, 2000, 4).shares(hits, n, by=by)[0]
        assert (e.low, e.high) == pytest.approx(tuple(expected), abs=1e-15)
    uneven = rng.integers(1, 9, 60).astype(float)
    few = np.minimum(hits, uneven)
    expected = np.quantile((weights @ few) / (weights @ uneven), LEVEL)
    assert cluster_bootstrap(few, uneven, resamples=2000, seed=4) == pytest.approx(tuple(expected), abs=1e-15)


def test_counts_too_large_for_float32_stay_exact():
    # In float32 one hit in 2^25 is lost; the two ends would then be those of equal arms.
    n = np.full(4, 2.0**25)
    hits = np.array([0.0, 1.0, 2.0, 3.0]) + 2.0**24
    samples = Resamples(4, 500, 0)
    expected = np.quantile(samples.weights.astype(float).T @ hits / 2.0**27, LEVEL)
    e = samples.shares(hits, n)[0]
    assert (e.low, e.high) == pytest.approx(tuple(expected), rel=1e-12) and e.high > e.low


def test_weights_are_counts_of_prompts_and_stay_within_categories():
    plain = Resamples(12, 400, 1)
    assert plain.weights.shape == (12, 400)
    assert (plain.weights == np.rint(plain.weights)).all() and (plain.weights.sum(axis=0) == 12).all()
    assert np.array_equal(plain.weights, Resamples(12, 400, 1).weights)
    assert not np.array_equal(plain.weights, Resamples(12, 400, 2).weights)
    with pytest.raises(ValueError):
        plain.weights[0, 0] = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.seed = 3  # type: ignore[misc]
    names = ("a", "b", "a", "c", "b", "a")
    inside = Resamples(6, 400, 1, names)
    for name, size in (("a", 3), ("b", 2), ("c", 1)):
        assert (inside.weights[[i for i, x in enumerate(names) if x == name]].sum(axis=0) == size).all()


def test_two_prompts_of_one_category_have_the_exact_distribution():
    e = Resamples(2, 40_000, 0).shares(np.array([0.0, 4.0]), np.array([4.0, 4.0]), level=0.4)[0]
    assert (e.value, e.low, e.high) == (0.5, 0.5, 0.5) or e.low is None, "the middle half of 1/4, 1/2, 1/4 is one half"
    assert "no interval" in e.warning
    wide = Resamples(2, 40_000, 0).shares(np.array([0.0, 4.0]), np.array([4.0, 4.0]), level=0.6)[0]
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_differences_between_categories_are_no_chance_within_them():
    rng = np.random.default_rng(2)
    names = tuple("ab"[i % 2] for i in range(80))
    p = np.where(np.arange(80) % 2, 0.9, 0.1)
    hits, n = rng.binomial(20, p).astype(float), np.full(80, 20.0)
    free, within = (Resamples(80, 4000, 0, c).shares(hits, n)[0] for c in (None, names))
    assert within.high - within.low < 0.4 * (free.high - free.low)
    assert "within category" in within.method
    flat = Resamples(80, 100, 0, names).shares(np.where(np.arange(80) % 2, 20.0, 0.0), n)[0]
    assert (flat.value, flat.low, flat.high) == (0.5, None, None)


def test_with_many_prompts_it_agrees_with_the_logit_t_interval():
    rng = np.random.default_rng(6)
    hits, n = rng.binomial(20, rng.beta(0.6, 2.4, 600)).astype(float), np.full(600, 20.0)
    t, boot = share_of(hits, n), Resamples(600, 4000, 0).shares(hits, n)[0]
    assert boot.value == pytest.approx(t.value)
    assert boot.high - boot.low == pytest.approx(t.high - t.low, rel=0.08)
    assert boot.warning == ""


# -- too little data, bad input


@pytest.mark.parametrize("by", ["prompts", "answers"])
def test_too_little_data_gives_a_reason_and_no_width(by):
    n = np.array([[5.0] * 6, [5.0] * 6, [0.0] * 6, [0, 0, 0, 9, 0, 0]])
    hits = np.array([[0.0] * 6, [5.0] * 6, [0.0] * 6, [0, 0, 0, 4, 0, 0]])
    none, every, empty, one = Resamples(6, 200, 0).shares(hits, n, by=by)
    assert (none.value, none.low, none.high) == (0.0, None, None) and "no interval: no resample" in none.warning
    assert (every.value, every.low, every.high) == (1.0, None, None) and "0 prompts with misses" in every.warning
    assert (empty.value, empty.low, empty.method, empty.left_out) == (
        None,
        None,
        "no answers",
        {"prompts without answers": 6},
    )
    assert one.value == pytest.approx(4 / 9) and one.low is None and "no interval: one prompt" in one.warning
    assert one.left_out["resamples without answers"] > 0
    pairs = Resamples(6, 200, 0).differences(hits, n, [(1, 0), (0, 2), (3, 0)], by=by)
    assert (pairs[0].value, pairs[0].low) == (1.0, None)
    assert (pairs[1].value, pairs[1].left_out) == (None, {"prompts without answers on both sides": 6})
    assert pairs[2].value == pytest.approx(4 / 9) and pairs[2].low is None
    single = Resamples(1, 50, 0).shares([3.0], [9.0], by=by)[0]
    assert single.value == pytest.approx(1 / 3) and single.low is None and "one prompt" in single.warning


def test_few_prompts_and_few_hits_are_marked():
    hits, n = np.zeros((3, 60)), np.full((3, 60), 4.0)
    hits[0, :5], hits[1, :4], hits[2, :57] = 1, 1, 4
    a, b, c = Resamples(60, 200, 0).shares(hits, n)
    assert (
        a.warning == "" and b.warning.startswith("4 prompts with hits") and c.warning.startswith("3 prompts with mis")
    )
    short = Resamples(39, 200, 0).shares(hits[0, :39], n[0, :39])[0]
    assert short.warning.startswith("only 39 prompts:")


@pytest.mark.parametrize(
    ("hits", "n"),
    [
        ([[1.0]], [[0.0]]),
        ([[-1.0]], [[1.0]]),
        ([[np.nan]], [[1.0]]),
        ([[1.0]], [[np.inf]]),
        ([[0.0, 0.0]], [[1.0, 1.0]]),
    ],
)
def test_impossible_counts_are_refused(hits, n):
    with pytest.raises(ValueError):
        Resamples(1, 10, 0).shares(hits, n)


def test_impossible_settings_are_refused():
    samples, n = Resamples(3, 10, 0), np.ones((2, 3))
    for wrong in (
        lambda: Resamples(0, 10, 0),
        lambda: Resamples(3, 0, 0),
        lambda: Resamples(3, 10, 0, ("a", "b")),
        lambda: samples.differences(n, n, [(0, 2)]),
        lambda: samples.differences(n, n, [(-1, 0)]),
        lambda: samples.shares(n, n, by="rows"),  # type: ignore[arg-type]
        lambda: samples.shares(n, n, level=1.0),
    ):
        with pytest.raises(ValueError):
            wrong()
    assert samples.table(np.zeros((0, 3)), np.zeros((0, 3))) == ((), ())
