"""Which conclusions of a run survive other thresholds: the same verdict over a grid of rules."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from truing.errors import BadInput
from truing.types.traits import Rule
from truing.types.verdicts import Onset, Status, Verdict

ZONES = ((0.005, 0.02), (0.01, 0.03), (0.015, 0.026), (0.02, 0.05))
"""lo and hi that are tried"""
CUT_STEP = 0.1
"""share of the scale by which the cut is moved to either side"""
GATE_STEP = 20.0
"""points by which the gate is moved to either side"""
MARGIN, CUT, GATE = "lo-hi in points", "cut", "coherence gate"


@dataclass(frozen=True, slots=True)
class Point:
    """One choice of thresholds, and what is concluded under it."""

    thresholds: Mapping[str, str]
    """name of a threshold -> its value"""
    concluded: Mapping[str, str]
    """claim, onset, gap, recommended -> what it is here"""


@dataclass(frozen=True, slots=True)
class Survival:
    """How one conclusion fares over the grid."""

    name: str
    """claim, onset, gap or recommended"""
    value: str
    """what it is under the stored rule"""
    holds: int
    """points of the grid at which it is the same"""
    seen: Mapping[str, int]
    """every value it takes -> points"""
    breaks: tuple[str, ...]
    """thresholds that end it by themselves, everything else as stored, with what stands there instead"""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The verdict of a run under a grid of thresholds."""

    stored: Mapping[str, str]
    """thresholds of the stored verdict"""
    conclusions: tuple[Survival, ...]
    """how each fares"""
    points: tuple[Point, ...]
    """the grid"""
    notes: tuple[str, ...] = ()
    """what a reader must know before believing it"""


def grid(rule: Rule) -> list[Rule]:
    """Rules around a stored one, itself among them. Mean scores know neither cut nor gate."""
    cuts, gates = [rule.cut], [rule.gate]
    if rule.kind == "threshold":
        step = CUT_STEP * (rule.high - rule.low)
        cuts = [rule.cut - step, rule.cut, rule.cut + step]
        gates = [rule.gate - GATE_STEP, rule.gate, rule.gate + GATE_STEP] if rule.gate_score is not None else gates
    zones = sorted({*ZONES, (rule.lo, rule.hi)})
    every = (replace(rule, cut=cut, gate=gate, lo=lo, hi=hi) for cut, gate, (lo, hi) in product(cuts, gates, zones))
    return [r for r in every if _usable(r)]


def over_grid(rule: Rule, conclude: Callable[[Rule], Verdict], notes: tuple[str, ...] = ()) -> Sensitivity:
    """The conclusions of a run over a grid of rules.

    Args:
        rule: the stored one.
        conclude: the run's verdict under a rule, from the same answers.
        notes: kept with the result.
    """
    points = [Point(_thresholds(r), _concluded(conclude(r))) for r in grid(rule)]
    stored = next(p for p in points if p.thresholds == _thresholds(rule))
    conclusions = tuple(_survival(name, stored, points) for name in stored.concluded)
    return Sensitivity(stored.thresholds, conclusions, tuple(points), notes)


def _usable(rule: Rule) -> bool:
    try:
        rule.check()
    except BadInput:
        return False
    return True


def _thresholds(rule: Rule) -> dict[str, str]:
    out = {MARGIN: f"{100 * rule.lo:g}-{100 * rule.hi:g}"}
    if rule.kind == "threshold":
        out[CUT] = f"{rule.cut:g}"
        if rule.gate_score is not None:
            out[GATE] = f"{rule.gate:g}"
    return out


def _concluded(verdict: Verdict) -> dict[str, str]:
    onset = verdict.onset
    at = next((c.status for c in verdict.checkpoints if onset.status == "found" and c.step == onset.latest), None)
    claim = "never" if onset.status == "never" else (at or Status.UNDECIDED).value.replace("_", " ")
    gap, kept = verdict.gap.replace("_", " "), verdict.recommended or "none"
    return {"claim": claim, "onset": _onset(onset), "gap": gap, "recommended": kept}


def _onset(onset: Onset) -> str:
    if onset.status == "found":
        one = onset.earliest == onset.latest
        return f"step {onset.latest}" if one else f"steps {onset.earliest}-{onset.latest}"
    since = f", not clean from step {onset.earliest}" if onset.earliest is not None else ""
    return onset.status + (since if onset.status == "undecided" else "")


def _survival(name: str, stored: Point, points: list[Point]) -> Survival:
    own, breaks = stored.concluded[name], []
    for p in points:
        moved = [f"{axis} {value}" for axis, value in p.thresholds.items() if stored.thresholds[axis] != value]
        if len(moved) == 1 and p.concluded[name] != own:
            breaks.append(f"{moved[0]}: {p.concluded[name]}")
    seen = dict(Counter(p.concluded[name] for p in points).most_common())
    return Survival(name, own, seen[own], seen, tuple(breaks))
