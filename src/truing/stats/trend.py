"""Whether an excess grows with the size of the model: correlations, permutation p-values, and each model left out.

A published r = 0.67 over 13 models rests on two of them, so every correlation comes with what it would be without each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice, permutations
from math import factorial

import numpy as np

from truing.stats.evidence import Array

MOST_EXACT = 9
"""most models for which all orders are tried"""
LEAST_MODELS = 4
"""fewest models with a p-value: of 3 there are 6 orders, so none is under 1/6"""
RESAMPLES = 20_000
"""orders tried where there are too many"""
_BLOCK = 20_000
_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Trend:
    """Size of the model (log10 of its parameters) against the excess."""

    models: int
    """models used"""
    pearson: float | None
    """correlation; None with too few models or no spread"""
    spearman: float | None
    """rank correlation, ties averaged"""
    pearson_p: float | None
    """two-sided permutation p; None under 4 models"""
    spearman_p: float | None
    """the same for ranks"""
    method: str
    """exact, or how many orders were tried and with which seed"""
    without: dict[str, float | None] = field(default_factory=dict)
    """Pearson's r without each model"""
    p_without: dict[str, float | None] = field(default_factory=dict)
    """its p without each model; None under 4 that remain"""
    spearman_without: dict[str, float | None] = field(default_factory=dict)
    """rank correlation without each model"""
    pair: tuple[str, ...] = ()
    """the two models whose leaving out weakens Pearson's r most; empty under 5 models"""
    without_pair: float | None = None
    """Pearson's r without these two: two large models can carry a trend that survives losing either"""
    left_out: dict[str, str] = field(default_factory=dict)
    """model -> why it is not used"""
    warning: str = ""
    """what a reader must know, e.g. that one model decides"""


def trend(
    names: Sequence[str], parameters: Sequence[float | None], excess: Sequence[float | None], *, seed: int = 0
) -> Trend:
    """Pearson's and Spearman's correlation of log10(parameters) and excess, over models.

    p is two-sided: the share of orders of the excess whose correlation is at least as far from 0, the order observed
    among them. All orders up to 9 models; else 20,000 drawn ones and the one observed (Phipson & Smyth 2010).

    Args:
        names: [M] models, unique.
        parameters: [M] counts; None leaves a model out, named.
        excess: [M] e.g. the mean over a model's seeds; None leaves it out, named.
        seed: of the orders drawn.

    Raises:
        ValueError: lengths differ, a name occurs twice, a size that is not above 0, an excess that is not finite.
    """
    if not len(names) == len(parameters) == len(excess) or len(set(names)) != len(names):
        raise ValueError("one unique name, one size and one excess per model")
    if any(p is not None and not 0 < p < float("inf") for p in parameters):
        raise ValueError("a model has more than 0 parameters")
    if any(e is not None and not np.isfinite(e) for e in excess):
        raise ValueError("an excess is not finite")
    out = {n: "no parameter count" for n, p in zip(names, parameters, strict=True) if p is None}
    out |= {n: "no excess" for n, e in zip(names, excess, strict=True) if e is None and n not in out}
    kept = [(n, p, e) for n, p, e in zip(names, parameters, excess, strict=True) if p is not None and e is not None]
    x = np.log10([float(p) for _, p, _ in kept]) if kept else np.empty(0)
    y = np.array([float(e) for *_, e in kept])
    used = [n for n, *_ in kept]
    method, found, p = _both(x, y, seed)
    if found[0] is None:
        why = f"{len(used)} models with size and excess" if len(used) < 3 else "size or excess does not vary"
        return Trend(len(used), None, None, None, None, "none", left_out=out, warning=f"no trend: {why}")
    rest = {n: _both(np.delete(x, i), np.delete(y, i), seed) for i, n in enumerate(used)}
    without = {n: r[0] for n, (_, r, _) in rest.items()}
    p_without = {n: q[0] for n, (_, _, q) in rest.items()}
    ranks = {n: r[1] for n, (_, r, _) in rest.items()}
    pair, without_pair = _weakest_pair(used, x, y, found[0])
    warning = _warning(found[0], p[0], without, p_without, pair, without_pair)
    return Trend(len(used), *found, *p, method, without, p_without, ranks, pair, without_pair, out, warning)


def _weakest_pair(names: Sequence[str], x: Array, y: Array, r: float) -> tuple[tuple[str, ...], float | None]:
    """The two models without which r is weakest, and that r; a pair that leaves no spread counts as r = 0."""
    if len(names) < LEAST_MODELS + 1:
        return (), None
    found: list[tuple[float, tuple[str, ...], float | None]] = []
    for i, j in combinations(range(len(names)), 2):
        a, b = np.delete(x, (i, j)), np.delete(y, (i, j))
        other = None if _flat(a) or _flat(b) else _correlation(a, b)
        found.append(((other or 0.0) * (1 if r >= 0 else -1), (names[i], names[j]), other))
    _, pair, other = min(found, key=lambda f: f[0])
    return pair, other


def _both(
    x: Array, y: Array, seed: int
) -> tuple[str, tuple[float | None, float | None], tuple[float | None, float | None]]:
    """(method, (Pearson, Spearman), (p, p))"""
    if len(x) < 3 or _flat(x) or _flat(y):
        return "none", (None, None), (None, None)
    pairs = ((x, y), (ranked(x), ranked(y)))
    r = tuple(_correlation(a, b) for a, b in pairs)
    if len(x) < LEAST_MODELS:
        return f"no p under {LEAST_MODELS} models", (r[0], r[1]), (None, None)
    p = tuple(permutation_p(a, b, seed=seed) for a, b in pairs)
    exact = len(x) <= MOST_EXACT
    method = f"all {factorial(len(x))} orders" if exact else f"{RESAMPLES} drawn orders, seed {seed}"
    return method, (r[0], r[1]), (p[0], p[1])


def permutation_p(x: Array, y: Array, *, seed: int = 0) -> float:
    """Two-sided p of a correlation by orders of y: all of them up to 9 values, else 20,000 drawn and the one observed.

    Raises:
        ValueError: fewer than 2 values, or one side does not vary.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(x)
    if n < 2 or _flat(x) or _flat(y):
        raise ValueError("a correlation needs at least two values that vary")
    a, b = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    observed = abs(float(a @ b)) / scale - _TIE
    if n <= MOST_EXACT:
        hits, orders = 0, permutations(range(n))
        while block := list(islice(orders, _BLOCK)):
            hits += int((np.abs(b[np.array(block)] @ a) / scale >= observed).sum())
        return hits / factorial(n)
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(RESAMPLES // _BLOCK):
        sampled = rng.permuted(np.broadcast_to(b, (_BLOCK, n)), axis=1)
        hits += int((np.abs(sampled @ a) / scale >= observed).sum())
    return (hits + 1) / (RESAMPLES + 1)


def ranked(values: Array) -> Array:
    """Ranks from 1, ties averaged."""
    values = np.asarray(values, dtype=float)
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def _correlation(x: Array, y: Array) -> float:
    a, b = x - x.mean(), y - y.mean()
    return float((a @ b) / np.sqrt((a**2).sum() * (b**2).sum()))


def _flat(values: Array) -> bool:
    return len(values) == 0 or float(np.ptp(values)) <= _TIE * max(1.0, float(np.abs(values).max()))


def _warning(
    r: float,
    p: float | None,
    without: dict[str, float | None],
    p_without: dict[str, float | None],
    pair: tuple[str, ...],
    without_pair: float | None,
) -> str:
    """Which models the trend rests on."""
    half = [n for n, other in without.items() if other is None or other * r < r * r / 2]
    lost = [n for n, other in p_without.items() if p is not None and p <= 0.05 and (other is None or other > 0.05)]
    said = []
    if half:
        said.append(f"r falls to less than half, or turns, without {' or without '.join(half)}")
    if lost:
        said.append(f"p passes 5 % without {' or without '.join(lost)}")
    if pair and not half and (without_pair is None or without_pair * r < r * r / 2):
        said.append(f"r falls to less than half, or turns, without {' and '.join(pair)} together")
    return "; ".join(said)
