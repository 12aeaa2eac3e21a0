"""How work in progress is told."""

from collections.abc import Callable
from dataclasses import dataclass


def _nothing(*_: object) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Three callbacks, possibly called from another thread. Without any, nothing is told."""

    step: Callable[[str, int, int], None] = _nothing
    """(stage, done, total) as work goes on"""
    detail: Callable[[str, str], None] | None = None
    """(stage, line) while answers are sampled, such as "3.1 answers/s, 38 s left" """
    say: Callable[[str], None] = _nothing
    """a line worth showing, e.g. what text leaves the machine"""


def duration(seconds: float) -> str:
    """Seconds for people: "38 s", "27 min" or "2.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
