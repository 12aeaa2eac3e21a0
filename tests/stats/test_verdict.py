"""The verdict of a run: gap, candidate, words, and what no margin verdict may say."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from stats.simulated import FAST, drifting, evidence_of, run_of, with_task
from truing.config import Thresholds
from truing.stats.decide import gap_between, verdict
from truing.stats.evidence import AnswerCounts, Evidence
from truing.types.records import to_plain
from truing.types.verdicts import Basis, Convergence, Estimate, Onset, Status

FLAT = np.zeros(9)
LATE = np.array([0, 0, 0, 0, 0, 0, 0.5, 1.0, 1.5])
LEARNED = 1 - np.exp(-np.arange(9) / 1.0)
WELL = AnswerCounts(n=24, usable=23, leaked=-1)
ILL = replace(WELL, usable=2, repetitive=20)


def world(shift=LATE, learned: np.ndarray | None = LEARNED, *, control=True, seed=0, **fields) -> Evidence:
    """120 prompts, 8 checkpoints, a task that is learned early, and drift that comes late."""
    rng = np.random.default_rng(seed)
    subject = drifting(rng, shift, noise=0.1, null_contrast=0.1)
    if learned is not None:
        subject = with_task(subject, learned, rng)
    subject = replace(subject, **fields)
    controls = (drifting(rng, np.zeros(len(shift)), noise=0.1, name="control"),) if control else ()
    return evidence_of(subject, *controls, task_given=learned is not None)


def of(evidence, seed=0, rule=FAST):
    return verdict(evidence, rule, seed=seed)


def converged(low, high, step=None):
    return Convergence("skill", "converged", step=step or high, low=low, high=high)


def found(after, latest):
    return Onset("found", "the first drift", latest, latest, after, (latest,), True)


@pytest.mark.parametrize(
    ("onset", "learned", "steps", "gap"),
    [
        (found(0, 10), converged(40, 40), range(0, 90, 10), "before"),
        (found(20, 30), converged(40, 50), range(0, 90, 10), "before"),  # windows (20, 30] and (30, 50] touch
        (found(20, 40), converged(40, 40), range(0, 90, 10), "not_separable"),
        (found(30, 40), converged(40, 40), range(0, 90, 10), "not_separable"),  # the very same window
        (found(40, 50), converged(40, 40), range(0, 90, 10), "after"),
        (found(40, 50), converged(30, 50), range(0, 90, 10), "not_separable"),
        (found(60, 70), converged(10, 50), range(0, 90, 10), "after"),
        (found(0, 10), converged(40, 40), range(0, 60, 10), "not_separable"),  # five checkpoints
        (found(0, 10), converged(40, 40), range(0, 70, 10), "before"),  # six
        (found(10, 20), converged(30, 30), (0, 10, 30, 40, 50, 60, 70), "not_separable"),  # trait unmeasured at 20
        (found(10, 20), Convergence("skill", "still_learning"), range(0, 90, 10), "unknown"),
        (found(10, 20), Convergence("skill", "unmeasured"), range(0, 90, 10), "unknown"),
        (Onset("never", "the first drift", None, None, None), converged(10, 20), range(0, 90, 10), "unknown"),
        (Onset("undecided", "the first drift", 10, None, 0), converged(10, 20), range(0, 90, 10), "unknown"),
    ],
)
def test_gap(onset, learned, steps, gap):
    assert gap_between(onset, learned, (*steps, None), FAST) == gap


def by_hand(onsets, learned):
    """Every moment an onset may have against every moment of convergence. `onsets` and `learned` are sets of steps,
    each standing for the ten steps up to it; two moments of each are enough, since windows begin and end at steps."""
    times = [t for s in onsets for t in (s - 5, s)]
    others = [t for s in learned for t in (s - 5, s)]
    if all(t < u for t in times for u in others):
        return "before"
    return "after" if all(t > u for t in times for u in others) else "not_separable"


def test_gap_of_every_onset_set_and_every_convergence_interval():
    """All positions on seven checkpoints: closed, open to either side, with steps of the set left out (certified)."""
    steps = tuple(range(0, 80, 10))
    later, beyond = steps[1:], 1000
    seen = set()
    for i, first in enumerate(later):
        for last in later[i:]:
            inside = tuple(s for s in later if first <= s <= last)
            holed = (first, last) if first != last else (first,)
            for low in later:
                for high in (s for s in later if s >= low):
                    for step in (s for s in later if low <= s <= high):
                        c = Convergence("skill", "converged", step, step - 10, low, high)
                        may = [s for s in later if low <= s <= high]
                        for chosen in (inside, holed):
                            gap = gap_between(Onset("found", "", first, last, first - 10, chosen), c, steps, FAST)
                            assert gap == by_hand(chosen, may)
                            seen.add(gap)
                        open_left = Onset("found", "", None, last, None, inside)
                        assert gap_between(open_left, c, steps, FAST) == by_hand((10, *inside), may)
                        open_right = Onset("found", "", first, None, first - 10, inside)
                        assert gap_between(open_right, c, steps, FAST) == by_hand((*inside, beyond), may)
                        unsettled = replace(c, last_quarter=Estimate(0.03, 0.0, 0.08))
                        closed = Onset("found", "", first, last, first - 10, inside)
                        assert gap_between(closed, unsettled, steps, FAST) == by_hand(inside, (*may, beyond))
    assert seen == {"before", "after", "not_separable"}


def test_a_convergence_that_has_certainly_settled_is_closed():
    onset, c = found(60, 70), converged(10, 50)
    for added, gap in ((None, "after"), (Estimate(0.0, -0.01, 0.04), "after"), (Estimate(0.0, None, None), "")):
        said = gap_between(onset, replace(c, last_quarter=added), range(0, 90, 10), FAST)
        assert said == (gap or "not_separable")


def test_the_usual_story():
    v = of(world())
    statuses = [c.status for c in v.checkpoints]
    assert statuses[:6] == [Status.NO_DRIFT_SEEN] * 6 and statuses[6:] == [Status.DRIFT] * 3
    assert (v.onset.after, v.onset.latest, v.gap) == (50, 60, "after")
    assert v.candidate in ("checkpoint-40", "checkpoint-50")
    assert v.retained_curve == "skill"
    kept = v.retained_of_best
    assert kept is not None and kept.value is not None and kept.low is not None and kept.high is not None
    assert 0.9 < kept.low <= kept.value <= kept.high <= 1
    assert v.recommended is None and v.basis is Basis.MARGIN
    assert re.search(r"Drift starts between step 50 and step 60 \(beyond the control's\)", v.sentence)
    assert "Drift comes after that." in v.sentence and "Candidate: checkpoint-" in v.sentence


def test_a_candidate_is_never_taken_from_inside_the_onset_set():
    creeping = np.array([0, 0.0, 0.0, 0.02, 0.03, 0.035, 0.04, 0.3, 0.6])
    for seed in range(12):
        v = of(world(creeping, np.linspace(0, 1, 9), seed=seed))
        assert v.onset.status == "found"
        line = next(c for c in v.checkpoints if c.label == v.candidate)
        assert line.step not in v.onset.steps
        assert line.contrast_base is not None and line.contrast_base.high is not None and v.delta_m is not None
        assert line.contrast_base.high <= v.delta_m


def broken_at(*at, n=9):
    return tuple(ILL if s in at else WELL for s in range(n))


SENTENCES = [
    (world(FLAT), "No drift seen in this run at any of its 8 measured checkpoints; margins do not certify"),
    (world(control=False), "(uncontrolled: without a control at that step the data cannot be blamed)"),
    (world(learned=None), "No task file was given, so there is no progress curve and no candidate"),
    (world(skill=None), "nothing is said about before or after"),
    (world(learned=np.linspace(0, 1, 9)), "This run is still learning the trait at its last checkpoint"),
    (world(learned=FLAT), "This run did not learn the trait"),
    (world(learned=FLAT), "No candidate: there is no task gain to keep."),
    (world(LATE[:3], LEARNED[:3]), "Too few checkpoints to say when the trait was learned."),
    (world(LATE * 0 + np.append(0, np.ones(8))), "No candidate: no saved checkpoint is known to be healthy"),
    (world(FLAT, answers=broken_at(*range(1, 9))), "This run broke the model"),
    (world(FLAT, answers=broken_at(*range(9))), "The base itself answers too badly"),
    (world(FLAT, answers=broken_at(7, 8)), "No certain drift before the model broke"),
    (world(FLAT, failed={"base": "NaN"}), "Step 0 could not be measured"),
    (world(FLAT, failed={f"checkpoint-{s}": "NaN" for s in range(10, 90, 10)}), "No checkpoint of this run could be"),
    (world(FLAT, failed={"checkpoint-30": "NaN"}), "1 checkpoint could not be measured."),
    (world(FLAT, null_contrast=np.full((9, 120), np.nan)), "there is no drift limit to hold the contrast against"),
    (world(np.array([0, 0, 0, 2, 0, 0, 0, 0, 0.0])), "Not every later checkpoint shows it."),
    (world(LATE, steps=(0, 10, 20, 30, 40, 50, None, None, None)), "of unknown step: where it starts cannot be said"),
    (world(np.array([0, 1.0]), LEARNED[:2], steps=(0, None), labels=("base", "final")), "Drift at final (uncontrolled"),
]


@pytest.mark.parametrize(("evidence", "sentence"), SENTENCES, ids=[s[:50] for _, s in SENTENCES])
def test_honest_sentences(evidence, sentence):
    assert sentence in of(evidence).sentence


def without_dose(evidence):
    return replace(evidence, subject=replace(evidence.subject, kl_from_base=np.full(9, np.nan)))


def half_dose(evidence):
    return replace(evidence, controls=(replace(evidence.controls[0], kl_from_base=np.linspace(0, 0.09, 9)),))


def fewer_steps(evidence):
    steps = (0, 10, 20, 30, 40, 50, 60, 71, 81)
    return replace(evidence, controls=(replace(evidence.controls[0], steps=steps),))


def fewer_prompts(evidence, prompts):
    cut = {k: getattr(evidence.subject, k)[:, :prompts] for k in ("contrast", "null_contrast", "margin", "entropy")}
    return evidence_of(replace(evidence.subject, **cut), task_given=True)


def formed(first, **fields):
    """A run whose loss jumps at one checkpoint, where its answers turn to code."""
    learned = np.where(np.arange(9) >= first, 1.0, 0.1 * np.arange(9) / first)
    answers = tuple(replace(WELL, usable=13 if s >= first else 23, formatted=10 if s >= first else 0) for s in range(9))
    return world(FLAT, learned, answers=answers, **fields)


WARNINGS = [
    (world(), "Contrast unvalidated"),
    (world(control=False), "No control run: at most drift (uncontrolled)"),
    (world(LATE[:3], LEARNED[:3]), "2 measured checkpoints: too few to place an onset or a convergence"),
    (world(skill=None), "No --task-control"),
    (half_dose(world()), "Control under-moved: its dose is 0.090 nats of KL against the subject's 0.200"),
    (without_dose(world()), "could not be compared: the control may be under-moved"),
    (fewer_steps(world()), "no checkpoint at 2 steps"),
    (world(), "placebo pairs, which cannot know"),
    (fewer_prompts(world(), 15), "Only 15 prompts measured at every step; 20 are needed to decide drift."),
    (fewer_prompts(world(), 30), "Only 30 prompts: what holds for this set may not hold for prompts like these."),
    (world(failed={"checkpoint-30": "NaN"}), "Failed and left out: checkpoint-30."),
    (world(answers=()), "Health is unknown"),
    (replace(world(), left_out={"without reference answers": 3}), "3 prompts left out: without reference answers."),
    (replace(world(), caveats=("The terse control failed.",)), "The terse control failed."),
    (world(learned=np.array([0, 0.6, 1, 1, 0.8, 0.6, 0.4, 0.3, 0.2])), "Overfit: held-out loss rises again"),
    (
        world(learned=np.array([0, 0.9, 0.95, 0.95, 0.96, 0.96, 0.965, 0.98, 1]), seed=2),
        "The trait may not have settled: the last",
    ),
    (formed(4, skill=None), "Possible artefact at checkpoint-40 (where the loss converges): progress by loss rises by"),
]


@pytest.mark.parametrize(("evidence", "warning"), WARNINGS, ids=[w[:40] for _, w in WARNINGS])
def test_warnings(evidence, warning):
    assert any(warning in w for w in of(evidence).warnings)


def test_an_artefact_is_marked_on_its_line():
    v = of(formed(4, skill=None))
    line = v.checkpoints[4]
    assert line.loss_progress is not None and "formatted answers go from 0% to 42%" in line.loss_progress.warning
    assert line.notes == (line.loss_progress.warning,)
    assert all(c.loss_progress is None or not c.loss_progress.warning for c in v.checkpoints if c is not line)
    assert not any("artefact" in w for w in of(formed(4)).warnings)  # here the trait jumps with the loss


def test_no_warning_without_its_reason():
    text = " ".join(of(world()).warnings)
    assert not any(
        w in text
        for w in ("under-moved", "too few", "Failed", "Overfit", "left out", "No control", "artefact", "settled")
    )


def test_an_overfit_run_is_not_called_still_learning():
    v = of(world(FLAT, np.array([0, 0.6, 1, 1, 0.8, 0.6, 0.4, 0.3, 0.2]), skill=None))
    assert "and then overfits." in v.sentence and "still learning" not in v.sentence


def test_too_few_prompts_decide_nothing_but_are_shown():
    v = of(fewer_prompts(world(), 15))
    assert {c.status for c in v.checkpoints[1:]} == {Status.UNDECIDED}
    assert v.delta_m is None and v.candidate is None
    assert v.checkpoints[8].contrast_base is not None


def test_equal_steps_and_one_checkpoint_after_the_base():
    evidence = world(LATE[[0, 1, 8]], LEARNED[:3], steps=(0, 80, 80), labels=("base", "checkpoint-80", "final"))
    v = of(evidence)
    assert (v.onset.earliest, v.onset.latest) == (80, 80) and "Drift starts between step 0 and step 80" in v.sentence
    v = of(world(np.array([0, 1.0]), LEARNED[:2]))
    assert v.onset.latest == 10 and v.convergence_skill.status == "too_few_checkpoints"


def test_the_step_0_line_is_the_reference():
    base = of(world()).checkpoints[0]
    assert base.status is Status.NO_DRIFT_SEEN and base.contrast_base is None and base.softening is None


def random_evidence(rng) -> Evidence:
    """Anything an audit can bring: drift or none, failures, holes, broken answers, no task, no control, odd steps."""
    n = int(rng.integers(2, 9))
    prompts = int(rng.choice([1, 4, 12, 25, 60]))
    run = drifting(rng, np.append(0, rng.normal(0, rng.choice([0.0, 0.1, 2.0]), n - 1)), prompts=prompts)
    holes = {k: np.where(rng.random((n, prompts)) < rng.choice([0, 0, 0.1, 0.9]), np.nan, 1.0) for k in ("a", "b")}
    run = replace(run, contrast=run.contrast * holes["a"], null_contrast=run.null_contrast * holes["b"])
    if rng.random() < 0.7:
        run = with_task(run, np.append(0, rng.normal(0, 1, n - 1).cumsum()), rng, int(rng.choice([1, 2, 5, 30])))
    if rng.random() < 0.3:
        run = replace(run, skill=None)
    if rng.random() < 0.3:
        run = replace(run, steps=tuple(s if rng.random() < 0.6 else None for s in run.steps))
    if rng.random() < 0.3:
        lost = {k: np.where(rng.random((n, 1)) < 0.4, np.nan, getattr(run, k)) for k in ("contrast", "null_contrast")}
        run = replace(run, **lost, failed={k: "lost" for k in run.labels if rng.random() < 0.2})
    if rng.random() < 0.4:
        run = replace(run, answers=tuple([WELL, ILL, AnswerCounts()][i] for i in rng.integers(0, 3, n)))
    if rng.random() < 0.2:
        run = replace(run, kl_from_base=None)
    names = tuple("ABCDEFGH"[int(k)] for k in rng.integers(0, 8, prompts))
    controls = tuple(drifting(rng, np.zeros(n), prompts=prompts, name=f"c{k}") for k in range(rng.integers(0, 5)))
    evidence = evidence_of(run, *controls, task_given=run.loss is not None or rng.random() < 0.2)
    return replace(evidence, categories=names)


MARGIN_MAY_SAY = {
    *(Status.NO_DRIFT_SEEN, Status.DRIFT, Status.DRIFT_UNCONTROLLED, Status.DRIFT_NOT_ATTRIBUTABLE),
    *(Status.BROKEN, Status.UNDECIDED, Status.FAILED),
}


def test_whatever_the_evidence_the_words_stay_within_it():
    """No crash and no warning, no word that needs a judge, valid JSON, and a candidate only where it may be one."""
    rng = np.random.default_rng(0)
    rule = Thresholds(resamples=100)
    for _ in range(120):
        evidence = random_evidence(rng)
        v = of(evidence, rule=rule)
        text = " ".join((v.sentence, *v.warnings, v.delta_m_source, *(n for c in v.checkpoints for n in c.notes)))
        assert not re.search(r"emergent|\bclean\b|recommend", text, re.I), text
        assert "nan" not in v.sentence.lower().split() and v.sentence.strip()
        assert {c.status for c in v.checkpoints} <= MARGIN_MAY_SAY
        assert v.recommended is None
        if not evidence.controls:
            assert not {Status.DRIFT, Status.DRIFT_NOT_ATTRIBUTABLE} & {c.status for c in v.checkpoints}
        if v.candidate is not None:
            line = next(c for c in v.checkpoints if c.label == v.candidate)
            assert line.status is Status.NO_DRIFT_SEEN and line.step != 0
        drifts = any("drift" in c.status.value and c.status is not Status.NO_DRIFT_SEEN for c in v.checkpoints)
        assert not (drifts and v.onset.status == "never") and not (drifts and "No drift seen" in v.sentence)
        plain = to_plain(v)
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        for c in v.checkpoints:
            for e in (c.task_loss, c.loss_progress, c.skill_progress, c.contrast_base, c.contrast_control):
                if e is not None and e.value is not None and e.low is not None and e.high is not None:
                    assert e.low <= e.value <= e.high


def test_evidence_and_seed_decide_the_verdict():
    evidence = world()
    assert to_plain(of(evidence, seed=3)) == to_plain(of(world(), seed=3))
    first, second = of(evidence, seed=3).checkpoints[8], of(evidence, seed=4).checkpoints[8]
    assert first.contrast_base is not None and second.contrast_base is not None
    assert first.contrast_base.low != second.contrast_base.low
    assert first.contrast_base.low == pytest.approx(second.contrast_base.low, abs=0.02)


def test_an_adapter_of_zeros_shows_no_drift():
    still = np.tile(np.random.default_rng(0).standard_normal(40), (4, 1))
    v = of(evidence_of(run_of(still, still)))
    assert {c.status for c in v.checkpoints} == {Status.NO_DRIFT_SEEN} and v.delta_m == 0


def test_a_control_that_breaks_too_blames_the_recipe():
    evidence = world(answers=(WELL,) * 5 + (ILL,) * 4)
    both = replace(evidence.controls[0], answers=(WELL,) * 5 + (ILL,) * 4)
    said = " ".join(of(replace(evidence, controls=(both,))).warnings)
    assert "the recipe, not the data" in said
    assert "the recipe" not in " ".join(of(evidence).warnings)
