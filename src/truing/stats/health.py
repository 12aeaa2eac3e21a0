"""The second axis: does the model still answer, judge-free and by labels; always relative to step 0."""

from dataclasses import replace

import numpy as np

from truing.config import Thresholds
from truing.stats.bands import share
from truing.stats.evidence import AnswerCounts, Mask, RunEvidence
from truing.types.traits import LOST
from truing.types.verdicts import Health, HealthState, LabelledLine

WORSE = (HealthState.UNKNOWN, HealthState.OK, HealthState.DEGRADED, HealthState.COLLAPSED, HealthState.UNFIT_BASE)
"""from least to most known to be bad"""
ROUNDING = 1e-9
"""a share this close to a limit is on it"""


def health(counts: AnswerCounts, base: AnswerCounts, entropy: float | None, rule: Thresholds) -> Health:
    """Health of a checkpoint from the counts of its answers and of the base's.

    usable / usable at step 0 under `collapsed` or `degraded`, or a format or repetition share over `collapsed`,
    decide; a base under `unfit_base` makes the comparison meaningless and says so.
    """
    for n, of_base in ((counts.n, ""), (base.n, " by the base")):
        if n < rule.min_answers:
            note = f"{n} answers{of_base}; {rule.min_answers} are needed"
            return Health(HealthState.UNKNOWN, entropy=entropy, note=note)
    repetition, formatted = counts.repetitive / counts.n, counts.formatted / counts.n
    return Health(
        state_of(counts.usable / counts.n, base.usable / base.n, max(repetition, formatted), rule),
        share(counts.usable, counts.n, level=rule.level),
        nll_base=counts.nll_base if counts.nll_base == counts.nll_base else None,
        repetition=repetition,
        format=formatted,
        in_domain=counts.in_domain / counts.n if counts.in_domain >= 0 else None,
        entropy=entropy,
        note=f"{counts.n} answers, {counts.empty} empty",
    )


def state_of(usable: float, usable_base: float, worst_share: float, rule: Thresholds) -> HealthState:
    """The state from the shares usable here and at step 0, and the largest share of another kind of answer."""
    if usable_base < rule.unfit_base:
        return HealthState.UNFIT_BASE
    if usable < rule.collapsed * usable_base or worst_share > rule.collapsed:
        return HealthState.COLLAPSED
    return HealthState.DEGRADED if usable < rule.degraded * usable_base else HealthState.OK


def run_health(run: RunEvidence, rule: Thresholds) -> list[Health]:
    """Health of every checkpoint of a run, [S]."""
    counts = run.answers or (AnswerCounts(),) * len(run.labels)
    entropy = [row[np.isfinite(row)] for row in run.entropy]
    means = [float(row.mean()) if row.size else None for row in entropy]
    return [health(c, counts[0], mean, rule) for c, mean in zip(counts, means, strict=True)]


def sound(run: RunEvidence, rule: Thresholds) -> Mask:
    """[S] whether a checkpoint is neither broken nor failed, so that its numbers may set a limit."""
    healths = zip(run_health(run, rule), run.labels, strict=True)
    return np.array([not h.broken and label not in run.failed for h, label in healths])


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
    state = state_of(own.value + ROUNDING, other.value + ROUNDING, code, rule)
    said = f"{own.value:.0%} of answers coherent, {other.value:.0%} at step 0"
    said += f", {code:.0%} unrelated code" if code > rule.collapsed else ""
    worst = max(state, free.state, key=WORSE.index)
    said += f" (judge-free: {free.state.value})" if worst is not state else ""
    return replace(free, state=worst, note=_joined(free.note, said))


def _joined(*notes: str) -> str:
    return "; ".join(n for n in notes if n)
