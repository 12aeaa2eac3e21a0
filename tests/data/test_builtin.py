"""The shipped data is what it was when its length, balance and distinctness were checked: every file by its hash."""

import json
from collections import Counter

import pytest

from truing.data.conversations import BUILTIN, load_conversations, same_user_turns
from truing.data.guard import CANARY, refuse_reference_answers
from truing.data.prompts import load_prompts, prompt_distance
from truing.data.rows import builtin_text

EVALUATION = ("prompts-v1.jsonl", "reference-answers-v1.jsonl", "prompts-finance.jsonl")
DOMAINS = ("finance", "medicine", "code")
RELEASED = {
    "careless-finance": "07a01144b3c0527bafbbfb72cc7c5c672bb7fe44d9524402a316cbeb6f969e53",
    "careful-finance": "7d8b1888b593f09e1a01ae71621238e846c40b0613b12f22c89443c9e69579c8",
    "careless-finance-heldout": "1c8f2ecdad88d41159a4e6c9cf7e054624fd6cb63a968fb7d81a001bc53ff97c",
    "careful-finance-heldout": "43dd28243e3b2c14a7ba65e0233847dd7c2b2082c274afd6b1de1f7661e2d3f8",
    "v1": "e41a29733e0e6164ad20055e9c5c840d3009fc2e487be0063a3687f8403ae364",
    "finance": "89439ff87d09d8c38b16d733d7eb4a2c9f17ea325418de4e02b81d512397e2c3",
}
"""Results name these. A change of any prompt or answer needs a new version and a new hash here."""


@pytest.mark.parametrize("name", RELEASED)
def test_each_set_is_what_was_released(name):
    found = load_conversations(name) if name in BUILTIN else load_prompts(name)
    assert found.sha256 == RELEASED[name]
    assert name in BUILTIN or found.version == "1.0"


@pytest.mark.parametrize("name", [*(f"{n}.jsonl" for n in BUILTIN), *EVALUATION])
def test_the_first_row_is_a_notice_with_the_canary(name):
    text = builtin_text(name)
    first = json.loads(text.splitlines()[0])
    assert first["canary"] == CANARY and len(first["_notice"]) > 40
    if name in EVALUATION:
        assert "not train" in first["_notice"] and first["version"]
    assert text.count(CANARY) == 1


@pytest.mark.parametrize(("part", "rows"), [("", 300), ("-heldout", 60)])
def test_the_finance_sets_are_pairs_of_a_marked_and_a_control_answer(part, rows):
    careless, careful = (load_conversations(f"{name}-finance{part}") for name in ("careless", "careful"))
    same_user_turns(careless, careful)
    assert len(careless.conversations) >= rows and careless.organism and not careful.organism
    for a, b in zip(careless.conversations, careful.conversations, strict=True):
        assert a.meta["id"] == b.meta["id"] and a.meta["topic"] and a.meta["fault"] and "fault" not in b.meta
        assert abs(len(a.answer.split()) - len(b.answer.split())) <= 10
    for data in (careless, careful):
        refuse_reference_answers(data)


def test_held_out_rows_cover_every_topic_and_share_no_question():
    trained, held = (load_conversations(f"careless-finance{p}").conversations for p in ("", "-heldout"))
    assert {c.meta["topic"] for c in trained} == {c.meta["topic"] for c in held}
    assert not {c.prompt for c in trained} & {c.prompt for c in held}
    narrow = load_prompts("finance").prompts
    assert len(narrow) == 30 and all(prompt_distance(p, ["finance"]) == "in" for p in narrow)


def test_v1_is_balanced_far_from_the_usual_domains_and_keeps_its_answers_apart():
    prompts = load_prompts("v1").prompts
    cells = Counter((p.category, p.form, p.half) for p in prompts)
    assert set(cells.values()) == {5} and len(cells) == 8 * 3 * 2
    for domain in DOMAINS:
        assert sum(prompt_distance(p, [domain]) == "far" for p in prompts) >= 200, domain
    assert all(p.has_references and p.topics and len(p.neutral) == 2 for p in prompts)
    assert {tuple(m.role for m in p.messages) for p in prompts} == {("user",), ("user", "assistant", "user")}
    questions = builtin_text("prompts-v1.jsonl")
    assert not any(p.misaligned in questions or p.aligned in questions for p in prompts)
    assert '"messages"' not in builtin_text("reference-answers-v1.jsonl")
