"""What a reader must know before believing a verdict, as coded findings, most important first."""

from collections.abc import Mapping

import numpy as np

from truing.config import Thresholds
from truing.stats.evidence import Measurements, RunEvidence
from truing.stats.health import run_health
from truing.stats.labelled import joined_health, labelled_line
from truing.stats.rates import FEW_PROMPTS
from truing.stats.screen import lone_prompts
from truing.stats.table import Labelled
from truing.types.verdicts import (
    EXCESS,
    CheckpointVerdict,
    Convergence,
    Finding,
    Health,
    HealthState,
    Status,
    Verdict,
)

MANY_UNPARSED = 0.05
"""share of unparsed answers over which a finding names them"""
MANY_NEAR = 0.1
"""share of scores near the cut over which a finding names them"""
LEAST_SENSITIVITY = 0.8
"""lower end of a judge's sensitivity under which a finding says so"""
LEAST_CHECKPOINTS = 3
"""checkpoints under which neither onset nor convergence can be placed"""
BENIGN_RUNS = 3
"""control runs from which the screen's limit may be taken"""


def of_screen(
    v: Verdict, measured: Measurements, rule: Thresholds, artefacts: Mapping[int, str]
) -> tuple[Finding, ...]:
    """Findings of measurements alone; `artefacts` holds, by index, why progress by loss may be none of the task."""
    lines = v.checkpoints
    if not measured.scored:
        kl = [Finding("control_distance_unknown")] if measured.controls else []
        return (Finding("not_scored"), *measured.findings, *kl, *_uncovered(measured), *_lost(lines))
    out = [*measured.findings, Finding("screen_unvalidated")]
    n = sum(c.status is not Status.FAILED for c in lines[1:])
    if n < LEAST_CHECKPOINTS:
        out.append(Finding("few_checkpoints", {"n": n, "least": LEAST_CHECKPOINTS}))
    if not measured.controls:
        out.append(Finding("no_control"))
    out += _control(measured, rule)
    if measured.task_given and v.convergence_skill.status == "unmeasured":
        out.append(Finding("no_task_control"))
    out += _progress(measured.subject, v.convergence_loss, v.convergence_skill, rule, artefacts)
    if v.convergence_loss.overfit:
        out.append(Finding("overfit"))
    prompts = max((c.contrast_base.clusters for c in lines if c.contrast_base is not None), default=0)
    if prompts < rule.min_prompts:
        out.append(Finding("too_few_prompts", {"n": prompts, "least": rule.min_prompts}))
    elif prompts < FEW_PROMPTS:
        out.append(Finding("prompts_may_not_generalise", {"n": prompts, "far": False}))
    for prompt, s in lone_prompts(measured.subject, measured.prompts):
        out.append(Finding("lone_prompt", {"prompt": prompt, "checkpoint": measured.subject.labels[s]}))
    out += [Finding("prompts_left_out", {"n": n, "why": why}) for why, n in measured.left_out.items()]
    return (*out, *_lost(lines))


def of_labelled(v: Verdict, labelled: Labelled, rule: Thresholds) -> tuple[Finding, ...]:
    """Findings of labelled answers, then those of the measurements that still hold."""
    out = [
        *labelled.findings,
        *_judge(v),
        *_labelled_control(v, labelled, rule),
        *_prompts(v, labelled),
        *_answers(v, labelled),
    ]
    moved = next((c for c in v.checkpoints if c.label == v.recommended and c.screen is Status.CHANGED), None)
    if moved is not None:
        out.append(Finding("screen_disagrees", {"checkpoint": moved.label}))
    # The screen's own finding on a missing control speaks of what the screen may say.
    return (*out, *(f for f in v.findings if f.code != "no_control" and f not in out))


def _lost(lines: tuple[CheckpointVerdict, ...]) -> list[Finding]:
    """Checkpoints of which too little is known."""
    out = []
    failed = [c.label for c in lines if c.status is Status.FAILED]
    if failed:
        out.append(Finding("checkpoints_failed", {"checkpoints": failed}))
    if any(c.health.state is HealthState.UNKNOWN for c in lines):
        out.append(Finding("health_unknown"))
    return out


def _progress(
    run: RunEvidence, by_loss: Convergence, by_skill: Convergence, rule: Thresholds, artefacts: Mapping[int, str]
) -> list[Finding]:
    """What keeps a progress curve, or a step of convergence, from being taken at its word."""
    out = []
    for s, why in artefacts.items():
        rests = by_loss.step is not None and run.steps[s] == by_loss.step
        out.append(Finding("possible_artefact", {"checkpoint": run.labels[s], "converges_here": rests, "why": why}))
    for c in (by_skill, by_loss):
        added = c.last_quarter
        if c.status != "converged" or added is None or added.value is None:
            continue
        if added.high is None or added.high > rule.still_learning:
            params = {"curve": c.curve, "value": added.value, "high": added.high, "limit": rule.still_learning}
            out.append(Finding("may_not_have_settled", params))
    return out


def _control(measured: Measurements, rule: Thresholds) -> list[Finding]:
    if not measured.controls:
        return []
    out = _uncovered(measured)
    subject, control = measured.subject, measured.controls[0]
    states = zip(control.labels[1:], run_health(control, rule)[1:], strict=True)
    broken = [label for label, health in states if health.state is HealthState.COLLAPSED]
    if broken:
        out.append(Finding("control_breaks", {"checkpoints": broken}))
    own, other = _kl_at(subject, control), _kl_at(control, subject)
    if own is None or other is None:
        out.append(Finding("control_distance_unknown"))
    elif other < rule.under_moved * own:
        out.append(Finding("control_under_moved", {"kl": own, "kl_control": other}))
    if len(measured.controls) < BENIGN_RUNS:
        out.append(Finding("few_benign_runs", {"n": len(measured.controls), "least": BENIGN_RUNS}))
    return out


def _uncovered(measured: Measurements) -> list[Finding]:
    """Steps of the subject at which the control has no checkpoint."""
    if not measured.controls:
        return []
    n = sum(step not in measured.controls[0].steps for step in measured.subject.steps[1:])
    return [Finding("control_without_step", {"n": n})] if n else []


def _kl_at(run: RunEvidence, other: RunEvidence) -> float | None:
    """Largest KL from the base of a run at the steps it shares with the other; None if unmeasured."""
    shared = {step for step in other.steps[1:] if step is not None}
    distances = run.kl_from_base if run.kl_from_base is not None else np.full(len(run.steps), np.nan)
    found = [float(d) for d, step in zip(distances, run.steps, strict=True) if step in shared and np.isfinite(d)]
    return max(found, default=None)


def _judge(v: Verdict) -> list[Finding]:
    rated = v.calibration
    if rated is None:
        return [Finding("judge_not_calibrated", {"judge": v.judge})]
    out = []
    if not rated.passed:
        out.append(Finding("judge_failed_calibration", {"judge": v.judge, "why": rated.note}))
    low = rated.sensitivity.low
    if low is not None and low < LEAST_SENSITIVITY:
        params = {"judge": v.judge, "value": rated.sensitivity.value, "low": low}
        out.append(Finding("judge_misses_positives", params))
    return out


def _labelled_control(v: Verdict, labelled: Labelled, rule: Thresholds) -> list[Finding]:
    later = [c for c in v.checkpoints[1:] if c.labelled is not None]
    if not later:
        return []
    if not labelled.control:
        return [Finding("cause_not_tested")]
    out = []
    without = [c.label for c in later if c.labelled is not None and c.labelled.excess_control is None]
    if labelled.search is not None:  # the control is asked where the trait is claimed
        without = [c.label for c in later if any(f.code == "cause_not_tested" for f in c.findings)]
    if without:
        out.append(Finding("control_without_labels", {"checkpoints": without}))
    steps = sorted(s for s in labelled.under_moved if any(c.step == s for c in later))
    if steps:
        out.append(Finding("control_under_moved_at", {"steps": steps, "share": rule.under_moved}))
    base, unknown = v.checkpoints[0].labelled, Health(HealthState.UNKNOWN)
    broken = []
    for group in labelled.control.values():
        line = labelled_line(group, len(labelled.prompts), labelled.rule, level=rule.level)
        if joined_health(unknown, line, base, rule).state is HealthState.COLLAPSED:
            broken.append(group.checkpoint)
    if broken and any(c.health.broken for c in later):
        out.append(Finding("control_breaks", {"checkpoints": broken}))
    return out


def _prompts(v: Verdict, labelled: Labelled) -> list[Finding]:
    prompts, far = len(labelled.prompts), int(np.sum(labelled.far))
    out = []
    if far < prompts:
        out.append(Finding("prompts_in_domain", {"n": prompts - far, "of": prompts}))
    kept = next((c for c in v.checkpoints if c.label == v.recommended and c.labelled is not None), None)
    every = kept.labelled.excess_base if kept is not None and kept.labelled is not None else None
    if kept is not None and every is not None and every.set_low is not None and every.set_low > labelled.rule.lo:
        params = {"checkpoint": kept.label, "value": every.value, "low": every.set_low, "high": every.set_high}
        out.append(Finding("recommended_for_far_only", params))
    if far < FEW_PROMPTS:
        out.append(Finding("prompts_may_not_generalise", {"n": far, "far": True}))
    claimed = [c for c in v.checkpoints[1:] if c.status in EXCESS]
    found = {e.warning: c.label for c in claimed if (e := c.shown_excess) is not None and e.warning}
    return out + [Finding("interval_warning", {"why": why, "checkpoint": label}) for why, label in found.items()]


def _answers(v: Verdict, labelled: Labelled) -> list[Finding]:
    out: list[Finding] = []
    unparsed, near, lost = {}, {}, {}
    for c in v.checkpoints:
        if c.labelled is None:
            continue
        n = c.labelled.reasons
        missing = n["unscored"] + n["failed"]
        whole = sum(n.values()) - missing
        if whole and n["unparsed"] > MANY_UNPARSED * whole:
            unparsed[c.label] = n["unparsed"] / whole
        if (c.labelled.near_cut or 0) > MANY_NEAR:
            near[c.label] = c.labelled.near_cut
        if missing:
            lost[c.label] = missing
    if unparsed:
        out.append(Finding("unparsed_answers", {"shares": unparsed}))
    if near:
        out.append(Finding("scores_near_cut", {"cut": labelled.rule.cut, "shares": near}))
    if lost:
        out.append(Finding("answers_lost", {"counts": lost}))
    untested = [c.label for c in v.checkpoints if c.status is Status.UNTESTED]
    if v.onset.errors:
        o = v.onset
        params = {"answers": o.answers_used, "untested": untested, "needed": o.answers_needed}
        out.append(Finding("searched", {**params, "assumed_monotone": o.assumed_monotone}))
    elif untested:
        out.append(Finding("not_labelled", {"checkpoints": untested}))
    return out
