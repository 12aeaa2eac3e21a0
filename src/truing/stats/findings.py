"""What a reader must know before believing a verdict, as coded findings, most important first."""

from collections.abc import Mapping, Sequence

import numpy as np

from truing.config import Thresholds
from truing.stats.evidence import Measurements, RunEvidence
from truing.stats.health import joined_health, run_health
from truing.stats.labelled import labelled_line
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
    lines, controls, run = v.checkpoints, measured.controls, measured.subject
    failed = [c.label for c in lines if c.status is Status.FAILED]
    lost = [Finding("checkpoints_failed", {"checkpoints": failed})] if failed else []
    lost += _health(lines)
    missed = sum(step not in controls[0].steps for step in run.steps[1:]) if controls else 0
    uncovered = [Finding("control_without_step", {"n": missed})] if missed else []
    if not measured.scored:
        kl = [Finding("control_distance_unknown")] if controls else []
        return (Finding("not_measured"), Finding("not_scored"), *measured.findings, *kl, *uncovered, *lost)
    out = [Finding("not_measured"), *measured.findings, Finding("screen_unvalidated")]
    n = sum(c.status is not Status.FAILED for c in lines[1:])
    if n < LEAST_CHECKPOINTS:
        out.append(Finding("few_checkpoints", {"n": n, "least": LEAST_CHECKPOINTS}))
    out += [*uncovered, *_control(measured, rule)] if controls else [Finding("no_control")]
    if measured.task_given and v.convergence_skill.status == "unmeasured":
        out.append(Finding("no_task_control"))
    out += _progress(run, v.convergence_loss, v.convergence_skill, rule, artefacts)
    prompts = max((c.contrast_base.clusters for c in lines if c.contrast_base is not None), default=0)
    if prompts < rule.min_prompts:
        out.append(Finding("too_few_prompts", {"n": prompts, "least": rule.min_prompts}))
    elif prompts < FEW_PROMPTS:
        out.append(Finding("prompts_may_not_generalise", {"n": prompts, "far": False}))
    for prompt, s in lone_prompts(run, measured.prompts):
        out.append(Finding("lone_prompt", {"prompt": prompt, "checkpoint": run.labels[s]}))
    out += [Finding("prompts_left_out", {"n": n, "why": why}) for why, n in measured.left_out.items()]
    return (*out, *lost)


def of_labelled(v: Verdict, labelled: Labelled, rule: Thresholds) -> tuple[Finding, ...]:
    """Findings of labelled answers, then those of the measurements that still hold."""
    out = [
        *labelled.findings,
        *([] if labelled.exact else _judge(v)),
        *_labelled_control(v, labelled, rule),
        *_prompts(v, labelled),
        *_answers(v, labelled),
    ]
    out += [
        Finding("screen_disagrees", {"checkpoint": c.label})
        for c in v.checkpoints
        if c.label == v.recommended and c.screen is Status.CHANGED
    ]
    # The screen's own findings on a control, or on prompts, that it lacks speak of what the screen may say.
    of_screen_alone = {"no_control", "not_measured", "health_unknown"}
    if all(c.contrast_base is None for c in v.checkpoints):
        of_screen_alone.add("too_few_prompts")
    kept = (f for f in v.findings if f.code not in of_screen_alone and f not in out)
    return (*out, *kept, *_health(v.checkpoints))


def _health(lines: Sequence[CheckpointVerdict]) -> list[Finding]:
    """The checkpoints whose health could not be told, with why of one of them."""
    open_ = [c for c in lines if c.health.state in (HealthState.UNKNOWN, HealthState.UNDECIDED)]
    open_ = [c for c in open_ if c.status is not Status.FAILED]
    params = {"checkpoints": [c.label for c in open_], "why": open_[0].health.note if open_ else ""}
    return [Finding("health_unknown", params)] if open_ else []


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
    return [*out, Finding("overfit")] if by_loss.overfit else out


def _control(measured: Measurements, rule: Thresholds) -> list[Finding]:
    out, subject, control = [], measured.subject, measured.controls[0]
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


def _kl_at(run: RunEvidence, other: RunEvidence) -> float | None:
    """Largest KL from the base of a run at the steps it shares with the other; None if unmeasured."""
    if run.kl_from_base is None:
        return None
    shared = {step for step in other.steps[1:] if step is not None}
    found = [float(d) for d, step in zip(run.kl_from_base, run.steps, strict=True) if step in shared and np.isfinite(d)]
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
    later = [(c, c.labelled) for c in v.checkpoints[1:] if c.labelled is not None]
    if not later:
        return []
    if not labelled.control:
        return [Finding("cause_not_tested")]
    out = []
    without = [c.label for c, line in later if line.excess_control is None]
    if labelled.search is not None:  # the control is asked where the trait is claimed
        without = [c.label for c, _ in later if any(f.code == "cause_not_tested" for f in c.findings)]
    if without:
        out.append(Finding("control_without_labels", {"checkpoints": without}))
    steps = sorted(labelled.under_moved & {c.step for c, _ in later if c.step is not None})
    if steps:
        out.append(Finding("control_under_moved_at", {"steps": steps, "share": rule.under_moved}))
    base, unknown, broken = v.checkpoints[0].labelled, Health(HealthState.UNKNOWN), []
    level = 1 - (1 - rule.level) / len(labelled.control)
    for group in labelled.control.values():
        line = labelled_line(group, len(labelled.prompts), labelled.rule, level=rule.level)
        if joined_health(unknown, line, base, rule, level).state is HealthState.COLLAPSED:
            broken.append(group.checkpoint)
    if broken and any(c.health.broken for c, _ in later):
        out.append(Finding("control_breaks", {"checkpoints": broken}))
    return out


def _prompts(v: Verdict, labelled: Labelled) -> list[Finding]:
    prompts, far = len(labelled.prompts), int(np.sum(labelled.far))
    out = []
    if far < prompts:
        out.append(Finding("prompts_in_domain", {"n": prompts - far, "of": prompts}))
    for c in v.checkpoints:
        every = c.labelled.excess_base if c.label == v.recommended and c.labelled is not None else None
        if every is not None and every.set_low is not None and every.set_low > labelled.rule.lo:
            params = {"checkpoint": c.label, "value": every.value, "low": every.set_low, "high": every.set_high}
            out.append(Finding("recommended_for_far_only", params))
    if far < FEW_PROMPTS:
        out.append(Finding("prompts_may_not_generalise", {"n": far, "far": True}))
    claimed = [c for c in v.checkpoints[1:] if c.status in EXCESS]
    found = {e.warning: c.label for c in claimed if (e := c.shown_excess) is not None and e.warning}
    return out + [Finding("interval_warning", {"why": why, "checkpoint": label}) for why, label in found.items()]


def _answers(v: Verdict, labelled: Labelled) -> list[Finding]:
    lines = {c.label: c.labelled for c in v.checkpoints if c.labelled is not None}
    n = {label: line.reasons for label, line in lines.items()}
    lost = {label: found["unscored"] + found["failed"] for label, found in n.items()}
    whole = {label: sum(found.values()) - lost[label] for label, found in n.items()}
    unparsed = {k: n[k]["unparsed"] / whole[k] for k in n if n[k]["unparsed"] > MANY_UNPARSED * whole[k]}
    near = {k: line.near_cut for k, line in lines.items() if (line.near_cut or 0) > MANY_NEAR}
    lost = {label: k for label, k in lost.items() if k}
    untested, o = [c.label for c in v.checkpoints if c.status is Status.UNTESTED], v.onset
    out = [
        Finding("unparsed_answers", {"shares": unparsed}) if unparsed else None,
        Finding("scores_near_cut", {"cut": labelled.rule.cut, "shares": near}) if near else None,
        Finding("answers_lost", {"counts": lost}) if lost else None,
    ]
    if o.errors:
        params = {"answers": o.answers_used, "untested": untested, "needed": o.answers_needed}
        out.append(Finding("searched", {**params, "assumed_monotone": o.assumed_monotone}))
    elif untested:
        out.append(Finding("not_labelled", {"checkpoints": untested}))
    return [f for f in out if f is not None]
