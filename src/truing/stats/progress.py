"""How much of the task was learned at each checkpoint, and when that was done.

A curve is a mean over held-out rows that should rise with learning: minus the loss, or the skill difference.
Its progress is p(s) = (v(0) to v(s)) / (v(0) to best v). Every interval resamples rows and re-selects the best step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from truing.config import Thresholds
from truing.stats.bands import resample_weights, simultaneous_band
from truing.stats.evidence import Array, Mask, RunEvidence
from truing.types.verdicts import Convergence, Estimate


@dataclass(frozen=True, slots=True)
class Progress:
    """One progress curve over all checkpoints, with its bootstrap replicates."""

    curve: str
    """loss or skill"""
    steps: tuple[int | None, ...]
    """[S], step 0 first"""
    value: Array
    """[S] the rising mean, nats per token; NaN at checkpoints that failed"""
    progress: Array
    """[S] share of the gain; NaN where nothing was gained or measured"""
    replicates: Array
    """[B, S] the rising mean in each resample"""
    gain: Estimate
    """total gain in nats per token; low is simultaneous over steps, so it does not profit from picking the best"""
    falls_after: bool
    """significantly lower at the end than at its best"""
    rows: int
    """held-out rows used"""

    def learned(self, rule: Thresholds) -> bool:
        """Whether the gain reaches `min_gain` and is certainly more than none."""
        gain = self.gain
        return gain.value is not None and gain.low is not None and gain.value >= rule.min_gain and gain.low > 0

    def estimate(self, s: int, rule: Thresholds, seed: int, *, correct: bool = True) -> Estimate | None:
        """p(s) with a percentile interval."""
        share = _share(self.replicates, self.replicates[:, s])
        return self._quantiles(float(self.progress[s]), share, rule, seed, correct)

    def value_estimate(self, s: int, rule: Thresholds, seed: int, sign: float) -> Estimate | None:
        """The mean itself times `sign` (-1 turns it back into a loss)."""
        return self._quantiles(sign * float(self.value[s]), sign * self.replicates[:, s], rule, seed)

    def retained(self, s: int, of: int | None, rule: Thresholds, seed: int) -> Estimate | None:
        """Gain at s as a share of the gain at `of`, or of the best gain if None."""
        if of is None:
            # No correction here: whoever asks has picked s for its progress, which flatters s as it flatters the best.
            return self.estimate(s, rule, seed, correct=False)
        gained, whole = self.value[s] - self.value[0], self.value[of] - self.value[0]
        if not np.isfinite(self.progress[s]) or not whole > 0:
            return None
        base, full = self.replicates[:, 0], self.replicates[:, of]
        ratio = (self.replicates[:, s] - base) / np.where(full > base, full - base, np.nan)
        return self._quantiles(float(gained / whole), ratio, rule, seed)

    def added(self, since: int, until: int, rule: Thresholds, seed: int | None = None) -> Estimate | None:
        """Share of the total gain that was added from checkpoint `since` to checkpoint `until`, with an interval."""
        before, after = (_share(self.replicates, self.replicates[:, s]) for s in (since, until))
        return self._quantiles(float(self.progress[until] - self.progress[since]), after - before, rule, seed)

    def _quantiles(
        self, point: float, replicates: Array, rule: Thresholds, seed: int | None, correct: bool = True
    ) -> Estimate | None:
        if not np.isfinite(point):
            return None
        # A share of a gain that is none in many resamples has no interval; leaving those out would flatter it.
        finite, tail = replicates[np.isfinite(replicates)], (1 - rule.level) / 2
        low = high = None
        if finite.size >= (1 - tail) * replicates.size:
            ends = np.quantile(finite, _tails(finite, point, rule.level) if correct else [tail, 1 - tail])
            low, high = min(float(ends[0]), point), max(float(ends[1]), point)
        how = "bias-corrected percentile" if correct else "percentile"
        return Estimate(
            point,
            low,
            high,
            set_low=point,
            set_high=point,
            n=self.rows,
            clusters=self.rows,
            method=f"bootstrap over held-out rows, best step re-selected, {how}",
            level=rule.level,
            seed=seed,
        )


def _tails(replicates: Array, point: float, level: float) -> Array:
    """The two quantiles of the replicates that make an interval: bias-corrected percentiles, Efron (1987).

    The best of several noisy steps looks better than it is, so shares of it look too small; in the replicates, where
    the best is picked again, smaller still. Where replicates fall around the estimate evenly this changes nothing.
    """
    below = (np.mean(replicates < point) + np.mean(replicates <= point)) / 2
    bias = sps.norm.ppf(np.clip(below, 0.05, 0.95))
    return sps.norm.cdf(2 * bias + sps.norm.ppf([(1 - level) / 2, (1 + level) / 2]))


def _share(replicates: Array, column: Array) -> Array:
    base, best = replicates[:, 0], np.nanmax(replicates, axis=1)  # step 0 is never NaN
    whole = np.where(best > base, best - base, np.nan)
    return (column - base) / whole


def progress_curve(
    curve: str, steps: tuple[int | None, ...], rising: Array, weights: Array | None, rule: Thresholds, seed: int
) -> Progress | None:
    """Progress from `rising` [S, R]: per-row values that grow with learning.

    With `weights` [R] (tokens) the mean is sum / tokens, the usual corpus loss; without, rows count alike.
    Checkpoints that failed are rows of NaN and stay NaN, and one with under half the rows of the fullest counts as
    failed: it would take its missing rows away from all the others. Rows missing elsewhere are left out.
    Returns None with fewer than 3 rows, without step 0, or when step 0 itself failed.
    """
    counts = np.isfinite(rising).sum(axis=1)
    failed: Mask = np.asarray((counts == 0) | (2 * counts < counts.max()))
    rising = np.where(failed[:, None], np.nan, rising)
    if failed[0] or rising.shape[0] < 2:
        return None
    used: Mask = np.asarray(np.isfinite(rising[~failed]).all(axis=0))
    if weights is not None:
        used &= np.isfinite(weights) & (weights > 0)
    if used.sum() < 3:
        return None
    kept = rising[:, used]
    tokens = np.ones(int(used.sum())) if weights is None else weights[used]
    value = kept.sum(axis=1) / tokens.sum()
    samples = resample_weights(["row"] * len(tokens), rule.resamples, np.random.default_rng(seed))
    # Percentiles of a bootstrap are normal-sized; with few rows the t quantile is needed.
    tail = (1 - rule.level) / 2
    samples = 1 + (samples - 1) * sps.t.isf(tail, len(tokens) - 1) / sps.norm.isf(tail)
    # A ratio of sums, linearised around the point estimate; with equal weights this is the plain bootstrap mean.
    replicates = value + samples @ (kept - value[:, None] * tokens).T / tokens.sum()
    gain, falls = _gain(kept, tokens, value, failed, rule, seed)
    whole = np.nanmax(value) - value[0]
    share = (value - value[0]) / whole if whole > 0 else np.full_like(value, np.nan)
    return Progress(curve, steps, value, share, replicates, gain, falls, int(used.sum()))


def _gain(kept: Array, tokens: Array, value: Array, failed: Mask, rule: Thresholds, seed: int) -> tuple[Estimate, bool]:
    """Total gain with a lower end valid for the best step, and whether the curve falls after its best."""
    ok = np.flatnonzero(~failed)
    # Influence of each row on the ratio of sums: its mean over rows is the value, its spread gives the error.
    rows = (kept - value[:, None] * tokens) / tokens.mean() + value[:, None]
    strata = ["row"] * kept.shape[1]
    options = {"level": rule.level, "resamples": rule.resamples, "seed": seed}
    band = simultaneous_band(rows[ok[1:]] - rows[0], strata, **options)
    whole, n = float(np.nanmax(value) - value[0]), kept.shape[1]
    if band is None:
        return Estimate(whole, None, None, n=n, method="no later checkpoint"), False
    gain = Estimate(
        whole,
        min(float(band.low.max()), whole),
        max(float(band.high.max()), whole),
        set_low=whole,
        set_high=whole,
        n=n,
        clusters=n,
        method="studentised max-t bootstrap over rows, simultaneous over steps",
        level=rule.level,
        seed=seed,
    )
    after = simultaneous_band(rows[ok[:-1]] - rows[ok[-1]], strata, **options)
    lost = float(np.nanmax(value) - value[ok[-1]])
    falls = after is not None and float(after.low.max()) > 0 and lost > rule.still_learning * max(whole, 0)
    return gain, falls


def curves_of(run: RunEvidence, rule: Thresholds, seed: int) -> tuple[Progress | None, Progress | None]:
    """The loss curve and the skill curve of a run; None where it was not measured."""
    loss = progress_curve("loss", run.steps, -run.loss, run.tokens, rule, seed) if run.loss is not None else None
    skill = progress_curve("skill", run.steps, run.skill, None, rule, seed) if run.skill is not None else None
    return loss, skill


def convergence(p: Progress | None, curve: str, rule: Thresholds) -> Convergence:
    """First step from which progress stays at `converged_at` or more, if the last quarter adds little.

    Only checkpoints with a known step count. Needs at least 3 of them after step 0. A curve that certainly falls after
    its best (overfit) was learned all the same: there, progress has to stay up until the best step only.
    The interval of the step joins the bootstrap's (best step re-selected in each resample) with every step that is not
    certainly under the threshold, so it also holds where several checkpoints tie for the best.
    """
    if p is None:
        return Convergence(curve, "unmeasured")
    at_steps = [(s, i) for i, s in enumerate(p.steps) if s is not None and np.isfinite(p.value[i])]
    known = [i for _, i in sorted(at_steps)]
    if not p.learned(rule):
        return Convergence(curve, "task_not_learned", gain=p.gain)
    if len(known) < 4:
        return Convergence(curve, "too_few_checkpoints", gain=p.gain)
    steps = np.array([p.steps[i] for i in known], dtype=float)
    points = p.progress[known]
    at = int(_first_sustained(points[None, :], rule.converged_at, p.falls_after)[0])
    quarter = int(np.flatnonzero(steps <= 0.75 * steps[-1])[-1])
    # Whether it is done is a one-sided question: the upper end at `level` is that of an interval at 2 level - 1.
    added = p.added(known[quarter], known[-1], rule.but(level=max(0.0, 2 * rule.level - 1)), p.gain.seed)
    if at < 0 or points[-1] - points[quarter] > rule.still_learning:
        return Convergence(curve, "still_learning", gain=p.gain, overfit=p.falls_after, last_quarter=added)
    low, high = (int(steps[k]) for k in _step_interval(p, known, at, rule))
    return Convergence(
        curve,
        "converged",
        step=int(steps[at]),
        after=int(steps[at - 1]) if at > 0 else None,
        low=low,
        high=high,
        gain=p.gain,
        overfit=p.falls_after,
        last_quarter=added,
    )


def _step_interval(p: Progress, known: Sequence[int], at: int, rule: Thresholds) -> tuple[int, int]:
    """Positions in `known` between which the first sustained step lies."""
    shares = np.stack([_share(p.replicates, p.replicates[:, i]) for i in known], axis=1)
    hits = _first_sustained(shares, rule.converged_at, p.falls_after)
    # A replicate that never gets there counts as the last step: it can only widen the interval.
    reached = np.where(hits < 0, len(known) - 1, hits).astype(float)
    low, high = np.quantile(reached, _tails(reached, at, rule.level), method="inverted_cdf")
    possible = ~_certainly_under(p, known, rule.converged_at, (1 + rule.level) / 2)
    return min(int(low), at, int(np.argmax(possible))), max(int(high), at)


def _certainly_under(p: Progress, known: Sequence[int], threshold: float, level: float) -> Mask:
    """[K] whether the gain at a checkpoint is certainly under `threshold` times the gain at some other.

    Progress is under the threshold if and only if that holds for some other checkpoint. Testing against all of them at
    once (max-t over the others, one-sided) keeps its level where several tie for the best; a percentile of the share
    of the observed best does not, because the observed best is then too high by about one standard error.
    """
    value, samples = p.value[known], p.replicates[:, known]
    out = np.zeros(len(known), dtype=bool)
    for k in range(len(known)):
        contrast = value[k] - value[0] - threshold * (value - value[0])
        sampled = samples[:, [k]] - samples[:, [0]] - threshold * (samples - samples[:, [0]])
        deviation = sampled - contrast
        error = deviation.std(axis=0)
        steady = error <= 1e-12 * max(1.0, float(np.abs(value).max()))
        worst = np.where(steady, 0.0, -deviation / np.where(steady, 1.0, error)).max(axis=1)
        out[k] = bool((contrast < -float(np.quantile(worst, level)) * error - 1e-12).any())
    return out


def _first_sustained(shares: Array, threshold: float, until_best: bool) -> NDArray[np.intp]:
    """[B, S] -> [B] index of the first column from which all, or all up to the best, are >= threshold; -1 if none."""
    filled = np.nan_to_num(shares, nan=-np.inf)
    good = filled >= threshold
    if until_best:
        best = filled.argmax(axis=1)[:, None]
        good |= (np.arange(shares.shape[1]) > best) & np.take_along_axis(good, best, axis=1)
    sustained = np.logical_and.accumulate(good[:, ::-1], axis=1)[:, ::-1]
    return np.where(sustained.any(axis=1), sustained.argmax(axis=1), -1)
