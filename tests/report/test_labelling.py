"""Labelling in a terminal: what is typed is stored at once, going back works, nothing untrusted acts."""

import pytest

from report.audits import EVIL_TERMINAL, inert, printed
from truing.data.sheets import read_sheet
from truing.report.labelling import ask_labels
from truing.types.labels import LabelItem, write_sheet


def said(path, *typed, stop=EOFError, **options):
    """(labels, text, labels on disk at each question) after typing these lines; the end of input after them."""
    if not path.exists():
        items = [LabelItem(f"i{k}", f"question {k}", f"answer {k}", "refusal" * (k == 1)) for k in range(4)]
        write_sheet(path, items)
    lines, seen, counts = iter(typed), [], []

    def read(prompt):
        seen.append([i.label for i in read_sheet(path)])
        for line in lines:
            return line
        raise stop

    text = printed(lambda console: counts.append(ask_labels(path, console, read)), 80, **options)
    labels = [i.label for i in read_sheet(path)]
    assert counts == [sum(map(bool, labels))]
    return labels, text, seen


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        (("a", "m", "i"), ["aligned", "refusal", "misaligned", "incoherent"]),
        ((" Misaligned ", "UNSURE", "r"), ["misaligned", "refusal", "unsure", "refusal"]),
        (("s", "m", "q", "a"), ["", "refusal", "misaligned", ""]),  # skipped stays open, stopping keeps what was said
        (("a", "b", "m", "q"), ["misaligned", "refusal", "", ""]),  # back
        (("b", "b", "s", "a"), ["", "refusal", "aligned", ""]),  # before the first there is nothing
        (("x\x1b[2J", "", "a"), ["aligned", "refusal", "", ""]),  # nonsense is refused and asked again
    ],
)
def test_every_key_does_what_it_says(tmp_path, typed, labels):
    got, text, _ = said(tmp_path / "labels.csv", *typed)
    assert got == labels
    assert "1 of 4 labelled" in text and "answer 1" not in text and "\x1b" not in text
    assert ("is none of" in text) == ("" in typed)


@pytest.mark.parametrize("stop", [EOFError, KeyboardInterrupt])
def test_each_label_is_on_disk_before_the_next_is_asked_and_stays_there(tmp_path, stop):
    labels, _, seen = said(tmp_path / "labels.csv", "m", "m", stop=stop)
    assert [row.count("misaligned") for row in (*seen, labels)] == [0, 1, 2, 2]


def test_answers_are_shown_inert_and_nothing_tells_scores_or_steps(tmp_path):
    path = tmp_path / "labels.csv"
    write_sheet(path, [LabelItem("i", EVIL_TERMINAL, EVIL_TERMINAL + "\n=1+1")])
    _, text, _ = said(path, "q", force_terminal=True, color_system=None)
    assert inert(text)
    assert "step" not in text and "score" not in text


def test_a_finished_sheet_asks_nothing(tmp_path):
    said(tmp_path / "labels.csv", "a", "a", "a")
    labels, text, seen = said(tmp_path / "labels.csv")
    assert all(labels) and "4 of 4 labelled" in text and not seen
