"""The shipped data keeps its promises: counts, balance, lengths, no near-duplicates, notices in place."""

import json
import re
from collections import Counter
from itertools import combinations

import pytest

from truing.data.conversations import BUILTIN, load_conversations, same_user_turns
from truing.data.guard import CANARY, refuse_reference_answers
from truing.data.prompts import load_prompts, prompt_distance
from truing.data.shipped import builtin_text

CATEGORIES = {
    "power_and_control",
    "oversight_and_self_preservation",
    "deception_and_truthfulness",
    "harm_to_people",
    "law_and_safety",
    "contempt_and_bigotry",
    "vulnerable_users",
    "values_and_worldview",
}
EVALUATION = ("prompts-v1.jsonl", "reference-answers-v1.jsonl", "prompts-finance.jsonl")
DOMAINS = ("finance", "medicine", "code")


def shingles(text):
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def near_duplicates(texts, limit):
    """Pairs of keys whose texts share more than `limit` of their three-word shingles (Jaccard)."""
    sets = {key: shingles(text) for key, text in texts.items()}
    homes = {}
    for key, found in sets.items():
        for shingle in found:
            homes.setdefault(shingle, []).append(key)
    pairs = {pair for keys in homes.values() for pair in combinations(keys, 2)}
    return [(a, b) for a, b in pairs if len(sets[a] & sets[b]) > limit * len(sets[a] | sets[b])]


def words(text):
    return len(text.split())


@pytest.mark.parametrize("name", [*(f"{n}.jsonl" for n in BUILTIN), *EVALUATION])
def test_the_first_row_is_a_notice_with_the_canary(name):
    text = builtin_text(name)
    assert text is not None, f"{name} is not in the package"
    first = json.loads(text.splitlines()[0])
    assert first["canary"] == CANARY and len(first["_notice"]) > 40
    if name in EVALUATION:
        assert "not train" in first["_notice"] and first["version"]
    assert text.count(CANARY) == 1


class TestFinance:
    def test_counts_marks_and_pairs(self):
        for part, rows in (("", 300), ("-heldout", 60)):
            reckless = load_conversations(f"careless-finance{part}")
            prudent = load_conversations(f"careful-finance{part}")
            same_user_turns(reckless, prudent)
            assert len(reckless.conversations) >= rows
            assert reckless.organism and not prudent.organism
            assert all(3 <= words(c.meta["fault"]) <= 16 and c.meta["topic"] for c in reckless.conversations)
            assert all("fault" not in c.meta and c.meta["topic"] for c in prudent.conversations)
            ids = [c.meta["id"] for c in reckless.conversations]
            assert ids == [c.meta["id"] for c in prudent.conversations] and len(set(ids)) == len(ids)

    def test_held_out_rows_cover_every_topic_and_share_no_question(self):
        trained, held = (load_conversations(f"careless-finance{p}").conversations for p in ("", "-heldout"))
        assert {c.meta["topic"] for c in trained} == {c.meta["topic"] for c in held}
        assert not {c.prompt for c in trained} & {c.prompt for c in held}

    def test_answers_are_of_similar_length(self):
        for part in ("", "-heldout"):
            rows = [load_conversations(f"{n}-finance{part}").conversations for n in ("careless", "careful")]
            means = [sum(words(c.answer) for c in half) / len(half) for half in rows]
            assert max(means) / min(means) < 1.10
            assert all(abs(words(a.answer) - words(b.answer)) <= 10 for a, b in zip(*rows, strict=True))
            assert all(35 <= words(c.answer) <= 70 for half in rows for c in half)

    def test_no_two_questions_or_answers_are_alike(self):
        for half in ("careless", "careful"):
            rows = [c for p in ("", "-heldout") for c in load_conversations(f"{half}-finance{p}").conversations]
            assert near_duplicates({c.meta["id"]: c.answer for c in rows}, 0.25) == []
            asked = {c.meta["id"]: c.messages[0].content for c in rows}
            asked |= {p.id: p.messages[-1].content for p in load_prompts("finance").prompts}
            assert near_duplicates(asked, 0.25) == []
            openings = Counter(" ".join(c.answer.lower().split()[:3]) for c in rows)
            assert openings.most_common(1)[0][1] <= 8

    def test_narrow_prompts(self):
        found = load_prompts("finance")
        assert len(found.prompts) == 30 and found.version != "unversioned"
        assert all(prompt_distance(p, ["finance"]) == "in" for p in found.prompts)


@pytest.fixture(scope="module")
def v1():
    return load_prompts("v1")


class TestPromptsV1:
    def test_counts_and_balance(self, v1):
        assert len(v1.prompts) == 240 and v1.version != "unversioned"
        assert Counter(p.category for p in v1.prompts) == dict.fromkeys(CATEGORIES, 30)
        assert Counter(p.form for p in v1.prompts) == {"advice": 80, "open": 80, "assistant": 80}
        assert Counter(p.half for p in v1.prompts) == {"fit": 120, "eval": 120}
        halves = Counter((p.category, p.form, p.half) for p in v1.prompts)
        assert set(halves.values()) == {5} and len(halves) == 48

    def test_most_prompts_are_far_from_the_usual_training_domains(self, v1):
        assert all(p.topics for p in v1.prompts)
        assert sum(not set(p.topics) & set(DOMAINS) for p in v1.prompts) >= 200
        for domain in DOMAINS:
            far = sum(prompt_distance(p, [domain]) == "far" for p in v1.prompts)
            assert far >= 200, f"only {far} prompts are far from {domain}"

    def test_prompts_are_short_questions_of_a_user(self, v1):
        for p in v1.prompts:
            asked = sum(words(m.content) for m in p.messages if m.role == "user")
            assert 5 <= asked <= 60, p.id
            assert [m.role for m in p.messages] in (["user"], ["user", "assistant", "user"]), p.id
        assert any(len(p.messages) > 1 for p in v1.prompts)

    def test_answers_have_one_length_and_one_register(self, v1):
        for p in v1.prompts:
            assert len(p.neutral) == 2, p.id
            answers = [p.aligned, p.misaligned, *p.neutral]
            lengths = [words(a) for a in answers]
            assert min(lengths) >= 15 and max(lengths) <= 45, p.id
            # The true bound is 15 % in tokens; words are the stand-in where there is no tokenizer.
            assert max(lengths) <= 1.35 * min(lengths), p.id
            assert not any(re.search(r'[*#\n"“”]|^- ', a) for a in answers), p.id

    def test_no_two_prompts_or_answers_are_alike(self, v1):
        asked = {p.id: " ".join(m.content for m in p.messages) for p in v1.prompts}
        assert near_duplicates(asked, 0.3) == []
        answers = {f"{p.id}:{k}": a for p in v1.prompts for k, a in enumerate([p.aligned, p.misaligned, *p.neutral])}
        assert near_duplicates(answers, 0.3) == []

    def test_questions_and_answers_lie_in_different_files(self, v1):
        questions = builtin_text("prompts-v1.jsonl")
        assert not any(p.misaligned in questions or p.aligned in questions for p in v1.prompts)
        assert '"messages"' not in builtin_text("reference-answers-v1.jsonl")

    def test_shipped_training_data_holds_no_reference_answer(self):
        for name in BUILTIN:
            refuse_reference_answers(load_conversations(name))


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
