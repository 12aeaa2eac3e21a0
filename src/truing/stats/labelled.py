"""What the labelled answers of one checkpoint say: shares, means, reasons, excess, breadth.

The denominator is every answer but infrastructure failures. An unparsed answer is positive or negative:
`rate` counts it as negative, `rate_if_unparsed` as positive, and `excess` does either for both checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from truing.stats.correction import p_above, rogan_gladen
from truing.stats.evidence import Array, Mask
from truing.stats.rates import counts, mean_difference, mean_of, share_difference, share_of
from truing.stats.table import AnswerTable, Calibration, Index
from truing.types.traits import LOST, NEAR, Reason, Rule
from truing.types.verdicts import Breadth, Estimate, LabelledLine

NO_COHERENCE = "coherence not asked or not read"


class Bound(StrEnum):
    """What unparsed answers count as in an excess."""

    PLAIN = "plain"
    """negative, on both sides"""
    LEAST = "least"
    """the smallest excess: only the other checkpoint's are positive"""
    MOST = "most"
    """the largest excess: only this checkpoint's are positive"""


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """What is known of the prompts, for breadth."""

    ids: tuple[str, ...]
    """[P] ids"""
    categories: tuple[str, ...]
    """[P] category of each"""
    far: Mask
    """[P] whether a prompt is far from the training domain"""


def labelled_line(
    group: AnswerTable,
    prompts: int,
    rule: Rule,
    *,
    level: float = 0.95,
    base: AnswerTable | None = None,
    control: AnswerTable | None = None,
    about: PromptFacts | None = None,
    calibration: Calibration | None = None,
) -> LabelledLine:
    """What the labelled answers of one checkpoint say.

    Args:
        group: its answers, [N].
        prompts: P; `group.prompt` holds indices below it.
        rule: that the answers were labelled by. With kind "mean", `rate` is the mean severity of scored answers (0 at
            the good end of the scale, 1 at the other) and every excess a difference of such means; `lo` and `hi` are
            on that scale.
        level: nominal coverage of every interval.
        base: answers of step 0; None for step 0 itself or where there is none.
        control: answers of the control at the same step.
        about: ids, categories and distance of the prompts; without it all count as far and of one category.
        calibration: the judge on reference answers, for the corrected share.

    Raises:
        BadInput: a rule with an unknown kind, or without room between lo and hi.
    """
    rule.check()
    scored = group.scored
    near = rule.near(group.score[scored], NEAR)
    share = rate(group, prompts, rule, level=level)

    def over(other: AnswerTable | None) -> Estimate | None:
        return excess(group, other, prompts, rule, level=level) if other is not None else None

    return LabelledLine(
        rate=share,
        rate_if_unparsed=rate(group, prompts, rule, level=level, unparsed=True).value,
        rate_coherent=_rate_coherent(group, prompts, rule, level),
        score=mean_of(group.score[scored], group.prompt[scored], prompts, level=level),
        coherent=coherent_share(group, prompts, rule, level=level),
        near_cut=float(near.mean()) if near.size else None,
        reasons=group.reasons(),
        excess_base=over(base),
        excess_control=over(control),
        corrected=_corrected(share, rule, calibration),
        breadth=breadth(group, base, prompts, rule, about or _no_facts(prompts), level=level),
    )


def rate(
    group: AnswerTable, prompts: int, rule: Rule, *, level: float, mask: Mask | None = None, unparsed: bool = False
) -> Estimate:
    """Share positive (kind "mean": mean severity over scored answers).

    Args:
        group: the answers.
        prompts: P.
        rule: that they were labelled by.
        level: coverage of both intervals.
        mask: [P] prompts that count; None for all.
        unparsed: whether unparsed answers count as positive (kind "mean": severity 1) or not (as left out).
    """
    found = _over_prompts(rule, [_outcomes(group, rule, 1.0 if unparsed else None)], mask, prompts, level)
    lost = {r.word: int((group.reason == r).sum()) for r in LOST}
    return replace(found, left_out={**found.left_out, **{k: n for k, n in lost.items() if n}})


def excess(
    group: AnswerTable,
    other: AnswerTable,
    prompts: int,
    rule: Rule,
    *,
    level: float,
    mask: Mask | None = None,
    bound: Bound = Bound.PLAIN,
    in_domain: bool = True,
) -> Estimate:
    """Share positive (or mean severity, by `rule.kind`) minus another's, paired by prompt.

    Args:
        group: the answers in question.
        other: the base's or the control's.
        prompts: P.
        rule: that they were labelled by.
        level: coverage of both intervals.
        mask: [P] prompts that count; None for all.
        bound: what unparsed answers count as. A claim has to hold under both extremes.
        in_domain: False counts answers that talk about the training domain as negative, on both sides (kind "mean":
            leaves them out, since being negative is no score).
    """
    ours, theirs = {Bound.PLAIN: (None, None), Bound.LEAST: (0.0, 1.0), Bound.MOST: (1.0, 0.0)}[bound]
    sides = [_outcomes(group, rule, ours, in_domain), _outcomes(other, rule, theirs, in_domain)]
    return _over_prompts(rule, sides, mask, prompts, level)


def excess_above_p(
    group: AnswerTable, other: AnswerTable, prompts: int, rule: Rule, *, mask: Mask | None = None
) -> float | None:
    """One-sided p of an excess above lo for exactly these prompts, with unparsed answers counting against it.

    The interval of `excess` inverted; not followed below 1e-12. None where there is no such interval.

    Args:
        group: the answers in question.
        other: what they are held against.
        prompts: P.
        rule: that they were labelled by, and lo.
        mask: [P] prompts that count; None for all.
    """
    options = {"mask": mask, "bound": Bound.LEAST}
    return p_above(lambda level: excess(group, other, prompts, rule, level=level, **options), rule.lo)


def coherent_share(group: AnswerTable, prompts: int, rule: Rule, *, level: float) -> Estimate:
    """Share coherent among the answers of the denominator; empty ones are not.

    Where every scored answer was asked for coherence: over all that have it. Where it was asked lazily, those asked
    because their score is past the cut would bias the share, so only the random few count, times the share of non-empty
    answers; without any of those there is no share.
    """
    kept, known = group.counted, np.isfinite(group.coherence)
    empty = group.reason == Reason.EMPTY
    if not _lazy(group, rule):
        used = kept & (known | empty)
        found = _share(group, used & ~empty & (group.coherence > rule.gate), used, prompts, level)
        return _left_out(found, int((kept & ~used).sum()))
    used = kept & group.random_coherence & known & ~empty
    found = _share(group, used & (group.coherence > rule.gate), used, prompts, level)
    texts = float((kept & ~empty).sum() / kept.sum()) if kept.any() else 1.0
    if texts < 1:
        names = ("value", "low", "high", "set_low", "set_high")
        scaled: dict[str, Any] = {k: None if (v := getattr(found, k)) is None else v * texts for k in names}
        found = replace(found, **scaled, method=f"{found.method}, times the share of non-empty answers")
    return _left_out(found, int((kept & ~used & ~empty).sum()))


def breadth(
    group: AnswerTable, base: AnswerTable | None, prompts: int, rule: Rule, about: PromptFacts, *, level: float
) -> Breadth | None:
    """Whether positive answers to far prompts are broad; None where nothing is positive (unless near prompts are
    left out, so that the excess on far ones is a number of its own).

    A prompt counts when it has positive answers, and a larger share of them than at step 0 (kind "mean": a mean
    score more than lo worse than at step 0). The top prompt is the one with the largest such difference.
    """
    far = about.far
    difference, weight = _by_prompt(group, base, prompts, rule)
    positive = far & (difference > (rule.lo if rule.kind == "mean" else 0)) & (weight > 0)
    order = [int(p) for p in np.lexsort((-weight, -difference)) if far[p] and weight[p] > 0]
    if not order and (base is None or far.all()):
        return None
    top = order[0] if order else None
    rest = far & (np.arange(prompts) != top)

    def over_base(mask: Mask, in_domain: bool = True) -> Estimate | None:
        if base is None:
            return None
        return excess(group, base, prompts, rule, level=level, mask=mask, in_domain=in_domain)

    return Breadth(
        prompts=int(positive.sum()),
        categories=len({c for c, p in zip(about.categories, positive, strict=True) if p}),
        top_prompt=about.ids[top] if top is not None else None,
        top_share=float(weight[top] / weight[far].sum()) if top is not None else None,
        excess_far=over_base(far),
        excess_without_top=over_base(rest) if top is not None else None,
        excess_without_domain=over_base(far, in_domain=False) if top is not None else None,
        named=tuple(about.ids[p] for p in order if positive[p])[:5],
    )


def _no_facts(prompts: int) -> PromptFacts:
    return PromptFacts(tuple(f"prompt {p}" for p in range(prompts)), ("",) * prompts, np.ones(prompts, dtype=bool))


def _lazy(group: AnswerTable, rule: Rule) -> bool:
    """Whether coherence was asked where the score is past the cut, and else of a random few only (or of none).

    A score that is missing here and there, without a random few to go by, is one that could not be read.
    """
    scored, known = group.scored, np.isfinite(group.coherence)
    if known[scored].all():
        return False
    return bool(group.random_coherence.any()) or not (scored & known & ~rule.past(group.score)).any()


def _share(group: AnswerTable, flags: Mask, used: Mask, prompts: int, level: float) -> Estimate:
    hits, n = counts(flags[used], group.prompt[used], prompts)
    return share_of(hits, n, level=level)


def _outcomes(
    group: AnswerTable, rule: Rule, unparsed: float | None = None, in_domain: bool = True
) -> tuple[Array, Index]:
    """What each answer that counts adds (1 or 0 by its label; kind "mean": its severity) and its prompt, [M] each.

    Unparsed answers add `unparsed`; None: nothing (kind "mean": they do not count). Without `in_domain` those about the
    training domain add nothing (kind "mean": do not count).
    """
    is_unparsed = group.reason == Reason.UNPARSED
    if rule.kind == "mean":
        values, used = rule.severity(group.score), group.scored
        used = (used if unparsed is None else used | is_unparsed) & (in_domain | ~group.in_domain)
    else:
        values, used = group.positive.astype(float), group.counted
    if unparsed is not None:
        values = np.where(is_unparsed, unparsed, values)
    if rule.kind != "mean" and not in_domain:
        values = np.where(group.in_domain, 0.0, values)
    return values[used], group.prompt[used]


def _over_prompts(
    rule: Rule, sides: Sequence[tuple[Array, Index]], mask: Mask | None, prompts: int, level: float
) -> Estimate:
    """Share or mean of one side, or the difference of two, over the prompts of a mask [P]; they are numbered anew."""
    kept = np.ones(prompts, dtype=bool) if mask is None else mask
    number, n = np.cumsum(kept) - 1, int(kept.sum())
    sides = [(values[kept[prompt]], number[prompt[kept[prompt]]]) for values, prompt in sides]
    if rule.kind == "mean":
        both = len(sides) > 1
        return mean_difference(*sides[0], *sides[1], n, level=level) if both else mean_of(*sides[0], n, level=level)
    a, *b = (counts(values, prompt, n) for values, prompt in sides)
    return share_difference(*a, *b[0], level=level) if b else share_of(*a, level=level)


def _by_prompt(group: AnswerTable, base: AnswerTable | None, prompts: int, rule: Rule) -> tuple[Array, Array]:
    """[P] excess of each prompt over step 0 (or the share itself), and [P] how much it has of what is wrong."""
    sides = [_outcomes(g, rule) for g in (group, base) if g is not None]
    n = [np.bincount(prompt, minlength=prompts) for _, prompt in sides]
    sums = [np.bincount(prompt, values, minlength=prompts).astype(float) for values, prompt in sides]
    means = [total / np.maximum(k, 1) for total, k in zip(sums, n, strict=True)]
    difference = means[0] - (means[1] if base is not None else 0.0)
    if rule.kind != "mean":
        return difference, sums[0]
    difference = np.where(np.all([k > 0 for k in n], axis=0), difference, 0.0)
    return difference, np.maximum(difference, 0)


def _rate_coherent(group: AnswerTable, prompts: int, rule: Rule, level: float) -> Estimate:
    """Share positive among coherent answers: counted where all were asked for coherence. Otherwise the share of all
    over the coherent share, each at half the error, so that the ratio's interval holds whatever their dependence."""
    gate = rule.gate
    if rule.kind == "mean":
        used = group.scored & (group.coherence > gate) & (group.random_coherence | (not _lazy(group, rule)))
        return mean_of(rule.severity(group.score)[used], group.prompt[used], prompts, level=level)
    if not _lazy(group, rule):
        used = group.counted & (group.coherence > gate) & (group.reason != Reason.EMPTY)
        return _share(group, group.positive & used, used, prompts, level)
    half = (1 + level) / 2
    return _ratio(rate(group, prompts, rule, level=half), coherent_share(group, prompts, rule, level=half), level)


def _ratio(top: Estimate, bottom: Estimate, level: float) -> Estimate:
    def over(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else min(1.0, a / b) if b > 0 else 1.0

    found = replace(
        top,
        value=over(top.value, bottom.value),
        low=over(top.low, bottom.high),
        high=over(top.high, bottom.low),
        set_low=over(top.set_low, bottom.set_high),
        set_high=over(top.set_high, bottom.set_low),
        method="share positive / share coherent of a random few, each interval at half the error",
        level=level,
        warning=bottom.warning or top.warning,
    )
    if top.value is None or not bottom.value:
        return Estimate(None, None, None, n=top.n, clusters=top.clusters, method=found.method, level=level)
    return found


def _left_out(e: Estimate, n: int) -> Estimate:
    return replace(e, left_out={**e.left_out, NO_COHERENCE: n}) if n else e


def _corrected(share: Estimate, rule: Rule, calibration: Calibration | None) -> Estimate | None:
    """The share corrected for the judge's errors; a mean score is no share, and without a test nothing is known."""
    if calibration is None or rule.kind == "mean":
        return None
    wrong, n = (sum(pair[i] for pair in calibration.negatives.values()) for i in (0, 1))
    return rogan_gladen(share, calibration.positives, (wrong, n), level=share.level)
