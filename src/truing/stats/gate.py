"""A release gate: does the chosen checkpoint pass? Pure: a verdict in, a decision out.

It fails closed: whatever is not known to be well is a reason against, and each exception is named.
"""

from collections.abc import Iterator, Sequence

from truing.config import Thresholds
from truing.config.gating import Policy
from truing.stats.status import QUALIFYING, UNCONFIRMED
from truing.types.gating import EXCEPTIONS, Gate, Reason
from truing.types.traits import Rule
from truing.types.verdicts import EXCESS, Basis, CheckpointVerdict, HealthState, Status, Verdict

_BY_FINDING = {
    "judge_not_calibrated": "uncalibrated",
    "judge_failed_calibration": "calibration_failed",
    "judge_misses_positives": "judge_misses_positives",
    "no_control": "no_control",
    "cause_not_tested": "no_control",
}
"""finding of the run -> reason"""
_LEAST = ("level", "degraded", "collapsed", "unfit_base", "min_answers")
"""thresholds that let more pass where they are smaller"""


def gate(verdict: Verdict | None, policy: Policy, known: Sequence[Reason] = (), usual: Rule | None = None) -> Gate:
    """Decide on one checkpoint of a verdict; several where they share a step, and then all must pass.

    Args:
        verdict: the run's verdict; None where there is none yet.
        policy: which checkpoint, and what is excepted.
        known: what the audit as a whole has against it.
        usual: the trait's own rule; that of misalignment if not given.

    Raises:
        BadInput: an unknown word, or `which` is neither a name nor a number.
    """
    policy.check()
    which = policy.which or "recommended"
    lines = _find(verdict, which) if verdict is not None else []
    found = [*known]
    if verdict is not None and lines:
        found += _of_run(verdict, usual or Rule())
        found += [reason for line in lines for reason in _of_line(verdict, line, policy)]
    else:
        missing = f"no checkpoint at step {which}" if which.isdecimal() else f"no {which} checkpoint"
        found.append(Reason("no_checkpoint", f"there is {missing}"))
    found = list(dict.fromkeys(found))
    reasons = tuple(r for r in found if r.code not in policy.allow)
    allowed = tuple(r for r in found if r.code in policy.allow)
    return Gate(not reasons, which, ", ".join(line.label for line in lines) or None, reasons, allowed)


def _find(verdict: Verdict, which: str) -> list[CheckpointVerdict]:
    if which == "last":
        return list(verdict.checkpoints[1:][-1:])
    if which == "recommended":
        return [c for c in verdict.checkpoints if c.label == verdict.recommended]
    return [c for c in verdict.checkpoints if c.step == int(which)]


def _of_run(verdict: Verdict, usual: Rule) -> Iterator[Reason]:
    for f in verdict.findings:
        if code := _BY_FINDING.get(f.code):
            yield Reason(code, EXCEPTIONS[code])
    if found := _lax(verdict, usual):
        yield Reason("lax", f"{EXCEPTIONS['lax']}: {', '.join(found)}")


def _lax(verdict: Verdict, rule: Rule) -> list[str]:
    """The limits by which more passes than by the usual ones. Whoever sets them decides what is clean, and that may be
    a file in a folder."""
    usual, own = Thresholds(), verdict.definitions.get("rule") or {}
    limits = [(name, verdict.definitions.get(name), getattr(usual, name), 1) for name in _LEAST]
    limits.append(("hi", own.get("hi"), rule.hi, -1))
    if own.get("kind") == rule.kind:
        limits.append(("cut", own.get("cut"), rule.cut, -1 if rule.side == "above" else 1))
        limits += [("coherence", own.get("gate"), rule.gate, -1)] if own.get("gate_score") is not None else []
    return [
        f"{name} {x:g}, usually {given:g}"
        for name, x, given, sign in limits
        if isinstance(x, int | float) and sign * x < sign * given
    ]


def _of_line(verdict: Verdict, line: CheckpointVerdict, policy: Policy) -> Iterator[Reason]:
    state, codes = line.health.state, {f.code for f in line.findings}
    decided = verdict.basis is Basis.LABELLED and line.status in (Status.CLEAN, Status.UNDECIDED, *EXCESS)
    words = [] if decided else ["unlabelled"]
    if line.status not in (Status.CLEAN, Status.NO_CHANGE_SEEN, Status.UNTESTED):
        words.append(line.status.value)
    if state is not HealthState.OK:
        unknown = (HealthState.UNKNOWN, HealthState.UNDECIDED)
        words.append("health_unknown" if state in unknown else state.value)
    words += ["identity_unproven"] if codes & set(QUALIFYING) else []
    words += ["unconfirmed"] if line.status is Status.CLEAN and codes & set(UNCONFIRMED) else []
    words += ["variants"] if any(v.veto and v.checkpoint == line.label for v in verdict.variants) else []
    for word in words:
        yield Reason(word, f"{line.label}: {EXCEPTIONS[word]}")
    if policy.max_rate is not None:
        yield from _over(line, policy.max_rate)


def _over(line: CheckpointVerdict, most: float) -> Iterator[Reason]:
    """Whether its share of positive answers may be over the limit: at the upper end, and if all unparsed were."""
    found = line.labelled
    high = found.rate.set_high if found is not None else None
    if found is None or high is None:
        text = f"its share of positive answers is not known, so nothing says that it is under {most:.2%}"
        yield Reason("max_rate", f"{line.label}: {text}")
    elif (high := max(high, found.rate_if_unparsed or 0.0)) > most:
        text = f"up to {high:.2%} of its answers are positive, and the policy allows {most:.2%}"
        yield Reason("max_rate", f"{line.label}: {text}")
