"""Intervals for means over prompts or rows, which are the clusters: resampled whole, within their category.

Sources: max-t bootstrap for simultaneous bands, Westfall & Young (1993) and Montiel Olea & Plagborg-Moller (2019);
within-stratum variance correction n/(n-1), Rao & Wu (1988); one-sided normal tolerance limits, Hahn & Meeker (1991);
score interval for a share, Wilson (1927).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from truing.base.records import Estimate
from truing.stats.evidence import Array, Mask


@dataclass(frozen=True, slots=True)
class Band:
    """Means with a simultaneous interval: with probability `level` it holds at all of them at once."""

    mean: Array
    """[S]"""
    low: Array
    """[S]"""
    high: Array
    """[S]"""
    se: Array
    """[S] standard error of the stratified mean"""
    critical: Array
    """[S] multiplier of `se`"""
    clusters: int
    """items used (those measured at every step)"""
    dropped: int
    """items left out because a value was missing at some step"""
    level: float
    """nominal simultaneous coverage"""
    seed: int
    """seed of the resampling"""

    def estimate(self, s: int) -> Estimate:
        """The s-th mean as a record."""
        return Estimate(
            float(self.mean[s]),
            float(self.low[s]),
            float(self.high[s]),
            set_low=float(self.mean[s]),
            set_high=float(self.mean[s]),
            n=self.clusters,
            clusters=self.clusters,
            left_out={"not measured at every step": self.dropped} if self.dropped else {},
            method="max-t bootstrap over prompts within category, simultaneous over steps",
            level=self.level,
            seed=self.seed,
        )


def resample_weights(strata: Sequence[str], resamples: int, rng: np.random.Generator) -> Array:
    """Bootstrap weights [B, P]: rows sum to P; items are drawn with replacement within their stratum.

    Deviations from the stratum mean are widened by sqrt(n/(n-1)), without which a stratum of 5 would look 11 % too
    certain. Strata of one item are pooled. One matrix serves every step, so all differences come out paired.
    """
    weights = np.ones((resamples, len(strata)))
    for g in _groups(strata):
        n = len(g)
        if n > 1:
            counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
            weights[:, g] = 1 + (counts - 1) * np.sqrt(n / (n - 1))
    return weights


def _groups(strata: Sequence[str]) -> list[NDArray[np.intp]]:
    """Items of each stratum. Strata of one item are pooled, a lone one joins the smallest other: its spread is unknown
    and would otherwise count as none."""
    names = np.asarray(strata)
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(strata)]
    singles = [g for g in groups if len(g) == 1]
    groups = sorted((g for g in groups if len(g) > 1), key=len)
    if len(singles) > 1 or not groups:
        return [*groups, np.concatenate(singles)] if singles else groups
    return [np.concatenate([groups[0], *singles]), *groups[1:]]


def _spread(values: Array, strata: Sequence[str]) -> tuple[Array, Array]:
    """Standard error of the stratified mean of `values` [S, P], and its degrees of freedom, both [S].

    Satterthwaite's degrees of freedom with Welch's (1947) correction for estimated variances: one stratum gives n - 1,
    equal variances about P minus the strata, and a stratum that carries all the spread about its own size.
    """
    groups = _groups(strata)
    parts = np.array([len(g) * values[:, g].var(axis=1, ddof=1) for g in groups])  # [G, S]
    total = parts.sum(axis=0)
    sizes = np.array([len(g) for g in groups])[:, None]
    most = values.shape[1] - len(groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = total**2 / (parts**2 / (sizes + 1)).sum(axis=0) - 2
    return np.sqrt(total) / values.shape[1], np.where(total > 0, np.clip(df, 1, most), most)


def simultaneous_band(values: Array, strata: Sequence[str], *, level: float, resamples: int, seed: int) -> Band | None:
    """Band for the column means of `values` [S, P] over items P.

    The bootstrap says how much more than one step's error the largest of S errors is; its quantile is carried from the
    normal to the t scale, because a bootstrap of few items knows nothing of the error of their own variance.
    Items with a missing value at any step are left out (and counted), so that every step has the same items.
    Returns None when fewer than 3 items remain: too little data gives no interval, never a zero-width one.
    """
    used: Mask = np.asarray(np.isfinite(values).all(axis=0))
    clusters = int(used.sum())
    if clusters < 3 or values.shape[0] == 0:
        return None
    kept = values[:, used]
    names = [s for s, u in zip(strata, used, strict=True) if u]
    weights = resample_weights(names, resamples, np.random.default_rng(seed))
    mean = kept.mean(axis=1)
    se, df = _spread(kept, names)
    deviations = weights @ kept.T / clusters - mean  # [B, S]
    floor = np.maximum(np.abs(mean), 1.0) * 1e-12  # a constant column has se 0 up to rounding
    t_max = (np.abs(deviations) / np.maximum(se, floor)).max(axis=1)
    normal = max(float(np.quantile(t_max, level)), float(sps.norm.ppf((1 + level) / 2)))
    critical = np.asarray(sps.t.isf(sps.norm.sf(normal), df))
    half = critical * se
    return Band(mean, mean - half, mean + half, se, critical, clusters, int((~used).sum()), level, seed)


def tolerance_limit(values: Array, *, coverage: float = 0.95, confidence: float = 0.95) -> float:
    """Upper limit under which a share `coverage` of a normal population lies, with the given confidence.

    Raises:
        ValueError: fewer than 3 values.
    """
    n = len(values)
    if n < 3:
        raise ValueError("a tolerance limit needs at least 3 runs")
    k = sps.nct.ppf(confidence, n - 1, sps.norm.ppf(coverage) * np.sqrt(n)) / np.sqrt(n)
    return float(np.mean(values) + k * np.std(values, ddof=1))


def share(count: int, n: int, *, level: float = 0.95) -> Estimate:
    """A share of independent answers, one per prompt, with Wilson's interval; no interval for n = 0."""
    if n == 0:
        return Estimate(None, None, None, method="wilson", level=level)
    z = float(sps.norm.ppf((1 + level) / 2))
    p = count / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = max(0.0, float(middle - half)), min(1.0, float(middle + half))
    return Estimate(p, low, high, low, high, n, n, method="wilson, one answer per prompt", level=level)
