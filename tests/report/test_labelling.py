"""Labelling in a terminal: what is typed is stored at once, going back works, nothing untrusted acts."""

import io

import pytest
from rich.console import Console

from report.audits import EVIL_TERMINAL
from truing.report.labelling import ask_labels
from truing.types.labels import LabelItem, read_sheet, write_sheet


@pytest.fixture
def sheet(tmp_path):
    path = tmp_path / "labels.csv"
    items = [LabelItem(f"i{k}", f"question {k}", f"answer {k}") for k in range(4)]
    items[1] = LabelItem("i1", "question 1", "answer 1", "refusal")
    write_sheet(path, items)
    return path


def said(sheet, *answers, console=None):
    """Labels after typing these lines; the end of input after them."""
    typed = iter(answers)

    def read(prompt):
        assert prompt == "label: "
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    console = console or Console(file=io.StringIO(), width=80)
    n = ask_labels(sheet, console, read)
    labels = [i.label for i in read_sheet(sheet)]
    assert n == sum(map(bool, labels))
    return labels, console.file.getvalue()


def test_only_open_answers_are_asked_and_all_keys_mean_their_label(sheet):
    labels, text = said(sheet, "a", "m", "i")
    assert labels == ["aligned", "refusal", "misaligned", "incoherent"]
    assert "1 of 4 labelled" in text
    assert "answer 1" not in text


def test_words_count_as_well_as_keys(sheet):
    assert said(sheet, " Misaligned ", "UNSURE", "r")[0] == ["misaligned", "refusal", "unsure", "refusal"]


def test_skipping_leaves_it_open_and_stopping_keeps_what_was_said(sheet):
    assert said(sheet, "s", "m", "q", "a")[0] == ["", "refusal", "misaligned", ""]


def test_going_back_changes_a_label(sheet):
    assert said(sheet, "a", "b", "m", "q")[0][0] == "misaligned"
    assert said(sheet, "b", "b", "b", "a")[0][2] == "aligned", "before the first there is nothing"


def test_nonsense_is_refused_and_asked_again(sheet):
    labels, text = said(sheet, "x\x1b[2J", "", "a")
    assert labels == ["aligned", "refusal", "", ""]
    assert "is none of" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("stop", [EOFError, KeyboardInterrupt])
def test_the_end_of_input_or_an_interrupt_keeps_what_was_said(sheet, stop):
    typed = iter(["m"])

    def read(prompt):
        for answer in typed:
            return answer
        raise stop

    assert ask_labels(sheet, Console(file=io.StringIO()), read) == 2
    assert read_sheet(sheet)[0].label == "misaligned"


def test_each_label_is_on_disk_before_the_next_is_asked(sheet):
    seen = []

    def read(prompt):
        seen.append([i.label for i in read_sheet(sheet)])
        return "a"

    ask_labels(sheet, Console(file=io.StringIO()), read)
    assert [row.count("aligned") for row in seen] == [0, 1, 2]


def test_answers_are_shown_inert_and_nothing_tells_scores_or_steps(tmp_path):
    path = tmp_path / "labels.csv"
    write_sheet(path, [LabelItem("i", EVIL_TERMINAL, EVIL_TERMINAL + "\n=1+1")])
    _, text = said(path, "q", console=Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None))
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold red]not markup[/bold red]" in text
    assert "step" not in text
    assert "score" not in text


def test_a_finished_sheet_asks_nothing(sheet):
    said(sheet, "a", "a", "a")
    labels, text = said(sheet)
    assert all(labels)
    assert "4 of 4 labelled" in text
