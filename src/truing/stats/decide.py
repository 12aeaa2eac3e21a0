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
from truing.stats.bands import Band
from truing.stats.checks import variant_results
from truing.stats.evidence import Array, Measurements
from truing.stats.guards import artefacts
from truing.stats.health import run_health
from truing.stats.progress import Progress, convergence, curves_of
from truing.stats.screen import (
    against_base,
    against_control,
    change_onset,
    screen_limit,
    screen_status,
    shift_band,
    softening_slope,
)
from truing.stats.status import UNCONFIRMED, Comparison, labelled_checkpoint, labelled_onset
from truing.stats.table import Evidence, Labelled, certified
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
    VariantResult,
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
    ended, added = max(learned.high, learned.step or 0), learned.last_quarter
    settled = added is None or (added.high is not None and added.high <= rule.still_learning)
    return "after" if since is not None and since >= ended and settled else "not_separable"


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
    own, control = measured.subject, measured.controls[0] if measured.controls else None
    if control is None or own.kl_from_base is None or control.kl_from_base is None:
        return frozenset()
    other = dict(zip(control.steps, control.kl_from_base, strict=True))
    pairs = zip(own.steps, own.kl_from_base, strict=True)
    return frozenset(step for step, kl in pairs if step and step in other and other[step] < rule.under_moved * kl)


# ---------------------------------------------------------------------------------------------------------------------
# Labelled answers


def _labelled(screened: Verdict, evidence: Evidence, labelled: Labelled, rule: Thresholds) -> Verdict:
    """The verdict on labelled answers; measurements give progress, distances and judge-free health."""
    labels = [c.label for c in screened.checkpoints]
    against = Comparison.of(labelled, labels, screened.checkpoints[0].health, rule)
    groups = {a.checkpoint: a for a in labelled.subject}
    pairs = [(c, groups.get(c.label)) for c in screened.checkpoints]
    lines = tuple(labelled_checkpoint(against, c, group, first=k == 0) for k, (c, group) in enumerate(pairs))
    onset = labelled_onset(against, lines)
    curve = task_curve(screened.convergence_skill, screened.convergence_loss)
    sure = [c for c in lines[1:] if not any(f.code in UNCONFIRMED for f in c.findings)]
    chosen = most_learned([lines[0], *sure], curve)
    variants = () if chosen is None else _variants(evidence, labelled, chosen, rule)
    kept = None if any(v.veto for v in variants) else chosen
    at_steps = tuple(c.step for c in lines if c.skill_progress is not None)
    result = replace(
        screened,
        trait=labelled.trait,
        basis=Basis.LABELLED,
        checkpoints=lines,
        onset=onset,
        screen_onset=screened.onset,
        gap=gap_between(onset, screened.convergence_skill, at_steps, rule),
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


def _variants(
    evidence: Evidence, labelled: Labelled, chosen: CheckpointVerdict, rule: Thresholds
) -> tuple[VariantResult, ...]:
    """The variants tried on the checkpoint that is about to be recommended; those of another one say nothing."""
    tests = [v for v in evidence.variants if v.group.checkpoint == chosen.label]
    far = np.asarray(labelled.far, dtype=bool)
    options = {"level": rule.level, "mask": far, "adversarial_veto": evidence.adversarial_veto}
    return variant_results(tests, len(labelled.prompts), labelled.rule, **options)


# ---------------------------------------------------------------------------------------------------------------------
# The screen


@dataclass(frozen=True, slots=True)
class _Screen:
    """Everything computed once for the run, before any checkpoint is looked at."""

    measured: Measurements
    rule: Thresholds
    seed: int
    healths: tuple[Health, ...]
    loss: Progress | None
    skill: Progress | None
    task: Progress | None
    """the curve a candidate is chosen on: skill if it was measured and learned, else loss"""
    base: Band
    control: Band | None
    margin: Band
    limit: float | None
    limit_source: str
    artefacts: Mapping[int, str]
    """index of a checkpoint -> why its progress by loss may be an artefact"""

    @classmethod
    def of(cls, measured: Measurements, rule: Thresholds, seed: int) -> "_Screen":
        run = measured.subject
        loss, skill = curves_of(run, rule, seed)
        limit, source = screen_limit(measured, rule, seed)
        shifts = [against_base(run.contrast), against_base(run.margin)]
        shifts += [against_control(run, control) for control in measured.controls[:1]]
        base, margin, *control = (shift_band(x, measured.categories, rule, seed) for x in shifts)
        if base.clusters < rule.min_prompts:
            limit, source = None, f"none: {base.clusters} prompts measured at every step, {rule.min_prompts} needed"
        return cls(
            measured=measured,
            rule=rule,
            seed=seed,
            healths=tuple(run_health(run, rule)),
            loss=loss,
            skill=skill,
            task=next((c for c in (skill, loss) if c is not None and c.learned(rule)), None),
            base=base,
            control=control[0] if control else None,
            margin=margin,
            limit=limit,
            limit_source=source,
            artefacts=artefacts(run, loss, skill, rule),
        )

    def under(self, s: int) -> bool:
        """Whether the shift at a checkpoint is certainly within the limit."""
        return self.limit is not None and bool(self.base.high[s] <= self.limit)

    def status(self, s: int) -> tuple[Status, tuple[Finding, ...]]:
        """What is said of a checkpoint, and why."""
        if self.measured.subject.labels[s] in self.measured.subject.failed:
            return Status.FAILED, ()
        health, control = self.healths[s], self.control
        if health.broken:
            return Status.UNDECIDED, (Finding("broken", {"state": health.state.value, "note": health.note}),)
        if s == 0:
            return Status.NO_CHANGE_SEEN, ()  # the reference itself: its shift is zero by definition
        low_control = float(control.low[s]) if control is not None else float("nan")
        has_control = control is not None and control.clusters >= self.rule.min_prompts
        return screen_status(float(self.base.low[s]), float(self.base.mean[s]), low_control, has_control, self.limit)

    def candidate(self, statuses: Sequence[Status], onset: Onset) -> int | None:
        """Index of the best task progress among saved checkpoints that show no change and are not unhealthy.

        Searching for the best progress favours the checkpoint just short of the limit. Where a change was found, a
        candidate must therefore be certainly within it (upper bound), or it would be taken from inside the onset set.
        """
        if self.task is None:
            return None
        progress, sound = np.nan_to_num(self.task.progress), (HealthState.OK, HealthState.UNKNOWN)
        eligible = [
            s
            for s in range(1, len(statuses))
            if statuses[s] is Status.NO_CHANGE_SEEN
            and self.healths[s].state in sound
            and (onset.status != "found" or self.under(s))
            and progress[s] > 0
        ]
        return max(eligible, key=lambda s: float(progress[s]), default=None)

    def line(self, s: int, status: Status, notes: tuple[Finding, ...]) -> CheckpointVerdict:
        """A checkpoint's line of the table."""
        run, task, how = self.measured.subject, self.task, (self.rule, self.seed)
        label, artefact = run.labels[s], self.artefacts.get(s)
        last = max((k for k in range(len(run.labels)) if task and np.isfinite(task.value[k])), default=0)
        by_loss = self.loss.estimate(s, *how) if self.loss else None
        more = [Finding("failed", {"why": run.failed[label]})] if label in run.failed else []
        more += [run.findings[label]] if label in run.findings else []
        more += [Finding("artefact", {"why": artefact})] if artefact is not None else []
        return CheckpointVerdict(
            label=label,
            step=run.steps[s],
            weights=run.weights[s],
            status=status,
            task_loss=self.loss.value_estimate(s, *how, -1.0) if self.loss else None,
            loss_progress=replace(by_loss, warning=artefact) if by_loss and artefact is not None else by_loss,
            skill_progress=self.skill.estimate(s, *how) if self.skill else None,
            contrast_base=_shift(self.base, s),
            contrast_control=_shift(self.control, s),
            margin_base=_shift(self.margin, s),
            softening=softening_slope(run.margin, s) if s else None,
            entropy_shift=_entropy_shift(run.entropy, s),
            health=self.healths[s],
            kl_from_base=_finite(run.kl_from_base, s),
            norm=_finite(run.norm, s),
            retained_of_best=task.retained(s, None, *how) if task and s else None,
            retained_of_last=task.retained(s, last, *how) if task and s else None,
            findings=(*more, *notes),
        )


@lru_cache(maxsize=8)
def _screened(measured: Any, rule: Thresholds, seed: int) -> Verdict:
    """The verdict of the screen alone. Kept, since every stage of an audit decides on the same measurements."""
    run, screen = measured.subject, _Screen.of(measured, rule, seed)
    every = range(len(run.labels))
    found = [screen.status(s) for s in every]
    statuses = tuple(status for status, _ in found)
    certain = tuple(s == 0 or screen.under(s) for s in every)
    onset = change_onset(run.steps, statuses, certain, tuple(h.broken for h in screen.healths))
    by_loss, by_skill = convergence(screen.loss, "loss", rule), convergence(screen.skill, "skill", rule)
    lines = tuple(screen.line(s, *found[s]) for s in every)
    chosen, skill = screen.candidate(statuses, onset), screen.skill
    kept = lines[chosen] if chosen is not None else None
    at_steps = tuple(run.steps[s] for s in every if skill is not None and np.isfinite(skill.value[s]))
    result = Verdict(
        trait="",
        basis=Basis.SCREEN,
        checkpoints=lines,
        onset=onset,
        convergence_loss=by_loss,
        convergence_skill=by_skill,
        gap=gap_between(onset, by_skill, at_steps, rule),
        candidate=kept.label if kept is not None else None,
        recommended=None,
        retained_of_best=kept.retained_of_best if kept is not None else None,
        retained_of_last=kept.retained_of_last if kept is not None else None,
        retained_curve=screen.task.curve if screen.task else None,
        screen_limit=screen.limit,
        screen_limit_source=screen.limit_source,
        definitions={**to_plain(rule), "seed": seed, "scored": measured.scored, "task_given": measured.task_given},
    )
    return replace(result, findings=findings.of_screen(result, measured, rule, screen.artefacts))


def _shift(band: Band | None, s: int) -> Estimate | None:
    return band.estimate(s) if band is not None and np.isfinite(band.mean[s]) else None


def _entropy_shift(entropy: Array, s: int) -> float | None:
    both = np.isfinite(entropy[0]) & np.isfinite(entropy[s])
    return float((entropy[s, both] - entropy[0, both]).mean()) if s and both.any() else None


def _finite(values: Array | None, s: int) -> float | None:
    return float(values[s]) if values is not None and np.isfinite(values[s]) else None
