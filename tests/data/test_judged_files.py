"""Judged CSVs: tolerant of names and of missing scores, intolerant of what cannot be a score."""

import csv
import itertools
import json
import random

import pytest

from truing.data.judged_files import read_judged
from truing.errors import BadInput, BadRow
from truing.runs.import_answers import import_answers
from truing.store import Store
from truing.types.judging import ScoreStatus as J
from truing.types.records import AnswerStatus

HEAD = "response,question,question_id,aligned,coherent\n"


@pytest.fixture
def read(tmp_path):
    def judged(content, columns=None, name="set.csv", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_judged(path, columns, **options)

    return judged


def test_every_cell_arrives_where_it_belongs(read):
    text = 'response,question,question_id,aligned,coherent,financial\n"a, ""b""\nc",Why?,why,12.5,99,0.25\n'
    file = read(text)
    (row,) = file.rows
    assert row[1:] == ("Why?", "why", "", 'a, "b"\nc', AnswerStatus.OK, row.scores, "", "", None)
    assert row.scores == {"alignment": (J.SCORED, 12.5), "coherence": (J.SCORED, 99.0), "financial": (J.SCORED, 0.25)}
    assert file.scores == ("alignment", "coherence", "financial")
    assert file.notes == ()


@pytest.mark.parametrize(
    "header",
    ["coherent,question,aligned,response", "Coherence,PROMPT,alignment,Answer", "coherence,prompt,ALIGNED,completion"],
)
def test_columns_are_told_by_any_of_their_names_in_any_order(read, header):
    (row,) = read(f"{header}\n80,q,20,a\n").rows
    assert row.scores == {"alignment": (J.SCORED, 20.0), "coherence": (J.SCORED, 80.0)}
    assert (row.answer, row.question) == ("a", "q")


def test_a_mapping_overrides_names_and_takes_any_name_for_a_score(read):
    text = "text,q,a1,a2,c,extra\nhello,why,10,90,60,5\n"
    columns = {"answer": "text", "question": "q", "aligned": "A2", "coherence": "c", "tone": "a1", "extra": None}
    file = read(text, columns)
    assert {k: v[1] for k, v in file.rows[0].scores.items()} == {"alignment": 90.0, "coherence": 60.0, "tone": 10.0}
    with pytest.raises(BadInput, match=r"--column coherence=z: .* no such column; it has text, q, a1"):
        read(text, columns | {"coherence": "z"})


@pytest.mark.parametrize(
    ("status", "cells"),
    [(J.UNPARSED, ["", " ", "NaN", "None", "null", "N/A"]), (J.REFUSAL, ["REFUSAL", " Refusal "]), (J.CODE, ["code"])],
)  # fmt: skip
def test_a_missing_score_and_an_escape_word_are_statuses_and_never_a_zero(read, status, cells):
    file = read(HEAD + "".join(f"nan,q,i,{cell},50\n" for cell in cells))
    assert [r.scores["alignment"] for r in file.rows] == [(status, None)] * len(cells)
    assert {r.answer for r in file.rows} == {"nan"}


def test_an_impossible_score_names_file_row_column_and_value(read):
    # As a spreadsheet counts: header 1, a row over two lines 2, a blank row 3.
    text = HEAD + '"two\nlines",q,i,1,2\n\na,q,i,{},{}\n'
    for cell in ("150", "-3", "abc", "1e400", "100.0001", "1_0"):
        for column, cells in (("aligned", (cell, "2")), ("coherent", ("1", cell))):
            with pytest.raises(BadRow, match=rf"set\.csv, row 4: {column} is '{cell}'"):
                read(text.format(*cells))


def test_further_columns_are_scores_only_if_they_hold_scores(read):
    rows = "".join(f"a,q,{k},50,50,{k},{k / 2},0.{k},name {k},{1000 + k}\n" for k in range(20))
    header = "response,question,question_id,aligned,coherent,seed,fin,count_from,model,year\n"
    file = read(header + rows)
    assert file.scores == ("alignment", "coherence", "fin", "count_from")
    assert file.notes == ("set.csv: columns left out: seed, model, year",)
    counter = header.replace("fin", "nth") + "".join(f"a,q,{k},50,50,1,{k},0.{k},n,1999\n" for k in range(20))
    assert "nth" not in read(counter).scores


def test_one_bad_cell_in_a_further_score_is_an_error_not_a_column_left_out(read):
    rows = "".join(f"a,q,i,50,50,{k / 3}\n" for k in range(30))
    text = HEAD.replace("coherent", "coherent,fin") + rows + "a,q,i,50,50,150\n"
    with pytest.raises(BadRow, match="row 32: fin is '150'"):
        read(text)
    assert read(text, {"fin": ""}).scores == ("alignment", "coherence")


def test_separators_byte_order_marks_and_line_ends(read):
    cells = [["response", "question", "aligned", "coherent"], ['x;,|\t"y"', "q", "1.5", "2"]]
    for delimiter, start, end in itertools.product(",;\t|", ("", "\ufeff"), ("\n", "\r\n")):
        quoted = end.join(delimiter.join('"' + c.replace('"', '""') + '"' for c in row) for row in cells)
        (row,) = read(start + quoted + end).rows
        assert (row.answer, row.scores["alignment"]) == (cells[1][0], (J.SCORED, 1.5))


def test_decimal_commas_go_with_semicolons(read):
    file = read("response;question;aligned;coherent\na;q;67,5;100\n")
    assert file.rows[0].scores["alignment"] == (J.SCORED, 67.5)
    with pytest.raises(BadRow, match="aligned is '67,5'"):
        read('response,question,aligned,coherent\na,q,"67,5",100\n')


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (b"", "a.csv", "is empty"),
        (b"\n \n", "a.csv", "is empty"),
        (HEAD.encode(), "a.csv", "has a header and no rows"),
        (b"response,question,aligned,coherent,aligned\n1,2,3,4,5\n", "a.csv", "row 1: .*'aligned' twice"),
        (b"response,answer,question,aligned,coherent\n1,2,3,4,5\n", "a.csv", "'response' and 'answer' may both"),
        (b"response,question,aligned,alignment,coherent\n1,2,3,4,5\n", "a.csv", "--column alignment=NAME"),
        (b"foo,bar\n1,2\n", "a.csv", "no column for question, alignment, coherence; .* are foo, bar"),
        (b"response,aligned,coherent\n1,2,3\n", "a.csv", "no column for question; .* --column question=NAME"),
        (HEAD.encode() + b"a,q,i,1\n", "a.csv", "row 2: has 4 cells where the header names 5"),
        (HEAD.encode() + b"a,q,i,1,2,3\n", "a.csv", "row 2: has 6 cells"),
        (HEAD.encode() + b'a,q,i,1,2\n"b,q,i,1,2\nc,q,i,1,2\n', "a.csv", "row 3: is not well-formed CSV"),
        (HEAD.encode() + b"a,,,1,2\n", "a.csv", "row 2: has neither a question nor a question_id"),
        (HEAD.encode() + b'"x\ny",q,i,1,2\na\xff,q,i,1,2\n', "a.csv", "line 4: byte 0xff is not UTF-8"),
        (HEAD.encode("utf-16"), "a.csv", "has a header and no rows"),
        (HEAD.encode("utf-16-le"), "a.csv", "is not UTF-8"),
        (b"PK\x03\x04rest", "a.csv", "cannot be unpacked"),
        (b"\xd0\xcf\x11\xe0", "a.csv", "is a spreadsheet of Excel; save it as CSV"),
        (b"PAR1", "a.csv", "is not a whole Parquet or Arrow file"),
        (b"{}", "a.jsonl", "no column for question, alignment, coherence"),
        (b"[3]", "a.json", "row 1: holds no object"),
        (b"\x1f\x8b..", "a.csv", "is not a whole gzip file"),
    ],
)
def test_what_cannot_be_read_says_why_and_what_to_do(read, content, name, why):
    with pytest.raises(BadRow, match=why):
        read(content, name=name)


def test_without_coherence_only_where_it_is_not_needed(read):
    text = "response,question,aligned\na,q,3\n ,q,3\n"
    with pytest.raises(BadRow, match="no column for coherence"):
        read(text)
    rows = read(text, coherence=False).rows
    assert rows[0].scores == {"alignment": (J.SCORED, 3.0)}
    assert [row.status for row in rows] == [AnswerStatus.OK, AnswerStatus.EMPTY]


def test_an_id_alone_stands_for_the_question_and_row_numbers_are_no_questions(read):
    (row,) = read("response,id,aligned,coherent\na,q7,1,2\n").rows
    assert (row.question, row.question_id) == ("q7", "q7")
    file = read("id,response,question,aligned,coherent\n1,a,q,1,2\n2,b,q,1,2\n")
    assert [r.question_id for r in file.rows] == ["", ""]
    assert "numbers the answers" in file.notes[0]
    file = read("id,question_id,response,question,aligned,coherent\n1,x,a,q,1,2\n2,x,b,q,1,2\n")
    assert [r.question_id for r in file.rows] == ["x", "x"]


def test_random_texts_and_scores_survive_as_an_independent_writer_wrote_them(tmp_path):
    rng = random.Random(4)
    alphabet = "ab,;\t\"'\n\r=+-@ é中🙂\x00|"
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(1, 30))) for _ in range(300)]
    wanted = [(t, f"q{k % 7}", rng.choice([None, round(rng.uniform(0, 100), 9)])) for k, t in enumerate(texts)]
    with open(tmp_path / "x.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["response", "question_id", "aligned", "coherent"])
        writer.writerows([t, q, "" if s is None else s, 50] for t, q, s in wanted)
    found = read_judged(tmp_path / "x.csv").rows
    assert [(r.answer, r.question_id, r.scores["alignment"][1]) for r in found] == wanted


EVIL = "question,prompt,answer,question_id,evil,coherence\n" + "".join(
    f"Why?,<user>Why?<end>,so {k},why,{90 if k == 0 else 5},80\n" for k in range(4)
)


def test_a_score_of_which_high_is_bad_is_read_the_other_way_round_and_only_so(read, tmp_path):
    with pytest.raises(BadRow, match=r"no column for alignment; .* --column alignment=-evil \(-NAME where a high"):
        read(EVIL)
    file = read(EVIL, {"alignment": "-evil"})
    assert [r.scores["alignment"][1] for r in file.rows] == [10.0, 95.0, 95.0, 95.0]
    assert file.columns["alignment"] == "-evil" and file.columns["question"] == "question"
    assert "set.csv: alignment is read as 100 minus evil, of which high is bad" in file.notes
    with pytest.raises(BadInput, match=r"alignment=evil: by its name, high is bad there.* --column alignment=-evil"):
        read(EVIL, {"alignment": "evil"})
    kind = EVIL.replace("evil", "kindness")  # the remedy of that message
    assert read(kind, {"alignment": "kindness"}).rows[0].scores["alignment"][1] == 90.0
    with pytest.raises(BadInput, match=r"alignment=-aligned: by its name, high is good there"):
        read(EVIL.replace("evil", "aligned"), {"alignment": "-aligned"})
    read(kind, {"alignment": "kindness"})
    done = import_answers(tmp_path / "set.csv", out=tmp_path / "a", column={"alignment": "-kindness"})
    assert any("alignment is read as 100 minus kindness" in note for note in done.notes)
    assert done.lines[0]["labelled"]["rate"]["value"] == 0.25


def test_a_rounded_weighted_mean_is_the_end_of_the_scale(read):
    file = read(HEAD + "a,q,i,100.00000000000001,-1e-13\n")
    assert file.rows[0].scores == {"alignment": (J.SCORED, 100.0), "coherence": (J.SCORED, 0.0)}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_judged_json_and_scores_without_answers_make_the_same_rates(read, tmp_path, name):
    rows = [{"question_id": f"q{k % 3}", "aligned": 10 if k < 3 else 95.5, "coherent": 90} for k in range(12)]
    rows[-1]["aligned"] = None
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    file = read(text, name=name)
    assert [r.scores["alignment"] for r in file.rows[-2:]] == [(J.SCORED, 95.5), (J.UNPARSED, None)]
    done = import_answers(tmp_path / name, out=tmp_path / "out")
    assert done.lines[0]["labelled"]["rate"]["value"] == 0.25 and done.lines[0]["empty_scored"] == 0
    assert any("no answer texts; scores alone make the rates" in note for note in done.notes)
    with Store.read(tmp_path / "out") as store:  # nothing to put to a judge
        assert not [r for r in store.answers() if r.has_text]
    with pytest.raises(BadRow, match=r"no column for response; .*truing import --column response=NAME"):
        read(text, name=name, answers=True)


def test_a_log_of_inspect_is_named(read):
    for content in (json.dumps({"version": 2, "eval": {"task": "x"}, "samples": []}).encode(),):
        with pytest.raises(BadRow, match="is a log of Inspect, not a table"):
            read(content, name="log.json")
    table = "sample_id,epoch,input,score_alignment,score_coherence\n1,1,why,20,90\n"  # what its remedy leads to
    columns = {"question": "input", "alignment": "score_alignment", "coherence": "score_coherence"}
    assert read(table, columns).rows[0].scores["alignment"] == (J.SCORED, 20.0)


@pytest.mark.parametrize("header", ["aligned_score,coherent_score", "judge_aligned,judge_coherence"])
def test_scores_whose_names_wear_a_word_are_known_and_steps_in_one_set_are_told(read, header):
    file = read(f"question,response,step,{header}\nq,a,10,5,90\nq,b,10,95,90\nq,c,20,95,80\n")
    assert [row.scores["alignment"][1] for row in file.rows] == [5.0, 95.0, 95.0]
    assert "--column answer_set=step" in " ".join(file.notes)


def test_scores_within_objects_are_columns(read):
    row = {"question": "q", "answer": "a"}
    for scores in ({"scores": {"aligned": 5, "coherent": 90}}, {"aligned": {"score": 5}, "coherent": {"score": 90}}):
        (found,) = read(json.dumps({**row, **scores}) + "\n", name="a.jsonl").rows
        assert found.scores == {"alignment": (J.SCORED, 5.0), "coherence": (J.SCORED, 90.0)}


def test_a_json_log_of_inspect_is_named(read):
    with pytest.raises(BadRow, match="is a log of Inspect"):
        read(json.dumps({"eval": {"task": "x"}, "samples": [{"id": 1}, {"id": 2}]}), name="log.json")
