"""Whether an excess grows with the size of the model: correlations, permutation p-values, and what carries them.

A published r = 0.67 over 13 models rests on two of them, so every correlation comes with what it would be without each
model, and without the two that carry it most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from truing.stats.evidence import Array

ORDERS = 40_320
"""orders of the excess that are tried: all of them up to 8 models"""
LEAST_MODELS = 4
"""fewest models with a p-value: of 3 there are 6 orders, so none is under 1/6"""


@dataclass(frozen=True, slots=True)
class Trend:
    """Size of the model (log10 of its parameters) against the excess."""

    models: int
    """models used"""
    pearson: float | None = None
    """correlation; None with too few models or no spread"""
    spearman: float | None = None
    """rank correlation, ties averaged"""
    pearson_p: float | None = None
    """two-sided permutation p; None under 4 models"""
    spearman_p: float | None = None
    """the same for ranks"""
    method: str = ""
    """how many orders were tried"""
    without: Mapping[str, float | None] = field(default_factory=dict)
    """Pearson's r without each model; None where nothing varies then"""
    pair: tuple[str, ...] = ()
    """the two models whose leaving out weakens Pearson's r most; empty under 5 models"""
    without_pair: float | None = None
    """Pearson's r without these two: two large models can carry a trend that survives losing either"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """model -> why it is not used"""
    warning: str = ""
    """what a reader must know, e.g. that one model decides"""


def trend(
    names: Sequence[str], parameters: Sequence[float | None], excess: Sequence[float | None], *, seed: int = 0
) -> Trend:
    """Pearson's and Spearman's correlation of log10(parameters) and excess, over models.

    p is two-sided: the share of orders of the excess whose correlation is at least as far from 0. All orders up to 8
    models; else drawn ones and the one observed (Phipson & Smyth 2010).

    Args:
        names: [M] models, unique.
        parameters: [M] counts, above 0; None leaves a model out, named.
        excess: [M] e.g. the mean over a model's seeds; None leaves it out, named.
        seed: of the orders drawn.
    """
    given = list(zip(names, parameters, excess, strict=True))
    out = {n: "no parameter count" if size is None else "no excess" for n, size, e in given if None in (size, e)}
    used = [(n, np.log10(size), e) for n, size, e in given if size is not None and e is not None]
    names, k = [row[0] for row in used], len(used)
    x, y = (np.array([row[i] for row in used]) for i in (1, 2))
    r = _pearson(x, y)
    if r is None:
        why = f"{k} models with size and excess" if k < 3 else "size or excess does not vary"
        return Trend(k, left_out=out, warning=f"no trend: {why}")
    ranks = stats.rankdata(x), stats.rankdata(y)
    p = (_p(x, y, seed), _p(*ranks, seed)) if k >= LEAST_MODELS else (None, None)
    method = f"no p under {LEAST_MODELS} models" if k < LEAST_MODELS else "all orders" if k <= 8 else f"{ORDERS} orders"
    without = {n: _pearson(np.delete(x, i), np.delete(y, i)) for i, n in enumerate(names)}
    pair, without_pair = _weakest_pair(names, x, y, r)
    warning = _warning(r, without, pair, without_pair)
    return Trend(k, r, _pearson(*ranks), *p, method, without, pair, without_pair, out, warning)


def _pearson(x: Array, y: Array) -> float | None:
    """None under 3 models, or where one side does not vary."""
    if len(x) < 3 or any(np.ptp(a) <= 1e-12 * max(1.0, np.abs(a).max()) for a in (x, y)):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _p(x: Array, y: Array, seed: int) -> float:
    a = x - x.mean()

    def far(order: Array, axis: int) -> Any:
        return np.abs((order * a).sum(axis=axis))  # the rest of a correlation is the same in every order

    options = {"permutation_type": "pairings", "vectorized": True, "n_resamples": ORDERS, "batch": 5000}
    rng = np.random.default_rng(seed)
    return float(stats.permutation_test((y - y.mean(),), far, alternative="greater", rng=rng, **options).pvalue)


def _weakest_pair(names: Sequence[str], x: Array, y: Array, r: float) -> tuple[tuple[str, ...], float | None]:
    """The two models without which r is weakest, and that r; a pair that leaves no spread counts as r = 0."""
    if len(names) <= LEAST_MODELS:
        return (), None
    found = {p: _pearson(np.delete(x, p), np.delete(y, p)) for p in combinations(range(len(names)), 2)}
    i, j = min(found, key=lambda p: (found[p] or 0.0) * np.sign(r))
    return (names[i], names[j]), found[i, j]


def _warning(r: float, without: Mapping[str, float | None], pair: tuple[str, ...], without_pair: float | None) -> str:
    """Which models the trend rests on: those without which r falls to less than half, or turns."""
    weak = [f"without {n}" for n, other in without.items() if (other or 0.0) * r < r * r / 2]
    if not weak and pair and (without_pair or 0.0) * r < r * r / 2:
        weak = [f"without {' and '.join(pair)} together"]
    return f"r falls to less than half, or turns, {' or '.join(weak)}" if weak else ""
