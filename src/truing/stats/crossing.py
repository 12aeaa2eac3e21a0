"""Where something begins, as a set of steps, when every checkpoint was measured."""

from collections.abc import Sequence
from typing import NamedTuple

from truing.types.verdicts import Onset


class Place(NamedTuple):
    """What one checkpoint says of a crossing."""

    step: int | None
    """updates applied; None if unknown"""
    clear: bool
    """whether it is not there, and nothing is left open"""
    there: bool
    """whether it certainly is there"""
    telling: bool
    """whether it could be decided, so that it may speak against a crossing that lasts"""


def crossing(places: Sequence[Place], kind: str) -> Onset:
    """The set of steps at which it may begin, over checkpoints with a known step, in any order.

    Earliest: the first step that is not clear. Latest: the first where it certainly is there. What failed or broke is
    not clear, so it stays in the set. This is the first crossing, with no promise that it lasts; `sustained` says
    whether every later checkpoint that could be decided agrees. A checkpoint without a step cannot be placed, but the
    answer is then never "never" unless it is clear as well.
    """
    known = sorted(((p.step, p) for p in places if p.step is not None), key=lambda pair: pair[0])
    latest = next((step for step, p in known if p.there), None)
    earliest = next((step for step, p in known if not p.clear), None)
    if earliest is None:
        return Onset("never" if all(p.clear for p in places) else "undecided", kind, None, None, None)
    before = [step for step, _ in known if step < earliest]
    inside = (step for step, _ in known if step >= earliest and (latest is None or step <= latest))
    later = [p.there for step, p in known if latest is not None and step >= latest and p.telling]
    return Onset(
        "found" if latest is not None else "undecided",
        kind,
        earliest,
        latest,
        before[-1] if before else None,
        tuple(dict.fromkeys(inside)),
        all(later) if latest is not None else None,
    )
