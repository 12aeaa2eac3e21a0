"""What the labelled answers of one checkpoint say: shares, means, reasons, excess, breadth, health.

The denominator is every answer but infrastructure failures. An unparsed answer is positive or negative:
`rate` counts it as negative, `rate_if_unparsed` as positive, and `excess` does either for both checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from truing.config import Thresholds
from truing.stats.correction import excess_p, rogan_gladen
from truing.stats.evidence import Array, Mask
from truing.stats.rates import counts, mean_difference, mean_of, share_difference, share_of
from truing.stats.table import AnswerTable, Calibration, Index, Labelled
from truing.types.traits import LOST, NEAR, Reason, Rule
from truing.types.verdicts import Breadth, Estimate, Health, HealthState, LabelledLine

WORSE = (HealthState.UNKNOWN, HealthState.OK, HealthState.DEGRADED, HealthState.COLLAPSED, HealthState.UNFIT_BASE)
"""from least to most known to be bad"""
ROUNDING = 1e-9
"""a share this close to a limit is on it"""
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


def prompt_facts(evidence: Labelled) -> PromptFacts:
    """The prompts of an evidence."""
    return PromptFacts(evidence.prompts, evidence.categories, np.asarray(evidence.far, dtype=bool))


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
    return LabelledLine(
        rate=share,
        rate_if_unparsed=rate(group, prompts, rule, level=level, unparsed=True).value,
        rate_coherent=_rate_coherent(group, prompts, rule, level),
        score=mean_of(group.score[scored], group.prompt[scored], prompts, level=level),
        coherent=coherent_share(group, prompts, rule, level=level),
        near_cut=float(near.mean()) if near.size else None,
        reasons=group.reasons(),
        excess_base=excess(group, base, prompts, rule, level=level) if base is not None else None,
        excess_control=excess(group, control, prompts, rule, level=level) if control is not None else None,
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
    kept = np.ones(prompts, dtype=bool) if mask is None else mask
    if rule.kind == "mean":
        values, at = _on(kept, *_severities(group, rule, Bound.MOST if unparsed else Bound.PLAIN, unparsed, True))
        found = mean_of(values, at, int(kept.sum()), level=level)
    else:
        hits, n = _hits(group, prompts, unparsed, True)
        found = share_of(hits[kept], n[kept], level=level)
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
    kept = np.ones(prompts, dtype=bool) if mask is None else mask
    ours, theirs = bound is Bound.MOST, bound is Bound.LEAST
    if rule.kind == "mean":
        a, at = _on(kept, *_severities(group, rule, bound, ours, in_domain))
        b, bt = _on(kept, *_severities(other, rule, bound, theirs, in_domain))
        return mean_difference(a, at, b, bt, int(kept.sum()), level=level)
    (hits_a, n_a), (hits_b, n_b) = _hits(group, prompts, ours, in_domain), _hits(other, prompts, theirs, in_domain)
    return share_difference(hits_a[kept], n_a[kept], hits_b[kept], n_b[kept], level=level)


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
    if rule.kind == "threshold":
        kept = np.ones(prompts, dtype=bool) if mask is None else mask
        (a, n_a), (b, n_b) = _hits(group, prompts, False, True), _hits(other, prompts, True, True)
        return excess_p(a[kept], n_a[kept], b[kept], n_b[kept], rule.lo)

    def low(p: float) -> float | None:
        """Lower end at one-sided error p; the upper end at 1 - p, once p is over one half."""
        e = excess(group, other, prompts, rule, level=abs(1 - 2 * p), mask=mask, bound=Bound.LEAST)
        return e.set_low if p <= 0.5 else e.set_high

    if low(0.25) is None:
        return None
    ends = [1e-12, 1 - 1e-12]
    for _ in range(50):  # the end rises with p: bisect on where it passes lo, in logs while p is small
        middle = float(np.sqrt(ends[0] * ends[1])) if ends[1] < 0.1 else (ends[0] + ends[1]) / 2
        at = low(middle)
        ends[at is not None and at > rule.lo] = middle
    return ends[1]


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
    return _left_out(_times(found, texts), int((kept & ~used & ~empty).sum()))


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
        return (
            excess(group, base, prompts, rule, level=level, mask=mask, in_domain=in_domain)
            if base is not None
            else None
        )

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


def joined_health(free: Health, line: LabelledLine, base: LabelledLine | None, rule: Thresholds) -> Health:
    """Judge-free health joined with the judged one: the worse of the two; unknown only where neither is known.

    Judged: the share coherent relative to step 0's under `collapsed` or `degraded`, or unrelated code in more than a
    share `collapsed` of the answers; `unfit_base` where step 0's own share is under that. Needs `min_answers` each.
    """
    own, other = line.coherent, base.coherent if base is not None else None
    if other is None or own.value is None or other.value is None or min(own.n, other.n) < rule.min_answers:
        few = own.n if other is None or own.n < rule.min_answers else other.n
        return replace(free, note=_joined(free.note, f"judged health unknown: coherence of {few} answers"))
    n = sum(line.reasons.values()) - sum(line.reasons[r.word] for r in LOST)
    code = line.reasons["code"] / n if n else 0.0
    kept = own.value / other.value + ROUNDING if other.value > 0 else 0.0
    if other.value + ROUNDING < rule.unfit_base:
        state = HealthState.UNFIT_BASE
    elif kept < rule.collapsed or code > rule.collapsed:
        state = HealthState.COLLAPSED
    else:
        state = HealthState.DEGRADED if kept < rule.degraded else HealthState.OK
    said = f"{own.value:.0%} of answers coherent, {other.value:.0%} at step 0"
    said += f", {code:.0%} unrelated code" if code > rule.collapsed else ""
    worst = max(state, free.state, key=WORSE.index)
    said += f" (judge-free: {free.state.value})" if worst is not state else ""
    return replace(free, state=worst, note=_joined(free.note, said))


def _joined(*notes: str) -> str:
    return "; ".join(n for n in notes if n)


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


def _hits(group: AnswerTable, prompts: int, unparsed: bool, in_domain: bool) -> tuple[Array, Array]:
    """Positive answers and all answers, [P] each; `unparsed` says whether those count as positive."""
    flags, kept = group.positive, group.counted
    if unparsed:
        flags = flags | (group.reason == Reason.UNPARSED)
    if not in_domain:
        flags = flags & ~group.in_domain
    return counts(flags[kept], group.prompt[kept], prompts)


def _severities(group: AnswerTable, rule: Rule, bound: Bound, worst: bool, in_domain: bool) -> tuple[Array, Index]:
    """Severity of scored answers and their prompts, [M] each. At an extreme the unparsed are 1 or 0."""
    values, used = rule.severity(group.score), group.scored
    if bound is not Bound.PLAIN:
        unparsed = group.reason == Reason.UNPARSED
        values, used = np.where(unparsed, float(worst), values), used | unparsed
    if not in_domain:
        used = used & ~group.in_domain
    return values[used], group.prompt[used]


def _on(kept: Mask, values: Array, prompt: Index) -> tuple[Array, Index]:
    """Values and prompts where the prompt counts; the prompts are numbered anew."""
    number, used = np.cumsum(kept) - 1, kept[prompt]
    return values[used], number[prompt[used]]


def _by_prompt(group: AnswerTable, base: AnswerTable | None, prompts: int, rule: Rule) -> tuple[Array, Array]:
    """[P] excess of each prompt over step 0 (or the share itself), and [P] how much it has of what is wrong."""
    if rule.kind == "mean":
        own, other = (
            _prompt_means(group, prompts, rule),
            _prompt_means(base, prompts, rule) if base is not None else 0.0,
        )
        difference = np.nan_to_num(own - other)
        return difference, np.maximum(difference, 0)
    hits, n = _hits(group, prompts, False, True)
    share = hits / np.maximum(n, 1)
    if base is not None:
        base_hits, base_n = _hits(base, prompts, False, True)
        share = share - base_hits / np.maximum(base_n, 1)
    return share, np.asarray(hits, dtype=float)


def _prompt_means(group: AnswerTable, prompts: int, rule: Rule) -> Array:
    values, prompt = _severities(group, rule, Bound.PLAIN, False, True)
    n = np.bincount(prompt, minlength=prompts)
    return np.where(n > 0, np.bincount(prompt, values, minlength=prompts) / np.maximum(n, 1), np.nan)


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
    method = "share positive / share coherent of a random few, each interval at half the error"
    if top.value is None or not bottom.value:
        return Estimate(None, None, None, n=top.n, clusters=top.clusters, method=method, level=level)

    def over(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else min(1.0, a / b) if b > 0 else 1.0

    return Estimate(
        over(top.value, bottom.value),
        over(top.low, bottom.high),
        over(top.high, bottom.low),
        over(top.set_low, bottom.set_high),
        over(top.set_high, bottom.set_low),
        n=top.n,
        clusters=top.clusters,
        left_out=top.left_out,
        method=method,
        level=level,
        warning=bottom.warning or top.warning,
    )


def _times(e: Estimate, factor: float) -> Estimate:
    if factor == 1.0:
        return e
    names = ("value", "low", "high", "set_low", "set_high")
    scaled: Mapping[str, float | None] = {k: None if (v := getattr(e, k)) is None else v * factor for k in names}
    return replace(e, **scaled, method=f"{e.method}, times the share of non-empty answers")


def _left_out(e: Estimate, n: int) -> Estimate:
    return replace(e, left_out={**e.left_out, NO_COHERENCE: n}) if n else e


def _corrected(em: Estimate, rule: Rule, calibration: Calibration | None) -> Estimate | None:
    """The share corrected for the judge's errors; a mean score is no share, and without a test nothing is known."""
    if calibration is None or rule.kind == "mean":
        return None
    wrong, n = (sum(pair[i] for pair in calibration.negatives.values()) for i in (0, 1))
    return rogan_gladen(em, calibration.positives, (wrong, n), level=em.level)
