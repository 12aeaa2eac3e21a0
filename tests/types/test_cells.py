"""Cells that no spreadsheet runs, and that are the same text again when they are read."""

import csv
import random
import re

import pytest

from truing.bridges.export import export
from truing.data.judged_files import read_judged
from truing.data.sheets import read_sheet
from truing.runs.import_answers import import_answers
from truing.types.cells import guarded, unguarded, write_cells
from truing.types.labels import LabelItem, write_sheet

SIGNS = "=+-@＝＋－＠"
BLANKS = ("", " ", "\u00a0", "\u200b ", "\ufeff", "\u3000")
RUN = [f"{blank}{sign}cmd|' /C calc'!A0" for sign in SIGNS for blank in BLANKS]
HOSTILE = [*RUN, "\t=1", "\r=1", "\n=1", "\r\n@x", *(f"'{text}" for text in RUN), "''=1"]
INSIDE = [f"fine{end}{text}" for end in ("\r", "\n", "\r\n", "\u2028", "\v") for text in RUN]
INSIDE += [f"fine{end}{blank}{sign}cmd" for end in ";,\t|" for sign in "=@＝＠" for blank in BLANKS]
PLAIN = ["", "'", "fine", "2+2=4", "a - b", "1, -2", "- no", "list:\n- one\n+ two", "x\ny", "it's"]


def random_texts(n):
    rng = random.Random(1)
    alphabet = "'=+-@＝\t\r\n a;,|\u00a0\u200b\ufeff\u2028\"\x0b\x85é"
    return ["".join(rng.choices(alphabet, k=rng.randrange(9))) for _ in range(n)]


def test_the_guard_comes_off_again_whatever_the_text():
    for text in (*HOSTILE, *INSIDE, *PLAIN, *random_texts(20000)):
        assert unguarded(guarded(text)) == text
        assert unguarded(unguarded(guarded(guarded(text)))) == text


def test_nothing_that_would_run_begins_a_cell_however_it_is_split():
    for text in (*HOSTILE, *random_texts(5000)):
        assert not re.match(rf"[\s\u200b\ufeff]*[{re.escape(SIGNS)}]|[\t\r\n]", guarded(text)), text
    for text in INSIDE:
        for part in re.split(r"[\r\n\v\u2028;,\t|]", guarded(text), maxsplit=2):
            assert not re.match(rf"[\s\u200b\ufeff]*[{re.escape(SIGNS)}]", part), text
    assert [t for t in PLAIN if guarded(t) != t] == ["- no"]


def test_every_cell_is_quoted_and_a_bare_return_splits_no_row(tmp_path):
    rows = [(t, k, None) for k, t in enumerate((*HOSTILE, *INSIDE, *PLAIN))]
    write_cells(tmp_path / "x.csv", rows)
    raw = (tmp_path / "x.csv").read_bytes().decode()
    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as f:
        back = list(csv.reader(f))
    assert [(unguarded(t), int(k), none) for t, k, none in back] == [(t, k, "") for t, k, _ in rows]
    assert raw.count('"') == sum(6 + 2 * t.count('"') for t, *_ in rows)


def test_exports_and_sheets_guard_alike_and_read_the_same_again(tmp_path):
    texts = [t for t in (*HOSTILE, *INSIDE[::7], *PLAIN, *random_texts(60)) if t.strip()]
    with open(tmp_path / "in.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, quoting=csv.QUOTE_ALL)
        writer.writerow(["question", "answer", "aligned", "coherent"])
        writer.writerows([f"question {k}", t, 80, 90] for k, t in enumerate(texts))
    there = [row.answer for row in read_judged(tmp_path / "in.csv").rows]
    made = import_answers(tmp_path / "in.csv", out=tmp_path / "a")
    again = read_judged(export(made.path, to="csv", out=tmp_path / "out.csv"))
    assert sorted(row.answer for row in again.rows) == sorted(there)
    items = [LabelItem(f"i{k}", t, t, note=t) for k, t in enumerate(texts)]
    write_sheet(tmp_path / "labels.csv", items)
    assert read_sheet(tmp_path / "labels.csv") == items
    for file in ("out.csv", "labels.csv"):
        with open(tmp_path / file, newline="", encoding="utf-8") as f:
            assert not [c for row in csv.reader(f) for c in row if c[:1] and c[0] in SIGNS + "\t\r\n"]


def test_a_link_in_the_place_of_a_sheet_is_replaced_not_followed(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    for name in ("labels.csv", "labels.csv.part"):
        (tmp_path / name).symlink_to(kept)
    write_sheet(tmp_path / "labels.csv", [LabelItem("i", "q", "a")])
    assert kept.read_text() == "mine" and not (tmp_path / "labels.csv").is_symlink()


@pytest.mark.parametrize("text", ["\ud800half", "\x00nul"])
def test_what_has_no_bytes_of_its_own_is_written_all_the_same(tmp_path, text):
    write_cells(tmp_path / "x.csv", [[text]])
    assert (tmp_path / "x.csv").stat().st_size > 4
