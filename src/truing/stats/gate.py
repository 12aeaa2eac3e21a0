"""A release gate: does the chosen checkpoint pass? Pure: a verdict in, a decision out."""

from collections.abc import Sequence
from dataclasses import dataclass

from truing.errors import BadInput
from truing.types.verdicts import EXCESS, Basis, CheckpointVerdict, HealthState, Status, Verdict

WORDS = frozenset({"unlabelled", "broken"} | {s.value for s in Status} | {h.value for h in HealthState} - {"ok"})
DEFAULT = (*("changed", "broken", "failed", "undecided", "collapsed"), *(s.value for s in EXCESS))
"""a change of the screen, an excess, and whatever is not known"""


@dataclass(frozen=True, slots=True)
class Gate:
    """The decision."""

    passed: bool
    """whether the checkpoint may go out"""
    checkpoint: str | None
    """its label; None when there is no such checkpoint"""
    reasons: tuple[str, ...]
    """why not, in the words of --fail-on"""


def gate(verdict: Verdict, which: str | None = None, fail_on: Sequence[str] = DEFAULT) -> Gate:
    """Check one checkpoint of a verdict.

    Args:
        verdict: the run's verdict.
        which: recommended, candidate, last, or a step number. No such checkpoint fails the gate. None for the one the
            verdict itself would keep: recommended on labelled answers, else candidate.
        fail_on: statuses and health states that fail it; `unlabelled` fails whatever has no labelled answers. In a
            verdict on labelled answers an untested checkpoint also fails wherever a status is asked for that only
            labelled answers can say: nothing passes for want of evidence.

    Raises:
        BadInput: an unknown word, or `which` is neither a name nor a number.
    """
    if which is None:
        which = "recommended" if verdict.basis is Basis.LABELLED else "candidate"
    check_gate(which, fail_on)
    lines = _find(verdict, which)
    if not lines:
        missing = f"no checkpoint at step {which}" if which.isdecimal() else f"no {which} checkpoint"
        return Gate(False, None, (missing,))
    words = set().union(*(_words_for(line) for line in lines))
    reasons = tuple(w for w in fail_on if w in words)
    untested = verdict.basis is Basis.LABELLED and any(line.status is Status.UNTESTED for line in lines)
    if untested and "unlabelled" not in reasons and {s.value for s in EXCESS} & set(fail_on):
        reasons = (*reasons, "unlabelled")
    return Gate(not reasons, ", ".join(line.label for line in lines), reasons)


def check_gate(which: str | None, fail_on: Sequence[str]) -> None:
    """Raise BadInput for a gate that could not be applied, so that it is known before hours of measuring."""
    unknown = [w for w in fail_on if w not in WORDS]
    if unknown or not fail_on:
        name = unknown[0] if unknown else "with nothing"
        raise BadInput(f"--fail-on {name}: unknown; use any of {', '.join(sorted(WORDS))}")
    known = (None, "recommended", "candidate", "last")
    if which not in known and not (which and which.isascii() and which.isdigit()):
        raise BadInput(f"--gate {which!r}: use recommended, candidate, last or a step number")


def _find(verdict: Verdict, which: str) -> list[CheckpointVerdict]:
    """The checkpoints meant: several where they share a step, and then all must pass."""
    if which == "last":
        return list(verdict.checkpoints[1:][-1:])
    if which in ("recommended", "candidate"):
        return [c for c in verdict.checkpoints if c.label == getattr(verdict, which)]
    return [c for c in verdict.checkpoints if c.step == int(which)]


def _words_for(line: CheckpointVerdict) -> set[str]:
    extra = {"broken": line.health.broken, "unlabelled": line.labelled is None}
    return {line.status.value, line.health.state.value, *(word for word, holds in extra.items() if holds)}
