"""The judge-free screen: shift of the log-prob contrast against step 0 and the control, its limit, and its onset set.

It ranks, guesses and warns; it never certifies.
"""

import numpy as np

from truing.config import Thresholds
from truing.stats.bands import Band, simultaneous_band, tolerance_limit
from truing.stats.crossing import Place, crossing
from truing.stats.evidence import Array, Mask, Measurements, RunEvidence
from truing.stats.health import sound
from truing.types.verdicts import OF_SCREEN, Finding, Onset, Status


def shift_band(shift: Array, categories: tuple[str, ...], rule: Thresholds, seed: int) -> Band:
    """Band over the checkpoints of `shift` [S, P]; NaN at those that were not measured (failed, or step 0).

    So is a checkpoint with under half as many prompts as the fullest one: since every step must have the same prompts,
    one half-broken checkpoint would otherwise take them away from all the others. Too little data: no clusters.
    """
    counts = np.isfinite(shift).sum(axis=1)
    present = (counts > 0) & (2 * counts >= counts.max())
    band = simultaneous_band(shift[present], categories, level=rule.level, resamples=rule.resamples, seed=seed)
    columns = np.full((5, len(shift)), np.nan)
    if band is None:
        return Band(*columns, clusters=0, dropped=shift.shape[1], level=rule.level, seed=seed)
    columns[:, present] = band.mean, band.low, band.high, band.se, band.critical
    return Band(*columns, clusters=band.clusters, dropped=band.dropped, level=band.level, seed=seed)


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
    band = shift_band(null_contrast, evidence.categories, rule, seed + 1)
    if not band.clusters:
        return None, "none: no null contrasts"
    reach = float(np.nanmax(np.maximum(np.abs(band.low), np.abs(band.high))))
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
    """The onset set of a change (see `crossing`), where the base is index 0.

    Args:
        steps: [S] updates applied, None if unknown; in any order after the base.
        statuses: [S] status of each.
        certain: [S] whether the shift is certainly under the limit (upper bound). Where a change was found, a
            checkpoint before it that merely shows none stays in the set: its shift may have been too small to see.
        broken: [S] whether the model answers too badly for its shift to say anything.
    """
    certain = certain if certain is not None else (True,) * len(steps)
    broken = broken if broken is not None else (False,) * len(steps)
    rows = list(zip(steps, statuses, certain, broken, strict=True))
    found = any(x is Status.CHANGED and step is not None for step, x, *_ in rows)
    places = [
        Place(
            step,
            status is Status.NO_CHANGE_SEEN and (sure or not found),
            status is Status.CHANGED,
            not bad and status is not Status.FAILED,
        )
        for step, status, sure, bad in rows
    ]
    return crossing(places, OF_SCREEN)


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
