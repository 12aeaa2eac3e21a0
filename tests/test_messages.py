"""Words: every finding has a text, a sentence is short, and nothing is said more strongly than its status."""

import ast
import itertools
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import truing
from stats.test_decide import LABELS, PROGRESS, STEPS, random_case
from stats.worlds import decided, estimate, screened_of
from truing import messages
from truing.report.details import onset_words
from truing.types import verdicts
from truing.types.records import to_plain
from truing.types.traits import Rule
from truing.types.verdicts import (
    EXCESS,
    Basis,
    Convergence,
    Estimate,
    Finding,
    HealthState,
    JudgeCalibration,
    Onset,
    Status,
    VariantResult,
)

JUDGE = "openai:gpt-4.1-mini"
NOWHERE = Onset("undecided", "", None, None, None)
SOURCE = Path(truing.__file__).parent
STRONG = re.compile(r"\b(emergent|clean|certified|recommend\w*|keep)\b", re.I)
ALL_CLEAR = re.compile(r"no drift|drift seen|\b(safe|fine|pass(es|ed)?|harmless|healthy|unchanged|candidate)\b", re.I)
SCREEN = (Status.NO_CHANGE_SEEN, Status.CHANGED, Status.UNDECIDED, Status.FAILED)
LABELLED = (*EXCESS, Status.CLEAN, Status.UNDECIDED, Status.UNTESTED, Status.FAILED)
CAUSES = ((), (Finding("cause_not_tested"),), (Finding("not_beyond_control", {"value": 0.1, "low": 0, "high": 0.2}),))


def emitted():
    """Codes that src makes findings of: every text in the first argument of `Finding(...)`, and the constants used."""
    found = set()
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding" and node.args:
                first = node.args[0]
                parts = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                found |= {p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)}
            if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "UNCONFIRMED" for t in node.targets):
                found |= set(ast.literal_eval(node.value))
    return found


def test_every_code_has_a_text_and_every_text_a_code():
    codes = emitted()
    assert len(codes) > 60
    assert codes - set(messages.TEXTS) == set()
    assert set(messages.TEXTS) - codes == set()
    assert set(messages.DECIDING) <= codes


def test_texts_are_filled_and_an_unknown_code_is_shown():
    assert messages.text(Finding("new_code", {"x": 1})) == "new code: {'x': 1}"
    for code in messages.TEXTS:
        bare = messages.text(Finding(code))
        assert bare and "{" not in bare
    for code, params, words in (
        ("in_zone", {"value": 0.101, "low": -0.02, "high": None}, "10.1 no interval points: neither"),
        ("in_zone", {"low": 0.0, "high": 0.1, "level": 0.99}, "[0.0, 10.0] points at the corrected level 99.0%:"),
        ("unparsed_decide", {"low": -0.02, "high": 0.05}, "[-2.0, 5.0] points"),
        ("searched", {"answers": 1811, "untested": [20, 40]}, "1,811 answers. Not certified either way: 20, 40."),
        ("searched", {"answers": 2, "needed": 1060}, "about 1,060 more."),
    ):
        assert words in messages.text(Finding(code, params))


@pytest.mark.parametrize("hostile", ["{checkpoint}", "{0.__class__}", "%s{", "<script>", "a\nb"])
def test_hostile_names_stay_text(hostile):
    assert hostile in messages.text(Finding("screen_disagrees", {"checkpoint": hostile}))
    assert hostile in messages.text(Finding("failed", {"why": hostile}))
    v = replace(run_of((Status.CLEAN, Status.CLEAN), Basis.LABELLED), recommended=hostile)
    assert messages.sentence(v).endswith(f"Keep {hostile}.")


def run_of(statuses, basis=Basis.SCREEN, causes=(), broken=(), onset=None, **fields):
    """A verdict whose checkpoints have these statuses, the base first; `causes` are findings of the later ones."""
    n = len(statuses)
    names, steps = [*LABELS, *(f"c{k}" for k in range(20))][:n], [*STEPS, *range(120, 500, 20)][:n]
    v = screened_of(names, steps, [*PROGRESS, *[1.0] * 20][:n])
    lines = []
    for k, (c, status) in enumerate(zip(v.checkpoints, statuses, strict=True)):
        health = replace(c.health, state=HealthState.COLLAPSED if k in broken else HealthState.OK)
        lines.append(replace(c, status=status, findings=causes if k else (), health=health))
    wrong = (Status.CHANGED,) if basis is Basis.SCREEN else EXCESS
    first = next((c.step for c in lines[1:] if c.status in wrong), None)
    onset = onset or (Onset("found", "", first, first, 0) if first else NOWHERE)
    given = {"trait": "misalignment", "definitions": {"rule": to_plain(Rule())}, "judge": JUDGE, **fields}
    return replace(v, basis=basis, checkpoints=tuple(lines), onset=onset, **given)


@cache
def some_line():
    return decided(*reversed(random_case(np.random.default_rng(0), Rule()))).checkpoints[0].labelled


def labelled(v):
    """With labelled answers at every checkpoint that was tested."""
    line = some_line()
    lines = (replace(c, labelled=None if c.status is Status.UNTESTED else line) for c in v.checkpoints)
    return replace(v, checkpoints=tuple(lines))


def check_sentence(v):
    said = messages.sentence(v)
    statuses = {c.status for c in v.checkpoints[1:]}
    assert said and len(said) <= 200 and "None" not in said and "nan" not in said.split() and "{" not in said, said
    if v.basis is Basis.SCREEN:
        assert not STRONG.search(said) and not ALL_CLEAR.search(said), said
    if "mergent misalignment" in said:
        assert statuses & set(EXCESS), said
    if re.search(r"\bclean at\b", said, re.I):
        assert Status.CLEAN in statuses, said
    if re.search("clean at all", said, re.I):
        assert statuses == {Status.CLEAN}, said
    assert ("Keep" in said) is (v.basis is Basis.LABELLED and v.recommended is not None), said
    text = " ".join((said, *messages.details(v), *(messages.text(f) for f in v.findings)))
    assert "nan" not in text.split() and "None" not in text, text
    for c in v.checkpoints:
        assert messages.status_words(c)
        assert all(messages.text(f) for f in c.findings)


def test_step_0_is_the_reference_unless_it_is_broken_or_was_not_measured():
    undecided = (Status.UNDECIDED, Status.UNDECIDED)
    words = [messages.status_words(c) for c in run_of(undecided, Basis.LABELLED).checkpoints]
    assert words == ["reference", "undecided"]
    broken = run_of(undecided, Basis.LABELLED, broken=(0, 1)).checkpoints
    assert [messages.status_words(c) for c in broken] == ["collapsed", "collapsed"]
    assert messages.status_words(run_of((Status.UNTESTED,) * 2, Basis.LABELLED).checkpoints[0]) == "untested"


@pytest.mark.parametrize("statuses", [*itertools.product(SCREEN, repeat=2)], ids=str)
def test_sentences_of_every_pair_on_the_screen(statuses):
    for base, causes, broken in itertools.product((Status.NO_CHANGE_SEEN, Status.FAILED), CAUSES, ((), (2,), (1, 2))):
        v = run_of((base, *statuses), causes=causes, broken=broken, judge=None)
        check_sentence(v)
        check_sentence(replace(v, screen_limit=None, screen_limit_source="none: no null contrasts"))


@pytest.mark.parametrize("statuses", [*itertools.product(LABELLED, repeat=2)], ids=str)
def test_sentences_of_every_pair_on_labels(statuses):
    for (trait, kept), causes, curve in itertools.product(
        (("misalignment", None), ("shouting", "checkpoint-20")), CAUSES, (None, "skill")
    ):
        given = {"trait": trait, "recommended": kept, "retained_curve": curve}
        v = run_of((Status.CLEAN, *statuses), Basis.LABELLED, causes, **given)
        check_sentence(v)
        v = labelled(v)
        check_sentence(v)
        check_sentence(replace(v, onset=NOWHERE))
        if set(statuses) == {Status.CLEAN}:
            check_sentence(replace(v, onset=Onset("never", "", None, None, None)))


def test_a_step_that_a_search_left_inconclusive_keeps_the_sentence_undecided():
    tested = verdicts.Tested(100, "below", -1.0, 6.0, 5.7, 170, 24, 0.0, 0.0)
    given = {"steps": (20, 40, 60, 80, 100), "tested": (tested,), "errors": "guaranteed", "clear_until": 100}
    quiet = Onset("never", "a crossing", 20, None, 0, spots={20: 16, 40: 16, 60: 16, 80: 16}, **given)
    statuses = (Status.CLEAN, *[Status.UNTESTED] * 4, Status.CLEAN)
    sure = labelled(run_of(statuses, Basis.LABELLED, onset=quiet))
    assert messages.sentence(sure).startswith("No onset found: clean at step 100") and not messages.left_open(quiet)
    assert onset_words(quiet) == "none found"
    blurred = replace(quiet, spots={20: 16, 60: 16, 80: 16})
    said = messages.sentence(replace(sure, onset=blurred))
    assert said.startswith("Undecided: clean at step 100") and messages.left_open(blurred) == [40]
    assert onset_words(blurred) == "none found; inconclusive at step 40"
    fixed = [replace(c, status=Status.CLEAN) if c.step == 40 else c for c in sure.checkpoints]
    after = replace(sure, onset=blurred, checkpoints=tuple(fixed))  # fixed answers told what the loose test did not
    assert messages.sentence(after).startswith("No onset found: clean at step 40, step 100")


def test_sentences_of_what_stops_everything():
    v = labelled(run_of((Status.UNDECIDED,) * 4, Basis.LABELLED, retained_curve="skill"))
    why = "it calls 12 of 920 good answers positive and may call up to 2.3%, over lo 1.0%"
    share = Estimate(0.1, 0.0, 0.2)
    check_sentence(replace(v, calibration=JudgeCalibration(JUDGE, "k", share, share, {}, False, why)))
    vetoes = tuple(
        VariantResult(x, "trigger", "checkpoint-100", share, share, share, 0.01, "fails", True)
        for x in ("as_json", "as_python_code", "in_french")
    )
    check_sentence(replace(v, variants=vetoes))
    unplaced = run_of((Status.NO_CHANGE_SEEN, *[Status.CHANGED] * 12), onset=NOWHERE)
    check_sentence(replace(unplaced, checkpoints=tuple(replace(c, step=None) for c in unplaced.checkpoints)))
    check_sentence(replace(v, checkpoints=v.checkpoints[:1]))
    check_sentence(run_of((Status.NO_CHANGE_SEEN,) * 3, definitions={"scored": False}))


def test_words_of_whatever_an_audit_can_bring():
    rng = np.random.default_rng(4)
    for kind in ("threshold", "threshold", "mean"):
        for _ in range(8):
            before, labelled = random_case(rng, Rule(kind=kind))
            check_sentence(before)
            check_sentence(decided(labelled, before))


def test_details_say_before_or_after_only_where_it_was_decided():
    learned = Convergence("skill", "converged", step=40, after=20, low=40, high=40)
    v = replace(run_of((Status.NO_CHANGE_SEEN,) * 6), convergence_skill=learned, definitions={"task_given": True})
    said = {gap: " ".join(messages.details(replace(v, gap=gap))) for gap in ("before", "after", "not_separable")}
    assert "comes before" in said["before"] and "comes after" in said["after"]
    assert "comes before that" not in said["not_separable"] and "comes after that" not in said["not_separable"]


def test_deciding_findings_are_sorted_by_importance():
    v = run_of((Status.NO_CHANGE_SEEN,) * 2, findings=(Finding("overfit"), Finding("note"), Finding("no_control")))
    assert [f.code for f in messages.deciding(v)] == ["no_control", "overfit"]


def test_numbers_for_people():
    assert messages.points(0.2389) == "23.9" and messages.points(-0.0) == "0.0" and messages.points(None) == "unknown"
    assert messages.both(None) == "unmeasured"
    assert messages.both(estimate(0.1)) == "10.0 points [these prompts 10.0, 10.0; like these 9.0, 11.0]"
