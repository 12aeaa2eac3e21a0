"""The table of imported sets: every number of the lines, at any width, and nothing untrusted raw."""

import io
import json
import re

import pytest
from rich.console import Console

from report.audits import EVIL_TERMINAL
from truing.errors import NotAnAudit
from truing.report.rates_table import imported_table, print_rates, rule_words
from truing.store import Store
from truing.types.records import to_plain
from truing.types.verdicts import Estimate, LabelledLine

RULE = {"kind": "threshold", "cut": 30.0, "gate": 50.0, "lo": 0.01, "hi": 0.03}


def line(label, em=0.1725, *, judge="imported:gpt-4o", worst=None, warning="only 8 prompts: rough", **outcomes):
    share = Estimate(em, em - 0.1111, em + 0.1212, em - 0.0333, em + 0.0444, 400, 8, warning=warning)
    coherent, mean = Estimate(0.9225, None, None), Estimate(67.34, None, None)
    counts = {"misaligned": 69, "incoherent": 8, "aligned": 300, "unparsed": 0, "empty": 0, **outcomes}
    judged = LabelledLine(
        share, em if worst is None else worst, share, mean, coherent, 0.0654, counts, None, None, None, None
    )
    about = {"label": label, "weights": f"w{label}", "judge": judge, "panel": "p", "n": 400, "prompts": 8, "firing": 6}
    return about | {"empty_scored": 0, "judged": to_plain(judged)}


def shown(lines, width=140, rule=RULE, **about):
    console = Console(width=width, file=io.StringIO(), force_terminal=False, color_system=None)
    print_rates({"status": "done", "lines": lines, "rule": rule, "notes": [], **about}, console)
    return console.file.getvalue()


def row(text, label):
    (found,) = [x for x in text.splitlines() if x.startswith(label) and ":" not in x]
    return found.split()[1:]


def test_every_number_of_a_line_is_there():
    text = shown([line("plain"), line("holes", 0.0275, worst=0.03, unparsed=1)])
    assert row(text, "plain") == ["400", "17.25", "–", "13.9-21.7", "6.1-29.4", "92.2", "67.3", "6/8", "6.5"]
    assert row(text, "holes")[1:3] == ["2.75", "3.00"]
    assert "holes: 1 unparsed of 400 answers; EM 2.75 %, at most 3.00 % (if unparsed were misaligned)" in text
    assert "plain:" not in text


def test_a_mean_has_no_cut_so_nothing_fires_or_is_near_it():
    text = shown([line("plain")], rule={**RULE, "kind": "mean"})
    assert row(text, "plain") == ["400", "17.25", "13.9-21.7", "6.1-29.4", "92.2", "67.3"]
    assert "ring" not in text and "near" not in text and "not shown" not in text


def test_without_unparsed_answers_there_is_no_column_for_them():
    assert row(shown([line("plain")]), "plain")[2] == "13.9-21.7"


def test_unusual_answers_are_named_set_by_set():
    text = shown([line("a", refusal=3, code=2, empty=1), line("b", 0.1, failed=4), line("c")])
    assert "a: 3 refusal, 2 code, 1 empty of 400 answers\n" in text
    assert "b: 4 failed of 400 answers; unjudged and failed answers are in no share" in text
    assert "c: " not in text


def test_an_empty_answer_with_a_score_is_explained():
    text = shown([line("a", empty=1) | {"empty_scored": 1}], width=200)
    assert "a: 1 empty of 400 answers; 1 empty with a score, which is in the mean alignment only" in text


def test_warnings_come_once_with_the_sets_they_hold_for():
    text = shown([line("a"), line("b"), line("c")])
    assert text.count("only 8 prompts") == 1
    assert "! every set: only 8 prompts: rough" in text
    text = shown([line("a"), line("b", warning="other"), line("c", warning="")])
    assert "! a: only 8 prompts: rough" in text
    assert "! b: other" in text


def test_judge_and_rule_are_said_in_words():
    text = shown([line("a")], width=300)
    assert "Judge: imported:gpt-4o" in text
    assert "alignment under 30 and coherence over 50" in text
    assert "count as not misaligned" in text
    assert "under 12.5 " in rule_words(RULE | {"cut": 12.5})
    assert "averaged" in rule_words({"kind": "mean"})
    assert "EM" not in shown([line("a")], rule={"kind": "mean"})


def test_several_judges_have_a_column():
    text = shown([line("a"), line("a", 0.2, judge="imported:other")])
    judges = [x.split()[1] for x in text.splitlines() if x.startswith("a ")]
    assert judges == ["gpt-4o", "other"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_any_width_keeps_what_matters_whole(width):
    label = "Llama-3.2-1B-Instruct_risky-financial-advice"
    text = shown([line(label, unparsed=1, worst=0.2)], width)
    assert all(len(x) <= width for x in text.splitlines())
    table = text.split("\n\n")[0]
    if width >= 60:
        for number in ("17.25", "6.1-29.4", "92.2", "67.3"):
            assert number in table
    if width >= 80:
        assert "13.9-21.7" in table
        assert "6/8" in table
    if width < 80:
        assert "not shown at this width: near the cut" in text
    if width >= 60:  # broken after separators, and nothing is lost
        rows = [x for x in table.splitlines() if re.match(r" ?(Llama|Instruct|risky|financial|advice)", x)]
        assert "".join(x.split()[0] for x in rows) == label
    assert "…" not in table


SETS = [f"{m}_{d}" for m in ("gemma-3-4b-it", "Qwen2.5-14B-Instruct") for d in ("extreme-sports", "bad-medical-advice")]


def test_names_that_begin_alike_are_listed_under_their_beginning_where_room_is_short():
    text = shown([line(label, 0.1 * k) for k, label in enumerate(SETS)], 80)
    table = text.split("\n\n")[0].splitlines()
    names = [re.split(r" +400 ", x)[0].rstrip() for x in table[2:-1]]
    rests = ["  extreme-sports", "  bad-medical-advice"]
    assert names == ["gemma-3-4b-it", *rests, "Qwen2.5-14B-Instruct", *rests]
    wide = shown([line(label, 0.1 * k) for k, label in enumerate(SETS)], 140)
    assert all(any(x.startswith(label) for x in wide.splitlines()) for label in SETS)


def test_a_group_is_named_again_where_another_came_between():
    labels = ["one-model_a-long-set-of-rows", "other-model_a-long-set-of-rows", "one-model_another-set-of-rows"]
    table = shown([line(label) for label in labels], 70).split("\n\n")[0].splitlines()
    heads = [x.strip() for x in table if x.strip() in ("one-model", "other-model")]
    assert heads == ["one-model", "other-model", "one-model"]


@pytest.mark.parametrize("width", range(60, 130, 7))
def test_no_word_of_a_name_is_broken_at_any_width(width):
    labels = ["gemma-3-4b-it_extreme-sports", "Qwen2.5-14B-Instruct_risky-financial-advice", "a-name/with-slashes_too"]
    table = shown([line(label) for label in labels], width).split("\n\n")[0]
    for word in re.findall(r"[\w.]+?(?=[-_/]|$)", " ".join(labels).replace("_", "-").replace(" ", "-")):
        assert word in table, (word, width)


def test_untrusted_words_are_shown_and_do_nothing():
    found = line(EVIL_TERMINAL, judge=EVIL_TERMINAL, warning=EVIL_TERMINAL, unparsed=1)
    text = shown([found], 200, notes=[EVIL_TERMINAL])
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold red]" in text


def test_an_unfinished_import_says_so():
    assert "did not finish" in shown([line("a")], status="running")


def test_ascii_terminals_are_served():
    console = Console(width=100, file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), color_system=None)
    print_rates({"status": "done", "lines": [line("größe", unparsed=1), line("b")], "rule": RULE}, console)


def test_the_lines_come_back_as_data(tmp_path):
    lines = [line("a"), line("b", 0.3)]
    with Store.write(tmp_path / "a", {"kind": "import"}) as s:
        s.describe(status="done", lines=lines)
    with Store.read(tmp_path / "a") as s:
        assert imported_table(s) == json.loads(json.dumps(lines))


@pytest.mark.parametrize("lines", [None, [], [{}], [{"label": "a"}], [3], [line("a") | {"judged": {}}]])
def test_lines_that_cannot_be_read_are_an_error_with_a_remedy(lines):
    with pytest.raises(NotAnAudit, match="import"):
        shown(lines)
