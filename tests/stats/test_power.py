"""Power of a design: formulas against simulation with the real intervals, a bound against brute force, a pilot."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, special

from truing.stats.power import Design, correlation, expected, power, sequential_bound
from truing.stats.rates import share_difference

DESIGNS = {
    "many draws": Design(120, 20, rate=0.03, correlation=0.2, checkpoints=10),
    "few draws": Design(60, 4, rate=0.05, base_rate=0.01, correlation=0.2, checkpoints=3),
    "in the zone": Design(240, 5, rate=0.02, base_rate=0.005, correlation=0.1, checkpoints=5),
    "alike": Design(120, 2, rate=0.005, base_rate=0.005, correlation=0.0),
    "unlike": Design(40, 20, rate=0.4, base_rate=0.05, correlation=0.5),
}


def sampled(d: Design, rate: float, rng, fixed: bool):
    """Hits per prompt; `fixed` scales the drawn prompts to have the rate as their own mean."""
    if rate == 0 or d.correlation == 0:
        return rng.binomial(d.samples, np.full(d.prompts, rate)).astype(float)
    size = (1 - d.correlation) / d.correlation
    shares = rng.beta(rate * size, (1 - rate) * size, d.prompts)
    if fixed:
        for _ in range(20):  # clipped shares lose a little each time
            shares = np.clip(shares * rate / shares.mean(), 0, 1)
    return rng.binomial(d.samples, shares).astype(float)


@pytest.mark.parametrize("name", DESIGNS)
def test_limits_and_power_are_those_of_simulated_audits(name):
    """200 simulated samples with the real interval: power within 4 standard errors, mean limits within a tenth."""
    d, rng, runs = DESIGNS[name], np.random.default_rng(7), 200
    n = np.full(d.prompts, float(d.samples))
    limits, above, below, clean = [], 0, 0, 0
    for _ in range(runs):
        e = share_difference(sampled(d, d.rate, rng, False), n, sampled(d, d.base_rate, rng, False), n, level=d.level)
        limits.append([e.low - e.value, e.high - e.value])
        run, base = sampled(d, d.rate, rng, True), sampled(d, d.base_rate, rng, True)
        e = share_difference(run, n, base, n, level=d.strict)
        above, below = above + (e.set_low > d.lo), below + (e.set_high < d.hi)
        clean += share_difference(sampled(d, d.base_rate, rng, True), n, base, n, level=d.strict).set_high < d.hi
        e = share_difference(run, n, base, n, level=d.level)
        limits[-1] += [e.set_low - e.value, e.set_high - e.value]
    made = expected(d)
    x = made.excess
    told = np.array([x.low, x.high, x.set_low, x.set_high]) - d.excess
    assert told == pytest.approx(np.mean(limits, axis=0), rel=0.12)
    for said, seen in ((made.above, above), (made.below, below), (made.clean, clean)):
        assert abs(said - seen / runs) <= 4 * np.sqrt(max(said * (1 - said), 0.01) / runs)


def test_power_of_one_answer_is_counted_by_hand():
    """One prompt, one answer each: four pairs of answers, the real interval for each."""
    d = Design(1, 1, rate=0.3, base_rate=0.2, correlation=0.0, lo=0.0, hi=0.99, level=0.5)
    one, above, below = np.ones(1), 0.0, 0.0
    for x in (0, 1):
        for y in (0, 1):
            chance = (0.3 if x else 0.7) * (0.2 if y else 0.8)
            e = share_difference(x * one, one, y * one, one, level=0.5)
            assert e.set_low is not None and e.set_high is not None
            above, below = above + chance * (e.set_low > 0), below + chance * (e.set_high < 0.99)
    made = expected(d)
    assert (made.above, made.below) == (pytest.approx(above), pytest.approx(below))
    assert 0 < above < 1


def test_effective_answers_are_the_variance_of_a_clustered_mean():
    d = Design(50, 8, rate=0.1, correlation=0.3)
    rng = np.random.default_rng(0)
    shares = rng.beta(0.1 * 7 / 3, 0.9 * 7 / 3, (20_000, 50))
    means = rng.binomial(8, shares).mean(axis=1) / 8
    assert means.var() == pytest.approx(0.09 / expected(d).effective, rel=0.04)


def test_more_prompts_beat_more_answers():
    made = power(Design(120, 4, rate=0.05, correlation=0.3))
    by_size = {(e.prompts, e.samples): e for e in made.others}
    assert set(by_size) == {(240, 2), (60, 8), (240, 4), (120, 8)}

    def width(e):
        return e.excess.high - e.excess.low

    assert width(by_size[240, 2]) < width(made.expected) < width(by_size[60, 8])
    assert width(by_size[240, 4]) < width(by_size[120, 8])
    assert all(e.answers == 480 for e in (made.expected, by_size[240, 2], by_size[60, 8]))
    set_widths = [e.excess.set_high - e.excess.set_low for e in (made.expected, by_size[240, 2], by_size[60, 8])]
    assert set_widths == pytest.approx([set_widths[0]] * 3)  # for exactly these prompts only answers count


def divergence_by_hand(rate, base, limit):
    """Smallest KL from the difference of two answers to any distribution on -1, 0, 1 with mean `limit`."""
    p = np.array([base * (1 - rate), 0, rate * (1 - base)])
    p[1] = 1 - p.sum()

    def kl(down):  # the mean fixes the rest
        q = np.array([down, 1 - 2 * down - limit, down + limit])
        if (q < 0).any():
            return np.inf
        return float(sum(a * np.log(a / b) if b > 0 else np.inf for a, b in zip(p, q, strict=True) if a > 0))

    grid = np.linspace(0, (1 - limit) / 2, 20_001)[:-1]
    k = int(np.argmin([kl(x) for x in grid]))
    ends = grid[max(0, k - 1)], grid[min(len(grid) - 1, k + 1)]
    return min(optimize.minimize_scalar(kl, bounds=ends, method="bounded", options={"xatol": 1e-12}).fun, kl(grid[k]))


@pytest.mark.parametrize(("rate", "base"), [(0.05, 0.0), (0.05, 0.01), (0.2, 0.02), (0.02, 0.002)])
def test_the_bound_is_the_nearest_null(rate, base):
    d = Design(100, 1, rate=rate, base_rate=base)
    bound = sequential_bound(d)
    assert bound.above == pytest.approx(np.log(20) / divergence_by_hand(rate, base, 0.01), rel=1e-3)
    assert bound.clean == pytest.approx(np.log(20) / divergence_by_hand(base, base, 0.03), rel=1e-3)
    if rate - base < 0.03:
        assert bound.below == pytest.approx(np.log(20) / divergence_by_hand(rate, base, 0.03), rel=1e-3)
    else:
        assert bound.below is None
    assert sequential_bound(replace(d, rate=base)).above is None


def test_the_mean_of_seeds_is_as_wide_as_simulated():
    d = Design(60, 10, rate=0.1, base_rate=0.02, correlation=0.0, seeds=4)
    made = power(d).seeds
    assert made is not None and made.every == pytest.approx(expected(d).above ** 4)
    rng = np.random.default_rng(0)
    excess = (rng.binomial(600, 0.1, (20_000, 4)) - rng.binomial(600, 0.02, (20_000, 4))) / 600
    half = special.stdtrit(3, 0.975) * excess.std(axis=1, ddof=1) / 2
    assert made.least_half_width == pytest.approx(half.mean(), rel=0.02)
    assert power(replace(d, seeds=1)).seeds is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 1.0},
        {"base_rate": -0.1},
        {"correlation": 1.0},
        {"samples": 0},
        {"lo": 0.03},
        {"seeds": 0},
        {"level": 1},
    ],
)
def test_an_impossible_design_is_refused(wrong):
    with pytest.raises(ValueError):
        power(replace(Design(20, 4), **wrong))


def test_one_prompt_says_nothing_of_others():
    e = expected(Design(1, 10, rate=0.2)).excess
    assert (e.low, e.high) == (-1.0, 1.0) and "one prompt" in e.warning


# ---------------------------------------------------------------------------------------------------------------------
# A pilot's correlation


def test_the_likeliest_correlation_of_two_answers_is_counted_by_hand():
    """Two answers to each prompt: the maximum is at the moments, 1 - P(differ) / (2 p (1 - p))."""
    hits = np.array([0] * 60 + [1] * 20 + [2] * 20, dtype=float)
    e = correlation(hits, np.full(100, 2.0))
    p = 0.3
    assert e.value == pytest.approx(1 - 0.2 / (2 * p * (1 - p)), abs=1e-3)
    assert e.low is not None and e.high is not None and e.low < e.value < e.high


@pytest.mark.parametrize(
    ("prompts", "samples", "rate", "rho"), [(60, 10, 0.2, 0.3), (240, 4, 0.05, 0.2), (60, 10, 0.05, 0)]
)
def test_the_interval_of_a_correlation_covers(prompts, samples, rate, rho):
    """0.95 of 100 pilots in truth; their standard error is 2.2 points."""
    d, rng = Design(prompts, samples, rate=rate, correlation=rho), np.random.default_rng(5)
    n = np.full(prompts, float(samples))
    made = [correlation(sampled(d, rate, rng, False), n) for _ in range(100)]
    covered = [e.low <= rho <= e.high for e in made if e.low is not None and e.high is not None]
    assert len(covered) == 100 and np.mean(covered) >= 0.89
    assert np.mean([e.value for e in made]) == pytest.approx(rho, abs=0.03)


def test_a_pilot_that_tells_nothing_gives_a_reason():
    n = np.full(20, 4.0)
    for hits, samples, why in (
        (np.zeros(20), n, "no answer is misaligned"),
        (n, n, "every answer is misaligned"),
        (np.repeat([0.0, 1.0], 10), np.ones(20), "no prompt has two answers"),
        (np.zeros(20), np.zeros(20), "no prompt has two answers"),
    ):
        e = correlation(hits, samples)
        assert e.value is None and e.low is None and e.warning == why
    alike = correlation(np.repeat([0.0, 4.0], 10), n)  # every prompt always or never
    assert alike.value is not None and alike.value > 0.99 and alike.high is not None and alike.high > 0.99
