"""A study as it is printed: what stands in it, hostile text, what cannot be read."""

from dataclasses import replace

import pytest

from report.audits import EVIL, EVIL_TERMINAL, inert, printed
from truing.report.study import frozen_line, print_study
from truing.stats.meta import Mean, equivalence
from truing.stats.studies import UNKNOWN, Cell, Definition, Outcome, Study, StudyCase, definition_row
from truing.stats.trend import trend
from truing.types.cases import Case, Frozen
from truing.types.traits import Rule
from truing.types.verdicts import Estimate


def study(**fields):
    e = Estimate(0.05, 0.01, 0.09, 0.02, 0.08, 900, 3)
    share = Estimate(2 / 3, 0.09, 0.99, 0.09, 0.99, 3, 3, {"unknown": 1})
    case = Case("model-8B", "data", "recipe", 1, 8e9, "", "a")
    cell = Cell(*case.cell, 8e9, ("a", "b", "c"), (9, 9, 9), share, e, equivalence(Mean(0.05, 0.01, 2), 0.03),
                tau=0.012, i2=0.4, consistent="above", p=0.0004, p_holm=0.0008, warnings=("a warning",))  # fmt: skip
    one = replace(cell, model="model-70B", parameters=70e9, runs=("d",), consistent="this_run", p=None, p_holm=None,
                  tau=None, equivalence=equivalence(None, 0.03, reason="no interval"), warnings=())  # fmt: skip
    outcomes = [Outcome("yes", "yes", "c", 0.9), Outcome("yes", "no", reason="none certified"), UNKNOWN]
    cases = [case, replace(case, seed=2), replace(case, seed=3)]
    found = trend(["a", "b", "c", "d", "e", "f"], [1e9, 2e9, 3e9, 4e9, 5e9, None], [0.1, 0.0, 0.2, 0.1, 0.4, 0.1])
    theirs = Definition("theirs", Rule(cut=20), kind="estimated")
    made = Study(
        cases=tuple(StudyCase(c, "found", "c", None, ("a note",)) for c in cases),
        cells=(cell, one),
        definitions=tuple(definition_row(d, cases, outcomes) for d in (Definition("ours", converged_at=0.9), theirs)),
        trends={"data": found},
        at="last",
        delta=0.03,
        rule=Rule(),
        judge="simulated:",
        status="not frozen",
        warnings=("seeds unknown",),
    )
    return replace(made, **fields)


def first(rows, **fields):
    """Rows whose first has other fields."""
    return (replace(rows[0], **fields), *rows[1:])


def shown(made, width=150, **options):
    return printed(lambda console: print_study(made, console), width, **options)


def test_what_stands_in_it():
    text = " ".join(shown(study(), 400).split())
    for words in (
        "3 cases, 2 models, 2 pairs of model and recipe; judge simulated",
        "Not frozen",
        "model-8B (8B)",
        "5.0 [2.0, 8.0; prompts like these 1.0, 9.0]",
        "67 % of 3 (+1 unknown) [9, 99]",
        "consistent",
        "<0.001",
        "no, different; 90 % [2.1, 7.9]",
        "this run only",
        "undetermined (no interval)",
        "Holm-adjusted over 1 pair of model and recipe",
        "standard deviation between seeds, points: model-8B 1.2",
        "ours (lo 1, hi 3, task >= 90 %)",
        "theirs (over 1, cut 20)",
        "2/3",
        "not avoided or unknown: none certified (2); no verdict on labelled answers (2)",
        "5 models, log10 of parameters: Pearson",
        "all orders",
        "Pearson without each: a",
        "left out: f (no parameter count)",
        "! a warning",
        "! seeds unknown",
    ):
        assert words in text, words


def test_what_does_not_survive_several_models_says_so():
    made, same = study(), equivalence(Mean(0.0, 0.012, 9), 0.03)
    assert same.status == "equivalent" and 3 * same.p > 0.05
    one = replace(made.cells[1], equivalence=replace(same, p_adjusted=3 * same.p))
    made = replace(made, cells=(replace(made.cells[0], p=0.02, p_holm=0.04), one))
    text = " ".join(shown(made, 400).split())
    assert "consistent, not after Holm" in text and "yes, equivalent, not after Holm" in text


def test_a_freeze_is_said_in_every_case():
    assert "Frozen: rule, prompts" in shown(study(status="frozen"))
    changed = Frozen.of("ab", "then", ["zone: hi: 0.03 before, 0.05 now"])
    made = study(status="exploratory", cases=first(study().cases, frozen=changed))
    assert "Exploratory, changed after the freeze: model-8B, data, recipe, seed 1: zone: hi" in shown(made, 300)


def test_the_line_for_other_tables():
    assert frozen_line({}) is None and frozen_line({"frozen": None}) is None
    kept = {"lock": "ab" * 32, "made": "2026-01-02T03:04:05+00:00", "status": "frozen", "changed": []}
    assert frozen_line({"frozen": kept}) == (
        "Frozen before the first answer: lock abababababab, made 2026-01-02T03:04:05+00:00."
    )
    line = frozen_line({"frozen": {**kept, "status": "exploratory", "changed": [f"zone{EVIL_TERMINAL}"]}})
    assert line.startswith("Exploratory: changed after the freeze") and "\x1b" not in line


@pytest.mark.parametrize("ascii_only", [False, True])
def test_hostile_text_is_shown_harmless(ascii_only):
    evil = EVIL + EVIL_TERMINAL
    made = study(warnings=(evil,), judge=evil, at=evil, trends={evil: study().trends["data"]})
    case, row = made.cases[0], made.definitions[0]
    last = replace(row.outcomes[2], reason=evil)
    row = replace(row, definition=replace(row.definition, name=evil), outcomes=(*row.outcomes[:2], last))
    made = replace(
        made,
        cells=first(made.cells, model=evil, data=evil, recipe=evil, warnings=(evil,)),
        cases=first(made.cases, case=replace(case.case, model=evil), notes=(evil,)),
        definitions=(row, *made.definitions[1:]),
    )
    assert inert(shown(made, 100, ascii_only=ascii_only))
