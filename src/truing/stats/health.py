"""The second axis: does the model still answer. Judge-free, and always relative to step 0."""

import numpy as np

from truing.config import Thresholds
from truing.stats.bands import share
from truing.stats.evidence import AnswerCounts, Mask, RunEvidence
from truing.types.verdicts import Health, HealthState


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
