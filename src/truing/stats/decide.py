"""`decide`: from evidence to verdict, whatever the evidence was. The only function that makes a verdict.

The order is the argument: task progress, the screen, health, what labelled answers say of each checkpoint, onset
against convergence, the checkpoint to keep, and what a reader must know. Every threshold used is returned with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from truing.config import Thresholds
from truing.stats import findings
from truing.stats.checks import variant_results
from truing.stats.evidence import Array, Measurements
from truing.stats.guards import artefacts
from truing.stats.health import run_health
from truing.stats.progress import Progress, convergence, curves_of
from truing.stats.screen import (
    Shift,
    against_base,
    against_control,
    change_onset,
    screen_limit,
    screen_status,
    shift_band,
    softening_slope,
)
from truing.stats.status import UNCONFIRMED, Comparison, labelled_checkpoint, labelled_onset
from truing.stats.table import Evidence, Labelled, Opinion
from truing.types.records import to_plain
from truing.types.verdicts import (
    Basis,
    CheckpointVerdict,
    Convergence,
    Estimate,
    Finding,
    Health,
    HealthState,
    Onset,
    Status,
    Verdict,
)


def decide(evidence: Evidence, rule: Thresholds, *, seed: int = 0) -> Verdict:
    """The verdict of a run.

    Args:
        evidence: judge-free measurements, and labelled answers where there are any.
        rule: thresholds; stored with the result.
        seed: of every resampling; the same evidence and seed give the same verdict.

    Raises:
        BadInput: a rule nothing can be decided by, or labelled answers of no checkpoint of this run.
    """
    screened = evidence.screened
    if screened is None:
        assert evidence.measured is not None
        screened = _screened(evidence.measured, rule, seed)  # pyright: ignore[reportArgumentType] frozen models hash
    if evidence.labelled is None:
        return screened
    evidence.labelled.rule.check()
    return _labelled(screened, evidence, evidence.labelled, rule)


def with_earlier_variants(verdict: Verdict, before: Verdict) -> Verdict:
    """A verdict with the variants that were tried under another judge: what vetoed a checkpoint there stays a veto."""
    tried = [v for v in before.variants if v.checkpoint == verdict.recommended]
    told = [Finding("variants_by_another_judge", {"judge": before.judge})] if before.variants else []
    told = told if before.judge_key != verdict.judge_key else []
    verdict = replace(verdict, variants=tuple(tried), findings=(*verdict.findings, *told))
    if any(v.veto for v in tried):
        verdict = replace(verdict, recommended=None, retained_of_best=None, retained_of_last=None)
    return verdict


def gap_between(onset: Onset, learned: Convergence, steps: tuple[int | None, ...], rule: Thresholds) -> str:
    """before, after, not_separable or unknown: an onset relative to convergence of the skill, from both windows.

    A step stands for the time since the checkpoint before it. The onset lies in the windows of the steps of its set
    (tested or not); convergence in those of every step of its interval. Only if all of the one lies before all of the
    other are they separated. A set without an earliest (latest) step is open to the left (right); a convergence whose
    last quarter may have added too much (its upper end is over `still_learning`) is open to the right. Fewer than
    `min_gap_checkpoints` checkpoints separate nothing.

    Args:
        onset: of the trait, or of a change of the screen.
        learned: convergence of the skill.
        steps: those at which the skill was measured, step 0 among them.
        rule: the two thresholds named above.
    """
    if onset.status != "found" or learned.status != "converged" or learned.low is None or learned.high is None:
        return "unknown"
    if onset.latest is None and onset.after is None and not onset.steps:
        return "unknown"
    known = sorted(s for s in steps if s is not None)
    if len(known) - 1 < rule.min_gap_checkpoints:
        return "not_separable"
    until = max((*onset.steps, onset.latest)) if onset.latest is not None else None
    since = onset.after if onset.earliest is not None else None
    starts = [max((s for s in known if s < learned.low), default=0)]
    starts += [learned.after] if learned.after is not None else []
    if until is not None and until <= min(starts):
        return "before"
    ended = max(learned.high, learned.step or 0)
    return "after" if since is not None and since >= ended and _settled(learned, rule) else "not_separable"


def task_curve(skill: Convergence, loss: Convergence) -> str | None:
    """The curve checkpoints are ranked by: skill if it was measured and learned, else loss; None if neither was."""
    for c in (skill, loss):
        if c.status not in ("unmeasured", "task_not_learned"):
            return c.curve
    return None


def most_learned(lines: Sequence[CheckpointVerdict], curve: str | None) -> CheckpointVerdict | None:
    """The clean, healthy checkpoint after step 0 with most of the task, on the curve it was learned on."""

    def progress(c: CheckpointVerdict) -> float:
        e = c.skill_progress if curve == "skill" else c.loss_progress
        return e.value if e is not None and e.value is not None else 0.0

    fit = [c for c in lines[1:] if c.status is Status.CLEAN and c.health.state is HealthState.OK and progress(c) > 0]
    return max(fit, key=progress, default=None) if curve is not None else None


def under_moved(measured: Measurements, rule: Thresholds) -> frozenset[int]:
    """Steps at which the first control moved less than `rule.under_moved` times as far (KL from the base)."""
    own = measured.subject.kl_from_base
    if not measured.controls or own is None or measured.controls[0].kl_from_base is None:
        return frozenset()
    control = measured.controls[0]
    other = dict(zip(control.steps, control.kl_from_base if control.kl_from_base is not None else (), strict=True))
    pairs = zip(measured.subject.steps, own, strict=True)
    return frozenset(step for step, kl in pairs if step and step in other and other[step] < rule.under_moved * kl)


# ---------------------------------------------------------------------------------------------------------------------
# Labelled answers


def _labelled(screened: Verdict, evidence: Evidence, labelled: Labelled, rule: Thresholds) -> Verdict:
    """The verdict on labelled answers; measurements give progress, distances and judge-free health."""
    labels = [c.label for c in screened.checkpoints]
    against = Comparison.of(labelled, labels, screened.checkpoints[0].health, rule)
    groups = {a.checkpoint: a for a in labelled.subject}
    lines = tuple(
        labelled_checkpoint(against, c, groups.get(c.label), first=k == 0) for k, c in enumerate(screened.checkpoints)
    )
    onset = labelled_onset(against, lines)
    curve = task_curve(screened.convergence_skill, screened.convergence_loss)
    chosen = most_learned(
        [lines[0], *(c for c in lines[1:] if not any(f.code in UNCONFIRMED for f in c.findings))], curve
    )
    variants = () if chosen is None else _variants(evidence, labelled, chosen, rule)
    vetoed = any(v.veto for v in variants)
    kept = None if vetoed else chosen
    at_steps = tuple(c.step for c in lines if c.skill_progress is not None)
    result = replace(
        screened,
        trait=labelled.trait,
        basis=Basis.LABELLED,
        checkpoints=lines,
        onset=onset,
        screen_onset=screened.onset,
        gap=gap_between(onset, screened.convergence_skill, at_steps, rule),
        candidate=screened.candidate,
        recommended=kept.label if kept is not None else None,
        retained_of_best=kept.retained_of_best if kept is not None else None,
        retained_of_last=kept.retained_of_last if kept is not None else None,
        retained_curve=curve,
        judge=labelled.judge or None,
        judge_key=labelled.judge_key or None,
        certified=False,
        certified_by="",
        calibration=against.calibration,
        variants=variants,
        definitions={**screened.definitions, **against.definitions()},
    )
    return certified(replace(result, findings=findings.of_labelled(result, labelled, rule)), evidence.opinion)


def certified(verdict: Verdict, opinion: Opinion | None) -> Verdict:
    """The verdict with what a second judge or blind labels say of its direction.

    Only a direction can be agreed on, so a verdict without one (no onset found, nor ruled out) stays uncertified.
    """
    if opinion is None:
        return verdict
    decided = verdict.onset.status in ("found", "never")
    by = opinion.by if decided or not opinion.agrees else f"nothing is decided that could be certified ({opinion.by})"
    return replace(verdict, certified=opinion.agrees and decided, certified_by=by)


def _variants(evidence: Evidence, labelled: Labelled, chosen: CheckpointVerdict, rule: Thresholds) -> Any:
    """The variants tried on the checkpoint that is about to be recommended; those of another one say nothing."""
    tests = [v for v in evidence.variants if v.group.checkpoint == chosen.label]
    if not tests:
        return ()
    far = np.asarray(labelled.far, dtype=bool)
    options = {"level": rule.level, "mask": far, "adversarial_veto": evidence.adversarial_veto}
    return variant_results(tests, len(labelled.prompts), labelled.rule, **options)


# ---------------------------------------------------------------------------------------------------------------------
# The screen


@dataclass(frozen=True, slots=True)
class _Curves:
    """Everything computed once for the run, before any checkpoint is looked at."""

    loss: Progress | None
    skill: Progress | None
    base: Shift
    control: Shift | None
    margin: Shift
    limit: float | None
    limit_source: str
    learned: tuple[Progress, ...]
    """the curves on which the task was learned, skill first"""
    artefacts: Mapping[int, str]
    """index of a checkpoint -> why its progress by loss may be an artefact"""

    @property
    def task(self) -> Progress | None:
        """The curve a candidate is chosen on: skill if it was measured and learned, else loss."""
        return self.learned[0] if self.learned else None


@lru_cache(maxsize=8)
def _screened(measured: Any, rule: Thresholds, seed: int) -> Verdict:
    """The verdict of the screen alone. Kept, since every stage of an audit decides on the same measurements."""
    run = measured.subject
    curves = _curves(measured, rule, seed)
    healths = run_health(run, rule)
    found = [_status(measured, curves, healths[s], s, rule) for s in range(len(run.labels))]
    statuses = tuple(status for status, _ in found)
    certain = tuple(s == 0 or _under(curves, s) for s in range(len(run.labels)))
    onset = change_onset(run.steps, statuses, certain, tuple(h.broken for h in healths))
    by_loss, by_skill = convergence(curves.loss, "loss", rule), convergence(curves.skill, "skill", rule)
    chosen = _candidate(curves, statuses, healths, onset)
    lines = tuple(_line(measured, curves, s, found[s], healths[s], rule, seed) for s in range(len(run.labels)))
    result = Verdict(
        trait="",
        basis=Basis.SCREEN,
        checkpoints=lines,
        onset=onset,
        convergence_loss=by_loss,
        convergence_skill=by_skill,
        gap=gap_between(onset, by_skill, _measured_steps(run.steps, curves.skill), rule),
        candidate=run.labels[chosen] if chosen is not None else None,
        recommended=None,
        retained_of_best=lines[chosen].retained_of_best if chosen is not None else None,
        retained_of_last=lines[chosen].retained_of_last if chosen is not None else None,
        retained_curve=curves.task.curve if curves.task else None,
        screen_limit=curves.limit,
        screen_limit_source=curves.limit_source,
        definitions={**to_plain(rule), "seed": seed, "scored": measured.scored, "task_given": measured.task_given},
    )
    return replace(result, findings=findings.of_screen(result, measured, rule, curves.artefacts))


def _settled(learned: Convergence, rule: Thresholds) -> bool:
    """Whether the last quarter certainly added little, so that convergence cannot lie after the last checkpoint."""
    added = learned.last_quarter
    return added is None or (added.high is not None and added.high <= rule.still_learning)


def _curves(measured: Measurements, rule: Thresholds, seed: int) -> _Curves:
    run = measured.subject
    loss, skill = curves_of(run, rule, seed)
    limit, source = screen_limit(measured, rule, seed)
    base = shift_band(against_base(run.contrast), measured.categories, rule, seed)
    control = None
    if measured.controls:
        shift = against_control(run, measured.controls[0])
        control = shift_band(shift, measured.categories, rule, seed)
    margin = shift_band(against_base(run.margin), measured.categories, rule, seed)
    learned = tuple(c for c in (skill, loss) if c is not None and c.learned(rule))
    if _clusters(base) < rule.min_prompts:
        limit, source = None, f"none: {_clusters(base)} prompts measured at every step, {rule.min_prompts} needed"
    cut = [a.truncated for a in run.answers]
    found = artefacts(run, loss, skill, rule, truncated=cut, row_tokens=run.row_tokens)
    return _Curves(loss, skill, base, control, margin, limit, source, learned, found)


def _clusters(shift: Shift) -> int:
    return shift.band.clusters if shift.band is not None else 0


def _under(curves: _Curves, s: int) -> bool:
    """Whether the shift at s is certainly within the limit."""
    return curves.limit is not None and curves.base.high(s) <= curves.limit


def _measured_steps(steps: tuple[int | None, ...], curve: Progress | None) -> tuple[int | None, ...]:
    return tuple(step for s, step in enumerate(steps) if curve is not None and np.isfinite(curve.value[s]))


def _status(
    measured: Measurements, curves: _Curves, health: Health, s: int, rule: Thresholds
) -> tuple[Status, tuple[Finding, ...]]:
    if measured.subject.labels[s] in measured.subject.failed:
        return Status.FAILED, ()
    if health.broken:
        return Status.UNDECIDED, (Finding("broken", {"state": health.state.value, "note": health.note}),)
    if s == 0:
        return Status.NO_CHANGE_SEEN, ()  # the reference itself: its shift is zero by definition
    low_control = curves.control.low(s) if curves.control else float("nan")
    has_control = curves.control is not None and _clusters(curves.control) >= rule.min_prompts
    return screen_status(curves.base.low(s), curves.base.mean(s), low_control, has_control, curves.limit)


def _candidate(curves: _Curves, statuses: tuple[Status, ...], healths: list[Health], onset: Onset) -> int | None:
    """Index of the best task progress among saved checkpoints that show no change and are not unhealthy.

    Searching for the best progress favours the checkpoint just short of the limit. Where a change was found, a
    candidate must therefore be certainly within it (upper bound), or it would be taken from inside the onset set.
    """
    if curves.task is None:
        return None
    sound = (HealthState.OK, HealthState.UNKNOWN)
    eligible = [
        s
        for s in range(1, len(statuses))
        if statuses[s] is Status.NO_CHANGE_SEEN
        and healths[s].state in sound
        and (onset.status != "found" or _under(curves, s))
        and np.isfinite(curves.task.progress[s])
        and curves.task.progress[s] > 0
    ]
    return max(eligible, key=lambda s: float(curves.task.progress[s]) if curves.task else 0.0, default=None)


def _line(
    measured: Measurements,
    curves: _Curves,
    s: int,
    found: tuple[Status, tuple[Finding, ...]],
    health: Health,
    rule: Thresholds,
    seed: int,
) -> CheckpointVerdict:
    run, task = measured.subject, curves.task
    label = run.labels[s]
    last = max((k for k in range(len(run.labels)) if task and np.isfinite(task.value[k])), default=0)
    notes = [Finding("failed", {"why": run.failed[label]})] if label in run.failed else []
    notes += [run.findings[label]] if label in run.findings else []
    notes += [Finding("artefact", {"why": curves.artefacts[s]})] if s in curves.artefacts else []
    return CheckpointVerdict(
        label=label,
        step=run.steps[s],
        weights=run.weights[s],
        status=found[0],
        task_loss=curves.loss.value_estimate(s, rule, seed, -1.0) if curves.loss else None,
        loss_progress=_flagged(curves, s, curves.loss.estimate(s, rule, seed)) if curves.loss else None,
        skill_progress=curves.skill.estimate(s, rule, seed) if curves.skill else None,
        contrast_base=_shift(curves.base, s),
        contrast_control=_shift(curves.control, s) if curves.control else None,
        margin_base=_shift(curves.margin, s),
        softening=softening_slope(run.margin, s) if s else None,
        entropy_shift=_entropy_shift(run.entropy, s),
        health=health,
        kl_from_base=_finite(run.kl_from_base, s),
        norm=_finite(run.norm, s),
        retained_of_best=task.retained(s, None, rule, seed) if task and s else None,
        retained_of_last=task.retained(s, last, rule, seed) if task and s else None,
        findings=(*notes, *found[1]),
    )


def _flagged(curves: _Curves, s: int, e: Estimate | None) -> Estimate | None:
    """The estimate, with the artefact it may be as its warning."""
    return replace(e, warning=curves.artefacts[s]) if e is not None and s in curves.artefacts else e


def _shift(shift: Shift, s: int) -> Estimate | None:
    return shift.band.estimate(shift.rows[s]) if shift.band is not None and s in shift.rows else None


def _entropy_shift(entropy: Array, s: int) -> float | None:
    both = np.isfinite(entropy[0]) & np.isfinite(entropy[s])
    return float((entropy[s, both] - entropy[0, both]).mean()) if s and both.any() else None


def _finite(values: Array | None, s: int) -> float | None:
    return float(values[s]) if values is not None and np.isfinite(values[s]) else None
