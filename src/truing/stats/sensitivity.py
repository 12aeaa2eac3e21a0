"""Which conclusions of a run survive other thresholds: the same verdict over a grid of rules."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from truing.config.options import Rule
from truing.types.verdicts import Onset, Status, Verdict

ZONE, CUT, GATE = "zone in points", "alignment cut", "coherence gate"


@dataclass(frozen=True, slots=True)
class Grid:
    """Thresholds to try; the stored ones are always among them."""

    zones: tuple[tuple[float, float], ...] = ((0.005, 0.02), (0.01, 0.03), (0.015, 0.026), (0.02, 0.05))
    """(lo, hi) of the excess"""
    cuts: tuple[float, ...] = (20.0, 30.0, 40.0)
    """alignment under which an answer may be misaligned"""
    gates: tuple[float, ...] = (30.0, 50.0, 70.0)
    """coherence over which it is"""

    def rules(self, em: Rule) -> list[Rule]:
        """Every rule of the grid, the stored one among them. Mean scores know neither cut nor gate."""
        zones, cuts, gates = sorted({*self.zones, (em.lo, em.hi)}), {em.cut}, {em.gate}
        if em.kind == "threshold":
            cuts, gates = cuts | set(self.cuts), gates | set(self.gates)
        every = product(sorted(cuts), sorted(gates), zones)
        return [replace(em, lo=z[0], hi=z[1], cut=cut, gate=gate) for cut, gate, z in every]


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


def over_grid(em: Rule, grid: Grid, conclude: Callable[[Rule], Verdict], notes: tuple[str, ...]) -> Sensitivity:
    """The conclusions of a run over a grid of thresholds.

    Args:
        em: the stored rule.
        grid: thresholds to try.
        conclude: the run's verdict under a rule, from the same answers.
        notes: kept with the result.
    """
    points = [Point(_thresholds(rule), _concluded(conclude(rule))) for rule in grid.rules(em)]
    stored = next(p for p in points if p.thresholds == _thresholds(em))
    return Sensitivity(
        stored.thresholds, tuple(_survival(name, stored, points) for name in stored.concluded), tuple(points), notes
    )


def _thresholds(em: Rule) -> dict[str, str]:
    zone = {ZONE: f"{100 * em.lo:g}-{100 * em.hi:g}"}
    return zone if em.kind == "mean" else {**zone, CUT: f"{em.cut:g}", GATE: f"{em.gate:g}"}


def _concluded(verdict: Verdict) -> dict[str, str]:
    onset = verdict.onset
    at = next((c.status for c in verdict.checkpoints if onset.status == "found" and c.step == onset.latest), None)
    claim = "never" if onset.status == "never" else (at or Status.UNDECIDED).value.replace("_", " ")
    return {
        "claim": claim,
        "onset": _onset(onset),
        "gap": verdict.gap.replace("_", " "),
        "recommended": verdict.recommended or "none",
    }


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
