"""Power of a design: the formula against simulation with the real intervals, and searches against their figure."""

from dataclasses import replace

import numpy as np
import pytest

from stats.search_worlds import excess_curve, make_world, play
from truing.stats.onset import OnsetSearch
from truing.stats.power import Design, answers_to_confirm, power, search_answers
from truing.stats.rates import share_difference
from truing.stats.sequential_base import Zone

DESIGNS = {
    "many samples": Design(120, 20, rate=0.03, correlation=0.2, level=0.995),
    "few samples": Design(60, 4, rate=0.05, base_rate=0.01, correlation=0.2),
    "in the zone": Design(240, 5, rate=0.02, base_rate=0.005, correlation=0.1),
    "alike": Design(120, 2, rate=0.005, base_rate=0.005, correlation=0.0),
    "unlike": Design(40, 20, rate=0.4, base_rate=0.05, correlation=0.5),
}


def sampled(d: Design, rate: float, rng):
    """Hits per prompt, the sampled prompts being scaled to have the rate as their own mean."""
    if rate == 0 or d.correlation == 0:
        return rng.binomial(d.samples, np.full(d.prompts, rate)).astype(float)
    size = (1 - d.correlation) / d.correlation
    shares = rng.beta(rate * size, (1 - rate) * size, d.prompts)
    for _ in range(20):  # clipped shares lose a little each time
        shares = np.clip(shares * rate / shares.mean(), 0, 1)
    return rng.binomial(d.samples, shares).astype(float)


@pytest.mark.parametrize("name", DESIGNS)
def test_limits_and_power_are_those_of_simulated_audits(name):
    """150 simulated samples with the real interval: power within 4 standard errors, mean limits within a tenth."""
    d, rng, runs = DESIGNS[name], np.random.default_rng(7), 150
    n = np.full(d.prompts, float(d.samples))
    limits, above, below, clean = [], 0, 0, 0
    for _ in range(runs):
        run, base = sampled(d, d.rate, rng), sampled(d, d.base_rate, rng)
        e = share_difference(run, n, base, n, level=d.level)
        above, below = above + (e.set_low > d.lo), below + (e.set_high < d.hi)
        clean += share_difference(sampled(d, d.base_rate, rng), n, base, n, level=d.level).set_high < d.hi
        limits.append([e.set_low - e.value, e.set_high - e.value])
    made, excess = power(d), d.rate - d.base_rate
    assert [made.low - excess, made.high - excess] == pytest.approx(np.mean(limits, axis=0), rel=0.12)
    for told, seen in ((made.above, above), (made.below, below), (made.clean, clean)):
        assert abs(told - seen / runs) <= 4 * np.sqrt(max(told * (1 - told), 0.01) / runs)


def test_power_of_one_answer_is_counted_by_hand():
    """One prompt, one answer each: four pairs of answers, the real interval for each."""
    d = Design(1, 1, rate=0.3, base_rate=0.2, correlation=0.0, lo=0.0, hi=0.99, level=0.5)
    one, above, below = np.ones(1), 0.0, 0.0
    for x in (0, 1):
        for y in (0, 1):
            chance = (0.3 if x else 0.7) * (0.2 if y else 0.8)
            e = share_difference(x * one, one, y * one, one, level=0.5)
            above, below = above + chance * (e.set_low > 0), below + chance * (e.set_high < 0.99)
    made = power(d)
    assert (made.above, made.below) == (pytest.approx(above), pytest.approx(below)) and 0 < above < 1


def test_effective_answers_are_the_variance_of_a_clustered_mean():
    d, rng = Design(50, 8, rate=0.1, correlation=0.3), np.random.default_rng(0)
    shares = rng.beta(0.1 * 7 / 3, 0.9 * 7 / 3, (20_000, 50))
    means = rng.binomial(8, shares).mean(axis=1) / 8
    assert means.var() == pytest.approx(0.09 / power(d).effective, rel=0.04)


@pytest.mark.parametrize(
    "wrong", [{"rate": 1.0}, {"base_rate": -0.1}, {"correlation": 1.0}, {"samples": 0}, {"lo": 0.03}, {"level": 1}]
)
def test_an_impossible_design_is_refused(wrong):
    with pytest.raises(ValueError):
        power(replace(Design(20, 4), **wrong))


def test_answers_to_confirm_are_the_least_of_three_looks():
    found = {n: answers_to_confirm(n, 1, 0.03, looks=3) for n in (10, 20, 40, 60, 120, 240)}
    assert found[10] is None and found[240] == 1 and set(found.values()) <= {None, 1, 2, 4}
    known = [n or 8 for n in found.values()]
    assert known == sorted(known, reverse=True)
    assert answers_to_confirm(120, 3, 0.03, looks=3) == 3
    assert answers_to_confirm(120, 1, 0.001, looks=3) is None


@pytest.mark.parametrize(("steps", "base", "monotone"), [(20, 0.001, True), (8, 0.0, False), (8, 0.02, False)])
def test_what_a_search_takes_is_of_the_order_told(steps, base, monotone):
    """The figure within a factor of 3 of the mean of simulated searches; at most one in ten over the cautious one."""
    about, most = search_answers(steps, Zone(0.01, 0.03), base_rate=base, assume_monotone=monotone)
    for family, height in (("logistic", 0.2), ("never", 0.0)):
        used = []
        for r in range(10):
            rng = np.random.default_rng([3, r])
            world = make_world(excess_curve(family, steps, height, rng), base, 120, 0.2, rng)
            search = OnsetSearch(world.steps, world.prompt_ids, Zone(0.01, 0.03), assume_monotone=monotone, seed=r)
            used.append(play(search, world, rng))
        assert about / 3 < np.mean(used) < 3 * about
        assert np.mean(np.array(used) > most) <= 0.1
