"""Studies: seeds put together, and cases under several definitions, against truth."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy import stats as sps

from stats.worlds import RULE, binomial, decided, labelled_of, sampled, screened_of
from truing.stats.meta import implied_variance, random_effects
from truing.stats.rates import share_difference, share_of
from truing.stats.studies import (
    UNKNOWN,
    Definition,
    Outcome,
    SeedRun,
    adjusted,
    cell_of,
    definition_row,
    outcome_of,
)
from truing.types.cases import Case
from truing.types.verdicts import Basis, Convergence, HealthState


def run_of(seed, hits, base_hits, samples=20, *, key=None, onset="found"):
    """A run with these misaligned answers per prompt, and its step 0."""
    n = np.full(len(hits), float(samples))
    case = Case("m", "d", "r", seed, audit=f"a{seed}")
    excess, em = share_difference(hits, n, base_hits, n), share_of(hits, n)
    return SeedRun(case, onset, excess, em, share_of(base_hits, n), key if key is not None else f"k{seed}", 100)


def simulated(rng, seeds, mean, tau, base, *, prompts=60, samples=20, shared=True):
    """Runs of one recipe, their true mean excess being `mean`; with shared answers of step 0, or each its own."""

    def hits(rate):
        return rng.binomial(samples, rate, prompts).astype(float)

    common, out = hits(base), []
    for s in range(seeds):
        rate = np.clip(base + mean + tau * rng.standard_normal(), 0, 1)
        out.append(run_of(s, hits(rate), common if shared else hits(base), samples, key="k" if shared else f"k{s}"))
    return out


def test_a_cell_says_share_with_onset_mean_and_consistency():
    rng = np.random.default_rng(1)
    runs = simulated(rng, 5, 0.2, 0.02, 0.01)
    runs[4] = replace(runs[4], onset="undecided")
    cell = cell_of(runs, RULE, delta=0.03)
    assert cell.onset.value == 1 and cell.onset.left_out == {"unknown": 1}
    assert cell.excess.value == pytest.approx(0.2, abs=0.03)
    assert cell.excess.low < cell.excess.set_low < cell.excess.value < cell.excess.set_high < cell.excess.high
    assert (cell.consistent, cell.equivalence.status) == ("above", "different")
    assert cell.p < 0.001


def test_nothing_there_is_a_finding_with_enough_answers_and_a_shortage_without():
    rng = np.random.default_rng(2)
    none = cell_of(simulated(rng, 5, 0.0, 0.0, 0.005), RULE, delta=0.03)
    assert none.equivalence.status == "equivalent" and none.consistent in ("below", "no")
    assert none.excess.set_high > none.excess.set_low  # zero differences still have an interval
    short = cell_of(simulated(rng, 3, 0.0, 0.0, 0.005, prompts=10, samples=2), RULE, delta=0.03)
    assert short.equivalence.status == "undetermined"


def test_under_three_seeds_only_this_run():
    for seeds in (1, 2):
        cell = cell_of(simulated(np.random.default_rng(3), seeds, 0.2, 0.02, 0.01), RULE, delta=0.03)
        assert cell.consistent == "this_run" and cell.p is None and cell.tau is None
        assert any("fewer than 3 seeds" in w for w in cell.warnings)
        assert (cell.excess.set_low is None) == (seeds == 2)  # one run keeps its own interval
        assert (cell.equivalence.status == "undetermined") == (seeds == 2)


def test_a_run_without_an_excess_is_left_out_and_named():
    rng = np.random.default_rng(4)
    runs = simulated(rng, 4, 0.2, 0.02, 0.01)
    runs[0] = SeedRun(runs[0].case, "", reason="its audit is unfinished")
    cell = cell_of(runs, RULE, delta=0.03)
    assert cell.excess.clusters == 3 and cell.onset.left_out == {"unknown": 1}
    assert any("unfinished" in w for w in cell.warnings)
    nothing = cell_of([replace(runs[0], case=replace(r.case)) for r in runs], RULE, delta=0.03)
    assert nothing.excess.value is None and nothing.equivalence.reason


def test_identical_estimates_do_not_make_a_certain_mean():
    """Zero variance between seeds: the interval is that of the runs' own error, and more."""
    (one,) = simulated(np.random.default_rng(5), 1, 0.1, 0, 0.01)
    cell = cell_of([replace(one, case=replace(one.case, seed=s)) for s in range(3)], RULE, delta=0.03)
    assert cell.tau == 0
    assert cell.excess.set_high - cell.excess.set_low > (one.excess.set_high - one.excess.set_low) / sqrt(3)


def test_shared_answers_of_step_0_widen_the_interval():
    """Their error is in every run alike; the spread between runs does not show it."""
    shared = simulated(np.random.default_rng(6), 4, 0.1, 0.0, 0.05)
    apart = [replace(r, base_key=str(k)) for k, r in enumerate(shared)]
    wide, narrow = (cell_of(r, RULE, delta=0.03).excess for r in (shared, apart))
    assert wide.value == pytest.approx(narrow.value, abs=0.002)
    assert wide.set_high - wide.set_low > narrow.set_high - narrow.set_low
    assert "shared" in wide.method and "shared" not in narrow.method
    # Only a run's own part is its error; the base's is added once. Runs that agree leave nothing else.
    one, agree = shared[0], [replace(shared[0], case=replace(shared[0].case, seed=k)) for k in range(4)]
    pooled = random_effects(np.full(4, one.excess.value), np.full(4, implied_variance(one.rate))).mean
    found = cell_of(agree, RULE, delta=0.03).excess
    by_hand = pooled.plus(implied_variance(one.base)).limits(0.95)
    assert (found.set_low, found.set_high) == pytest.approx(by_hand)


def test_a_run_with_few_misaligned_answers_by_chance_weighs_no_more():
    """Its variance is small because its rate is: inverse variances would pull the mean down."""
    runs = simulated(np.random.default_rng(10), 8, 0.03, 0.0, 0.01, prompts=40, samples=5, shared=False)
    values = [r.excess.value for r in runs]
    assert len(set(values)) > 3
    assert cell_of(runs, RULE, delta=0.03).excess.value == pytest.approx(np.mean(values))
    own = np.array([(r.excess.set_high - r.excess.set_low) ** -2 for r in runs])
    assert (own * values).sum() / own.sum() < np.mean(values)  # what it avoids


def test_runs_of_different_cells_are_refused():
    runs = simulated(np.random.default_rng(7), 2, 0.1, 0.0, 0.05)
    with pytest.raises(ValueError, match="one model"):
        cell_of([runs[0], replace(runs[1], case=Case("other", "d", "r", 1))], RULE, delta=0.03)
    with pytest.raises(ValueError, match="at least one"):
        cell_of([], RULE, delta=0.03)


def test_several_models_are_adjusted_by_holm():
    rng, made = np.random.default_rng(8), []
    for k, mean in enumerate((0.3, 0.0, 0.15, 0.0)):
        runs = simulated(rng, 3, mean, 0.01, 0.01)
        made.append(cell_of([replace(r, case=replace(r.case, model=f"m{k}")) for r in runs], RULE, delta=0.03))
    single = cell_of(simulated(np.random.default_rng(9), 1, 0.2, 0, 0.01), RULE, delta=0.03)
    found = adjusted([*made, single])
    p = sorted(c.p for c in made)
    want = np.minimum(1, np.maximum.accumulate([(4 - k) * x for k, x in enumerate(p)]))
    assert sorted(c.p_holm for c in found if c.p_holm is not None) == pytest.approx(list(want))
    assert found[-1].p_holm is None and found[-1].equivalence.p_adjusted is None
    assert all(c.equivalence.p_adjusted >= c.equivalence.p for c in found[:4])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seeds", [3, 5])
def test_errors_are_as_said(seeds, shared):
    """With the true mean on lo at most 2.5 % are called above it, with it on delta at most 5 % equivalent."""
    runs = 100
    slack = 3 * sqrt(0.05 * 0.95 / runs)
    for seed, mean, most in ((seeds, RULE.lo, 0.025), (seeds + 9, 0.03, 0.05)):
        rng, inside, above, same = np.random.default_rng(seed), 0, 0, 0
        for _ in range(runs):
            made = simulated(rng, seeds, mean, 0.02, 0.03, prompts=30, samples=10, shared=shared)
            cell = cell_of(made, RULE, delta=0.03)
            inside += cell.excess.set_low <= mean <= cell.excess.set_high
            above += cell.consistent == "above"
            same += cell.equivalence.status == "equivalent"
        assert inside / runs >= 0.95 - slack
        assert (above if mean == RULE.lo else same) / runs <= most + slack


# ---------------------------------------------------------------------------------------------------------------------

STEPS = (0, 20, 40, 60, 80)
LABELS = ("base", "c20", "c40", "c60", "c80")
LEARNED = Convergence("skill", "converged", 60, 40)


def decided_on(shares, *, rule=RULE, states=None, prompts=40, samples=25):
    """The verdict of a run with these shares positive, per step."""
    screened = screened_of(LABELS, STEPS, (0.0, 0.5, 0.8, 0.95, 1.0), states=states, learned=LEARNED)
    rng = np.random.default_rng(1)
    spread = np.where(np.arange(prompts) % 2, 1.3, 0.7)
    groups = [
        sampled(np.round(s * spread * samples).astype(int), samples, name, step)
        if s >= 0.05
        else binomial(rng, s, prompts, samples, name=name, step=step)
        for s, name, step in zip(shares, LABELS, STEPS, strict=True)
    ]
    return decided(labelled_of(groups, prompts, rule=rule), screened)


def outcome(verdict, kind="certified", **fields):
    return outcome_of(verdict, Definition("d", kind=kind, **fields))


LATE, DIP, AT_ONCE = (0, 0, 0, 0.12, 0.3), (0, 0, 0.2, 0, 0.3), (0, 0.2, 0.2, 0.2, 0.2)


def test_a_screen_that_sees_nothing_is_no_case_that_stayed_clean():
    screened = replace(decided_on((0,) * 5), basis=Basis.SCREEN, recommended=None)
    for kind in ("certified", "estimated"):
        found = outcome(screened, kind)
        assert (found.turned, found.avoided, found.kept) == ("unknown", "unknown", None)


def test_outcomes_under_certified_definitions():
    late = decided_on(LATE)
    assert late.onset.status == "found" and late.recommended == "c40"
    assert outcome(late) == Outcome("yes", "yes", "c40", pytest.approx(0.8))
    learned = outcome(late, converged_at=0.9)
    assert (learned.turned, learned.avoided, learned.kept) == ("yes", "no", "c40") and "80%" in learned.reason
    assert outcome(late, converged_at=0.8).avoided == "yes"
    never = outcome(decided_on((0,) * 5), converged_at=0.9)
    assert (never.turned, never.avoided, never.kept, never.retained) == ("no", "yes", "c80", 1.0)
    at_once = outcome(decided_on(AT_ONCE))
    assert (at_once.turned, at_once.avoided, at_once.retained) == ("yes", "no", None)
    with pytest.raises(ValueError, match="kind"):
        outcome(late, "guessed")


def test_outcomes_as_published_shares_are_read():
    late, dip = decided_on(LATE), decided_on(DIP)
    assert outcome(late, "estimated") == Outcome("yes", "yes", "c40", pytest.approx(0.8))
    # With a higher threshold a later checkpoint still counts as well behaved.
    assert outcome(late, "estimated", rule=replace(RULE, lo=0.2, hi=0.3)).kept == "c60"
    # A dip after the first crossing is no place to stop at: the last checkpoint before the first crossing is kept.
    assert (outcome(dip, "estimated").kept, outcome(dip).kept) == ("c20", "c60")
    at_once = outcome(decided_on(AT_ONCE), "estimated")
    assert (at_once.turned, at_once.avoided) == ("yes", "no")


def test_a_collapsed_checkpoint_is_not_kept():
    states = (HealthState.OK, HealthState.OK, HealthState.COLLAPSED, HealthState.OK, HealthState.OK)
    late = decided_on(LATE, states=states)
    assert outcome(late, "estimated").kept == outcome(late).kept == "c20"


def test_rates_of_a_search_or_of_a_few_checkpoints_are_no_estimates():
    late = decided_on(LATE)
    searched = replace(late, onset=replace(late.onset, errors="guaranteed"))
    assert outcome(searched, "estimated").turned == "unknown"
    assert outcome(searched).avoided == "yes"
    lines = list(late.checkpoints)
    lines[3] = replace(lines[3], labelled=None)
    found = outcome(replace(late, checkpoints=tuple(lines)), "estimated")
    assert (found.turned, found.avoided) == ("unknown", "unknown") and "3 of 4" in found.reason


def test_a_row_counts_what_it_says():
    """71 % avoided and 93 % kept, made by hand: 7 cases turn, 5 avoid it; 2 never turn; 1 has no verdict."""
    cases = [Case(f"m{k}", "d", "r", 0) for k in range(10)]
    made = [*(Outcome("yes", "yes", "c", r) for r in (0.9, 0.95, 0.91, 0.94, 0.95)), *[Outcome("yes", "no")] * 2,
            *[Outcome("no", "yes", "c", 1.0)] * 2, UNKNOWN]  # fmt: skip
    row = definition_row(Definition("published"), cases, made)
    assert (row.cases, row.turned, row.never) == (10, 7, 2)
    assert row.avoided.value == pytest.approx(5 / 7) and row.avoided.left_out == {"unknown": 1}
    assert row.avoided.set_low == pytest.approx(sps.binomtest(5, 8).proportion_ci().low)
    assert row.avoided.set_high == pytest.approx(sps.binomtest(6, 8).proportion_ci().high)
    assert row.certified.value == pytest.approx(7 / 9)
    assert row.retained.value == pytest.approx(0.93)
    x = np.array([0.9, 0.95, 0.91, 0.94, 0.95])
    assert (row.retained.low, row.retained.high) == pytest.approx(sps.t.interval(0.95, 4, x.mean(), sps.sem(x)))
    assert row.retained_all.n == 7
    with pytest.raises(ValueError):
        definition_row(Definition("x"), cases, made[:3])
