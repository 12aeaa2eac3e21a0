"""Intervals for means over prompts or rows, which are the clusters: resampled whole, within their category.

Sources: max-t bootstrap for simultaneous bands, Westfall & Young (1993) and Montiel Olea & Plagborg-Moller (2019);
studentised, Hall (1992); degrees of freedom with few items, Satterthwaite (1946), Welch (1947);
within-stratum variance correction n/(n-1), Rao & Wu (1988); one-sided normal tolerance limits, Hahn & Meeker (1991);
score interval for a share, Wilson (1927).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from truing.stats.evidence import Array, Mask
from truing.types.verdicts import Estimate

LEAST_STRATUM = 5
"""items under which a category is pooled with others: its own spread is too poorly known"""


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
            method="studentised max-t bootstrap over prompts within category, simultaneous over steps",
            level=self.level,
            seed=self.seed,
        )


def resample_weights(strata: Sequence[str], resamples: int, rng: np.random.Generator) -> Array:
    """Bootstrap weights [B, P]: rows sum to P; items are drawn with replacement within their stratum.

    Deviations from the stratum mean are widened by sqrt(n/(n-1)), without which a stratum of 5 would look 11 % too
    certain. Strata under 5 items are pooled. One matrix serves every step, so all differences come out paired.
    """
    weights = np.ones((resamples, len(strata)))
    for g in _groups(strata):
        n = len(g)
        if n > 1:
            weights[:, g] += (sample_counts(n, resamples, rng) - 1) * np.sqrt(n / (n - 1))
    return weights


def sample_counts(n: int, resamples: int, rng: np.random.Generator) -> Array:
    """How often each of n items is sampled, [B, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)


def _groups(strata: Sequence[str]) -> list[NDArray[np.intp]]:
    """Items of each stratum; those under `LEAST_STRATUM` are pooled into one, with a bigger one if need be.

    Pooling counts the differences between the pooled strata as error, so it errs towards a wider interval.
    """
    names = np.asarray(strata)
    every = sorted((np.flatnonzero(names == name) for name in dict.fromkeys(strata)), key=len)
    small = [g for g in every if len(g) < LEAST_STRATUM]
    while small and len(small) < len(every) and sum(map(len, small)) < LEAST_STRATUM:
        small.append(every[len(small)])
    pooled = [np.sort(np.concatenate(small))] if small else []
    return pooled + every[len(small) :]


def _spread(kept: Array, groups: list[NDArray[np.intp]]) -> tuple[Array, Array]:
    """Standard error of the stratified mean of `kept` [S, P], and its degrees of freedom, both [S].

    Satterthwaite's degrees of freedom with Welch's (1947) correction for estimated variances: one stratum gives n - 1,
    equal variances about P minus the strata, and a stratum that carries all the spread about its own size.
    """
    parts = np.array([len(g) * kept[:, g].var(axis=1, ddof=1) for g in groups])  # [G, S]
    total = parts.sum(axis=0)
    sizes = np.array([len(g) for g in groups])[:, None]
    scale = np.where(total > 0, total, 1.0)
    inverse = ((parts / scale) ** 2 / (sizes + 1)).sum(axis=0)
    most = kept.shape[1] - len(groups)
    df = np.where(total > 0, np.clip(1 / np.where(total > 0, inverse, 1.0) - 2, 1, most), most)
    return np.sqrt(total) / kept.shape[1], df


def _largest_t(
    kept: Array, groups: list[NDArray[np.intp]], se: Array, resamples: int, rng: np.random.Generator
) -> Array:
    """Largest |t| over the S means in each resample, [B]; each deviation is divided by its resample's own error."""
    deviation = np.zeros((resamples, len(kept)))
    variance = np.zeros_like(deviation)
    for g in groups:
        n = len(g)
        counts = sample_counts(n, resamples, rng)
        centred = kept[:, g] - kept[:, g].mean(axis=1, keepdims=True)
        sums = counts @ centred.T
        deviation += sums
        variance += n / (n - 1) * (counts @ (centred**2).T - sums**2 / n)
    # A resample that drew nearly one item only has next to no spread; a tenth of the true error is the least allowed.
    error = np.maximum(np.sqrt(np.maximum(variance, 0)) / kept.shape[1], se / 10)
    steady = se <= np.maximum(np.abs(kept.mean(axis=1)), 1.0) * 1e-12  # constant columns: rounding only
    return np.where(steady, 0.0, np.abs(deviation) / kept.shape[1] / np.where(steady, 1.0, error)).max(axis=1)


def simultaneous_band(values: Array, strata: Sequence[str], *, level: float, resamples: int, seed: int) -> Band | None:
    """Band for the column means of `values` [S, P] over items P.

    A studentised (bootstrap-t) max-t band. Dividing by each resample's own error is what makes it hold with few items
    and with skewed effects; the t quantile of a single step is the least multiplier allowed.
    Items with a missing value at any step are left out (and counted), so that every step has the same items.
    Returns None when fewer than 3 items remain: too little data gives no interval, never a zero-width one.
    """
    used: Mask = np.asarray(np.isfinite(values).all(axis=0))
    clusters = int(used.sum())
    if clusters < 3 or values.shape[0] == 0:
        return None
    kept = values[:, used]
    groups = _groups([s for s, u in zip(strata, used, strict=True) if u])
    mean = kept.mean(axis=1)
    se, df = _spread(kept, groups)
    t_max = _largest_t(kept, groups, se, resamples, np.random.default_rng(seed))
    critical = np.maximum(np.quantile(t_max, level), sps.t.ppf((1 + level) / 2, df))
    half = critical * se
    return Band(mean, mean - half, mean + half, se, critical, clusters, int((~used).sum()), level, seed)


def tolerance_limit(values: Array, *, coverage: float = 0.95, confidence: float = 0.95) -> float:
    """Upper limit under which a share `coverage` of a normal population lies, with the given confidence.

    Raises:
        ValueError: fewer than 3 values, or one that is not finite.
    """
    n = len(values)
    if n < 3 or not np.isfinite(values).all():
        raise ValueError("a tolerance limit needs at least 3 finite values")
    k = sps.nct.ppf(confidence, n - 1, sps.norm.ppf(coverage) * np.sqrt(n)) / np.sqrt(n)
    return float(np.mean(values) + k * np.std(values, ddof=1))


@lru_cache(maxsize=4096)
def wilson(count: int, n: int, level: float) -> tuple[float, float]:
    """Wilson's interval for a share of independent answers."""
    ends = sps.binomtest(count, n).proportion_ci(level, method="wilson")
    return float(ends.low), float(ends.high)


def share(count: int, n: int, *, level: float = 0.95) -> Estimate:
    """A share of independent answers, one per prompt, with Wilson's interval; no interval for n = 0."""
    if n == 0:
        return Estimate(None, None, None, method="wilson", level=level)
    low, high = wilson(count, n, level)
    return Estimate(count / n, low, high, low, high, n, n, method="wilson, one answer per prompt", level=level)
