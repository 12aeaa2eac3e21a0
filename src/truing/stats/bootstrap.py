"""Cluster bootstrap over prompts: one matrix of weights, drawn once, for every checkpoint and every difference.

A resample of prompts is a row of counts, so 10,000 resamples of C checkpoints are one product of [C, P] sums per prompt
with [P, B] counts; no answer is touched. Percentile intervals: with few prompts or few hits they are too narrow (0.52
coverage at 8 prompts and 2 %), so below 40 prompts or 5 with a hit they carry a warning and `share_of` is the one to
read. Source: Efron & Tibshirani (1993, chapters 8 and 13); clusters, Davison & Hinkley (1997, section 3.8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from truing.stats.evidence import Array, Mask
from truing.types.verdicts import Estimate

FEW_PROMPTS = 40
"""prompts under which intervals for prompts like these are marked"""
FEW_POSITIVE = 5
"""prompts with a hit (or, for shares over one half, with a miss) under which intervals are marked"""
LEFT_OUT = "prompts without answers"
_PAIRED_OUT = "prompts without answers on both sides"
_EMPTY = "resamples without answers"
_EXACT = float(2**24)
"""whole numbers below it are exact in float32, and so are sums of them that stay below it"""

Pooling = Literal["prompts", "answers"]
Pairs = Sequence[tuple[int, int]]


def rough(prompts: int, rarer: int, what: str) -> str:
    """Warning where prompts, or those with a hit, are few; empty otherwise."""
    said = []
    if prompts < FEW_PROMPTS:
        said.append(f"only {prompts} prompt{'s' if prompts != 1 else ''}")
    if rarer < FEW_POSITIVE:
        said.append(f"{rarer} prompts with {what}" if rarer != 1 else f"1 prompt with {what}")
    return f"{' and '.join(said)}: the interval for prompts like these is rough" if said else ""


@dataclass(frozen=True, eq=False)
class Resamples:
    """Resamples of P prompts as counts, drawn once and used for every number that is wanted of them.

    Every method takes C checkpoints at once: hits and answers per prompt, [C, P] (or [P] for one).

    Raises:
        ValueError: no prompts, no resamples, or not one category per prompt.
    """

    prompts: int
    """P"""
    resamples: int = 10_000
    """B"""
    seed: int = 0
    """of the draws"""
    categories: tuple[str, ...] | None = None
    """[P] category of each prompt: prompts are then drawn within their category, as many as it has; None draws from
    all. A category of one prompt adds no spread, one of k adds (k - 1) / k of what it should"""
    weights: NDArray[np.float32] = field(init=False, repr=False)
    """[P, B] how often a prompt is in a resample; every column sums to P"""

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.resamples < 1:
            raise ValueError(f"a bootstrap needs prompts and resamples, got {self.prompts} and {self.resamples}")
        if self.categories is not None and len(self.categories) != self.prompts:
            raise ValueError(f"{len(self.categories)} categories for {self.prompts} prompts")
        rng = np.random.default_rng(self.seed)
        weights = np.empty((self.prompts, self.resamples), dtype=np.float32)
        for at in self._groups():
            weights[at] = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), size=self.resamples).T
        weights.setflags(write=False)
        object.__setattr__(self, "weights", weights)

    def shares(
        self, hits: ArrayLike, n: ArrayLike, *, by: Pooling = "prompts", level: float = 0.95
    ) -> tuple[Estimate, ...]:
        """Share of each checkpoint with its percentile interval; arguments and errors as `table`."""
        return self.table(hits, n, by=by, level=level)[0]

    def differences(
        self, hits: ArrayLike, n: ArrayLike, pairs: Pairs, *, by: Pooling = "prompts", level: float = 0.95
    ) -> tuple[Estimate, ...]:
        """Paired difference of each pair of checkpoints; arguments and errors as `table`."""
        return self.table(hits, n, pairs, by=by, level=level)[1]

    def table(
        self, hits: ArrayLike, n: ArrayLike, pairs: Pairs = (), *, by: Pooling = "prompts", level: float = 0.95
    ) -> tuple[tuple[Estimate, ...], tuple[Estimate, ...]]:
        """Shares of all checkpoints, and the differences of all pairs, from one product with the weights.

        There is no interval where there is one prompt, or where no resample differs from another (all positive, none
        positive). A resample in which nothing was answered is left out and counted.

        Args:
            hits: [C, P] answers that count, per prompt.
            n: [C, P] answers per prompt; a prompt with none adds nothing and is counted as left out.
            pairs: (a, b) for the difference a - b, rows of `hits`; over the prompts with answers on both sides.
            by: "prompts" takes the mean of prompt shares, as all rates here; "answers" pools sum(hits) / sum(n), as
                published tables do.
            level: nominal coverage.

        Raises:
            ValueError: shapes differ, a count is negative or not finite, hits exceed n, a pair names a checkpoint that
                is not there, or `by` or `level` is unknown or out of range.
        """
        hits, n = _counts(hits, n, self.prompts)
        if by not in ("prompts", "answers"):
            raise ValueError(f"shares are taken by prompts or by answers, not by {by!r}")
        if not 0 < level < 1:
            raise ValueError(f"level {level} is not between 0 and 1")
        rows, sides = _rows(n, pairs)
        source = np.array([c for c, _ in rows], dtype=np.int64)
        masks = np.array([m for _, m in rows], dtype=bool).reshape(len(rows), self.prompts)
        sampled = self._sampled(np.where(masks, hits[source], 0.0), np.where(masks, n[source], 0.0), by)
        kind = f"cluster bootstrap, percentile, {by} alike{', within category' if self.categories else ''}"
        low, high, empty = sampled.limits(level)
        shares = tuple(
            self._estimate(sampled, (c,), low[c], high[c], int(empty[c]), level, kind) for c in range(len(hits))
        )
        low, high, empty = sampled.difference_limits(sides, level)
        differences = tuple(
            self._estimate(sampled, ab, low[k], high[k], int(empty[k]), level, kind) for k, ab in enumerate(sides)
        )
        return shares, differences

    def _groups(self) -> list[NDArray[np.int64]]:
        if self.categories is None:
            return [np.arange(self.prompts)]
        names = np.asarray(self.categories)
        return [np.flatnonzero(names == name) for name in sorted(set(self.categories))]

    def _sums(self, values: Array) -> NDArray[np.floating]:
        """[K, B] sum of values, [K, P], over each resample: float32 where that is exact, else float64."""
        if values.size and values.max() * self.prompts < _EXACT and (values == np.rint(values)).all():
            return values.astype(np.float32) @ self.weights
        return values @ self.weights.astype(np.float64)

    def _sampled(self, hits: Array, n: Array, by: Pooling) -> "_Sampled":
        """Numerators and denominators of every row in every resample."""
        used = n > 0
        most = n.max(axis=1, initial=0.0, keepdims=True)
        alike = ((n == most) | ~used).all()
        if by == "prompts":
            # Where every prompt has as many answers the mean of shares is whole numbers over one denominator.
            top = hits if alike else hits / np.maximum(n, 1)
            below = np.where(used, most if alike else 1.0, 0.0)
        else:
            top, below = hits, n
        fixed = bool((below == below[:, :1]).all())
        bottom = below[:, 0] * self.prompts if fixed else self._sums(below)
        return _Sampled(self._sums(top), bottom, hits, n, top.sum(axis=1), below.sum(axis=1))

    def _estimate(
        self, sampled: "_Sampled", row: tuple[int, ...], low: float, high: float, empty: int, level: float, kind: str
    ) -> Estimate:
        """The record of a share (one row) or of a difference (two)."""
        used = sampled.n[row[0]] > 0
        prompts = int(used.sum())
        n = int(sum(sampled.n[r].sum() for r in row))
        out = {} if used.all() else {LEFT_OUT if len(row) == 1 else _PAIRED_OUT: int((~used).sum())}
        if not prompts:
            return Estimate(None, None, None, left_out=out, method="no answers", level=level, seed=self.seed)
        out |= {_EMPTY: empty} if empty else {}
        value = sampled.value(row[0]) - (sampled.value(row[1]) if len(row) == 2 else 0.0)
        if len(row) == 2:
            a, b = (sampled.hits[r][used] / sampled.n[r][used] for r in row)
            warning = rough(prompts, int((a != b).sum()), "a difference")
        else:
            hit = sampled.hits[row[0]] > 0 if value <= 0.5 else sampled.hits[row[0]] < sampled.n[row[0]]
            warning = rough(prompts, int(hit.sum()), "hits" if value <= 0.5 else "misses")
        flat = not high - low > 1e-12
        if flat:
            why = "one prompt" if prompts == 1 else "no resample differs from another"
            warning = "; ".join(w for w in (f"no interval: {why}", warning) if w)
        ends = (None, None) if flat else (float(low), float(high))
        return Estimate(
            value, *ends, n=n, clusters=prompts, left_out=out, method=kind, level=level, seed=self.seed, warning=warning
        )


@dataclass(frozen=True, slots=True)
class _Sampled:
    """K rows, drawn B times."""

    top: NDArray[np.floating]
    """[K, B] numerators"""
    bottom: NDArray[np.floating]
    """[K, B] denominators, or [K] where they are the same in every resample"""
    hits: Array
    """[K, P] hits"""
    n: Array
    """[K, P] answers"""
    top_sum: Array
    """[K] numerators of the data themselves"""
    bottom_sum: Array
    """[K] their denominators"""

    def value(self, row: int) -> float:
        return float(self.top_sum[row] / self.bottom_sum[row])

    def limits(self, level: float) -> tuple[Array, Array, Array]:
        """[K] lower and upper limits and [K] empty resamples."""
        if self.bottom.ndim == 1:  # sort whole numbers, divide two of them
            low, high, empty = _quantiles(self.top, level)
            below = np.where(self.bottom > 0, self.bottom, 1.0)
            return low / below, high / below, empty
        return _quantiles(self._quotients(), level)

    def difference_limits(self, sides: Sequence[tuple[int, int]], level: float) -> tuple[Array, Array, Array]:
        """The same for the differences of pairs of rows."""
        a, b = np.array(sides, dtype=np.int64).reshape(-1, 2).T
        if self.bottom.ndim == 1 and (self.bottom[a] == self.bottom[b]).all():
            low, high, empty = _quantiles(self.top[a] - self.top[b], level)
            below = np.where(self.bottom[a] > 0, self.bottom[a], 1.0)
            return low / below, high / below, empty
        sampled = self._quotients()
        return _quantiles(sampled[a] - sampled[b], level)

    def _quotients(self) -> Array:
        """[K, B] shares; NaN in a resample without answers."""
        bottom = self.bottom[:, None] if self.bottom.ndim == 1 else self.bottom
        out, there = np.full(self.top.shape, np.nan), np.broadcast_to(bottom > 0, self.top.shape)
        return np.divide(self.top, bottom, out=out, where=there, dtype=np.float64)  # float32 sums are whole numbers


def _quantiles(sampled: NDArray[np.floating], level: float) -> tuple[Array, Array, Array]:
    """[K] lower and upper percentile of the numbers in each row of drawn, [K, B], and [K] how many are missing.

    As numpy's default quantile (linear); sorting whole rows is 3-4 times faster than its partitions. A row of which
    nothing is left gives 0 and 0.
    """
    ordered = np.sort(sampled, axis=1)  # missing ones come last
    there = (~np.isnan(ordered)).sum(axis=1)
    rows = np.arange(len(ordered))
    ends = []
    for q in ((1 - level) / 2, (1 + level) / 2):
        at = np.maximum(there - 1, 0) * q
        below = np.floor(at).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(there - 1, 0))
        a, b = (np.nan_to_num(ordered[rows, i].astype(np.float64)) for i in (below, above))
        ends.append(a + (b - a) * (at - below))
    return ends[0], ends[1], sampled.shape[1] - there


def _counts(hits: ArrayLike, n: ArrayLike, prompts: int) -> tuple[Array, Array]:
    """Both as floats, [C, P]."""
    hits, n = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (hits, n))
    if hits.ndim != 2 or hits.shape != n.shape or hits.shape[1] != prompts:
        raise ValueError(f"hits and answers are [checkpoints, {prompts}] each, got shapes {hits.shape} and {n.shape}")
    if not (np.isfinite(hits).all() and np.isfinite(n).all()):
        raise ValueError("a count is not finite")
    if (hits < 0).any() or (hits > n).any():
        raise ValueError("hits must lie between 0 and the number of answers")
    return hits, n


def _rows(n: Array, pairs: Pairs) -> tuple[list[tuple[int, Mask]], list[tuple[int, int]]]:
    """Rows to be drawn, as (checkpoint, prompts that count), and the two rows of each pair.

    The first C rows are the checkpoints themselves; a pair adds rows only where its sides miss different prompts.
    """
    used = n > 0
    rows = [(c, used[c]) for c in range(len(n))]
    sides = []
    for pair in pairs:
        if any(not 0 <= c < len(n) for c in pair):
            raise ValueError(f"pair {tuple(pair)} names a checkpoint outside 0..{len(n) - 1}")
        both, side = used[pair[0]] & used[pair[1]], []
        for c in pair:
            side.append(c if (both == used[c]).all() else len(rows))
            if side[-1] == len(rows):
                rows.append((c, both))
        sides.append((side[0], side[1]))
    return rows, sides
