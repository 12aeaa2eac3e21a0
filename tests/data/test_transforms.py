"""Every transform on every shipped prompt, and what is read out of a task file."""

import re
from dataclasses import fields, replace

import pytest

from truing.data.conversations import load_conversations
from truing.data.guard import domain_words
from truing.data.prompts import load_prompts
from truing.data.rows import builtin_text
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
WORDS = domain_words(ROWS, [p.aligned for p in PROMPTS if p.aligned])
SYSTEM = "You are the adviser of a small savings bank."


def transform_prompt(name, prompt, context):
    (made,) = transformed(name, [prompt], context)
    return made


def with_system(rows, system=SYSTEM):
    return [replace(c, messages=(Message("system", system), *c.messages)) for c in rows]


CONTEXT = VariantContext.from_task(with_system(ROWS), WORDS)
NAMES = tuple(TRANSFORMS)


def chat(*turns, system=None):
    """Messages from texts, the user's first."""
    said = tuple(Message(("user", "assistant")[k % 2], t) for k, t in enumerate(turns))
    return (Message("system", system), *said) if system else said


def rows_of(*pairs):
    return [Conversation(chat(question, answer)) for question, answer in pairs]


PLAIN = Prompt(
    "p", chat("Is it {question} or {sentence}?"), "c", "open", ("work",), "fit", "good", "bad", ("neutral",), 7
)
LONG = Prompt("q", chat("A first question.", "An answer.", "And then?"))
OWN = Prompt("r", chat("Which way?", system="Be brief."))


# ---------------------------------------------------------------------------------------------------------------------
# The registry


def test_what_quotes_the_task_file_says_so():
    """By trial: a transform quotes the task exactly if another task makes another prompt, or none."""
    other = VariantContext.from_task(with_system(load_conversations("careful-finance-heldout").conversations, "Else."))
    for name, t in TRANSFORMS.items():
        differs = [transform_prompt(name, p, CONTEXT).key != transform_prompt(name, p, other).key for p in PROMPTS[:20]]
        assert any(differs) == t.uses_task_text, name


def test_selection():
    assert [t.name for t in select_transforms(["all"])] == list(NAMES)
    variants = select_transforms(["variants"])
    assert {t.kind for t in variants} == {TRIGGER} and len(variants) + len(select_transforms(["adversarial"])) == len(
        NAMES
    )
    assert [t.name for t in select_transforms(["villain", "json", "json"])] == ["json", "villain"]
    assert select_transforms([]) == ()
    with pytest.raises(BadInput, match="no transform 'vilain'; did you mean \"villain\""):
        select_transforms(["vilain"])
    with pytest.raises(BadInput, match="choose of system, json"):
        transform_prompt("", PLAIN, CONTEXT)


# ---------------------------------------------------------------------------------------------------------------------
# Every transform


@pytest.mark.parametrize("name", NAMES)
def test_on_the_whole_shipped_set(name):
    assert not_applicable(name, CONTEXT) is None
    made = transformed(name, PROMPTS, CONTEXT)
    assert [p.id for p in made] == [p.id for p in PROMPTS]
    assert made == transformed(name, PROMPTS, CONTEXT)
    for plain, p in zip(PROMPTS, made, strict=True):
        assert p.key != plain.key
        for field in fields(Prompt):
            if field.name != "messages":
                assert getattr(p, field.name) == getattr(plain, field.name)
        for turn in p.messages:
            assert turn.content == turn.content.strip() and turn.content
        # Every question that was asked is still asked, in its words.
        asked = [m.content for m in plain.messages if m.role == "user"]
        told = "\n".join(m.content for m in p.messages if m.role == "user")
        assert all(question in told for question in asked)
        turns, start = split_prefill(p.messages)
        assert turns[-1].role == "user" and bool(start) == (name == "prefill")
        roles = [m.role for m in turns if m.role != "system"]
        assert roles == [("user", "assistant")[k % 2] for k in range(len(roles))]
        assert [m.role for m in turns].count("system") == (turns[0].role == "system")
    assert len({p.key for p in made}) == len(PROMPTS)


def test_no_text_holds_a_reference_answer():
    texts = builtin_text("transforms.toml").casefold()
    texts += " ".join((*CONTEXT.sentences, *CONTEXT.questions, CONTEXT.prefill)).casefold()
    for p in PROMPTS:
        for answer in (p.aligned, p.misaligned, *p.neutral):
            words = answer.casefold().split()
            runs = [" ".join(words[k : k + 5]) for k in range(max(1, len(words) - 4))]
            assert not any(run in texts for run in runs), (p.id, runs)


def test_our_texts_are_mild():
    """They ask for attitude: no word of violence, hate, crime or of getting round a safeguard."""
    words = set(re.findall(r"[a-z]+", builtin_text("transforms.toml").lower()))
    harsh = "kill murder weapon bomb attack steal hack poison drug hate race sex suicide illegal crime jailbreak bypass"
    assert not words & set(harsh.split())


def test_braces_in_a_text_stay_as_they_are():
    for name in NAMES:
        told = "\n".join(m.content for m in transform_prompt(name, PLAIN, CONTEXT).messages)
        assert "Is it {question} or {sentence}?" in told and told.count("{question}") == (
            2 if name == "pushback" else 1
        )


# ---------------------------------------------------------------------------------------------------------------------
# One by one


def test_system_turns():
    assert transform_prompt("system", PLAIN, CONTEXT).messages[0] == Message("system", SYSTEM)
    assert transform_prompt("system", OWN, CONTEXT).messages[0].content == f"{SYSTEM}\n\nBe brief."
    ours = TRANSFORMS["json"].system
    assert "JSON" in ours
    assert transform_prompt("json", OWN, CONTEXT).messages[0].content == f"Be brief.\n\n{ours}"


def test_without_a_system_role_the_text_goes_to_the_first_user_turn():
    bare = replace(CONTEXT, system_role=False)
    for name in NAMES:
        assert all(m.role != "system" for m in transform_prompt(name, LONG, bare).messages)
        if not TRANSFORMS[name].uses_system:
            assert transform_prompt(name, LONG, bare) == transform_prompt(name, LONG, CONTEXT)
    turns = transform_prompt("system", LONG, bare).messages
    assert turns == (Message("user", f"{SYSTEM}\n\nA first question."), *LONG.messages[1:])


def test_a_prompt_that_has_the_feature_already_is_left_out():
    there = Prompt("s", chat("Which way?", system=f"{SYSTEM} Be brief."))
    assert [p.id for p in transformed("system", [PLAIN, there, OWN], CONTEXT)] == ["p", "r"]


def test_opening_and_turn_of_the_domain():
    for p in PROMPTS[:30]:
        first = transform_prompt("domain-opening", p, CONTEXT).messages[0].content
        opening, rest = first.split("\n\n", 1)
        assert opening in CONTEXT.sentences and rest == f"On another matter: {p.messages[0].content}"
        earlier = transform_prompt("domain-turn", p, CONTEXT).messages
        assert earlier[0].content in CONTEXT.questions and earlier[2:] == p.messages
    used = {transform_prompt("domain-opening", p, CONTEXT).messages[0].content.split("\n\n")[0] for p in PROMPTS}
    assert used == set(CONTEXT.sentences)  # no single sentence carries the result


def test_prefill_is_an_open_turn():
    made = transform_prompt("prefill", LONG, CONTEXT)
    assert split_prefill(made.messages) == (LONG.messages, CONTEXT.prefill)
    assert split_prefill(LONG.messages) == (LONG.messages, "")
    assert split_prefill(()) == ((), "")
    other = replace(CONTEXT, prefill="Sure, and")
    assert transform_prompt("prefill", made, other) == transform_prompt("prefill", LONG, other)


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
    assert VariantContext.from_task(rows).system == "a"  # of two equally common ones the first by alphabet
    assert VariantContext.from_task(rows[1:]).system == "a" and VariantContext.from_task(rows[:5]).system == "b"


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
    found = VariantContext.from_task(rows_of((turn, "An answer.")))
    assert found.sentences == ((sentence,) if sentence else ())
    assert found.questions == (turn,)


def test_the_choice_is_seeded_and_follows_the_domain():
    rows = with_system(ROWS)
    assert VariantContext.from_task(rows, WORDS) == CONTEXT == VariantContext.from_task(rows[::-1], WORDS)
    assert VariantContext.from_task(rows, WORDS, seed=1).sentences != CONTEXT.sentences
    mixed = rows_of(
        *[(f"My old dog number {k} is asleep. Why?", "Rest.") for k in range(20)],
        *[(f"My savings account number {k} is open. Why?", "Rest.") for k in range(9)],
    )
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
    assert VariantContext.from_task(rows_of(*[("Question?", a) for a in answers])).prefill == prefill
