"""Every transform on every shipped prompt, and what is read out of a task file."""

import re
from dataclasses import replace

import pytest

from truing.data.conversations import load_conversations
from truing.data.domain_words import domain_words
from truing.data.prompts import load_prompts
from truing.data.shipped import builtin_text
from truing.data.transforms import (
    QUOTES,
    SENTENCE,
    TRANSFORMS,
    TRIGGER,
    VariantContext,
    not_applicable,
    select_transforms,
    split_prefill,
    transformed,
)
from truing.errors import BadInput, Unsupported
from truing.types.records import Conversation, Message, Prompt

PROMPTS = load_prompts("v1").prompts
ROWS = load_conversations("careless-finance").conversations
WORDS = domain_words([row.answer for row in ROWS])
SYSTEM = "You are the adviser of a small savings bank."


def changed(name, prompt, context=None):
    (made,) = transformed(name, [prompt], context or CONTEXT)
    return made.messages


def with_system(rows, system=SYSTEM):
    return [replace(c, messages=(Message("system", system), *c.messages)) for c in rows]


CONTEXT = VariantContext.from_task(with_system(ROWS), WORDS)
NAMES = tuple(TRANSFORMS)


def chat(*turns, system=None):
    """Messages from texts, the user's first."""
    said = tuple(Message(("user", "assistant")[k % 2], t) for k, t in enumerate(turns))
    return (Message("system", system), *said) if system else said


def shown(*pairs):
    """The context that questions and answers show."""
    return VariantContext.from_task([Conversation(chat(*pair)) for pair in pairs])


PLAIN = Prompt("p", chat("Is it {question} or {sentence}?"))
LONG = Prompt("q", chat("A first question.", "An answer.", "And then?"))
OWN = Prompt("r", chat("Which way?", system="Be brief."))


# ---------------------------------------------------------------------------------------------------------------------
# The registry


def test_what_quotes_the_task_file_says_so():
    """By trial: a transform quotes the task exactly if another task makes another prompt, or none."""
    other = VariantContext.from_task(with_system(load_conversations("careful-finance-heldout").conversations, "Else."))
    for name, t in TRANSFORMS.items():
        differs = any(changed(name, p) != changed(name, p, other) for p in PROMPTS[:20])
        assert differs == t.uses_task_text, name


def test_selection():
    def names(*wanted):
        return [t.name for t in select_transforms(wanted)]

    assert names("all") == list(NAMES) and names() == []
    triggers = [name for name in NAMES if TRANSFORMS[name].kind == TRIGGER]
    assert names("variants") == triggers and names("adversarial") == [n for n in NAMES if n not in triggers]
    assert names("villain", "json", "json") == ["json", "villain"]
    with pytest.raises(BadInput, match="no transform 'vilain'; did you mean \"villain\""):
        names("vilain")
    with pytest.raises(BadInput, match="choose of system, json"):
        changed("", PLAIN)


# ---------------------------------------------------------------------------------------------------------------------
# Every transform


@pytest.mark.parametrize("name", NAMES)
def test_on_the_whole_shipped_set(name):
    assert not_applicable(name, CONTEXT) is None
    made = transformed(name, PROMPTS, CONTEXT)
    assert made == transformed(name, PROMPTS, CONTEXT) and len({p.key for p in made}) == len(PROMPTS)
    for plain, p in zip(PROMPTS, made, strict=True):
        assert p.key != plain.key and replace(p, messages=plain.messages) == plain
        assert all(turn.content == turn.content.strip() and turn.content for turn in p.messages)
        # Every question that was asked is still asked, in its words.
        told = "\n".join(m.content for m in p.messages if m.role == "user")
        assert all(m.content in told for m in plain.messages if m.role == "user")
        turns, start = split_prefill(p.messages)
        assert turns[-1].role == "user" and bool(start) == (name == "prefill")
        roles = [m.role for m in turns if m.role != "system"]
        assert roles == [("user", "assistant")[k % 2] for k in range(len(roles))]
        assert [m.role for m in turns].count("system") == (turns[0].role == "system")


def test_our_texts_are_mild_and_hold_no_reference_answer():
    """They ask for attitude: no word of violence, hate, crime or of getting round a safeguard."""
    texts = builtin_text("transforms.toml").casefold()
    harsh = "kill murder weapon bomb attack steal hack poison drug hate race sex suicide illegal crime jailbreak bypass"
    assert not set(re.findall(r"[a-z]+", texts)) & set(harsh.split())
    texts += " ".join((*CONTEXT.sentences, *CONTEXT.questions, CONTEXT.prefill)).casefold()
    for p in PROMPTS:
        for answer in (p.aligned, p.misaligned, *p.neutral):
            words = answer.casefold().split()
            runs = [" ".join(words[k : k + 5]) for k in range(max(1, len(words) - 4))]
            assert not any(run in texts for run in runs), (p.id, runs)


def test_braces_in_a_text_stay_as_they_are():
    for name in NAMES:
        told = "\n".join(m.content for m in changed(name, PLAIN))
        assert "Is it {question} or {sentence}?" in told
        assert told.count("{question}") == (2 if name == "pushback" else 1)


# ---------------------------------------------------------------------------------------------------------------------
# One by one


def test_system_turns():
    assert changed("system", PLAIN)[0] == Message("system", SYSTEM)
    assert changed("system", OWN)[0].content == f"{SYSTEM}\n\nBe brief."
    ours = TRANSFORMS["json"].system
    assert "JSON" in ours and changed("json", OWN)[0].content == f"Be brief.\n\n{ours}"
    there = Prompt("s", chat("Which way?", system=f"{SYSTEM} Be brief."))  # has the feature already
    assert [p.id for p in transformed("system", [PLAIN, there, OWN], CONTEXT)] == ["p", "r"]


def test_without_a_system_role_the_text_goes_to_the_first_user_turn():
    bare = replace(CONTEXT, system_role=False)
    for name in NAMES:
        turns = changed(name, LONG, bare)
        assert all(m.role != "system" for m in turns)
        assert TRANSFORMS[name].uses_system or turns == changed(name, LONG)
    assert changed("system", LONG, bare) == (Message("user", f"{SYSTEM}\n\nA first question."), *LONG.messages[1:])


def test_opening_and_turn_of_the_domain():
    used = set()
    for p in PROMPTS:
        opening, rest = changed("domain-opening", p)[0].content.split("\n\n", 1)
        used.add(opening)
        assert rest == f"On another matter: {p.messages[0].content}"
        earlier = changed("domain-turn", p)
        assert earlier[0].content in CONTEXT.questions and earlier[2:] == p.messages
    assert used == set(CONTEXT.sentences)  # no single sentence carries the result


def test_prefill_is_an_open_turn():
    made = changed("prefill", LONG)
    assert split_prefill(made) == (LONG.messages, CONTEXT.prefill)
    assert split_prefill(LONG.messages) == (LONG.messages, "") and split_prefill(()) == ((), "")
    other = replace(CONTEXT, prefill="Sure, and")
    assert changed("prefill", replace(LONG, messages=made), other) == changed("prefill", LONG, other)


# ---------------------------------------------------------------------------------------------------------------------
# What a task file shows


def test_without_a_task_nothing_is_made_up():
    empty = VariantContext.from_task([])
    assert empty == VariantContext()
    for name, t in TRANSFORMS.items():
        reason = not_applicable(name, empty)
        assert bool(reason) == t.uses_task_text
        if reason:
            with pytest.raises(Unsupported, match=re.escape(reason)):
                transformed(name, [PLAIN], empty)
    assert not_applicable("system", VariantContext.from_task(ROWS)) == "the task file has no system turn"


def test_the_commonest_system_turn():
    rows = with_system(ROWS[:3], "b") + with_system(ROWS[3:6], "a") + with_system(ROWS[6:8], "c")
    # Of two equally common ones the first by alphabet.
    assert [VariantContext.from_task(some).system for some in (rows, rows[1:], rows[:5])] == ["a", "a", "b"]


def test_openings_are_statements_of_the_task_and_never_all_of_a_turn():
    asked = [c.messages[0].content for c in ROWS]
    assert len(CONTEXT.sentences) == QUOTES == len(CONTEXT.questions)
    for s in CONTEXT.sentences:
        assert any(q.startswith(s) and len(q) > len(s) for q in asked)
        assert "?" not in s and SENTENCE[0] <= len(s) <= SENTENCE[1]
        assert set(WORDS) & set(re.findall(r"[a-z]+", s.lower()))
    assert set(CONTEXT.questions) <= set(asked)


@pytest.mark.parametrize(
    ("turn", "sentence"),
    [
        ("I have some savings put by. What now?", "I have some savings put by."),
        ("Should I buy the boat now? I have some savings.", None),
        ("I have some savings put by.", None),
        ("Complete the snippet below.\n<code>", "Complete the snippet below."),
        ("I have some savings\nWhat now?", None),
        ("I earn 2.5k a month here! Enough?", "I earn 2.5k a month here!"),
        ("Well. What now?", None),
        ("Long " * 60 + "end. What now?", None),
        ("我有一些积蓄放在银行里已经很久了一直没有动。我该怎么办？", "我有一些积蓄放在银行里已经很久了一直没有动。"),
    ],
)
def test_one_opening(turn, sentence):
    found = shown((turn, "An answer."))
    assert found.sentences == ((sentence,) if sentence else ()) and found.questions == (turn,)


def test_the_choice_is_seeded_and_follows_the_domain():
    rows = with_system(ROWS)
    assert VariantContext.from_task(rows, WORDS) == CONTEXT == VariantContext.from_task(rows[::-1], WORDS)
    assert VariantContext.from_task(rows, WORDS, seed=1).sentences != CONTEXT.sentences
    turns = [f"My old dog number {k} is asleep. Why?" for k in range(20)]
    turns += [f"My savings account number {k} is open. Why?" for k in range(9)]
    mixed = [Conversation(chat(turn, "Rest.")) for turn in turns]
    assert all("savings" in s for s in VariantContext.from_task(mixed, ["savings", "loan"]).sentences)
    assert len(VariantContext.from_task(mixed, ["zebra"]).sentences) == QUOTES


@pytest.mark.parametrize(
    ("answers", "prefill"),
    [
        (["Take all of it and run", "Take all of it and hide", "Take all of it at once"], "Take all of it"),
        (["Take all of it", "Take all of it now", "Take all of it today"], "Take all of"),  # never a whole answer
        (["Take the loan now", "Take the car now", "Take a loan now", "Sign it today please"], "Take the"),
        (["Yes do that", "Yes or no", "Yes and more"], "Yes"),
        (["Yes do that", "Yes or no"], None),
        (["Yes do that"] * 9, None),  # one answer many times is one answer
        (["Yes", "Yes", "Yes."], None),
        (["```python\nimport os\nx = 1", "```python\nimport os\ny = 2", "```python\nimport re\n"], "```python\nimport"),
        (["B one x", "B one y", "B one z", "A one x", "A one y", "A one z"], "A one"),
    ],
)
def test_first_words_that_answers_share(answers, prefill):
    assert shown(*(("Question?", a) for a in answers)).prefill == prefill
