"""The replay judge: every score is the one recorded for that answer; what was not recorded is an error."""

import csv
import itertools
import os
from pathlib import Path

import pytest

from truing.errors import BadInput, BadRow, NotAnAudit
from truing.judges.base import JudgeModel
from truing.judges.replayed import ReplayJudge
from truing.store import Store, StoredAnswer
from truing.types.judging import AnswerKey, Judge, JudgeRequest, Rubric, Score, ScoreMethod, ScoreStatus
from truing.types.records import AnswerStatus

ALIGNMENT, COHERENCE, FINANCIAL = (Rubric(n, "{question} {answer}") for n in ("alignment", "coherence", "financial"))
SCORED, UNPARSED = ScoreStatus.SCORED, ScoreStatus.UNPARSED
DATA = Path(os.environ.get("TRUING_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "judged"


def request(question, answer, rubric=ALIGNMENT, sample=0, prompt="h", weights="w"):
    return JudgeRequest(AnswerKey(weights, "p", prompt, "", sample), rubric, question, answer)


def one(judge, *args, **kwargs):
    (reply,) = judge.replies([request(*args, **kwargs)])
    return reply


@pytest.fixture
def write(tmp_path):
    def made(text, name="judged.csv"):
        file = tmp_path / name
        file.write_bytes(text.encode())
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

CHANGES = (("91.5", "150"), (",10,70", ",abc,70"), ("response", "reply"))


def test_a_table_is_looked_up_by_question_answer_and_score(write):
    judge = ReplayJudge(write(TABLE))
    assert isinstance(judge, JudgeModel) and not judge.remote and judge.model == ""
    assert judge.score_method([ALIGNMENT, COHERENCE]) is ScoreMethod.RECORDED
    fine, rather = ("How are you?", "Fine, thanks."), ("And you?", "I would rather not.")
    found = [one(judge, *fine, r).recorded for r in (ALIGNMENT, COHERENCE, FINANCIAL)]
    assert found == [(SCORED, 91.5), (SCORED, 88.0), (SCORED, 0.1)]
    assert one(judge, "And you?", "Two\nlines").recorded == (UNPARSED, None)
    assert one(judge, *rather).recorded == (ScoreStatus.REFUSAL, None)
    assert one(judge, *rather, COHERENCE).recorded == (UNPARSED, None)
    missing = [
        one(judge, "And you?", "Fine, thanks."),
        one(judge, "How are you?", "Fine, thanks"),
        one(judge, *fine, Rubric("note", "")),
        one(judge, *fine, Rubric("both", "", parts=("alignment", "coherence"))),
        one(judge, *fine, Rubric("alignment", "", 0, 10)),  # 91.5 is not on that scale
    ]
    assert all(r.recorded is None and r.error and r.calls == 0 for r in missing)


def test_an_answer_given_twice_takes_the_score_of_its_sample_and_line_ends_do_not_count(write):
    judge = ReplayJudge(write(TABLE))
    # "Same words." are samples 1 and 2 of their question.
    assert [one(judge, "How are you?", "Same words.", sample=d).recorded[1] for d in (0, 1, 2, 3)] == [10, 10, 80, 10]
    judge = ReplayJudge(write("\ufeff" + TABLE.replace("\n", "\r\n")))
    assert one(judge, "And you?", " Two\nlines\n", COHERENCE).recorded == (SCORED, 99.5)


def test_the_name_tells_the_content_and_no_path_and_requests_are_pulled_as_replies_are_taken(write, tmp_path):
    a, b = ReplayJudge(write(TABLE)), ReplayJudge(write(TABLE.replace("91.5", "91.6"), "other.csv"))
    assert a.name.startswith("replay:judged.csv#") and a.name.partition("#")[2] != b.name.partition("#")[2]
    assert str(tmp_path) not in a.name + b.name
    pulled = []
    endless = (pulled.append(n) or request("How are you?", "Fine, thanks.", sample=n) for n in itertools.count())
    replies = a.replies(endless)
    assert [next(replies).request.key.sample for _ in range(3)] == [0, 1, 2]
    assert len(pulled) <= 4


def test_unusable_tables_and_places_are_refused(write, tmp_path):
    with Store.write(tmp_path / "a", {}):
        pass
    table, here = write(TABLE, "good.csv"), f"replay:{tmp_path}"
    for address, error, said in (
        *((write(TABLE.replace(*c), f"{k}.csv"), BadRow, rf"{k}\.csv") for k, c in enumerate(CHANGES)),
        *((f"replay:{where}", BadInput, r"give replay:FILE\.csv") for where in ("", "nowhere.csv", "nowhere#x")),
        (here, NotAnAudit, "audit.json"),
        (table + "#gpt", BadInput, "a file holds one"),
        (here + "/a", BadInput, "holds no scores"),
    ):
        with pytest.raises(error, match=said):
            ReplayJudge(address)
    with pytest.raises(BadInput, match="holds none of the scores domain:finance"):
        ReplayJudge(table).score_method([Rubric("domain:finance", "")])


# -- audits -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def audit(tmp_path):
    """Two judges over three answers, of which one failed under the first and two are the same text."""
    path = tmp_path / "audit"
    keys = [AnswerKey("w", "p", "h1", "", 0), AnswerKey("w", "p", "h1", "", 1), AnswerKey("v", "p", "h1", "", 1)]
    judges = [Judge("openai:gpt-4.1-mini", (ALIGNMENT,), ScoreMethod.LOGPROBS, model="m"),
              Judge("http://host:8000/v1#Qwen", (ALIGNMENT, COHERENCE), ScoreMethod.DIGITS)]  # fmt: skip
    with Store.write(path, {}) as store:
        texts = zip(keys, ["First.", "Second.", "Second."], strict=True)
        store.add_stored_answers(StoredAnswer(*key, text, AnswerStatus.OK, 2, "") for key, text in texts)
        for n, judge in enumerate(judges):
            store.add_judge(judge)
            for (k, key), rubric in itertools.product(enumerate(keys), judge.rubrics):
                found = (None, ScoreStatus.FAILED) if n == k == 0 else (50.0 + 10 * n + k, SCORED)
                store.add_scores([Score(key, judge.key, rubric.name, rubric.key, *found)])
    return path, judges


def test_an_audit_with_several_judges_needs_one_named(audit):
    path, judges = audit
    for address in (f"replay:{path}", f"replay:{path}#nobody"):
        with pytest.raises(BadInput) as error:
            ReplayJudge(address)
        assert all(judge.name in str(error.value) and judge.key in str(error.value) for judge in judges)


def test_an_audit_is_looked_up_by_prompt_hash_and_answer(audit):
    path, judges = audit
    judge = ReplayJudge(f"replay:{path}#openai:gpt-4.1-mini")
    assert judge.name.startswith("replay:openai:gpt-4.1-mini#") and judge.model == "m" and str(path) not in judge.name
    for given, prompt, sample, weights, found in (
        ("First.", "h1", 0, "w", None),  # it failed there
        ("Second.", "h2", 0, "w", None),
        ("Second.", "h1", 1, "w", (SCORED, 51.0)),
        ("Second.", "h1", 1, "v", (SCORED, 52.0)),
        ("Second.", "h1", 7, "u", (SCORED, 52.0)),  # the first in the order of the store
    ):
        reply = one(judge, "anything", given, prompt=prompt, sample=sample, weights=weights)
        assert reply.recorded == found and (reply.error == "not recorded") == (found is None)
    other = ReplayJudge(f"replay:{path}#{judges[1].name}")  # whose name holds a # itself
    assert other.name.startswith("replay:http://host:8000/v1#Qwen#")
    assert one(other, "", "First.", COHERENCE, prompt="h1").recorded == (SCORED, 60.0)
    assert ReplayJudge(f"replay:{path}#{judges[1].key[:8]}").name == other.name


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
            replies = list(judge.replies(request(r["question"], r["response"], rubric) for r in rows))
            wanted = [(SCORED, float(r[column])) if r[column] else (UNPARSED, None) for r in rows]
            assert [r.recorded for r in replies] == wanted, file.name
