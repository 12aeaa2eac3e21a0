import json

import pytest

from report.audits import EVERY, EVIL_TERMINAL, est
from truing.errors import NotAnAudit
from truing.report import reading
from truing.report.details import estimate
from truing.types.records import to_plain
from truing.types.verdicts import Estimate

TWO = to_plain(EVERY["two"])


@pytest.mark.parametrize("name", EVERY)
def test_a_verdict_survives_the_way_through_json(name):
    again = reading.verdict_of({"verdict": json.loads(json.dumps(to_plain(EVERY[name])))})
    assert to_plain(again) == to_plain(EVERY[name])


def test_no_verdict_is_none_and_unknown_fields_of_a_later_version_are_ignored():
    assert reading.verdict_of({}) is None
    lines = [{**c, "smell": 3} for c in TWO["checkpoints"]]
    assert reading.verdict_of({"verdict": {**TWO, "colour": "blue", "checkpoints": lines}}) == EVERY["two"]


@pytest.mark.parametrize(
    "change",
    [{"checkpoints": None}, {"basis": "tea leaves"}, {"onset": None}, {"checkpoints": [{"label": "x"}]}],
)
def test_what_is_damaged_is_one_clear_error(change):
    with pytest.raises(NotAnAudit, match=r"audit\.json: the verdict .* run the audit again"):
        reading.verdict_of({"verdict": {**TWO, **change}})
    with pytest.raises(NotAnAudit, match="list of prompts"):
        reading.prompt_items({"prompts": {"items": [{"id": "a"}]}})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("abc\u202edef", "abc\\u202edef"),
        ("\ud800", "\\ud800"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("naïve – “ok” 漢字 👩‍👧", "naïve – “ok” 漢字 👩‍👧"),
    ],
)
def test_hidden_characters_become_visible_and_others_stay(text, shown):
    assert reading.clean(text) == shown


def test_one_line_has_no_control_characters_at_all():
    assert reading.one_line(" a\n b\t" + EVIL_TERMINAL).isprintable()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(None, 2, "–"), (0.0, 2, "0.00"), (-0.001, 2, "0.00"), (-0.006, 2, "-0.01"), (1.25, 0, "1")],
)
def test_number(value, digits, text):
    assert reading.number(value, digits) == text


def test_missing_is_a_dash_and_no_interval_has_no_bracket():
    assert reading.interval(None) == estimate(None) == reading.percent(None) == "–"
    assert reading.interval(Estimate(None, None, None)) == estimate(Estimate(None, None, None)) == "–"
    assert reading.interval(Estimate(0.3, None, None)) == "0.30"
    assert reading.interval(est(0.3, 0.1)) == "0.30 [0.20, 0.40]"
    assert estimate(Estimate(0.114, 0.064, 0.164, 0.084, 0.144)) == "11.4 [8.4, 14.4] (prompts like these [6.4, 16.4])"
    assert estimate(Estimate(0.5, 0.25, 0.75, 0.5, 0.5), 2, 1) == "0.50 (prompts like these [0.25, 0.75])"
