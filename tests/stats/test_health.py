"""Health from counts of answers, and the release gate."""

from dataclasses import replace

import numpy as np
import pytest

from stats.simulated import FAST, changing, measured_of
from truing.config.gating import Policy
from truing.errors import BadInput
from truing.stats.decide import decide
from truing.stats.evidence import AnswerCounts
from truing.stats.gate import gate
from truing.stats.health import health, run_health, sound
from truing.stats.table import Evidence
from truing.types.gating import ALWAYS
from truing.types.verdicts import EXCESS, Basis, Finding, HealthState, Status


def answers(usable, n=20, **more):
    return AnswerCounts(n=n, usable=usable, **{"in_domain": -1, **more})


@pytest.mark.parametrize(
    ("counts", "base", "state"),
    [
        (answers(20), answers(20), "ok"),
        (answers(16), answers(20), "ok"),  # exactly 0.8 of the base's
        (answers(15), answers(20), "undecided"),  # 0.75 of 20 may be 0.8 of the base's
        (answers(300, 400), answers(400, 400), "degraded"),
        (answers(14), answers(20), "undecided"),
        (answers(11), answers(20), "degraded"),  # certainly under 0.8, not certainly under 0.5
        (answers(9), answers(20), "degraded"),
        (answers(90, 200), answers(200, 200), "degraded"),
        (answers(80, 200), answers(200, 200), "collapsed"),
        (answers(4), answers(20), "collapsed"),
        (answers(13), answers(16), "ok"),  # relative to the base: 0.81
        (answers(2), answers(16), "collapsed"),
        (answers(20, repetitive=11), answers(20), "undecided"),
        (answers(20, repetitive=15), answers(20), "collapsed"),
        (answers(20, repetitive=10), answers(20), "ok"),
        (answers(20, formatted=15), answers(20), "collapsed"),
        (answers(20), answers(11), "undecided"),
        (answers(20), answers(6), "unfit_base"),
        (answers(20), answers(12), "ok"),  # exactly 0.6
        (answers(20, surprising=20), answers(20), "undecided"),  # another style, or babble: its form does not say
        (answers(20, surprising=4), answers(20), "ok"),
        (answers(0), answers(0), "unfit_base"),
        (answers(11, n=11), answers(20), "unknown"),
        (answers(20), answers(11, n=11), "unknown"),
        (AnswerCounts(), AnswerCounts(), "unknown"),
    ],
)
def test_states(counts, base, state):
    h = health(counts, base, 1.5, FAST)
    assert (h.state, h.entropy) == (state, 1.5)
    if state == "unknown":
        assert h.usable is None and "12 are needed" in h.note
    if state == "undecided":
        assert f"{counts.n} answers" in h.note and ("too few to tell" in h.note or "surprise the base" in h.note)


def test_numbers_that_could_not_be_had_stay_none():
    h = health(answers(18), answers(20), None, FAST)
    assert (h.nll_base, h.in_domain, h.entropy) == (None, None, None)
    h = health(answers(18, in_domain=5, nll_base=2.0), answers(20), None, FAST)
    assert (h.nll_base, h.in_domain) == (2.0, 0.25)
    assert h.usable is not None and h.usable.value == 0.9 and h.usable.low is not None and h.usable.low < 0.75


@pytest.mark.parametrize("n", [12, 16, 24])
def test_neighbours_that_differ_by_chance_are_not_called_broken(n):
    """Shares usable of 71, 46 and 71 % of a few answers are no break and recovery."""
    few = tuple(answers(round(share * n), n) for share in (0.92, 0.71, 0.46, 0.71))
    states = [h.state for h in run_health(run(answers=few), FAST)]
    assert set(states[1:]) <= {HealthState.UNDECIDED, HealthState.OK} and HealthState.UNDECIDED in states
    many = tuple(answers(round(share * 1000 * n), 1000 * n) for share in (0.92, 0.71, 0.46, 0.71))
    assert [h.state for h in run_health(run(answers=many), FAST)][1:] == ["degraded", "degraded", "degraded"]


def test_many_checkpoints_do_not_break_by_chance():
    """Each has 90 % of 20 answers usable, as the base has: of 40 none may be called worse."""
    rng = np.random.default_rng(1)
    worse = 0
    for _ in range(20):
        counts = tuple(answers(int(k)) for k in rng.binomial(20, 0.9, 40))
        wide = replace(run(), labels=("x",) * 40, entropy=np.zeros((40, 1)), answers=counts)
        worse += any(h.broken or h.state is HealthState.DEGRADED for h in run_health(wide, FAST))
    assert worse <= 1


def run(**fields):
    return replace(changing(np.random.default_rng(0), np.array([0, 0, 0.0, 3]), prompts=40), **fields)


def test_sound_leaves_out_what_broke_or_failed():
    mixed = run(answers=(answers(20), answers(20), answers(2), answers(20)), failed={"checkpoint-30": "NaN"})
    assert sound(mixed, FAST).tolist() == [True, True, False, False]
    assert [h.state for h in run_health(run(answers=()), FAST)] == [HealthState.UNKNOWN] * 4


def judged(status, **fields):
    v = decide(Evidence(measured_of(run(**fields))), FAST)
    lines = tuple(replace(c, status=status) for c in v.checkpoints)
    return replace(v, basis=Basis.LABELLED, checkpoints=lines)


def words(v, which=None, allow=(), **more):
    return {r.code for r in gate(v, Policy(which, tuple(allow), **more)).reasons}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status.CLEAN, set()),
        *((status, {status.value}) for status in EXCESS),  # not the data's fault, and there all the same
        (Status.NO_CHANGE_SEEN, {"unlabelled"}),
        (Status.UNTESTED, {"unlabelled"}),
        (Status.CHANGED, {"changed", "unlabelled"}),
        (Status.UNDECIDED, {"undecided"}),
        (Status.FAILED, {"failed", "unlabelled"}),
    ],
)
def test_gate_by_default(status, expected):
    assert words(judged(status), "last", ["no_control"]) == expected


@pytest.mark.parametrize("state", HealthState)
def test_a_gate_wants_health_that_is_known(state):
    v = judged(Status.CLEAN)
    lines = tuple(replace(c, health=replace(c.health, state=state)) for c in v.checkpoints)
    unknown = {"health_unknown"}
    known = {HealthState.OK: set(), HealthState.UNKNOWN: unknown, HealthState.UNDECIDED: unknown}
    expected = known.get(state, {state.value})
    assert words(replace(v, checkpoints=lines), "last", ["no_control"]) == expected


@pytest.mark.parametrize(
    ("finding", "word"),
    [
        ("judge_not_calibrated", "uncalibrated"),
        ("judge_failed_calibration", "calibration_failed"),
        ("judge_misses_positives", "judge_misses_positives"),
        ("cause_not_tested", "no_control"),
    ],
)
def test_a_gate_reads_what_the_run_lacks(finding, word):
    v = replace(judged(Status.CLEAN), findings=(Finding(finding),))
    assert words(v, "last") == {word} and gate(v, Policy("last", (word,))).passed


@pytest.mark.parametrize(
    ("finding", "word"),
    [
        ("zero_adapter", "identity_unproven"),
        ("probe_failed", "identity_unproven"),
        ("unconfirmed", "unconfirmed"),
        ("no_fixed_answers", "unconfirmed"),
    ],
)
def test_a_gate_reads_what_a_checkpoint_lacks(finding, word):
    v = judged(Status.CLEAN)
    lines = tuple(replace(c, findings=(Finding(finding),)) for c in v.checkpoints)
    assert words(replace(v, checkpoints=lines), "last", ["no_control"]) == {word}


def test_gate_chooses_and_fails_what_is_not_there():
    v = decide(Evidence(measured_of(run())), FAST)
    blank = ["unlabelled", "no_control"]
    assert words(v, "10", blank) == set() and words(v, "last", blank) == {"changed"}
    assert words(v, "10") == set(blank)
    for which in ("recommended", "15"):
        assert "no_checkpoint" in words(v, which) and gate(v, Policy(which)).checkpoint is None
    for which in ("newest", "-1", "²", ""):
        with pytest.raises(BadInput, match="--gate"):
            gate(v, Policy(which))
    for word in ("nonsense", *ALWAYS):
        with pytest.raises(BadInput, match=f"--allow {word}"):
            gate(v, Policy("10", (word,)))


def test_gate_of_a_step_shared_by_two_checkpoints_needs_both():
    v = decide(Evidence(measured_of(run(steps=(0, 10, 30, 30)))), FAST)
    assert words(v, "30", ["unlabelled", "no_control"]) == {"changed"}
