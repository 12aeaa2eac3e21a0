"""How far two judges, or a judge and a person, agree: coefficients, where they part, and what that does to the rate.

Sources: alpha with the interval metric, Krippendorff (2011, "Computing Krippendorff's alpha-reliability"); kappa, Cohen
(1960); rank correlation with midranks, Spearman (1904). Intervals resample prompts whole, with one weight matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from truing.stats.evidence import Array, Mask
from truing.stats.rates import FEW_POSITIVE, FEW_PROMPTS, Index, counts, score_interval, share_difference, share_of
from truing.types.traits import NEAR, Rule
from truing.types.verdicts import Estimate

_CHUNK = 2_000_000
"""weights held at once when ranks are resampled"""

Table = tuple[tuple[int, int], tuple[int, int]]
"""((both, only the first), (only the second, neither))"""


class Rated(NamedTuple):
    """What one judge said of N answers."""

    score: Array
    """[N] alignment, NaN where it gave none"""
    misaligned: Array
    """[N] 1 where its scores count as misaligned, 0 where they do not, NaN for an answer it has not judged"""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two judges on the same answers."""

    n: int
    """answers that both scored"""
    prompts: int
    """prompts they came from"""
    alpha: Estimate
    """Krippendorff's alpha of the scores, interval metric; None where all scores are equal"""
    spearman: Estimate
    """rank correlation of the scores; None where one judge gives all the same"""
    kappa: Estimate
    """Cohen's kappa of "score past the cut"; None where both say the same of every answer"""
    table: Table
    """answers past the cut by ((both, only a), (only b, neither))"""
    near_cut: float | None
    """share of the disagreements in which a score lies near the cut; None without disagreement"""
    rate_a: Estimate
    """share misaligned under a, on answers that both judged"""
    rate_b: Estimate
    """share misaligned under b, on the same answers"""
    difference: Estimate
    """a minus b on the same answers; resampled, or as `share_difference` where fewer than 5 prompts differ"""
    notes: tuple[str, ...] = ()
    """what could not be computed, and why"""


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """A judge's flags against labels of people."""

    precision: Estimate
    """share of the answers it calls misaligned that people do too; None where it calls none"""
    recall: Estimate
    """share of the answers people call misaligned that it does too; None where they call none"""
    table: Table
    """answers called misaligned by ((both, only the judge), (only people, neither)), unweighted"""


def agreement(
    a: Rated,
    b: Rated,
    prompt: Index,
    prompts: int,
    *,
    rule: Rule,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Agreement of two judges on the same answers, with intervals by resampling prompts.

    Coefficients use the answers that both scored; rates those that both judged. Every interval comes from the same
    resamples of prompts (percentile); resamples in which a coefficient is undefined are left out, and where they are
    more than one in twenty there is no interval.

    Args:
        a: the first judge.
        b: the second judge.
        prompt: [N] index of the prompt, 0..prompts-1.
        prompts: number of prompts.
        rule: scores past its cut count as positive in `kappa` and `table`, those near it in `near_cut`.
        level: nominal coverage.
        resamples: number of them.
        seed: of the resampling.

    Raises:
        ValueError: shapes differ, a prompt index out of range, or flags that are neither 0 nor 1.
    """
    prompt = np.asarray(prompt)
    if not a.score.shape == b.score.shape == a.misaligned.shape == b.misaligned.shape == prompt.shape:
        raise ValueError("scores, flags and prompts have one entry per answer each")
    used = ~(np.isnan(a.score) | np.isnan(b.score))
    x, y, of = a.score[used], b.score[used], prompt[used]
    past_a, past_b = rule.past(x), rule.past(y)
    apart, near = past_a != past_b, rule.near(x, NEAR) | rule.near(y, NEAR)
    by_prompt = np.array([counts(cell, of, prompts)[0] for cell in _cells(past_a, past_b)]).T
    moments, ranks = _moments(x, y, of, prompts), (_Ranks.of(x), _Ranks.of(y))
    sample = _Resampling(np.bincount(of, minlength=prompts), level, resamples, seed)
    alpha = sample.estimate(lambda w: _alpha(w @ moments))
    rho = sample.estimate(lambda w: _in_chunks(w, of, ranks))
    kappa = sample.estimate(lambda w: _kappa(w @ by_prompt))
    rates = _rates(a, b, prompt, prompts, (level, resamples, seed))
    return Agreement(
        n=int(used.sum()),
        prompts=alpha.clusters,
        alpha=alpha,
        spearman=rho,
        kappa=kappa,
        table=_table(past_a, past_b),
        near_cut=float(near[apart].mean()) if apart.any() else None,
        rate_a=rates[0],
        rate_b=rates[1],
        difference=rates[2],
        notes=_notes(used, alpha, rho, kappa),
    )


def precision_recall(
    judge_flags: Array | Mask, human_flags: Array | Mask, *, weight: Array | None = None, level: float = 0.95
) -> PrecisionRecall:
    """Precision and recall of a judge's flags against people's, with score intervals.

    Labels sampled more densely around the cut need `weight`, else recall is that of the labelled answers only. Answers
    are taken as independent: right where each comes from a prompt of its own, a little too sure otherwise.

    Args:
        judge_flags: [N] 1 where the judge says misaligned; NaN is left out.
        human_flags: [N] the same of people.
        weight: [N] one over each answer's probability of being labelled; None where all were alike.
        level: nominal coverage.

    Raises:
        ValueError: different lengths, flags that are neither 0 nor 1, or weights that are not positive.
    """
    judge, human = np.asarray(judge_flags, float), np.asarray(human_flags, float)
    if judge.shape != human.shape or judge.ndim != 1:
        raise ValueError(f"two raters rate the same answers, got shapes {judge.shape} and {human.shape}")
    w = np.ones(len(judge)) if weight is None else np.asarray(weight, float)
    if w.shape != judge.shape or not (np.isfinite(w).all() and (w > 0).all()):
        raise ValueError("weights are one positive number per answer")
    there = ~(np.isnan(judge) | np.isnan(human))
    judge, human, w = judge[there], human[there], w[there]
    if not np.isin([judge, human], (0.0, 1.0)).all():
        raise ValueError("a flag is neither true nor false")
    out = {"without a label or a score": int((~there).sum())} if not there.all() else {}

    def share(of: Array, among: Array) -> Estimate:
        kept = w[among == 1]
        if not len(kept):
            return Estimate(None, None, None, left_out=out, method="no answers", level=level)
        value = float((kept * of[among == 1]).sum() / kept.sum())
        low, high = score_interval(value, float(kept.sum() ** 2 / (kept**2).sum()), level)
        return Estimate(value, low, high, low, high, len(kept), len(kept), out, "score, answers independent", level)

    return PrecisionRecall(
        precision=share(human, judge), recall=share(judge, human), table=_table(judge == 1, human == 1)
    )


def share_bounds(human: Array, weight: Array, stratum: Index, strata: int, *, level: float = 0.95) -> Array:
    """Bounds of the share that people call positive in each stratum, [strata, 2]; 0 and 1 where none is labelled.

    Args:
        human: [N] 1 where people call an answer positive.
        weight: [N] answers that each stands for.
        stratum: [N] its stratum, 0..strata-1.
        strata: number of them.
        level: nominal coverage of each; answers are taken as independent.
    """
    out = np.array([[0.0, 1.0]] * strata)
    for h in np.unique(stratum):
        w = weight[stratum == h]
        value, n = float((w * human[stratum == h]).sum() / w.sum()), float(w.sum() ** 2 / (w**2).sum())
        out[h] = score_interval(value, n, level)
    return out


def excess_bounds(own: Array, base: Array, bounds: Array) -> tuple[float, float]:
    """Bounds of an excess over the base by people's labels alone.

    People rate blind, so what they think of a stratum of the judge's score is taken to be the same at every checkpoint;
    the excess is how much more answers lie in each stratum than of the base, times the share people call positive
    there. Every share stands at its worst end, so the bounds are wide rather than narrow.

    Args:
        own: [H] share of a checkpoint's answers in each stratum.
        base: [H] the same of the base.
        bounds: [H, 2] of the share that people call positive in each.
    """
    more, (low, high) = own - base, bounds.T
    return float((more * np.where(more > 0, low, high)).sum()), float((more * np.where(more > 0, high, low)).sum())


def _cells(a: Mask, b: Mask) -> tuple[Mask, Mask, Mask, Mask]:
    return a & b, a & ~b, ~a & b, ~a & ~b


def _table(a: Mask, b: Mask) -> Table:
    both, only_a, only_b, neither = (int(cell.sum()) for cell in _cells(a, b))
    return (both, only_a), (only_b, neither)


def _kappa(cells: Array) -> Array:
    """Kappa of tables [B, 4] (both, only a, only b, neither), [B]; NaN where chance agreement is complete."""
    both, only_a, only_b, neither = cells.T
    n = cells.sum(axis=1)
    chance = (both + only_a) * (both + only_b) + (only_b + neither) * (only_a + neither)
    defined = (n > 0) & (chance < n**2)
    return np.where(defined, (n * (both + neither) - chance) / np.where(defined, n**2 - chance, 1.0), np.nan)


def _moments(a: Array, b: Array, prompt: Index, prompts: int) -> Array:
    """Per prompt: answers, squared differences, sums and squares of both raters' centred scores, [prompts, 4]."""
    middle = float((a.mean() + b.mean()) / 2) if len(a) else 0.0
    x, y = a - middle, b - middle
    columns = (np.ones_like(x), (x - y) ** 2, x + y, x**2 + y**2)
    return np.array([np.bincount(prompt, weights=c, minlength=prompts) for c in columns], dtype=float).T


def _alpha(sums: Array) -> Array:
    """Alpha of two raters from summed moments [B, 4], [B]; NaN where all scores are equal."""
    units, squared, total, squares = sums.T
    n = 2 * units
    pairs = 2 * n * squares - 2 * total**2
    defined = (units > 0) & (pairs > 1e-12 * np.maximum(n * squares, 1e-300))
    ratio = 2 * squared / np.where(n > 0, n, 1) / np.where(defined, pairs / np.maximum(n * (n - 1), 1), 1.0)
    return np.where(defined, 1 - ratio, np.nan)


class _Ranks(NamedTuple):
    """Scores by size, so that ranks can be had for any weights."""

    order: Index
    """[N] answers by score"""
    starts: Index
    """first place of each distinct score in that order"""
    place: Index
    """[N] which distinct score each answer has"""

    @classmethod
    def of(cls, scores: Array) -> "_Ranks":
        order = np.argsort(scores, kind="stable")
        fresh = np.diff(scores[order], prepend=-np.inf) != 0
        place = np.empty(len(scores), np.int64)
        place[order] = np.cumsum(fresh) - 1
        return cls(order, np.flatnonzero(fresh), place)

    def weighted(self, w: Array) -> Array:
        """Midranks [B, N] when answers count w [B, N] times."""
        totals = np.add.reduceat(w[:, self.order], self.starts, axis=1)
        return (np.cumsum(totals, axis=1) - (totals - 1) / 2)[:, self.place]


def _rank_correlation(a: _Ranks, b: _Ranks, w: Array) -> Array:
    """Rank correlation [B] under weights [B, N]; NaN where one is constant."""
    x, y, n = a.weighted(w), b.weighted(w), w.sum(axis=1, keepdims=True)
    x, y = x - (n + 1) / 2, y - (n + 1) / 2
    spread = (w * x**2).sum(axis=1) * (w * y**2).sum(axis=1)
    return np.where(spread > 0, (w * x * y).sum(axis=1) / np.sqrt(np.where(spread > 0, spread, 1.0)), np.nan)


def _in_chunks(w: Array, prompt: Index, ranks: tuple[_Ranks, _Ranks]) -> Array:
    """Rank correlation [B] under weights of prompts [B, P]."""
    step = max(1, _CHUNK // max(len(prompt), 1))
    parts = [_rank_correlation(*ranks, w[i : i + step][:, prompt]) for i in range(0, len(w), step)]
    return np.concatenate(parts)


class _Resampling(NamedTuple):
    """Resamples of prompts, and how estimates are made from them."""

    answers: Array | Index
    """[P] of each prompt"""
    level: float
    resamples: int
    seed: int

    def weights(self) -> Array:
        """How often each prompt is taken, [B, P]; the same for every coefficient."""
        there = self.answers > 0
        clusters = int(there.sum())
        w = np.zeros((self.resamples, len(there)))
        rng = np.random.default_rng(self.seed)
        w[:, there] = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=self.resamples)
        return w

    def estimate(self, statistic: Callable[[Array], Array]) -> Estimate:
        """What a statistic of weights, [B, P] -> [B], is where all prompts count once, and over the resamples."""
        clusters = int((self.answers > 0).sum())
        value = float(statistic(np.ones((1, len(self.answers))))[0])
        low = high = None
        warning = f"only {clusters} prompts: the interval is rough" if clusters < FEW_PROMPTS else ""
        if not np.isnan(value) and clusters > 1:
            sampled = statistic(self.weights())
            sampled = sampled[~np.isnan(sampled)]
            if len(sampled) >= 0.95 * self.resamples:
                low, high = (float(q) for q in np.quantile(sampled, [(1 - self.level) / 2, (1 + self.level) / 2]))
            else:
                warning = "undefined in more than one resample in twenty: no interval"
        return Estimate(
            None if np.isnan(value) else value,
            low,
            high,
            n=int(self.answers.sum()),
            clusters=clusters,
            method="bootstrap over prompts",
            level=self.level,
            seed=self.seed,
            warning=warning,
        )


def _rates(
    a: Rated, b: Rated, prompt: Index, prompts: int, how: tuple[float, int, int]
) -> tuple[Estimate, Estimate, Estimate]:
    """Share misaligned under each judge on the answers that both judged, and their difference."""
    judged = ~(np.isnan(a.misaligned) | np.isnan(b.misaligned))
    hits_a, n = counts(a.misaligned[judged], prompt[judged], prompts)
    hits_b, _ = counts(b.misaligned[judged], prompt[judged], prompts)
    level, gap = how[0], (hits_a - hits_b) / np.maximum(n, 1)
    if int((gap != 0).sum()) >= FEW_POSITIVE:
        difference = _Resampling(n, *how).estimate(lambda w: w @ gap / np.count_nonzero(n))
    else:  # resampling prompts that nearly all agree gives next to no width, from next to no evidence
        difference = share_difference(hits_a, n, hits_b, n, level=level)
    return share_of(hits_a, n, level=level), share_of(hits_b, n, level=level), difference


def _notes(used: Mask, alpha: Estimate, rho: Estimate, kappa: Estimate) -> tuple[str, ...]:
    notes = []
    if not used.all():
        notes.append(f"{int((~used).sum())} answers lack a score of one judge and are left out of the coefficients")
    if not used.any():
        return (*notes, "no answer was scored by both judges")
    if alpha.value is None:
        notes.append("alpha is undefined: all scores are equal")
    if rho.value is None:
        notes.append("the rank correlation is undefined: one judge gives every answer the same score")
    if kappa.value is None:
        notes.append("kappa is undefined: both judges put every answer on the same side of the cut")
    return tuple(notes)
