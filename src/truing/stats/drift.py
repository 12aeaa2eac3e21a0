"""Drift of the contextual contrast: bands against step 0 and against the control, the threshold, and the onset set."""

from dataclasses import dataclass

import numpy as np

from truing.base.records import MARGIN_DRIFTS, Onset, Status, VerdictRule
from truing.stats.bands import Band, simultaneous_band, tolerance_limit
from truing.stats.evidence import Array, Evidence, RunEvidence


@dataclass(frozen=True, slots=True)
class Shift:
    """A [S, P] quantity's shift, with a band over the checkpoints where it is defined."""

    rows: dict[int, int]
    """checkpoint index -> row of the band"""
    band: Band | None
    """None when there is too little data"""

    def low(self, s: int) -> float:
        """Simultaneous lower end at checkpoint s; NaN where undefined."""
        return float(self.band.low[self.rows[s]]) if self.band is not None and s in self.rows else float("nan")

    def mean(self, s: int) -> float:
        """Mean shift at checkpoint s; NaN where undefined."""
        return float(self.band.mean[self.rows[s]]) if self.band is not None and s in self.rows else float("nan")


def shift_band(shift: Array, categories: tuple[str, ...], rule: VerdictRule, seed: int) -> Shift:
    """Band over the checkpoints of `shift` [S, P] that have any value; a row of NaN (failed, or step 0) is left out."""
    present = [s for s in range(shift.shape[0]) if np.isfinite(shift[s]).any()]
    if not present:
        return Shift({}, None)
    band = simultaneous_band(shift[present], categories, level=rule.level, resamples=rule.resamples, seed=seed)
    return Shift({s: k for k, s in enumerate(present)}, band)


def against_base(values: Array) -> Array:
    """values [S, P] minus step 0; step 0 itself, which is zero by definition, becomes NaN and is not in the band."""
    shift = values - values[0]
    shift[0] = np.nan
    return shift


def against_control(subject: RunEvidence, control: RunEvidence) -> Array:
    """Shift of the subject minus the control's at exactly the same step; NaN where the control has no such step."""
    own = against_base(subject.contrast)
    other = against_base(control.contrast)
    at = {step: k for k, step in enumerate(control.steps) if step is not None and k > 0}
    out = np.full_like(own, np.nan)
    for s, step in enumerate(subject.steps):
        if step in at:
            out[s] = own[s] - other[at[step]]
    return out


def drift_threshold(evidence: Evidence, rule: VerdictRule, seed: int) -> tuple[float | None, str]:
    """delta_m, and where it comes from.

    With at least 3 benign control runs: the upper tolerance limit (95 % of runs, 95 % confidence) of the largest shift
    each of them reaches. Otherwise: how far the placebo contrast (one odd answer against the other, which means
    nothing) can have moved in this very run, the largest |shift| plus its simultaneous half-width.
    """
    if len(evidence.controls) >= 3:
        peaks = [np.nanmax(np.nanmean(against_base(c.contrast)[1:], axis=1)) for c in evidence.controls]
        return max(0.0, tolerance_limit(np.array(peaks))), f"{len(peaks)} benign control runs"
    placebo = shift_band(against_base(evidence.subject.placebo), evidence.categories, rule, seed + 1)
    if placebo.band is None:
        return None, "none: no placebo pairs"
    reach = np.maximum(np.abs(placebo.band.low), np.abs(placebo.band.high))
    return float(reach.max()), f"placebo pairs of this run ({placebo.band.clusters} prompts); fewer than 3 benign runs"


def drift_status(
    low_base: float, mean_base: float, low_control: float, has_control: bool, delta: float | None
) -> Status:
    """The status of one measured, healthy checkpoint from margins alone."""
    if delta is None or not np.isfinite(mean_base):
        return Status.UNDECIDED
    if low_base > delta:
        if not has_control or not np.isfinite(low_control):
            return Status.DRIFT_UNCONTROLLED
        return Status.DRIFT if low_control > delta else Status.DRIFT_NOT_ATTRIBUTABLE
    return Status.UNDECIDED if mean_base > delta else Status.NO_DRIFT_SEEN


def drift_onset(steps: tuple[int | None, ...], statuses: tuple[Status, ...]) -> Onset:
    """The onset set over checkpoints with a known step (index 0 is the base).

    Earliest: the first step that is not clear. Latest: the first that certainly drifts. All checkpoints were
    measured, so this is the first drift, with no promise that it lasts; `sustained` says whether it did.
    """
    known = [(step, status) for step, status in zip(steps, statuses, strict=True) if step is not None]
    clear = Status.NO_DRIFT_SEEN
    drifting = [step for step, status in known if status in MARGIN_DRIFTS]
    unclear = [step for step, status in known if status is not clear]
    if not unclear:
        return Onset("never", "the first drift", None, None, None)
    earliest = unclear[0]
    before = [step for step, _ in known if step < earliest]
    latest = drifting[0] if drifting else None
    inside = tuple(step for step, _ in known if step >= earliest and (latest is None or step <= latest))
    sustained = all(s in MARGIN_DRIFTS for step, s in known if step >= latest) if latest is not None else None
    after = before[-1] if before else None
    return Onset("found" if drifting else "undecided", "the first drift", earliest, latest, after, inside, sustained)


def softening_slope(margin: Array, s: int) -> float | None:
    """Slope of the plain shift at s on the base margin, over prompts. Near -1 means margins shrank towards zero:
    the model went indifferent, which is not a preference. None with fewer than 10 prompts."""
    both = np.isfinite(margin[0]) & np.isfinite(margin[s])
    if both.sum() < 10 or np.ptp(margin[0, both]) == 0:
        return None
    return float(np.polyfit(margin[0, both], margin[s, both] - margin[0, both], 1)[0])
