"""Sensitivity: every rule of the grid is tried once, and what is said of it agrees with counting by hand."""

from dataclasses import replace
from itertools import product

import pytest

from stats.worlds import screened_of
from truing.stats.sensitivity import CUT, GATE, MARGIN, ZONES, grid, over_grid
from truing.types.traits import Rule
from truing.types.verdicts import Onset, Status


def world(rule):
    """A run whose conclusions follow from the thresholds by a rule of ours."""
    made = screened_of(("base", "a", "b", "c"), (0, 20, 80, 100))
    if rule.lo >= 0.02:
        onset, status, kept = Onset("undecided", "a crossing", 80, None, 60), Status.UNDECIDED, None
    elif rule.cut == 40 and rule.gate == 70:
        onset, status, kept = Onset("found", "a crossing", 20, 20, 0, (20,)), Status.LOCALISED, "b"
    else:
        onset, status, kept = Onset("found", "a crossing", 80, 100, 60, (80, 100)), Status.PRESENT, "a"
    lines = tuple(replace(c, status=status if c.step == onset.latest else c.status) for c in made.checkpoints)
    return replace(made, checkpoints=lines, onset=onset, recommended=kept)


def test_every_rule_is_tried_once_and_counted():
    asked = []
    found = over_grid(Rule(), lambda rule: asked.append(rule) or world(rule), ("a note",))
    assert asked == grid(Rule()) and len(set(asked)) == len(found.points) == 4 * 3 * 3
    assert found.stored == {MARGIN: "1-3", CUT: "30", GATE: "50"} and found.notes == ("a note",)
    points = list(product(ZONES, (20, 30, 40), (30, 50, 70)))
    assert {((r.lo, r.hi), r.cut, r.gate) for r in asked} == set(points)
    undecided = sum(lo >= 0.02 for (lo, _), _, _ in points)
    early = sum(lo < 0.02 and (cut, gate) == (40, 70) for (lo, _), cut, gate in points)
    of = {c.name: c for c in found.conclusions}
    for name, value, other in (
        ("claim", "present", "localised"),
        ("onset", "steps 80-100", "step 20"),
        ("recommended", "a", "b"),
    ):
        c = of[name]
        assert (c.value, c.holds) == (value, len(points) - undecided - early)
        assert c.seen[other] == early and sum(c.seen.values()) == len(points)
        assert len(c.breaks) == 1 and c.breaks[0].startswith(f"{MARGIN} 2-5: "), "cut and gate end it only together"
    assert of["onset"].breaks == (f"{MARGIN} 2-5: undecided, not clean from step 80",)


@pytest.mark.parametrize(
    ("rule", "n", "names"),
    [
        (Rule(cut=25, gate=60, lo=0.011, hi=0.04), 5 * 3 * 3, {MARGIN, CUT, GATE}),
        (Rule("mean"), 4, {MARGIN}),
        (Rule(cut=95, gate=90), 4 * 2 * 2, {MARGIN, CUT, GATE}),
        (Rule(score="match", side="above", cut=0.5, gate_score=None, low=0, high=1), 4 * 3, {MARGIN, CUT}),
    ],
)
def test_the_stored_rule_is_in_the_grid_and_all_of_it_can_decide(rule, n, names):
    rules = grid(rule)
    assert len(rules) == n and rule in rules
    for r in rules:
        r.check()
    assert set(over_grid(rule, world).stored) == names
