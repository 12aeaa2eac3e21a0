"""Intervals for means over prompts or rows, which are the clusters: resampled whole, within their category.

Sources: max-t bootstrap for simultaneous bands, Westfall & Young (1993) and Montiel Olea & Plagborg-Moller (2019);
within-stratum variance correction n/(n-1), Rao & Wu (1988); one-sided normal tolerance limits, Hahn & Meeker (1991);
score interval for a share, Wilson (1927).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
    """[S] bootstrap standard error"""
    critical: float
    """multiplier of `se`"""
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
    names = np.asarray(strata)
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(strata)]
    singles = [g for g in groups if len(g) == 1]
    groups = [g for g in groups if len(g) > 1]
    if singles:
        groups.append(np.concatenate(singles))
    weights = np.empty((resamples, len(names)))
    for g in groups:
        n = len(g)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
        weights[:, g] = 1 + (counts - 1) * np.sqrt(n / (n - 1)) if n > 1 else 1.0
    return weights


def simultaneous_band(values: Array, strata: Sequence[str], *, level: float, resamples: int, seed: int) -> Band | None:
    """Band for the column means of `values` [S, P] over items P.

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
    deviations = weights @ kept.T / clusters - mean  # [B, S]
    se = deviations.std(axis=0, ddof=1)
    floor = np.maximum(np.abs(mean), 1.0) * 1e-12  # a constant column has se 0 up to rounding
    t_max = (np.abs(deviations) / np.maximum(se, floor)).max(axis=1)
    # With few clusters the bootstrap is a little too sure; a t quantile is the least multiplier allowed.
    least = sps.t.ppf((1 + level) / 2, max(clusters - len(set(names)), 1))
    critical = float(max(np.quantile(t_max, level), least))
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
