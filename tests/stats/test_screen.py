"""The screen: its limit, statuses, onset set, candidate and findings; false alarms and power by simulation."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from stats.simulated import (
    FAST,
    alarm_rate,
    blame_rate,
    changing,
    measured_of,
    onset_coverage,
    remembered_samples,
    run_of,
    with_task,
)
from truing import messages
from truing.report.reading import tone
from truing.report.table import print_audit
from truing.stats.bands import tolerance_limit
from truing.stats.decide import decide
from truing.stats.evidence import AnswerCounts, RunEvidence
from truing.stats.screen import (
    against_base,
    against_control,
    change_onset,
    lone_prompts,
    screen_limit,
    screen_status,
    shift_band,
    softening_slope,
)
from truing.stats.table import Evidence
from truing.types.records import to_plain
from truing.types.verdicts import Basis, Finding, Status

CODES = {
    "c": Status.NO_CHANGE_SEEN,
    "D": Status.CHANGED,
    "?": Status.UNDECIDED,
    "F": Status.FAILED,
    "B": Status.UNDECIDED,  # and broken
}


@pytest.mark.parametrize(
    ("pattern", "options", "found"),
    [  # status, after, earliest, latest, steps inside, sustained
        ("cccc", {}, ("never", None, None, None, (), None)),
        ("c", {}, ("never", None, None, None, (), None)),
        ("ccDD", {}, ("found", 10, 20, 20, (20,), True)),
        ("cDDD", {}, ("found", 0, 10, 10, (10,), True)),
        ("cDcD", {}, ("found", 0, 10, 10, (10,), False)),  # dips back
        ("cDcc", {}, ("found", 0, 10, 10, (10,), False)),  # a spike
        ("cD??", {}, ("found", 0, 10, 10, (10,), False)),
        ("cDFB", {}, ("found", 0, 10, 10, (10,), True)),  # what could not be judged does not speak against it
        ("cc?D", {}, ("found", 10, 20, 30, (20, 30), True)),  # undecided before found
        ("c?cD", {}, ("found", 0, 10, 30, (10, 20, 30), True)),
        ("cFcD", {}, ("found", 0, 10, 30, (10, 20, 30), True)),  # failed in the middle: it may have begun there
        ("cc??", {}, ("undecided", 10, 20, None, (20, 30), None)),
        ("ccFc", {}, ("undecided", 10, 20, None, (20, 30), None)),
        ("cBBB", {}, ("undecided", 0, 10, None, (10, 20, 30), None)),
        # one that merely shows none stays in a found set: its shift may have been too small to see
        ("cccD", {"certain": (True, True, False, False)}, ("found", 10, 20, 30, (20, 30), True)),
        ("cccc", {"certain": (True, False, False, False)}, ("never", None, None, None, (), None)),
        # the order does not matter, equal steps are one
        ("cDcc", {"steps": (0, 30, 10, 20)}, ("found", 20, 30, 30, (30,), True)),
        ("ccD", {"steps": (0, 10, 10)}, ("found", 0, 10, 10, (10,), False)),
        # a change at an unknown step is never never
        ("cD", {"steps": (0, None)}, ("undecided", None, None, None, (), None)),
        ("ccD", {"steps": (0, 10, None)}, ("undecided", None, None, None, (), None)),
        ("ccc", {"steps": (0, 10, None)}, ("never", None, None, None, (), None)),
    ],
)
def test_onset_set(pattern, options, found):
    steps = tuple(10 * k for k in range(len(pattern)))
    given = {"steps": steps, "certain": None, "broken": tuple(x == "B" for x in pattern), **options}
    o = change_onset(statuses=tuple(CODES[x] for x in pattern), **given)
    assert (o.status, o.after, o.earliest, o.latest, o.steps, o.sustained) == found


@pytest.mark.parametrize(
    ("low", "mean", "low_control", "controlled", "limit", "status"),
    [
        (0.3, 0.5, 0.3, True, 0.2, "changed"),
        (0.3, 0.5, 0.1, True, 0.2, "not_beyond_control"),
        (0.3, 0.5, np.nan, True, 0.2, "cause_not_tested"),  # the control has no such step
        (0.3, 0.5, np.nan, False, 0.2, "cause_not_tested"),
        (0.1, 0.5, 0.3, True, 0.2, "undecided"),
        (-0.1, 0.1, 0.3, True, 0.2, "no_change_seen"),
        (-0.5, -0.3, 0.3, True, 0.2, "no_change_seen"),
        (0.2, 0.2, 0.3, True, 0.2, "no_change_seen"),
        (0.3, 0.5, 0.3, True, None, "undecided"),
        (np.nan, np.nan, 0.3, True, 0.2, "undecided"),
    ],
)
def test_status(low, mean, low_control, controlled, limit, status):
    found, findings = screen_status(low, mean, low_control, controlled, limit)
    assert (findings[0].code if findings else found.value) == status


def quiet(prompts=40, steps=5, seed=0, **fields):
    return changing(np.random.default_rng(seed), np.zeros(steps), prompts=prompts, **fields)


def test_shifts_are_paired_and_step_0_is_not_in_the_band():
    run, other = quiet(seed=1), quiet(seed=2)
    shift = against_base(run.contrast)
    assert np.isnan(shift[0]).all()
    assert shift[3] == pytest.approx(run.contrast[3] - run.contrast[0])
    late = replace(other, steps=(0, 20, None, 40, 99))
    minus = against_control(run, late)
    assert np.isfinite(minus).all(axis=1).tolist() == [False, False, True, False, True]
    assert minus[4] == pytest.approx(shift[4] - against_base(other.contrast)[3])


def test_one_half_broken_checkpoint_does_not_take_the_others_prompts():
    run = quiet()
    shift = against_base(run.contrast)
    shift[2, 3:] = np.nan
    found = shift_band(shift, ("a",) * 40, FAST, 0)
    assert found.clusters == 40
    assert np.isnan(found.low[2]) and np.isfinite(found.low[3])


def test_the_limit_is_the_tolerance_limit_of_three_different_benign_runs():
    peaks = (0.1, 0.12, 0.2)
    flat = np.zeros((3, 40))
    controls = [run_of(flat + np.array([[0], [p], [p / 2]]), flat, f"c{p}") for p in peaks]
    limit, source = screen_limit(measured_of(quiet(steps=3), *controls), FAST, 0)
    assert limit == pytest.approx(tolerance_limit(np.array(peaks)))
    assert source == "3 benign control runs"
    _, source = screen_limit(measured_of(quiet(steps=3), *controls[:2], controls[0]), FAST, 0)
    assert source.startswith("null contrasts"), "the same run thrice is one run"
    dead = replace(controls[0], contrast=np.full((3, 40), np.nan), weights=("x", "y", "z"))
    _, source = screen_limit(measured_of(quiet(steps=3), *controls[:2], dead), FAST, 0)
    assert source.startswith("null contrasts")


def test_a_broken_checkpoint_sets_no_limit():
    run = quiet(steps=5)
    usual, _ = screen_limit(measured_of(run), FAST, 0)
    wild = run.null_contrast.copy()
    wild[4] += 9.0
    well = AnswerCounts(n=24, usable=24, in_domain=-1)
    ill = replace(well, usable=1)
    babble = replace(run, null_contrast=wild, answers=(well, well, well, well, ill))
    limit, _ = screen_limit(measured_of(babble), FAST, 0)
    assert usual is not None and limit is not None
    assert limit <= usual * 1.05
    loud, _ = screen_limit(measured_of(replace(run, null_contrast=wild)), FAST, 0)
    assert loud is not None and loud > 8


@pytest.mark.parametrize(("null_contrast", "words"), [(np.nan, "no null contrasts"), (0.0, "never move")])
def test_no_limit_without_a_null_contrast_that_can_move(null_contrast, words):
    run = quiet()
    limit, source = screen_limit(
        measured_of(replace(run, null_contrast=np.full_like(run.null_contrast, null_contrast))), FAST, 0
    )
    assert limit is None and words in source


def test_a_run_that_does_not_move_at_all_has_a_limit_of_zero():
    still = np.ones((4, 40))
    assert screen_limit(measured_of(run_of(still, still)), FAST, 0)[0] == 0


def test_softening_slope_is_minus_the_shrinkage():
    base = np.random.default_rng(0).standard_normal(60)
    assert softening_slope(np.stack([base, 0.4 * base + 0.1]), 1) == pytest.approx(-0.6)
    assert softening_slope(np.stack([base, base + 0.5]), 1) == pytest.approx(0, abs=1e-12)
    assert softening_slope(np.ones((2, 60)), 1) is None
    assert softening_slope(np.stack([base[:9], base[:9]]), 1) is None


def one_run(shift=(0.0,) * 7, **fields):
    return lambda rng: measured_of(changing(rng, np.array(shift), **fields))


@pytest.mark.parametrize("null_contrast", [0.25, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.02, 0.75))])
def test_false_alarms_stay_under_five_percent(null_contrast):
    """Any of 6 steps, with null contrasts far quieter than, as noisy as, and noisier than the contrast."""
    with remembered_samples():
        for kind in ("normal", "left"):
            assert alarm_rate(100, 3, one_run(null_contrast=null_contrast, prompts=40, kind=kind)) <= 0.06
        moved = np.linspace(0, 0.3, 7)
        assert alarm_rate(60, 4, one_run(null_contrast=null_contrast, prompts=40, artefact=moved)) <= 0.06


def test_benign_runs_keep_false_alarms_down():
    """Benign runs set the limit: each run, the subject too, is harmless and moves by its own amount."""
    growth = np.linspace(0, 1, 6)

    def benign(rng):
        wander = [growth * (0.1 + 0.05 * rng.standard_normal()) for _ in range(4)]
        return measured_of(*(changing(rng, w, prompts=60, name=f"run{k}") for k, w in enumerate(wander)))

    with remembered_samples():
        assert alarm_rate(60, 5, benign) <= 0.05


def test_a_clear_drift_is_found():
    with remembered_samples():
        assert alarm_rate(30, 6, one_run(shift=np.linspace(0, 0.25, 7))) >= 0.9


def test_the_data_are_blamed_only_where_the_control_stays():
    with remembered_samples():
        together, seen = blame_rate(40, 7, 0.4, 0.4)
        alone, _ = blame_rate(30, 8, 0.4, 0.0)
    assert together <= 0.05 and seen >= 0.9
    assert alone >= 0.9


def test_the_onset_set_holds_the_first_step_over_the_limit():
    with remembered_samples():
        covered, size = onset_coverage(100, 9)
    assert covered >= 0.95
    assert size <= 5.5


def test_one_prompt_that_carries_the_shift_is_named_and_a_common_shift_is_not():
    rng = np.random.default_rng(0)
    prompts = tuple(f"p{k}" for k in range(60))

    def run(shift):
        contrast = np.stack([np.zeros(60), shift])
        return RunEvidence(("base", "a"), (0, 1), ("w0", "w1"), contrast, contrast * 0, contrast * 0, contrast * 0)

    noise = 0.05 * rng.standard_normal(60)
    alone = noise.copy()
    alone[7] += 2.0
    assert lone_prompts(run(alone), prompts) == [("p7", 1)]
    assert lone_prompts(run(noise), prompts) == []
    assert lone_prompts(run(noise + rng.gamma(2, 0.25, 60)), prompts) == []


# -- the screen's verdict

LATE = np.array([0, 0, 0, 0, 0, 0, 0.5, 1.0, 1.5])
LEARNED = 1 - np.exp(-np.arange(9) / 1.0)
WELL = AnswerCounts(n=24, usable=23, in_domain=-1)
ILL = replace(WELL, usable=2, repetitive=20)


def world(shift=LATE, learned=LEARNED, *, control=True, seed=0, **fields):
    """120 prompts, 8 checkpoints, a task that is learned early, and a change that comes late."""
    rng = np.random.default_rng(seed)
    subject = changing(rng, shift, noise=0.1, null_contrast=0.1)
    if learned is not None:
        subject = with_task(subject, learned, rng)
    controls = (changing(rng, np.zeros(len(shift)), noise=0.1, name="control"),) if control else ()
    return measured_of(replace(subject, **fields), *controls, task_given=learned is not None)


def of(measured, seed=0):
    return decide(Evidence(measured), FAST, seed=seed)


def test_the_usual_story():
    v = of(world())
    assert [c.status for c in v.checkpoints] == [Status.NO_CHANGE_SEEN] * 6 + [Status.CHANGED] * 3
    assert (v.basis, v.onset.after, v.onset.latest, v.gap) == (Basis.SCREEN, 50, 60, "after")
    assert v.kept is v.candidate is v.recommended is v.retained_of_best is None and v.retained_curve == "skill"
    kept = v.checkpoints[5].retained_of_best
    assert 0.9 < kept.low <= kept.value <= kept.high <= 1
    assert v.checkpoints[0].contrast_base is None and v.checkpoints[0].softening is None
    assert all(not c.findings for c in v.checkpoints)
    assert {f.code for f in v.findings} == {"not_measured", "screen_unvalidated", "few_benign_runs"}
    assert of(world()) == v and of(world(), seed=1).checkpoints[8].contrast_base != v.checkpoints[8].contrast_base


def half_moved(m):
    return replace(m, controls=(replace(m.controls[0], kl_from_base=np.linspace(0, 0.09, 9)),))


def few_prompts(m, prompts):
    cut = {k: getattr(m.subject, k)[:, :prompts] for k in ("contrast", "null_contrast", "margin", "entropy")}
    return measured_of(replace(m.subject, **cut), task_given=True)


def other_steps(m):
    return replace(m, controls=(replace(m.controls[0], steps=(0, 10, 20, 30, 40, 50, 60, 71, 81)),))


def formed(first, **fields):
    """A run whose loss jumps at one checkpoint, where its answers turn to code."""
    learned = np.where(np.arange(9) >= first, 1.0, 0.1 * np.arange(9) / first)
    answers = tuple(replace(WELL, usable=13 if s >= first else 23, formatted=10 if s >= first else 0) for s in range(9))
    return world(LATE * 0, learned, answers=answers, **fields)


def breaks_too(m):
    run = replace(m.subject, answers=(WELL,) * 5 + (ILL,) * 4)
    return replace(m, subject=run, controls=(replace(m.controls[0], answers=run.answers),))


FALLING = np.array([0, 0.6, 1, 1, 0.8, 0.6, 0.4, 0.3, 0.2])
FOUND = [
    (world(control=False), "no_control", {}),
    (world(LATE[:3], LEARNED[:3]), "few_checkpoints", {"n": 2}),
    (world(skill=None), "no_task_control", {}),
    (half_moved(world()), "control_under_moved", {"kl": 0.2, "kl_control": 0.09}),
    (world(kl_from_base=None), "control_distance_unknown", {}),
    (other_steps(world()), "control_without_step", {"n": 2}),
    (breaks_too(world()), "control_breaks", {"checkpoints": [f"checkpoint-{s}" for s in (50, 60, 70, 80)]}),
    (few_prompts(world(), 15), "too_few_prompts", {"n": 15}),
    (few_prompts(world(), 30), "prompts_may_not_generalise", {"n": 30, "far": False}),
    (world(failed={"checkpoint-30": "NaN"}), "checkpoints_failed", {"checkpoints": ["checkpoint-30"]}),
    (world(answers=()), "health_unknown", {}),
    (replace(world(), left_out={"why": 3}), "prompts_left_out", {"n": 3, "why": "why"}),
    (replace(world(), findings=(Finding("negative_control_failed"),)), "negative_control_failed", {}),
    (world(learned=FALLING), "overfit", {}),
    (formed(4, skill=None), "possible_artefact", {"checkpoint": "checkpoint-40", "converges_here": True}),
    (replace(world(), scored=False), "not_scored", {}),
]


@pytest.mark.parametrize(("measured", "code", "params"), FOUND, ids=[code for _, code, _ in FOUND])
def test_findings(measured, code, params):
    found = {f.code: f.params for f in of(measured).findings}
    assert all(found[code][k] == (pytest.approx(v) if isinstance(v, float) else v) for k, v in params.items())


def test_an_artefact_is_marked_on_its_line():
    v = of(formed(4, skill=None))
    assert [c.step for c in v.checkpoints if any(f.code == "artefact" for f in c.findings)] == [40]
    assert [c.step for c in v.checkpoints if c.loss_progress is not None and c.loss_progress.warning] == [40]
    assert not any(f.code == "possible_artefact" for f in of(formed(4)).findings)  # here the skill jumps with the loss


def test_too_few_prompts_decide_nothing_but_are_shown():
    v = of(few_prompts(world(), 15))
    assert {c.status for c in v.checkpoints[1:]} == {Status.UNDECIDED}
    assert v.screen_limit is None and v.candidate is None and v.checkpoints[8].contrast_base is not None


def test_equal_steps_and_one_checkpoint_after_the_base():
    v = of(world(LATE[[0, 1, 8]], LEARNED[:3], steps=(0, 80, 80), labels=("base", "checkpoint-80", "final")))
    assert (v.onset.earliest, v.onset.latest, v.onset.after) == (80, 80, 0)
    v = of(world(np.array([0, 1.0]), LEARNED[:2]))
    assert v.onset.latest == 10 and v.convergence_skill.status == "too_few_checkpoints"


def test_an_adapter_of_zeros_shows_no_change():
    still = np.tile(np.random.default_rng(0).standard_normal(40), (4, 1))
    v = of(measured_of(run_of(still, still)))
    assert {c.status for c in v.checkpoints} == {Status.NO_CHANGE_SEEN} and v.screen_limit == 0


def random_run(rng):
    """Anything an audit can bring: change or none, failures, holes, broken answers, no task, no control, odd steps."""
    n, prompts = int(rng.integers(2, 9)), int(rng.choice([1, 4, 12, 25, 60]))
    run = changing(rng, np.append(0, rng.normal(0, rng.choice([0.0, 0.1, 2.0]), n - 1)), prompts=prompts)
    for name in ("contrast", "null_contrast"):
        holes = rng.random((n, prompts)) < rng.choice([0, 0, 0.1, 0.9])
        run = replace(run, **{name: np.where(holes, np.nan, getattr(run, name))})
    if rng.random() < 0.7:
        run = with_task(run, np.append(0, rng.normal(0, 1, n - 1).cumsum()), rng, int(rng.choice([1, 2, 5, 30])))
    if rng.random() < 0.3:
        run = replace(run, skill=None, steps=tuple(s if rng.random() < 0.6 else None for s in run.steps))
    if rng.random() < 0.3:
        lost = np.where(rng.random((n, 1)) < 0.4, np.nan, run.contrast)
        run = replace(run, contrast=lost, failed={k: "lost" for k in run.labels if rng.random() < 0.2})
    if rng.random() < 0.4:
        run = replace(
            run, answers=tuple([WELL, ILL, AnswerCounts()][i] for i in rng.integers(0, 3, n)), kl_from_base=None
        )
    controls = [changing(rng, np.zeros(n), prompts=prompts, name=f"c{k}") for k in range(rng.integers(0, 5))]
    return measured_of(run, *controls, task_given=run.loss is not None)


ALL_CLEAR = re.compile(
    r"no drift|drift seen|recommended|\b(safe|fine|pass(es|ed)?|healthy|unchanged|candidate)\b|all clear|looks good"
    r"|nothing wrong|none found|no (problem|concern|sign|issue)",
    re.I,
)


def words_of(v):
    """Everything that is said of a verdict on the screen: sentence, table, details, findings."""
    rows = [(messages.status_words(c), *map(messages.text, c.findings), tone(c)) for c in v.checkpoints]
    shown = io.StringIO()
    about = {"verdict": to_plain(v), "status": "done", "kind": "audit"}
    print_audit(about, Console(file=shown, width=200), verbose=True)
    said = [messages.sentence(v), *messages.details(v), *map(messages.text, v.findings), shown.getvalue()]
    return [*said, *(text for row in rows for text in row)]


def test_a_screen_that_sees_nothing_clears_nothing():
    v = of(world(LATE * 0))
    assert {c.status for c in v.checkpoints} == {Status.NO_CHANGE_SEEN} and v.recommended is v.candidate is None
    assert "not measured" in messages.sentence(v) and "--judge" in messages.sentence(v)
    assert messages.deciding(v)[0].code == "not_measured"
    said = " ".join(words_of(v))
    assert "not measured" in said and "calm" not in said and not ALL_CLEAR.search(said), ALL_CLEAR.search(said)


def test_whatever_the_evidence_the_screen_certifies_nothing():
    rng = np.random.default_rng(0)
    for _ in range(60):
        measured = random_run(rng)
        v = decide(Evidence(measured), FAST.but(resamples=100))
        statuses = {c.status for c in v.checkpoints}
        assert statuses <= {Status.NO_CHANGE_SEEN, Status.CHANGED, Status.UNDECIDED, Status.FAILED}
        assert v.recommended is None and (Status.CHANGED not in statuses or v.onset.status != "never")
        for c in v.checkpoints:
            if c.status is Status.CHANGED and not measured.controls:
                assert any(f.code == "cause_not_tested" for f in c.findings)
            for e in (c.task_loss, c.loss_progress, c.skill_progress, c.contrast_base, c.contrast_control):
                if e is not None and e.low is not None:
                    assert e.low <= e.value <= e.high
        assert v.candidate is v.kept is None and v.findings[0].code == "not_measured"
        assert len(messages.sentence(v)) <= messages.LONGEST
        said = " ".join(words_of(v))
        assert not re.search("emergent|clean|certified|keep", messages.sentence(v), re.I), said
        assert not ALL_CLEAR.search(said), ALL_CLEAR.search(said)
        json.dumps(to_plain(v), allow_nan=False)
