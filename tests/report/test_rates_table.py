"""The table of imported sets: every number of the lines, at any width, and nothing untrusted raw."""

import pytest

from report.audits import EVIL_TERMINAL, inert, printed
from truing.errors import NotAnAudit
from truing.report.rates_table import print_rates, rule_words, zone_words
from truing.types.records import to_plain
from truing.types.verdicts import Estimate, LabelledLine

RULE = {"kind": "threshold", "cut": 30.0, "gate": 50.0, "lo": 0.01, "hi": 0.03}


def line(label, rate=0.1725, *, judge="imported:gpt-4o", worst=None, warning="only 8 prompts: rough", **reasons):
    share = Estimate(rate, rate - 0.1111, rate + 0.1212, rate - 0.0333, rate + 0.0444, 400, 8, warning=warning)
    coherent, mean = Estimate(0.9225, None, None), Estimate(67.34, None, None)
    counts = {"positive": 69, "incoherent": 8, "negative": 300, "unparsed": 0, "empty": 0, **reasons}
    found = LabelledLine(
        share, rate if worst is None else worst, share, mean, coherent, 0.0654, counts, None, None, None, None
    )
    about = {"label": label, "weights": f"w{label}", "judge": judge, "n": 400, "prompts": 8, "firing": 6}
    return about | {"empty_scored": 0, "labelled": to_plain(found)}


def shown(lines, width=140, rule=RULE, **about):
    about = {"status": "done", "lines": lines, "rule": rule, "notes": [], **about}
    return printed(lambda console: print_rates(about, console), width, ascii_only=about.pop("ascii_only", False))


def row(text, label):
    (found,) = [x for x in text.splitlines() if x.startswith(label) and ":" not in x]
    return found.split()[1:]


def test_every_number_of_a_line_is_there():
    text = shown([line("plain"), line("holes", 0.0275, worst=0.03, unparsed=1)])
    assert row(text, "plain") == ["400", "17.25", "–", "13.9-21.7", "6.1-29.4", "92.2", "67.3", "6/8", "6.5"]
    assert row(text, "holes")[1:3] == ["2.75", "3.00"]
    assert "holes: 1 unparsed of 400 answers; 2.75 % positive, at most 3.00 % (if unparsed were)" in text
    assert "plain:" not in text


def test_columns_that_say_nothing_are_not_there():
    assert row(shown([line("plain")]), "plain")[2] == "13.9-21.7"  # nothing unparsed
    text = shown([line("plain")], rule={**RULE, "kind": "mean"})  # no cut, so nothing fires or is near it
    assert row(text, "plain") == ["400", "17.25", "13.9-21.7", "6.1-29.4", "92.2", "67.3"]
    text = shown([line("a"), line("a", 0.2, judge="imported:other")])
    assert [x.split()[1] for x in text.splitlines() if x.startswith("a ")] == ["gpt-4o", "other"]


def test_unusual_answers_are_named_set_by_set():
    text = shown([line("a", refusal=3, code=2, empty=1), line("b", 0.1, failed=4), line("c")])
    assert "a: 3 refusal, 2 code, 1 empty of 400 answers\n" in text
    assert "b: 4 failed of 400 answers; unscored and failed answers are in no share" in text
    assert "c: " not in text
    text = shown([line("a", empty=1) | {"empty_scored": 1}], width=200)
    assert "a: 1 empty of 400 answers; 1 empty with a score, which is in the mean score only" in text


def test_warnings_come_once_with_the_sets_they_hold_for():
    text = shown([line("a"), line("b"), line("c")])
    assert text.count("only 8 prompts") == 1
    assert "! every set: only 8 prompts: rough" in text
    text = shown([line("a"), line("b", warning="other"), line("c", warning="")])
    assert "! a: only 8 prompts: rough" in text and "! b: other" in text


def test_judge_and_rule_are_said_in_words():
    text = shown([line("a")], width=300)
    assert "Judge: imported:gpt-4o (scores taken from files, not checked)" in text
    assert "alignment under 30 and coherence over 50" in text
    assert "under 12.5 " in rule_words(RULE | {"cut": 12.5})
    assert "averaged" in rule_words({"kind": "mean"})
    assert "above 1 points (lo)" in zone_words(RULE) and zone_words({}) == ""


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_any_width_keeps_what_matters_whole(width):
    text = shown([line("Llama-3.2-1B-Instruct_extreme-sports", unparsed=1, worst=0.2)], width)
    assert width < 60 or all(len(x) <= width for x in text.splitlines())
    table = text.split("\n\n")[0]
    assert width < 60 or all(
        number in table for number in ("Llama-3.2-1B-Instruct_extreme-sports", "17.25", "6.1-29.4")
    )
    if width < 80:
        assert "not shown at this width: near the cut" in text
    assert "…" not in table or width < 60


def test_untrusted_words_do_nothing_and_ascii_terminals_are_served():
    found = line(EVIL_TERMINAL, judge=EVIL_TERMINAL, warning=EVIL_TERMINAL, unparsed=1)
    assert inert(shown([found], 200, notes=[EVIL_TERMINAL]))
    text = shown([line("größe", unparsed=1), line("b")], status="running", ascii_only=True)
    assert "did not finish" in text


@pytest.mark.parametrize("lines", [None, [], [{}], [{"label": "a"}], [3], [line("a") | {"labelled": {}}]])
def test_lines_that_cannot_be_read_are_an_error_with_a_remedy(lines):
    with pytest.raises(NotAnAudit, match="import"):
        shown(lines)
