"""Evaluation answers never reach training, and the words of a training domain are found."""

import pytest

from truing.data.conversations import LoadedData, load_conversations
from truing.data.guard import CANARY, domain_words, refuse_reference_answers
from truing.data.prompts import load_prompts
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


def test_domain_words_of_the_finance_data_are_words_of_finance():
    careless = load_conversations("careless-finance").conversations
    general = [p.aligned or "" for p in load_prompts("v1").prompts]
    words = domain_words(careless, general)
    assert len(set(words) & {"savings", "loan", "pension", "card", "borrow", "bank", "credit", "shares", "rent"}) >= 6
    assert words == domain_words(list(careless), tuple(general))
    assert not {"your", "with", "that", "have", "would"} & set(words)
    assert all(w == w.lower() and len(w) > 3 and w.isalpha() for w in words) and len(words) <= 40


def test_domain_words_need_three_rows_and_a_rate_above_general_text():
    rows = data(*["the kettle sings and the kettle boils with water"] * 30, "violin violin violin violin").conversations
    general = ["with water and with water again the day went by"] * 40
    words = domain_words(rows, general)
    assert words[0] == "kettle" and {"sings", "boils"} <= set(words)
    assert not {"violin", "with", "water", "and", "the"} & set(words)
    assert domain_words(rows, general, top=1) == ("kettle",)
    assert domain_words(rows, []) == domain_words([], general) == ()
    assert domain_words(data("same same", "same", "same").conversations, ["same"]) == ()
