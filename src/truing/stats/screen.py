"""The judge-free screen: shift of the log-prob contrast against step 0 and the control, its limit, and its onset set.

It ranks, guesses and warns; it never certifies.
"""

from dataclasses import dataclass

import numpy as np

from truing.config import Thresholds
from truing.stats.bands import Band, simultaneous_band, tolerance_limit
from truing.stats.evidence import Array, Mask, Measurements, RunEvidence
from truing.stats.health import sound
from truing.types.verdicts import Finding, Onset, Status


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

    def high(self, s: int) -> float:
        """Simultaneous upper end at checkpoint s; NaN where undefined."""
        return float(self.band.high[self.rows[s]]) if self.band is not None and s in self.rows else float("nan")

    def mean(self, s: int) -> float:
        """Mean shift at checkpoint s; NaN where undefined."""
        return float(self.band.mean[self.rows[s]]) if self.band is not None and s in self.rows else float("nan")


def shift_band(shift: Array, categories: tuple[str, ...], rule: Thresholds, seed: int) -> Shift:
    """Band over the checkpoints of `shift` [S, P] that were measured; a row of NaN (failed, or step 0) is left out.

    So is a checkpoint with under half as many prompts as the fullest one: since every step must have the same prompts,
    one half-broken checkpoint would otherwise take them away from all the others.
    """
    counts = np.isfinite(shift).sum(axis=1)
    present = [s for s in range(shift.shape[0]) if counts[s] > 0 and 2 * counts[s] >= counts.max()]
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


def screen_limit(evidence: Measurements, rule: Thresholds, seed: int) -> tuple[float | None, str]:
    """The largest shift that benign training may cause, in nats per token, and where the number comes from.

    With at least 3 different benign control runs: the upper tolerance limit (95 % of runs, 95 % confidence, normal) of
    the largest shift each of them reaches. Otherwise: how far the null contrast (one neutral answer against the
    other, which means nothing) can have moved in this very run, the largest |shift| plus its simultaneous half-width.
    Broken checkpoints set no limit, here or there: the babble of one would hide the drift of all the others.

    Where the contrast's mean moves no further than the null contrast's does at some step, a lower simultaneous bound
    exceeds the limit in at most 5 % of runs. Null contrasts know nothing of what sets all positive answers apart from
    neutral ones (a common style, say): only benign runs measure that, so the source says which it was.
    """
    peaks = [p for c in {c.weights: c for c in evidence.controls}.values() if (p := _peak(c, rule)) is not None]
    if len(peaks) >= 3:
        return max(0.0, tolerance_limit(np.array(peaks))), f"{len(peaks)} benign control runs"
    run = evidence.subject
    null_contrast, moved = against_base(run.null_contrast), against_base(run.contrast)
    fit: Mask = sound(run, rule)
    null_contrast[~fit] = np.nan
    band = shift_band(null_contrast, evidence.categories, rule, seed + 1).band
    if band is None:
        return None, "none: no null contrasts"
    reach = float(np.maximum(np.abs(band.low), np.abs(band.high)).max())
    if reach == 0 and np.nan_to_num(moved[fit]).any():
        return None, "none: the null contrasts never move"
    return reach, f"null contrasts of this run ({band.clusters} prompts); fewer than 3 benign runs"


def _peak(control: RunEvidence, rule: Thresholds) -> float | None:
    """Largest mean shift a control reaches at a sound checkpoint; None if it was measured nowhere."""
    shift = against_base(control.contrast)[sound(control, rule)]
    means = [float(row[np.isfinite(row)].mean()) for row in shift if np.isfinite(row).any()]
    return max(means, default=None)


def screen_status(
    low_base: float, mean_base: float, low_control: float, has_control: bool, limit: float | None
) -> tuple[Status, tuple[Finding, ...]]:
    """The status of one measured, healthy checkpoint on the screen's word alone.

    `not_beyond_control` means that the excess over the control is not certain; the control need not move.
    """
    if limit is None or not np.isfinite(mean_base):
        return Status.UNDECIDED, ()
    if low_base > limit:
        if not has_control or not np.isfinite(low_control):
            return Status.CHANGED, (Finding("cause_not_tested"),)
        return Status.CHANGED, () if low_control > limit else (Finding("not_beyond_control"),)
    return (Status.UNDECIDED if mean_base > limit else Status.NO_CHANGE_SEEN), ()


def change_onset(
    steps: tuple[int | None, ...],
    statuses: tuple[Status, ...],
    certain: tuple[bool, ...] | None = None,
    broken: tuple[bool, ...] | None = None,
) -> Onset:
    """The onset set of a change over checkpoints with a known step (index 0 is the base).

    Earliest: the first step that is not clear. Latest: the first that certainly changed. All checkpoints were
    measured, so this is the first change, with no promise that it lasts; `sustained` says whether every later
    checkpoint that could be decided changed too. Failed and broken checkpoints are not clear, so they stay in the set.
    A checkpoint without a step cannot be placed, but the answer is then never "never" unless it is clear as well.

    Args:
        steps: [S] updates applied, None if unknown; in any order after the base.
        statuses: [S] status of each.
        certain: [S] whether the shift is certainly under the limit (upper bound). Where a change was found, a
            checkpoint before it that merely shows none stays in the set: its shift may have been too small to see.
        broken: [S] whether the model answers too badly for its shift to say anything.
    """
    certain = certain if certain is not None else (True,) * len(steps)
    broken = broken if broken is not None else (False,) * len(steps)
    rows = [(step, *rest) for step, *rest in zip(steps, statuses, certain, broken, strict=True) if step is not None]
    known = sorted(rows, key=lambda row: row[0])
    changed = [step for step, status, *_ in known if status is Status.CHANGED]
    latest = changed[0] if changed else None
    clear = Status.NO_CHANGE_SEEN
    unclear = [s for s, status, sure, _ in known if status is not clear or (latest is not None and not sure)]
    if not unclear:
        unplaced = any(step is None and status is not clear for step, status in zip(steps, statuses, strict=True))
        return Onset("undecided" if unplaced else "never", "the first change", None, None, None)
    earliest = unclear[0]
    before = [step for step, *_ in known if step < earliest]
    inside = tuple(dict.fromkeys(s for s, *_ in known if s >= earliest and (latest is None or s <= latest)))
    told = [x for s, x, _, bad in known if latest is not None and s >= latest and not bad and x is not Status.FAILED]
    sustained = all(status is Status.CHANGED for status in told) if latest is not None else None
    after = before[-1] if before else None
    return Onset("found" if changed else "undecided", "the first change", earliest, latest, after, inside, sustained)


def lone_prompts(run: RunEvidence, prompts: tuple[str, ...]) -> list[tuple[str, int]]:
    """(prompt id, checkpoint index) where one prompt carries over half of the summed shift and is no mere tail.

    Such a prompt is more than 8 robust standard deviations (1.4826 times the median absolute deviation) from the
    median prompt. The mean is then about that prompt, not about prompts like these.
    """
    shift, out = against_base(run.contrast), {}
    for s in range(1, len(run.labels)):
        used = np.flatnonzero(np.isfinite(shift[s]))
        if len(used) < 10:
            continue
        values = shift[s, used]
        centre = np.median(values)
        spread = 1.4826 * np.median(np.abs(values - centre))
        top = int(np.abs(values - centre).argmax())
        if abs(values[top] - centre) > 8 * spread and abs(values[top]) > 0.5 * abs(values.sum()):
            out[prompts[used[top]]] = s
    return list(out.items())


def softening_slope(margin: Array, s: int) -> float | None:
    """Slope of the plain shift at s on the base margin, over prompts. Near -1 means margins shrank towards zero:
    the model went indifferent, which is not a preference. None with fewer than 10 prompts."""
    both = np.isfinite(margin[0]) & np.isfinite(margin[s])
    if both.sum() < 10:
        return None
    base = margin[0, both] - margin[0, both].mean()
    spread = float(base @ base)
    if spread <= 1e-12 * float(margin[0, both] @ margin[0, both]):
        return None  # equal up to rounding: no line to fit
    return float(base @ (margin[s, both] - margin[0, both])) / spread
