"""The second axis: does the model still answer, judge-free and by labels; always relative to step 0.

A state is said where the answers are enough to be certain of it, at a level that all checkpoints of the run share
(Bonferroni, so that one of many does not break by chance). With the ratio of the share usable (judged: coherent) to
step 0's, and the largest share of repetitive, formatted or code answers:

* unfit_base: step 0's own share is certainly under `unfit_base`;
* collapsed: the ratio is certainly under `collapsed`, or the share of such answers certainly over it;
* degraded: the ratio is certainly under `degraded`;
* ok: none of this as measured, and the ratio certainly not under `collapsed`;
* undecided: everything else. Judge-free also where only answers that surprise the base keep it from being ok, since
  their form does not tell babble from another style. It decides nothing: a judge's word takes its place.

The ratio is certainly under c where share - c * (step 0's share) is certainly negative, with the limits of Zou and
Donner (2008) from Wilson's for each. Judge-free answers are one to a prompt, so they are the clusters.
"""

from dataclasses import replace

import numpy as np

from truing.config import Thresholds
from truing.stats.bands import share, wilson
from truing.stats.evidence import AnswerCounts, Mask, RunEvidence
from truing.stats.rates import limits_of_difference
from truing.types.traits import LOST
from truing.types.verdicts import Health, HealthState, LabelledLine

WORSE = (
    *(HealthState.UNKNOWN, HealthState.OK, HealthState.UNDECIDED),
    *(HealthState.DEGRADED, HealthState.COLLAPSED, HealthState.UNFIT_BASE),
)
"""from least to most known to be bad"""
ROUNDING = 1e-9
"""a share this close to a limit is on it"""
Share = tuple[float, float, float]
"""a share, and its limits"""


def health(
    counts: AnswerCounts, base: AnswerCounts, entropy: float | None, rule: Thresholds, level: float | None = None
) -> Health:
    """Health of a checkpoint from the counts of its answers and of the base's; `level` is that of decisions, the
    rule's if None. Fewer than `min_answers` on either side: unknown."""
    for n, of_base in ((counts.n, ""), (base.n, " by the base")):
        if n < rule.min_answers:
            note = f"{n} answers{of_base}; {rule.min_answers} are needed"
            return Health(HealthState.UNKNOWN, entropy=entropy, note=note)
    level = rule.level if level is None else level

    def of(count: int, among: AnswerCounts) -> Share:
        return _share(count, among.n, level)

    worst = max(of(counts.repetitive, counts), of(counts.formatted, counts))
    state = state_of(of(counts.usable, counts), of(base.usable, base), worst, rule)
    note = f"{counts.n} answers, {counts.empty} empty"
    if state is HealthState.UNDECIDED:
        note += "; too few to tell"
    plain = counts.usable - counts.surprising
    if state is HealthState.OK and plain < rule.degraded * (base.usable - base.surprising) / base.n * counts.n:
        state, note = HealthState.UNDECIDED, f"{note}; {counts.surprising} surprise the base: babble, or another style"
    return Health(
        state,
        share(counts.usable, counts.n, level=rule.level),
        nll_base=counts.nll_base if counts.nll_base == counts.nll_base else None,
        repetition=counts.repetitive / counts.n,
        format=counts.formatted / counts.n,
        in_domain=counts.in_domain / counts.n if counts.in_domain >= 0 else None,
        entropy=entropy,
        note=note,
        surprising=counts.surprising / counts.n,
    )


def state_of(usable: Share, base: Share, worst: Share, rule: Thresholds) -> HealthState:
    """The state from the shares usable here and at step 0, and the largest share of another kind of answer."""
    if base[2] < rule.unfit_base:
        return HealthState.UNFIT_BASE
    if _ratio(usable, base, rule.collapsed)[1] < 0 or worst[1] > rule.collapsed:
        return HealthState.COLLAPSED
    if _ratio(usable, base, rule.degraded)[1] < 0:
        return HealthState.DEGRADED
    as_measured = base[0] >= rule.unfit_base - ROUNDING and worst[0] <= rule.collapsed + ROUNDING
    as_measured &= usable[0] >= rule.degraded * base[0] - ROUNDING
    return HealthState.OK if as_measured and _ratio(usable, base, rule.collapsed)[0] >= 0 else HealthState.UNDECIDED


def _share(count: int, n: int, level: float) -> Share:
    return (count / n, *wilson(count, n, level))


def _ratio(usable: Share, base: Share, c: float) -> tuple[float, float]:
    """Limits of share - c * (step 0's share): the ratio of the two is certainly under c where both are negative."""
    return limits_of_difference(usable, (c * base[0], c * base[1], c * base[2]))


def run_health(run: RunEvidence, rule: Thresholds) -> list[Health]:
    """Health of every checkpoint of a run, [S]."""
    counts = run.answers or (AnswerCounts(),) * len(run.labels)
    entropy = [row[np.isfinite(row)] for row in run.entropy]
    means = [float(row.mean()) if row.size else None for row in entropy]
    level = 1 - (1 - rule.level) / max(1, len(counts) - 1)
    return [health(c, counts[0], mean, rule, level) for c, mean in zip(counts, means, strict=True)]


def sound(run: RunEvidence, rule: Thresholds) -> Mask:
    """[S] whether a checkpoint is neither broken nor failed, so that its numbers may set a limit."""
    healths = zip(run_health(run, rule), run.labels, strict=True)
    return np.array([not h.broken and label not in run.failed for h, label in healths])


def joined_health(
    free: Health, line: LabelledLine, base: LabelledLine | None, rule: Thresholds, level: float | None = None
) -> Health:
    """Judge-free health joined with the judged one: the worse of the two; unknown only where neither is known.

    Judged: from the shares coherent and of unrelated code, with `min_answers` each; `level` is that of decisions, the
    rule's if None. What the form of answers leaves undecided is what the judge says.
    """
    own, other = line.coherent, base.coherent if base is not None else None
    if other is None or own.value is None or other.value is None or min(own.n, other.n) < rule.min_answers:
        few = own.n if other is None or own.n < rule.min_answers else other.n
        return replace(free, note=_joined(free.note, f"judged health unknown: coherence of {few} answers"))
    level = rule.level if level is None else level
    n = sum(line.reasons.values()) - sum(line.reasons[r.word] for r in LOST)
    code = _share(line.reasons["code"], n, level) if n else (0.0, 0.0, 0.0)
    coherent, of_base = (_share(round(e.value * e.n), e.n, level) for e in (own, other) if e.value is not None)
    state = state_of(coherent, of_base, code, rule)
    said = f"{own.value:.0%} of {own.n} answers coherent, {other.value:.0%} at step 0"
    said += f", {code[0]:.0%} unrelated code" if code[0] > rule.collapsed else ""
    said += ": too few to tell" if state is HealthState.UNDECIDED else ""
    judged_alone = free.state is HealthState.UNDECIDED
    worst = state if judged_alone else max(state, free.state, key=WORSE.index)
    said += f" (judge-free: {free.state.value})" if worst is not state or judged_alone else ""
    return replace(free, state=worst, note=_joined(free.note, said))


def _joined(*notes: str) -> str:
    return "; ".join(n for n in notes if n)
