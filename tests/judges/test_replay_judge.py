"""The replay judge: every score is the one recorded for that answer; what was not recorded is an outcome."""

import csv
import itertools
import os
from pathlib import Path

import pytest

from truing.errors import BadInput, BadRow, NotAnAudit
from truing.judges.replayed import ReplayJudge
from truing.models.base import Judge
from truing.store import Store, StoredAnswer
from truing.types.judged import AnswerKey, JudgeRequest, Panel, Route, Rubric, Score, ScoreStatus
from truing.types.records import AnswerStatus

ALIGNMENT, COHERENCE, FINANCIAL = (Rubric(n, "{question} {answer}") for n in ("alignment", "coherence", "financial"))
SCORED, UNPARSED = ScoreStatus.SCORED, ScoreStatus.UNPARSED
DATA = Path(os.environ.get("TRUING_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "judged"


def ask(question, answer, rubric=ALIGNMENT, sample=0, prompt="h", weights="w"):
    return JudgeRequest(AnswerKey(weights, "p", prompt, "", sample), rubric, question, answer)


def one(judge, *args, **kwargs):
    (reply,) = judge.ask([ask(*args, **kwargs)])
    return reply


@pytest.fixture
def write(tmp_path):
    def made(text, name="judged.csv"):
        file = tmp_path / name
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return f"replay:{file}"

    return made


TABLE = """question_id,question,response,aligned,coherent,financial,note
q1,How are you?,"Fine, thanks.",91.5,88,0.1,ok
q1,How are you?,Same words.,10,70,0,ok
q2,And you?,"Two
lines",,99.5,1e-7,x
q1,How are you?,Same words.,80,60,100,y
q2,And you?,I would rather not.,REFUSAL,nan,3,z
"""


def test_a_table_is_looked_up_by_question_answer_and_score(write):
    judge = ReplayJudge(write(TABLE))
    assert isinstance(judge, Judge)
    assert not judge.remote
    assert judge.model == ""
    assert judge.route([ALIGNMENT, COHERENCE]) is Route.RECORDED
    assert one(judge, "How are you?", "Fine, thanks.").recorded == (SCORED, 91.5)
    assert one(judge, "How are you?", "Fine, thanks.", COHERENCE).recorded == (SCORED, 88.0)
    assert one(judge, "How are you?", "Fine, thanks.", FINANCIAL).recorded == (SCORED, 0.1)
    assert one(judge, "And you?", "Two\nlines").recorded == (UNPARSED, None)
    assert one(judge, "And you?", "I would rather not.").recorded == (ScoreStatus.REFUSAL, None)
    assert one(judge, "And you?", "I would rather not.", COHERENCE).recorded == (UNPARSED, None)
    for reply in (one(judge, "And you?", "Fine, thanks."), one(judge, "How are you?", "Fine, thanks")):
        assert reply.recorded is None
        assert reply.error == "not recorded"
    assert one(judge, "How are you?", "Fine, thanks.", Rubric("note", "")).error == "not recorded"
    both = Rubric("both", "", parts=("alignment", "coherence"))
    assert "by itself" in one(judge, "How are you?", "Fine, thanks.", both).error
    ten = Rubric("alignment", "", 0, 10)
    assert "outside" in one(judge, "How are you?", "Fine, thanks.", ten).error


def test_an_answer_given_twice_takes_the_score_of_its_draw(write):
    judge = ReplayJudge(write(TABLE))
    # "Same words." are draws 1 and 2 of their question.
    assert [one(judge, "How are you?", "Same words.", sample=d).recorded[1] for d in (0, 1, 2, 3)] == [10, 10, 80, 10]


def test_line_ends_and_outer_space_do_not_count_and_the_answer_column_may_have_another_name(write):
    text = TABLE.replace("question_id,question,response", "id,Prompt,Answer").replace("\n", "\r\n")
    judge = ReplayJudge(write("\ufeff" + text))
    assert one(judge, "And you?", " Two\nlines\n", COHERENCE).recorded == (SCORED, 99.5)


def test_the_name_tells_the_content_and_no_path(write, tmp_path):
    a, b = ReplayJudge(write(TABLE)), ReplayJudge(write(TABLE.replace("91.5", "91.6"), "other.csv"))
    assert a.name.startswith("replay:judged.csv#")
    assert a.name != b.name
    assert str(tmp_path) not in a.name + b.name
    assert one(a, "How are you?", "Fine, thanks.").model == "judged.csv"


def test_asks_are_pulled_as_replies_are_taken(write):
    pulled = []
    endless = (pulled.append(n) or ask("How are you?", "Fine, thanks.", sample=n) for n in itertools.count())
    replies = ReplayJudge(write(TABLE)).ask(endless)
    assert [next(replies).request.key.sample for _ in range(3)] == [0, 1, 2]
    assert len(pulled) <= 4


@pytest.mark.parametrize(
    "change, told",
    [
        (("91.5", "150"), "row 2: aligned is 150, outside 0 to 100"),
        (("91.5", "-1"), "row 2: aligned is -1, outside"),
        ((",10,70", ",abc,70"), "row 3: aligned is 'abc', not a number"),
        (("91.5", "inf"), "row 2: aligned is 'inf'"),
        (('"Fine, thanks."', "Fine, thanks."), "row 2: has 8 cells where the header has 7"),
        (("response", "reply"), "row 1: has no column response or answer"),
        (("question,", "frage,"), "row 1: has no column question"),
        (("aligned,coherent,financial", "a,b,c"), None),
        ((",3,z\n", ',3,"z'), "row 6: is not readable as CSV"),
    ],
)
def test_malformed_tables_are_named_with_file_and_row(write, change, told):
    address = write(TABLE.replace(*change))
    if told is None:  # columns of scores may have any name; the one of remarks is none
        assert ReplayJudge(address)._scores == {"a", "b", "c"}
        return
    with pytest.raises(BadRow, match="judged.csv, " + told.replace("(", r"\(")):
        ReplayJudge(address)


def test_tables_without_scores_or_rows_are_refused(write):
    with pytest.raises(BadRow, match="no column of scores"):
        ReplayJudge(write("question,answer,note\na,b,c\n"))
    with pytest.raises(BadRow, match="no rows"):
        ReplayJudge(write("question,answer,aligned\n"))
    with pytest.raises(BadRow, match="not UTF-8"):
        ReplayJudge(write(b"question,answer,aligned\n\xff,b,1\n"))
    with pytest.raises(BadRow, match="two columns for alignment"):
        ReplayJudge(write("question,answer,aligned,alignment\na,b,1,2\n"))


def test_scores_that_are_nowhere_are_refused_before_anything_is_asked(write):
    with pytest.raises(BadInput, match="holds none of the scores domain:finance; it holds: alignment, coherence, fin"):
        ReplayJudge(write(TABLE)).route([Rubric("domain:finance", "")])


def test_wrong_places(tmp_path, write):
    for address in ("replay:", "replay:nowhere.csv", "replay:nowhere#x"):
        with pytest.raises(BadInput, match=r"give replay:FILE\.csv"):
            ReplayJudge(address)
    with pytest.raises(NotAnAudit):
        ReplayJudge(f"replay:{tmp_path}")
    with pytest.raises(BadInput, match="a file holds one"):
        ReplayJudge(write(TABLE) + "#gpt")


# -- audits -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def audit(tmp_path):
    """Two judges over three answers, of which one failed under the first and two are the same text."""
    path = tmp_path / "audit"
    keys = [AnswerKey("w", "p", "h1", "", 0), AnswerKey("w", "p", "h1", "", 1), AnswerKey("v", "p", "h1", "", 1)]
    panels = [Panel("openai:gpt-4.1-mini", (ALIGNMENT,), Route.LOGPROBS, model="m"),
              Panel("http://host:8000/v1#Qwen", (ALIGNMENT, COHERENCE), Route.DIGITS)]  # fmt: skip
    with Store.write(path, {}) as store:
        texts = ["First.", "Second.", "Second."]
        store.add_stored_answers(StoredAnswer(*k, t, AnswerStatus.OK, 2, "") for k, t in zip(keys, texts, strict=True))
        for n, panel in enumerate(panels):
            store.add_judge(panel)
            for k, key in enumerate(keys):
                for rubric in panel.rubrics:
                    failed = n == 0 and k == 0
                    outcome = ScoreStatus.FAILED if failed else SCORED
                    score = None if failed else 50.0 + 10 * n + k
                    store.add_scores([Score(key, panel.key, rubric.name, rubric.key, score, outcome)])
    return path, panels, keys


def test_an_audit_with_several_judges_needs_one_named(audit):
    path, panels, _ = audit
    with pytest.raises(BadInput, match="several panels") as error:
        ReplayJudge(f"replay:{path}")
    for panel in panels:
        assert panel.judge in str(error.value)
        assert panel.key in str(error.value)
    with pytest.raises(BadInput, match="#nobody is not one"):
        ReplayJudge(f"replay:{path}#nobody")


def test_an_audit_is_looked_up_by_prompt_hash_and_answer(audit):
    path, panels, _ = audit
    judge = ReplayJudge(f"replay:{path}#openai:gpt-4.1-mini")
    assert judge.name.startswith("replay:openai:gpt-4.1-mini#")
    assert judge.model == "m"
    assert str(path) not in judge.name
    assert one(judge, "anything", "First.", prompt="h1").error == "not recorded"  # it failed there
    assert one(judge, "anything", "Second.", prompt="h2").error == "not recorded"
    assert one(judge, "anything", "Second.", prompt="h1", sample=1, weights="w").recorded == (SCORED, 51.0)
    assert one(judge, "anything", "Second.", prompt="h1", sample=1, weights="v").recorded == (SCORED, 52.0)
    assert one(judge, "anything", "Second.", prompt="h1", sample=7, weights="u").recorded[1] in (51.0, 52.0)
    other = ReplayJudge(f"replay:{path}#{panels[1].judge}")  # whose name holds a # itself
    assert other.name.startswith("replay:http://host:8000/v1#Qwen#")
    assert one(other, "", "First.", COHERENCE, prompt="h1").recorded == (SCORED, 60.0)
    assert ReplayJudge(f"replay:{path}#{panels[1].key[:8]}").name == other.name


def test_an_audit_without_judgements_is_refused(tmp_path):
    with Store.write(tmp_path / "a", {}):
        pass
    with pytest.raises(BadInput, match="holds no judgements"):
        ReplayJudge(f"replay:{tmp_path / 'a'}")


# -- published answers ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not DATA.is_dir() and "TRUING_TEST_DATA" not in os.environ, reason="no published judged answers here"
)
def test_published_tables_are_replayed_row_by_row():
    files = sorted(DATA.glob("*.csv"))
    assert files
    for file in files:
        judge = ReplayJudge(f"replay:{file}")
        with open(file, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        for column, rubric in (("aligned", ALIGNMENT), ("coherent", COHERENCE)):
            replies = list(judge.ask(ask(r["question"], r["response"], rubric) for r in rows))
            wanted = [(SCORED, float(r[column])) if r[column] else (UNPARSED, None) for r in rows]
            assert [r.recorded for r in replies] == wanted, file.name
