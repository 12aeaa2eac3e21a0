"""Sensitivity: every rule of the grid is tried once, and what is said of it agrees with counting by hand."""

from dataclasses import replace
from itertools import product

from truing.config.options import Rule

from report.judged_audits import emergent
from truing.stats.sensitivity import CUT, GATE, ZONE, Grid, over_grid
from truing.types.verdicts import Onset, Status

EM = Rule()


def world(rule):
    """A run whose conclusions follow from the thresholds by a rule of ours."""
    made = emergent()
    if rule.lo >= 0.02:
        onset, status, kept = Onset("undecided", "a crossing", 80, None, 60), Status.UNDECIDED, None
    elif rule.cut == 40 and rule.gate == 70:
        onset, status, kept = Onset("found", "a crossing", 20, 20, 0, (20,)), Status.LOCALISED, "checkpoint-20"
    else:
        onset, status, kept = Onset("found", "a crossing", 80, 100, 60, (80, 100)), Status.EMERGENT, "checkpoint-60"
    lines = tuple(replace(c, status=status if c.step == onset.latest else c.status) for c in made.checkpoints)
    return replace(made, checkpoints=lines, onset=onset, recommended=kept)


def run(em=EM, grid=None):
    asked = []

    def conclude(rule):
        asked.append(rule)
        return world(rule)

    return over_grid(em, grid or Grid(), conclude, ("a note",)), asked


def test_every_point_is_tried_and_counted():
    found, asked = run()
    grid = Grid()
    assert len(asked) == len(set(asked)) == len(found.points) == 4 * 3 * 3
    assert found.stored == {ZONE: "1-3", CUT: "30", GATE: "50"} and found.notes == ("a note",)
    points = list(product(grid.zones, grid.cuts, grid.gates))
    undecided = sum(lo >= 0.02 for (lo, _), _, _ in points)
    early = sum(lo < 0.02 and (cut, gate) == (40, 70) for (lo, _), cut, gate in points)
    of = {c.name: c for c in found.conclusions}
    for name, value, other in (
        ("claim", "emergent", "localised"),
        ("onset", "steps 80-100", "step 20"),
        ("recommended", "checkpoint-60", "checkpoint-20"),
    ):
        c = of[name]
        assert (c.value, c.holds) == (value, len(points) - undecided - early)
        assert c.seen[other] == early and sum(c.seen.values()) == len(points)
        assert len(c.breaks) == 1 and c.breaks[0].startswith(f"{ZONE} 2-5: "), "cut and gate end it only together"
    assert of["onset"].breaks == (f"{ZONE} 2-5: undecided, not clean from step 80",)


def test_stored_thresholds_off_the_grid_join_it_and_a_mean_has_neither_cut_nor_gate():
    em = Rule(cut=25, gate=60, lo=0.011, hi=0.04)
    found, asked = run(em, Grid(zones=((0.01, 0.03),), cuts=(30,), gates=(50,)))
    assert len(asked) == 8 and em in asked
    assert found.stored == {ZONE: "1.1-4", CUT: "25", GATE: "60"}
    found, asked = run(Rule("mean"))
    assert [(r.lo, r.cut) for r in asked] == [(lo, 30.0) for lo, _ in Grid().zones]
    assert set(found.stored) == {ZONE}
