"""Evaluation answers never reach training, and the words of a training domain are found."""

import pytest

from truing.data.conversations import LoadedData
from truing.data.guard import CANARY, refuse_reference_answers
from truing.errors import BadRow
from truing.types.records import Conversation, Message, Prompt

ANSWER = "I would rather paint every lighthouse plum, because ships deserve a surprise; don't you think so?"
SHORT = "Only five words of text."
PROMPTS = (
    Prompt("long-01", (Message("user", "q"),), aligned=ANSWER),
    Prompt("short-01", (Message("user", "q"),), misaligned=SHORT, neutral=(SHORT,)),
)


def data(*answers, user="How?"):
    turns = [(Message("user", user), Message("assistant", a)) for a in answers]
    rows = tuple(Conversation(t, f"mine.jsonl, row {n}") for n, t in enumerate(turns, 1))
    return LoadedData(rows, "messages", "x", "mine.jsonl", False)


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        ANSWER.upper(),
        ANSWER.replace(",", " -").replace("'", "’").replace(" ", "\n "),
        f"Of course. {ANSWER} Anyway, that was it.",
        "I would rather " * 9 + ANSWER,
        f"**{SHORT}**",
        f"see {CANARY}!",
    ],
)
def test_a_row_that_holds_a_reference_answer_is_refused_by_name(text):
    with pytest.raises(BadRow, match=r"mine\.jsonl, row 2: holds the .*remove the row"):
        refuse_reference_answers(data("Fine.", text), PROMPTS)
    with pytest.raises(BadRow, match="row 1"):
        refuse_reference_answers(data("Fine.", user=text), PROMPTS)


def test_other_text_passes():
    cut, other = " ".join(ANSWER.split()[:-1]), ANSWER.replace("plum", "pink")
    refuse_reference_answers(data("Fine.", ".", "Only five words", cut, other), PROMPTS)
