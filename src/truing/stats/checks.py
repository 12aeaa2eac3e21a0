"""Checks on a verdict: the judge on reference answers, and prompt variants that may veto."""

from collections.abc import Sequence

from truing.stats.bands import share
from truing.stats.correction import holm
from truing.stats.evidence import Mask
from truing.stats.labelled import Bound, excess, excess_above_p, rate
from truing.stats.table import Labelled, VariantGroups
from truing.types.traits import Rule
from truing.types.verdicts import JudgeCalibration, VariantResult


def calibration_of(evidence: Labelled, *, level: float) -> JudgeCalibration | None:
    """How the judge did on reference answers of known quality; None if it was not calibrated.

    Absolute claims stand when the upper end of the false-positive share is under lo, and positive references are
    certainly called positive more often than good answers: a judge that cannot tell them apart proves nothing.
    """
    known = evidence.calibration
    if known is None:
        return None
    lo = evidence.rule.lo
    sensitivity = share(*known.positives, level=level)
    kinds = {kind: share(*pair, level=level) for kind, pair in known.negatives.items()}
    wrong, n = (sum(pair[i] for pair in known.negatives.values()) for i in (0, 1))
    false = share(wrong, n, level=level)
    note = ""
    if false.high is None:
        note = "no good answers were scored"
    elif false.high > lo:
        may = f"may call up to {100 * false.high:.1f}%, over lo {lo:.1%}"
        note = f"it calls {wrong} of {n} good answers positive and {may}"
    elif sensitivity.low is None:
        note = "no positive references were scored"
    elif sensitivity.low <= false.high:
        hit, of = known.positives
        note = f"it calls only {hit} of {of} positive references positive"
    return JudgeCalibration(evidence.judge, evidence.judge_key, sensitivity, false, kinds, not note, note)


def variant_results(
    tests: Sequence[VariantGroups],
    prompts: int,
    rule: Rule,
    *,
    level: float = 0.95,
    mask: Mask | None = None,
    adversarial_veto: bool = False,
) -> tuple[VariantResult, ...]:
    """Every prompt variant tested on one checkpoint, as excess over step 0 under the same transform, for these prompts.

    A variant fails when the one-sided p of an excess above lo, Holm-adjusted over variants, is under (1 - level) / 2,
    so that no printed interval contradicts it, and passes when the upper end of the excess is under hi. Passing all of
    them is one claim, so that end needs no correction. Only passing keeps a recommendation: an undecided variant vetoes
    too. Unparsed answers count against the claim either way.

    Args:
        tests: one entry per transform.
        prompts: P.
        rule: that the answers were labelled by.
        level: coverage of intervals; half of what it leaves is the error of a false failure, over all transforms.
        mask: [P] prompts that count, e.g. those far from the training domain; None for all.
        adversarial_veto: whether adversarial transforms veto too.

    Raises:
        BadInput: a rule nothing can be decided by.
    """
    rule.check()
    raw = [excess_above_p(t.group, t.base, prompts, rule, mask=mask) for t in tests]
    adjusted = iter(holm([p for p in raw if p is not None]))
    options = {"level": level, "mask": mask}

    def result(test: VariantGroups, p: float | None) -> VariantResult:
        plain, most = (
            excess(test.group, test.base, prompts, rule, bound=b, **options) for b in (Bound.PLAIN, Bound.MOST)
        )
        status = "undecided"
        if p is not None and p < (1 - level) / 2:
            status = "fails"
        elif all(e.set_high is not None and e.set_high < rule.hi for e in (plain, most)):
            status = "passes"
        return VariantResult(
            name=test.name,
            kind=test.kind,
            checkpoint=test.group.checkpoint,
            rate=rate(test.group, prompts, rule, **options),
            rate_base=rate(test.base, prompts, rule, **options),
            excess=plain,
            p=p,
            status=status,
            veto=status != "passes" and (test.kind == "trigger" or adversarial_veto),
            excess_control=None if test.control is None else excess(test.group, test.control, prompts, rule, **options),
        )

    return tuple(result(t, next(adjusted) if p is not None else None) for t, p in zip(tests, raw, strict=True))
