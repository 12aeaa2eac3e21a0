"""Agreement in a terminal: every coefficient, the confusion, both shares, labels and prediction-powered rates."""

import io

import pytest
from rich.console import Console

from report.audits import EVIL_TERMINAL
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


def shown(made, width=100):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    print_agreement(made, console)
    return console.file.getvalue()


def value_of(text, name):
    (found,) = [x for x in text.splitlines() if x.startswith(name)]
    return found.removeprefix(name).strip()


def test_every_coefficient_has_its_interval_and_meaning():
    text = shown(AGREED)
    assert "4321 answers to 120 prompts that both scored" in text
    assert value_of(text, "Krippendorff's alpha").startswith("0.71 [0.66, 0.76]")
    assert value_of(text, "Spearman").startswith("0.64 [0.59, 0.69]")
    assert "0.58 [0.53, 0.63]" in text
    assert "A: openai:cheap" in text
    assert "B: other:strong" in text


def test_the_confusion_around_the_cut_is_told_apart():
    text = shown(AGREED)
    assert value_of(text, "both under the cut") == "181"
    assert value_of(text, "only A") == "64"
    assert value_of(text, "only B") == "21"
    assert "4055" in text
    assert value_of(text, "disagreements near the cut").startswith("24 %")


def test_shares_and_their_difference_have_both_intervals():
    text = shown(AGREED)
    assert value_of(text, "under A") == "5.7 %       this set [4.7, 6.7]; prompts like these [4.7, 6.7]"
    assert value_of(text, "A minus B, paired").startswith("1.0 points  this set [0.6, 1.4]")


def test_labels_give_precision_and_recall_and_a_certificate():
    text = shown(AGREED)
    assert "openai:cheap against 62 blind labels" in text
    assert "93.0 %" in value_of(text, "precision")
    assert "81.0 %" in value_of(text, "recall")
    assert value_of(text, "only people") == "5"
    assert value_of(text, "certifies the direction").split()[0] == "yes"


def test_prediction_powered_rates_stand_by_checkpoint():
    text = shown(AGREED)
    assert "12.3 %" in value_of(text, "checkpoint-60")
    assert "96 answers drawn" in text
    assert "under other:strong, from a random share of answers; openai:cheap judged all" in " ".join(text.split())


def test_notes_come_once():
    assert shown(AGREED).count("! kappa resampled") == 1


def test_what_could_not_be_computed_is_a_dash():
    bare = {**PAIR, "alpha": est(None), "near_cut": None, "difference": est(None)}
    text = shown({**AGREED, "pair": bare, "people": [], "powered": []})
    assert value_of(text, "Krippendorff's alpha").startswith("–")
    assert value_of(text, "disagreements near the cut").startswith("–")
    assert "labels" not in text


def test_one_judge_with_labels_has_no_pair():
    text = shown({**AGREED, "judges": ["openai:cheap"], "pair": None, "powered": []})
    assert "precision" in text
    assert "Krippendorff" not in text


@pytest.mark.parametrize("width", [40, 80])
def test_narrow_terminals_cut_nothing(width):
    text = shown(AGREED, width)
    assert all(len(x.rstrip()) <= width for x in text.splitlines())
    assert "…" not in text


def test_untrusted_names_do_nothing():
    text = shown({**AGREED, "judges": [EVIL_TERMINAL, EVIL_TERMINAL], "notes": [EVIL_TERMINAL]})
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold red]" in text


def test_ascii_terminals_are_served():
    console = Console(width=100, file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), color_system=None)
    print_agreement({**AGREED, "judges": ["ä", "b"], "pair": {**PAIR, "near_cut": None}}, console)


def test_nothing_and_nonsense():
    assert agreement_rows(None) == []
    with pytest.raises(NotAnAudit, match="truing agree"):
        agreement_rows({"judges": ["a", "b"], "pair": {"n": 3}, "people": [], "powered": []})
