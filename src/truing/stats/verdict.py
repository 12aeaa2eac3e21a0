"""From evidence to verdict: every line of the table, the onset, the candidate, and one sentence.

The order is the argument: task progress, drift of the contextual contrast, health, status per checkpoint, onset
against convergence, candidate. Definitions are those of `Thresholds`; all of them are returned with the verdict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from truing.config import Thresholds
from truing.stats import words
from truing.stats.drift import (
    Shift,
    against_base,
    against_control,
    drift_onset,
    drift_status,
    drift_threshold,
    shift_band,
    softening_slope,
)
from truing.stats.evidence import Array, Evidence
from truing.stats.guards import artefacts
from truing.stats.health import BROKEN, run_health
from truing.stats.progress import Progress, convergence, curves_of
from truing.types.records import to_plain
from truing.types.verdicts import (
    Basis,
    CheckpointVerdict,
    Convergence,
    Estimate,
    Health,
    HealthState,
    Onset,
    RunVerdict,
    Status,
)


@dataclass(frozen=True, slots=True)
class _Curves:
    """Everything computed once for the run, before any checkpoint is looked at."""

    loss: Progress | None
    skill: Progress | None
    base: Shift
    control: Shift | None
    margin: Shift
    delta: float | None
    delta_source: str
    learned: tuple[Progress, ...]
    """the curves on which the task was learned, trait first"""
    artefacts: Mapping[int, str]
    """index of a checkpoint -> why its progress by loss may be an artefact"""

    @property
    def task(self) -> Progress | None:
        """The curve a candidate is chosen on: the trait if it was measured and learned, else the loss."""
        return self.learned[0] if self.learned else None


def verdict(evidence: Evidence, rule: Thresholds, *, seed: int = 0) -> RunVerdict:
    """The verdict of a run from judge-free evidence.

    Args:
        evidence: arrays over checkpoints, prompts and held-out rows; see `RunEvidence` for shapes and units.
        rule: thresholds; stored with the result.
        seed: seed of every resampling; the same evidence and seed give the same verdict.
    """
    run = evidence.subject
    curves = _curves(evidence, rule, seed)
    healths = run_health(run, rule)
    statuses = tuple(_status(evidence, curves, healths[s], s, rule) for s in range(len(run.labels)))
    certain = tuple(s == 0 or _under(curves, s) for s in range(len(run.labels)))
    onset = drift_onset(run.steps, statuses, certain)
    by_loss, by_skill = convergence(curves.loss, "loss", rule), convergence(curves.skill, "skill", rule)
    gap = gap_between(onset, by_skill, _measured_steps(run.steps, curves.skill), rule)
    chosen = _candidate(curves, statuses, healths, onset)
    lines = tuple(_line(evidence, curves, s, statuses[s], healths[s], rule, seed) for s in range(len(run.labels)))
    result = RunVerdict(
        basis=Basis.MARGIN,
        sentence="",
        checkpoints=lines,
        onset=onset,
        convergence_loss=by_loss,
        convergence_skill=by_skill,
        gap=gap,
        candidate=run.labels[chosen] if chosen is not None else None,
        recommended=None,
        retained_of_best=lines[chosen].retained_of_best if chosen is not None else None,
        retained_of_last=lines[chosen].retained_of_last if chosen is not None else None,
        retained_curve=curves.task.curve if curves.task else None,
        delta_m=curves.delta,
        delta_m_source=curves.delta_source,
        warnings=words.warnings(evidence, lines, by_loss, by_skill, rule, curves.artefacts),
        definitions={**to_plain(rule), "seed": seed, "statistic": words.statistic(evidence)},
    )
    return words.with_sentence(result, evidence)


def gap_between(onset: Onset, learned: Convergence, steps: tuple[int | None, ...], rule: Thresholds) -> str:
    """before, after, not_separable or unknown: an onset relative to trait convergence, from both censoring windows.

    A step stands for the time since the checkpoint before it. The onset lies in the windows of the steps of its set
    (tested or not); convergence in those of every step of its interval. Only if all of the one lies before all of the
    other are they separated. A set without an earliest (latest) step is open to the left (right); a convergence whose
    last quarter may have added too much (its upper end is over `still_learning`) is open to the right. Fewer than
    `min_gap_checkpoints` checkpoints separate nothing.

    Args:
        onset: of drift or of judged misalignment.
        learned: convergence of the trait.
        steps: those at which the trait was measured, step 0 among them.
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


def _settled(learned: Convergence, rule: Thresholds) -> bool:
    """Whether the last quarter certainly added little, so that convergence cannot lie after the last checkpoint."""
    added = learned.last_quarter
    return added is None or (added.high is not None and added.high <= rule.still_learning)


def under_moved(evidence: Evidence, rule: Thresholds) -> frozenset[int]:
    """Steps at which the first control moved less than `rule.under_moved` times as far (KL from the base)."""
    if not evidence.controls or evidence.subject.kl_from_base is None or evidence.controls[0].kl_from_base is None:
        return frozenset()
    control = evidence.controls[0]
    other = dict(zip(control.steps, control.kl_from_base if control.kl_from_base is not None else (), strict=True))
    own = zip(evidence.subject.steps, evidence.subject.kl_from_base, strict=True)
    return frozenset(
        step for step, kl_from_base in own if step and step in other and other[step] < rule.under_moved * kl_from_base
    )


def _curves(evidence: Evidence, rule: Thresholds, seed: int) -> _Curves:
    run = evidence.subject
    loss, skill = curves_of(run, rule, seed)
    delta, source = drift_threshold(evidence, rule, seed)
    base = shift_band(against_base(run.contrast), evidence.categories, rule, seed)
    control = None
    if evidence.controls:
        shift = against_control(run, evidence.controls[0])
        control = shift_band(shift, evidence.categories, rule, seed)
    margin = shift_band(against_base(run.margin), evidence.categories, rule, seed)
    learned = tuple(c for c in (skill, loss) if c is not None and c.learned(rule))
    if _clusters(base) < rule.min_prompts:
        delta, source = None, f"none: {_clusters(base)} prompts measured at every step, {rule.min_prompts} needed"
    cut = [a.truncated for a in run.answers]
    found = artefacts(run, loss, skill, rule, truncated=cut, row_tokens=run.row_tokens)
    return _Curves(loss, skill, base, control, margin, delta, source, learned, found)


def _clusters(shift: Shift) -> int:
    return shift.band.clusters if shift.band is not None else 0


def _under(curves: _Curves, s: int) -> bool:
    """Whether the shift at s is certainly within the drift limit."""
    return curves.delta is not None and curves.base.high(s) <= curves.delta


def _measured_steps(steps: tuple[int | None, ...], curve: Progress | None) -> tuple[int | None, ...]:
    return tuple(step for s, step in enumerate(steps) if curve is not None and np.isfinite(curve.value[s]))


def _status(evidence: Evidence, curves: _Curves, state: Health, s: int, rule: Thresholds) -> Status:
    if evidence.subject.labels[s] in evidence.subject.failed:
        return Status.FAILED
    if state.state in BROKEN:
        return Status.BROKEN
    if s == 0:
        return Status.NO_DRIFT_SEEN  # the reference itself: its shift is zero by definition
    low_control = curves.control.low(s) if curves.control else float("nan")
    has_control = curves.control is not None and _clusters(curves.control) >= rule.min_prompts
    return drift_status(curves.base.low(s), curves.base.mean(s), low_control, has_control, curves.delta)


def _candidate(curves: _Curves, statuses: tuple[Status, ...], healths: list[Health], onset: Onset) -> int | None:
    """Index of the best task progress among saved checkpoints that show no drift and are not unhealthy.

    Searching for the best progress favours the checkpoint just short of the limit. Where drift was found, a candidate
    must therefore be certainly within it (upper bound), or it would be taken from inside the onset set.
    """
    if curves.task is None:
        return None
    sound = (HealthState.OK, HealthState.UNKNOWN)
    eligible = [
        s
        for s in range(1, len(statuses))
        if statuses[s] is Status.NO_DRIFT_SEEN
        and healths[s].state in sound
        and (onset.status != "found" or _under(curves, s))
        and np.isfinite(curves.task.progress[s])
        and curves.task.progress[s] > 0
    ]
    return max(eligible, key=lambda s: float(curves.task.progress[s]) if curves.task else 0.0, default=None)


def _line(
    evidence: Evidence, curves: _Curves, s: int, status: Status, state: Health, rule: Thresholds, seed: int
) -> CheckpointVerdict:
    run, task = evidence.subject, curves.task
    last = max((k for k in range(len(run.labels)) if task and np.isfinite(task.value[k])), default=0)
    return CheckpointVerdict(
        label=run.labels[s],
        step=run.steps[s],
        weights=run.weights[s],
        status=status,
        basis=Basis.MARGIN,
        task_loss=curves.loss.value_estimate(s, rule, seed, -1.0) if curves.loss else None,
        loss_progress=_flagged(curves, s, curves.loss.estimate(s, rule, seed)) if curves.loss else None,
        skill_progress=curves.skill.estimate(s, rule, seed) if curves.skill else None,
        contrast_base=_shift(curves.base, s),
        contrast_control=_shift(curves.control, s) if curves.control else None,
        margin_base=_shift(curves.margin, s),
        softening=softening_slope(run.margin, s) if s else None,
        entropy_shift=_entropy_shift(run.entropy, s),
        health=state,
        kl_from_base=_finite(run.kl_from_base, s),
        norm=_finite(run.norm, s),
        retained_of_best=task.retained(s, None, rule, seed) if task and s else None,
        retained_of_last=task.retained(s, last, rule, seed) if task and s else None,
        notes=(
            *(found[run.labels[s]] for found in (run.failed, run.notes) if run.labels[s] in found),
            *([curves.artefacts[s]] if s in curves.artefacts else []),
        ),
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
