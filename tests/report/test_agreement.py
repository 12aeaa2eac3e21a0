"""Agreement in a terminal: every coefficient, the confusion, both shares, labels and prediction-powered rates."""

import re

import pytest

from report.audits import EVIL_TERMINAL, inert, printed
from truing.errors import NotAnAudit
from truing.report.agreement import agreement_rows, print_agreement
from truing.types.records import to_plain
from truing.types.verdicts import Estimate


def est(value, half=0.05):
    ends = (None, None) if value is None else (value - half, value + half)
    return to_plain(Estimate(value, *ends, *ends, 400, 8))


PAIR = {
    "n": 4321,
    "prompts": 120,
    "alpha": est(0.71),
    "spearman": est(0.64),
    "kappa": est(0.58),
    "table": ((181, 64), (21, 4055)),
    "near_cut": 0.24,
    "rate_a": est(0.0567, 0.01),
    "rate_b": est(0.0467, 0.01),
    "difference": est(0.01, 0.004),
    "notes": (),
}
PERSON = {
    "judge": "openai:cheap",
    "labelled": 62,
    "agreement": {"precision": est(0.93), "recall": est(0.81), "table": ((20, 2), (5, 35))},
    "kappa": est(0.77),
    "certifies": True,
    "why": "62 blind labels, kappa 0.77",
}
POWERED = {"label": "checkpoint-60", "cheap": "openai:cheap", "strong": "other:strong", "em": est(0.123), "sampled": 96}
AGREED = {
    "judges": ["openai:cheap", "other:strong"],
    "pair": PAIR,
    "people": [PERSON],
    "powered": [POWERED],
    "notes": ["kappa resampled 1,900 of 2,000 times", "kappa resampled 1,900 of 2,000 times"],
}


def shown(made, width=100, **options):
    return printed(lambda console: print_agreement(made, console), width, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Krippendorff's alpha", "0.71 [0.66, 0.76]"),
        ("Spearman", "0.64 [0.59, 0.69]"),
        ("both under the cut", "181"),
        ("only A", "64"),
        ("only B", "21"),
        ("disagreements near the cut", "24 %"),
        ("under A", "5.7 %       this set [4.7, 6.7]; prompts like these [4.7, 6.7]"),
        ("A minus B, paired", "1.0 points  this set [0.6, 1.4]"),
        ("precision", "93.0 %"),
        ("recall", "81.0 %"),
        ("only people", "5"),
        ("certifies the direction", "yes"),
        ("checkpoint-60", "12.3 %"),
    ],
)
def test_every_number_stands_with_its_interval(name, value):
    (found,) = [x for x in shown(AGREED).splitlines() if x.startswith(name)]
    assert found.removeprefix(name).removeprefix(", of all answers").strip().startswith(value)


def test_it_is_said_of_what_and_by_whom():
    text = " ".join(shown(AGREED).split())
    for words in ("4321 answers to 120 prompts that both scored", "0.58 [0.53, 0.63]", "A: openai:cheap",
                  "B: other:strong", "4055", "openai:cheap against 62 blind labels", "96 answers drawn",
                  "under other:strong, from a random share of answers; openai:cheap judged all"):  # fmt: skip
        assert words in text
    assert text.count("! kappa resampled") == 1


def test_what_could_not_be_computed_is_a_dash_and_what_is_not_there_not_said():
    bare = {**PAIR, "alpha": est(None), "near_cut": None, "difference": est(None)}
    text = shown({**AGREED, "pair": bare, "people": [], "powered": []})
    for name in ("Krippendorff's alpha", "disagreements near the cut", "A minus B, paired"):
        assert re.search(rf"^{name} +–", text, re.M)
    assert "labels" not in text
    text = shown({**AGREED, "judges": ["openai:cheap"], "pair": None, "powered": []})
    assert "precision" in text and "Krippendorff" not in text


@pytest.mark.parametrize("width", [40, 80])
def test_narrow_terminals_cut_nothing(width):
    text = shown(AGREED, width)
    assert all(len(x.rstrip()) <= width for x in text.splitlines())
    assert "…" not in text


def test_untrusted_names_do_nothing_and_ascii_terminals_are_served():
    assert inert(shown({**AGREED, "judges": [EVIL_TERMINAL, EVIL_TERMINAL], "notes": [EVIL_TERMINAL]}))
    shown({**AGREED, "judges": ["ä", "b"], "pair": {**PAIR, "near_cut": None}}, ascii_only=True)


def test_nothing_and_nonsense():
    assert agreement_rows(None) == []
    with pytest.raises(NotAnAudit, match="truing agree"):
        agreement_rows({"judges": ["a", "b"], "pair": {"n": 3}, "people": [], "powered": []})
