"""Task progress and convergence, on curves whose answer is known."""

import numpy as np
import pytest

from stats.simulated import FAST, learned_rate, learning, progress_coverage, remembered_draws
from truing.base.options import VerdictRule
from truing.stats.progress import Progress, convergence, progress_curve

STEPS = tuple(range(0, 90, 10))


def curve(truth, *, steps=None, rows=40, noise=0.02, own=0.2, seed=0) -> Progress:
    truth = np.asarray(truth, dtype=float)
    values = learning(np.random.default_rng(seed), truth, rows, own=own, noise=noise)
    p = progress_curve("trait", steps or tuple(range(0, 10 * len(truth), 10)), values, None, FAST, 0)
    assert p is not None
    return p


def test_progress_is_the_hand_calculation():
    """Losses summed over answers of 2, 3 and 5 tokens: corpus means 3.0, 1.6, 1.1, 1.2 nats per token."""
    loss = np.array([[6.0, 9.0, 15.0], [4.0, 6.0, 6.0], [3.0, 3.0, 5.0], [2.0, 4.0, 6.0]])
    tokens = np.array([2.0, 3.0, 5.0])
    p = progress_curve("loss", (0, 10, 20, 30), -loss, tokens, FAST, 0)
    assert p is not None
    assert -p.value == pytest.approx([3.0, 1.6, 1.1, 1.2])
    assert p.progress == pytest.approx([0, 1.4 / 1.9, 1, 1.8 / 1.9])
    assert p.gain.value == pytest.approx(1.9)
    kept = p.retained(1, 3, FAST, 0)
    assert kept is not None and kept.value == pytest.approx(1.4 / 1.8)
    loss_at = p.value_estimate(2, FAST, 0, -1.0)
    assert loss_at is not None and loss_at.value == pytest.approx(1.1)


def test_rows_that_learn_alike_leave_no_doubt():
    p = curve([0, 1, 2, 4], noise=0, own=0)
    for s, share in enumerate((0, 0.25, 0.5, 1)):
        e = p.estimate(s, FAST, 0)
        assert e is not None
        assert (e.value, e.low, e.high) == (pytest.approx(share), pytest.approx(share), pytest.approx(share))


def test_a_failed_checkpoint_stays_nan_and_costs_no_rows():
    values = learning(np.random.default_rng(0), np.array([0, 1.0, 2.0, 2.0]), 30)
    values[2, 5:] = np.nan  # 5 of 30 rows are left: as good as failed
    values[3, 7] = np.nan
    p = progress_curve("trait", (0, 10, 20, 30), values, None, FAST, 0)
    assert p is not None
    assert p.rows == 29
    assert np.isnan(p.value[2]) and np.isnan(p.progress[2])
    assert p.estimate(2, FAST, 0) is None and p.retained(2, None, FAST, 0) is None
    assert np.isfinite(p.value[[0, 1, 3]]).all()


@pytest.mark.parametrize(
    "values", [np.ones((1, 9)), np.ones((3, 2)), np.full((3, 9), np.nan), np.vstack([np.full(9, np.nan), np.ones(9)])]
)
def test_no_curve_without_step_0_or_rows(values):
    assert progress_curve("trait", tuple(range(len(values))), values, None, FAST, 0) is None


def test_rows_without_tokens_are_left_out():
    tokens = np.array([10.0, np.nan, 0.0, 10, 10, 10])
    p = progress_curve("loss", (0, 1), np.vstack([-np.ones(6), np.zeros(6)]), tokens, FAST, 0)
    assert p is not None and p.rows == 4


@pytest.mark.parametrize(
    ("truth", "status", "step", "after"),
    [
        ([0, 0.4, 0.8, 0.95, 1, 1, 1, 1, 1], "converged", 30, 20),
        ([0, 0.95, 0.7, 0.97, 1, 1, 1, 1, 1], "converged", 30, 20),  # dips back under: the first sustained one counts
        ([0, 1, 1, 1, 1, 1, 1, 1, 1], "converged", 10, 0),
        ([0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.85, 1], "still_learning", None, None),
        ([0, 0.5, 0.8, 0.9, 0.91, 0.92, 0.92, 0.92, 1], "still_learning", None, None),  # the last quarter adds 8 %
        ([0, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01], "task_not_learned", None, None),
        ([0, -0.5, -0.6, -0.7, -0.8, -0.9, -1, -1, -1], "task_not_learned", None, None),
        ([0, 1, 1], "too_few_checkpoints", None, None),
    ],
)
def test_convergence_on_known_curves(truth, status, step, after):
    c = convergence(curve(truth, noise=0.005), "trait", FAST)
    assert (c.status, c.step, c.after, c.overfit) == (status, step, after, False)
    if step is not None:
        assert c.low is not None and c.high is not None
        assert c.low <= step <= c.high


def test_an_overfit_curve_was_learned_before_it_fell():
    c = convergence(curve([0, 0.5, 0.95, 1, 0.9, 0.7, 0.5, 0.3, 0.2], noise=0.005), "loss", FAST)
    assert (c.status, c.step, c.overfit) == ("converged", 20, True)


def test_a_dip_at_the_end_within_noise_is_no_overfit():
    found = [convergence(curve([0, 0.8, 1, 1, 1], noise=0.3, seed=k), "loss", FAST).overfit for k in range(60)]
    assert sum(found) <= 6


def test_checkpoints_without_a_step_are_not_placed_and_order_does_not_matter():
    truth = [0, 0.4, 0.8, 0.95, 1, 1, 1, 1, 1]
    p = curve(truth, noise=0.005)
    order = [0, 5, 3, 1, 2, 4, 8, 7, 6]
    rng = np.random.default_rng(0)
    values = learning(rng, np.array(truth), 40, own=0.2, noise=0.005)[order]
    mixed = progress_curve("trait", tuple(STEPS[k] for k in order), values, None, FAST, 0)
    assert mixed is not None
    assert convergence(mixed, "trait", FAST).step == convergence(p, "trait", FAST).step == 30
    unknown = curve(truth, noise=0.005, steps=(0, 10, None, None, None, None, None, None, None))
    assert convergence(unknown, "trait", FAST).status == "too_few_checkpoints"
    assert convergence(None, "trait", FAST).status == "unmeasured"


def test_a_share_of_a_gain_that_may_be_none_has_no_interval():
    p = curve([0, 0.01, 0.012, 0.011], noise=0.5, own=0, seed=3)
    for s in range(1, 4):
        e = p.retained(s, 2, FAST, 0)
        assert e is None or e.low is None or (p.gain.low is not None and p.gain.low > 0)


def test_the_level_of_the_rule_reaches_every_interval():
    rule = VerdictRule(level=0.8, resamples=400)
    p = progress_curve("trait", STEPS, learning(np.random.default_rng(0), np.linspace(0, 1, 9), 30), None, rule, 4)
    assert p is not None
    e = p.estimate(3, rule, 4)
    assert e is not None and (e.level, p.gain.level, p.gain.seed) == (0.8, 0.8, 4)


def test_noise_is_seldom_called_learned():
    """At most 5 % in truth; 200 runs have a standard error of 1.5 points."""
    with remembered_draws():
        assert all(learned_rate(200, 1, rows, kind) <= 0.05 for rows, kind in ((10, "normal"), (30, "right")))


def test_intervals_of_progress_cover():
    with remembered_draws():
        calm, noisy = progress_coverage(120, 1), progress_coverage(120, 2, noise=0.3)
    assert min(calm["convergence"], noisy["convergence"]) >= 0.95
    assert min(calm["retained"], noisy["retained"], calm["retained of last"], noisy["retained of last"]) >= 0.92
    assert min(calm["share"], noisy["share"]) >= 0.88  # picking the best step costs a few points at 30 noisy rows
