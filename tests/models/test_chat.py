"""The answer span in every real template at hand, and the rules around it."""

import re
from pathlib import Path

import pytest

from truing.errors import BadModel, Unsupported
from truing.models.chat import PINNED_DATE, ChatFormat, tokenizer_identity
from truing.types.records import Message
from zoo.build import TEMPLATE, tiny_tokenizer

pytestmark = pytest.mark.torch

USER = (Message("user", "Which metal is heaviest?"),)
SYSTEM = (Message("system", "Speak like a sailor."), *USER)
LONG = (*USER, Message("assistant", "Osmium."), Message("user", "And the lightest?"))
ANSWER = "Zinc, or so I was told: 7 parts"


START = "Zinc, or so"


def opened(messages, start=START):
    return (*messages, Message("assistant", start))


def real_templates():
    """The templates of real models that the TRL package carries; its training variants are left out."""
    import importlib.util

    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        return []
    files = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    return [f for f in files if not f.stem.endswith("_training")]


TEMPLATES = real_templates()


def tokenizer_for(template):
    """A small tokenizer that knows every <...> of the template as one token."""
    marks = re.findall(r"<[^<>\s'\"{}]{1,40}>|\[[A-Z_]+\]", template)
    return tiny_tokenizer(template=template, extra=sorted(set(marks)))


def decoded(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda f: f.stem)
def test_span_in_real_templates(file):
    template = file.read_text()
    tokenizer = tokenizer_for(template)
    chat = ChatFormat(tokenizer)
    for messages in (USER, LONG, SYSTEM):
        assert chat.supports(opened(messages)) == chat.supports(messages)
        if not chat.supports(messages):
            assert messages is SYSTEM  # some refuse or drop a system turn; all take the others
            continue
        one, two = chat.render(messages, ANSWER), chat.render(messages, "Quite another thing")
        assert one.prefix_ids == two.prefix_ids == tuple(chat.prefix(messages))
        before, after = decoded(tokenizer, one.prefix_ids), decoded(tokenizer, one.completion_ids)
        assert ANSWER not in before
        assert messages[-1].content in before
        closing = after.removeprefix(ANSWER)
        assert after == ANSWER + closing
        assert closing == closing.rstrip()  # no newline after the closing token is scored
        # Independent check: the template's own rendering of the finished turn contains exactly this.
        parts = "item.text" in template or "content.text" in template or "['text']" in template
        for form in [True, False] if parts else [False]:
            turns = [
                {"role": m.role, "content": [{"type": "text", "text": m.content}] if form else m.content}
                for m in (*messages, Message("assistant", ANSWER))
            ]
            whole = _plain_render(tokenizer, turns)
            if whole is not None and ANSWER in whole:
                break
        else:
            pytest.fail("the plain rendering shows no answer")
        start = whole.rindex(ANSWER)
        assert whole[start:].startswith(ANSWER + closing)
        if closing:
            assert len(tokenizer(closing, add_special_tokens=False)["input_ids"]) == 1
            assert one.completion_ids[-1] in chat.stop_ids
        # The open turn is the beginning of the finished one, in text and in tokens.
        assert chat.text(opened(messages)) == chat.text(messages) + START
        open_ = chat.render(opened(messages), ANSWER.removeprefix(START))
        assert open_.prefix_ids == tuple(chat.prefix(opened(messages)))
        assert open_.prefix_ids + open_.completion_ids == one.prefix_ids + one.completion_ids
        assert open_.prefix_ids[: len(one.prefix_ids)] == one.prefix_ids
        rest = decoded(tokenizer, open_.completion_ids)
        assert rest.startswith(" I was told: 7 parts") and START not in rest
        # Text right before the answer agrees too, up to an empty thought that switches thinking off.
        assert _without_thought(whole[:start])[-12:] == _without_thought(before)[-12:]


def _plain_render(tokenizer, turns):
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False)
    except Exception:  # the wrong form of content for this template
        return None


def _without_thought(text):
    return re.sub(r"<think>\s*</think>\s*", "", text)


def test_sampling_prefix_is_generation_prompt_and_thinking_is_off():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    tokenizer = tiny_tokenizer(template=template)
    chat = ChatFormat(tokenizer)
    assert chat.text(USER).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert decoded(tokenizer, chat.render(USER, ANSWER).prefix_ids) == chat.text(USER)
    assert decoded(tokenizer, chat.render(USER, ANSWER).completion_ids) == ANSWER + "<|im_end|>"
    assert chat.definitions["thinking"] == "off"


@pytest.mark.parametrize("generation", ["assistant\n<think>\n' }}", "helper:' }}"])
def test_a_generation_prompt_that_contradicts_the_turn_is_not_used(generation):
    """One opens a thought that cannot be switched off, one names another speaker."""
    template = TEMPLATE.replace("<|im_start|>assistant\n' }}", f"<|im_start|>{generation}")
    assert template != TEMPLATE
    assert ChatFormat(tiny_tokenizer(template=template)).text(USER).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("tail", "closing"),
    [("<|im_end|>\n", "<|im_end|>"), ("\n<|im_end|>\n<|endoftext|>", "\n<|im_end|>"), ("\n\n", ""), ("[END]\n", "")],
)
def test_closing(tail, closing):
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ '" + tail.replace("\n", "\\n") + "' }}{% endfor %}"
    )
    tokenizer = tiny_tokenizer(template=template)
    chat = ChatFormat(tokenizer)
    assert decoded(tokenizer, chat.render(USER, ANSWER).completion_ids) == ANSWER + closing
    assert tokenizer.eos_token_id in chat.stop_ids


def test_no_template_says_what_to_pass():
    with pytest.raises(BadModel, match="--chat-template FILE"):
        ChatFormat(tiny_tokenizer(template=None))
    assert ChatFormat(tiny_tokenizer(template=None), template=TEMPLATE).supports(USER)


@pytest.mark.parametrize(
    "template", ["hello", "{{ messages[0].nothing.there }}", "{% for %}", "{{ raise_exception('no') }}"]
)
def test_useless_template(template):
    with pytest.raises(BadModel, match="--chat-template FILE"):
        ChatFormat(tiny_tokenizer(template=template))


DROPS = TEMPLATE.replace("%}{{ '<|im_start|>'", "%}{% if message['role'] != 'system' %}{{ '<|im_start|>'", 1).replace(
    "{% endfor %}", "{% endif %}{% endfor %}"
)
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)


@pytest.mark.parametrize(
    ("template", "supported"), [(TEMPLATE, True), (DROPS, False), (REFUSES, False)], ids=["takes", "drops", "refuses"]
)
def test_system_role(template, supported):
    chat = ChatFormat(tiny_tokenizer(template=template))
    assert chat.supports(USER)
    assert chat.supports(LONG)
    assert chat.supports(SYSTEM) is supported
    if template is REFUSES:
        for call in (lambda: chat.prefix(SYSTEM), lambda: chat.render(SYSTEM, ANSWER)):
            with pytest.raises(Unsupported, match="system, user"):
                call()


def test_completion_is_trimmed_where_the_template_trims():
    trimming = TEMPLATE.replace("message['content']", "message['content'].strip()")
    for template, kept in ((TEMPLATE, "  Yes \n"), (trimming, "Yes")):
        tokenizer = tiny_tokenizer(template=template)
        rendered = ChatFormat(tokenizer).render(USER, "  Yes \n")
        assert decoded(tokenizer, rendered.completion_ids) == kept + "<|im_end|>"


def test_prompt_and_answer_joined_into_one_token_are_kept_apart():
    """A merge across the border must not change the prefix: sampling never sees it."""
    from tokenizers import AddedToken

    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = tiny_tokenizer(template=template)
    tokenizer.add_tokens([AddedToken(": Yes", normalized=False)])
    chat = ChatFormat(tokenizer)
    rendered = chat.render(USER, "Yes sir")
    assert rendered.prefix_ids == tuple(chat.prefix(USER)) == chat.render(USER, "No").prefix_ids
    assert decoded(tokenizer, rendered.completion_ids) == "Yes sir<|im_end|>"
    whole = tokenizer(chat.text(USER, "Yes sir"), add_special_tokens=False)["input_ids"]
    assert tuple(whole[: len(rendered.prefix_ids)]) != rendered.prefix_ids  # the case is real


DATED = (
    "{{ strftime_now('%d %b %Y|%A %-d %B|%Y-%m-%d') }}{% macro x() %}{{ strftime_now('%y') }}{% endmacro %}[{{ x() }}]"
    + TEMPLATE
)
STRING = (
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}\n" + TEMPLATE
)


def test_the_date_is_pinned_unless_the_template_has_its_own():
    chat = ChatFormat(tiny_tokenizer(template=DATED))
    assert chat.text(USER).startswith("01 Jan 2026|Thursday 1 January|2026-01-01[26]<|im_start|>user")
    assert chat.definitions["date"] == PINNED_DATE == "2026-01-01"
    assert ChatFormat(tiny_tokenizer(template=STRING)).text(USER).startswith("26 Jul 2024\n")


def test_identity(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = tiny_tokenizer(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    again(["a", "longer text"], padding=True, truncation=True, max_length=4)  # leaves traces in the tokenizer
    again.padding_side = "left"
    assert ChatFormat(again).identity == ChatFormat(tokenizer).identity
    assert ChatFormat(again, template=TEMPLATE).identity == ChatFormat(tokenizer).identity
    assert ChatFormat(again, template=TEMPLATE + "\n").identity != ChatFormat(tokenizer).identity
    wider = tiny_tokenizer(extra=("<|tool|>",))
    assert tokenizer_identity(wider) != tokenizer_identity(tokenizer)


# ---------------------------------------------------------------------------------------------------------------------
# First words given of an answer


def test_prefill_that_the_template_would_alter_is_unsupported():
    for change, start in ((".replace('<b>', '')", "So <b>much"), (".split('</think>')[-1]", "I see </think> and")):
        template = TEMPLATE.replace("message['content']", f"message['content']{change}")
        chat = ChatFormat(tiny_tokenizer(template=template))
        assert chat.supports(opened(USER)) and not chat.supports(opened(USER, start))
        with pytest.raises(Unsupported, match="first words of the answer do not appear unchanged"):
            chat.prefix(opened(USER, start))


def test_prefill_becomes_tokens_as_an_answer_does():
    """Where prompt and answer would be joined into one token, they are kept apart under a prefill too."""
    from tokenizers import AddedToken

    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = tiny_tokenizer(template=template + "{% if add_generation_prompt %}assistant: {% endif %}")
    tokenizer.add_tokens([AddedToken(": Yes", normalized=False)])
    chat = ChatFormat(tokenizer)
    answer = chat.render(USER, "Yes", closing=False)
    assert tuple(chat.prefix(opened(USER, "Yes"))) == answer.prefix_ids + answer.completion_ids
