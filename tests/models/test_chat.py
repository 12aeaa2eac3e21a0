"""The answer span in every real template at hand, and the rules around it."""

import importlib.util
import re
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from truing.errors import BadModel, Unsupported
from truing.models.chat import PINNED_DATE, ChatFormat, tokenizer_identity
from truing.types.records import Message
from zoo.build import NO_SYSTEM, TEMPLATE, tiny_tokenizer

pytestmark = pytest.mark.torch

USER = (Message("user", "Which metal is heaviest?"),)
SYSTEM = (Message("system", "Speak like a sailor."), *USER)
LONG = (*USER, Message("assistant", "Osmium."), Message("user", "And the lightest?"))
ANSWER = "Zinc, or so I was told: 7 parts"
START = "Zinc, or so"
# The templates of real models that the TRL package carries; its training variants are left out.
TRL = importlib.util.find_spec("trl")
TEMPLATES = sorted((Path(TRL.origin).parent / "chat_templates").glob("*.jinja")) if TRL and TRL.origin else []
TEMPLATES = [f for f in TEMPLATES if not f.stem.endswith("_training")]


def opened(messages, start=START):
    return (*messages, Message("assistant", start))


def chat_of(template, extra=()):
    """A chat format by this template, and the text of token ids with all special tokens."""
    tokenizer = tiny_tokenizer(template=template, extra=extra)

    def decoded(ids):
        return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return ChatFormat(tokenizer), decoded, tokenizer


def prompt(template, messages=USER):
    """The text that an answer is sampled from."""
    chat, decoded, _ = chat_of(template)
    return decoded(chat.prefix(messages))


def rendered_plainly(tokenizer, messages):
    """The template's own rendering of the finished turns; "" where it takes contents in neither form."""
    for parts in (False, True):
        turns = [
            {"role": m.role, "content": [{"type": "text", "text": m.content}] if parts else m.content} for m in messages
        ]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False)
        except Exception:  # the wrong form of content for this template
            continue
        if ANSWER in text:
            return text
    return ""


def without_thought(text):
    return re.sub(r"<think>\s*</think>\s*", "", text)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda f: f.stem)
def test_span_in_real_templates(file):
    template = file.read_text()
    # The tokenizer knows every <...> of the template as one token.
    marks = sorted(set(re.findall(r"<[^<>\s'\"{}]{1,40}>|\[[A-Z_]+\]", template)))
    chat, decoded, tokenizer = chat_of(template, marks)
    for messages in (USER, LONG, SYSTEM):
        assert chat.supports(opened(messages)) == chat.supports(messages)
        if not chat.supports(messages):
            assert messages is SYSTEM  # some refuse or drop a system turn; all take the others
            continue
        one, two = chat.render(messages, ANSWER), chat.render(messages, "Quite another thing")
        assert one.prefix_ids == two.prefix_ids == tuple(chat.prefix(messages))
        before, after = decoded(one.prefix_ids), decoded(one.completion_ids)
        assert ANSWER not in before
        assert messages[-1].content in before
        closing = after.removeprefix(ANSWER)
        assert after == ANSWER + closing
        assert closing == closing.rstrip()  # no newline after the closing token is scored
        # Independent check: the template's own rendering of the finished turn contains exactly this.
        whole = rendered_plainly(tokenizer, (*messages, Message("assistant", ANSWER)))
        start = whole.rindex(ANSWER)
        assert whole[start:].startswith(ANSWER + closing)
        if closing:
            assert len(tokenizer(closing, add_special_tokens=False)["input_ids"]) == 1
            assert one.completion_ids[-1] in chat.stop_ids
        # Text right before the answer agrees too, up to an empty thought that switches thinking off.
        assert without_thought(whole[:start])[-12:] == without_thought(before)[-12:]
        # The open turn is the beginning of the finished one, in text and in tokens.
        begun = chat.render(opened(messages), ANSWER.removeprefix(START))
        assert decoded(begun.prefix_ids) == before + START
        assert begun.prefix_ids == tuple(chat.prefix(opened(messages)))
        assert begun.prefix_ids + begun.completion_ids == one.prefix_ids + one.completion_ids
        assert begun.prefix_ids[: len(one.prefix_ids)] == one.prefix_ids


def test_sampling_prefix_is_generation_prompt_and_thinking_is_off():
    thought = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    chat, decoded, _ = chat_of(TEMPLATE.replace("assistant\n' }}", "assistant\n' }}" + thought))
    rendered = chat.render(USER, ANSWER)
    assert decoded(rendered.prefix_ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert decoded(rendered.completion_ids) == ANSWER + "<|im_end|>"
    assert chat.definitions["thinking"] == "off"


@pytest.mark.parametrize("generation", ["assistant\n<think>\n' }}", "helper:' }}"])
def test_a_generation_prompt_that_contradicts_the_turn_is_not_used(generation):
    """One opens a thought that cannot be switched off, one names another speaker."""
    template = TEMPLATE.replace("<|im_start|>assistant\n' }}", f"<|im_start|>{generation}")
    assert template != TEMPLATE
    assert prompt(template).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("tail", "closing"),
    [("<|im_end|>\n", "<|im_end|>"), ("\n<|im_end|>\n<|endoftext|>", "\n<|im_end|>"), ("\n\n", ""), ("[END]\n", "")],
)
def test_closing(tail, closing):
    chat, decoded, tokenizer = chat_of(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ '" + tail.replace("\n", "\\n") + "' }}{% endfor %}"
    )
    assert decoded(chat.render(USER, ANSWER).completion_ids) == ANSWER + closing
    assert tokenizer.eos_token_id in chat.stop_ids


@pytest.mark.parametrize(
    "template", [None, "hello", "{{ messages[0].nothing.there }}", "{% for %}", "{{ raise_exception('no') }}"]
)
def test_no_or_a_useless_template_says_what_to_pass(template):
    with pytest.raises(BadModel, match="--chat-template FILE"):
        chat_of(template)
    assert ChatFormat(tiny_tokenizer(template=template), template=TEMPLATE).supports(USER)


DROPS = TEMPLATE.replace("%}{{ '<|im_start|>'", "%}{% if message['role'] != 'system' %}{{ '<|im_start|>'", 1).replace(
    "{% endfor %}", "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "supported"), [(TEMPLATE, True), (DROPS, False), (NO_SYSTEM, False)], ids=["takes", "drops", "refuses"]
)
def test_system_role(template, supported):
    chat, _, _ = chat_of(template)
    assert chat.supports(USER) and chat.supports(LONG)
    assert chat.supports(SYSTEM) is supported
    if template is NO_SYSTEM:
        for call in (lambda: chat.prefix(SYSTEM), lambda: chat.render(SYSTEM, ANSWER)):
            with pytest.raises(Unsupported, match="system, user"):
                call()


def test_completion_is_trimmed_where_the_template_trims():
    trimming = TEMPLATE.replace("message['content']", "message['content'].strip()")
    for template, kept in ((TEMPLATE, "  Yes \n"), (trimming, "Yes")):
        chat, decoded, _ = chat_of(template)
        assert decoded(chat.render(USER, "  Yes \n").completion_ids) == kept + "<|im_end|>"


def test_prompt_and_answer_joined_into_one_token_are_kept_apart_under_a_prefill_too():
    """A merge across the border must not change the prefix: sampling never sees it."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    chat, decoded, tokenizer = chat_of(template)
    tokenizer.add_tokens([AddedToken(": Yes", normalized=False)])
    rendered = chat.render(USER, "Yes sir")
    assert rendered.prefix_ids == tuple(chat.prefix(USER)) == chat.render(USER, "No").prefix_ids
    assert decoded(rendered.completion_ids) == "Yes sir<|im_end|>"
    whole = tokenizer(decoded(rendered.prefix_ids) + "Yes sir", add_special_tokens=False)["input_ids"]
    assert tuple(whole[: len(rendered.prefix_ids)]) != rendered.prefix_ids  # the case is real
    answer = chat.render(USER, "Yes", closing=False)
    assert tuple(chat.prefix(opened(USER, "Yes"))) == answer.prefix_ids + answer.completion_ids


def test_the_date_is_pinned_unless_the_template_has_its_own():
    dated = "{{ strftime_now('%d %b %Y|%A %-d %B|%Y-%m-%d') }}"
    dated += "{% macro x() %}{{ strftime_now('%y') }}{% endmacro %}[{{ x() }}]"
    own = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}\n"
    assert prompt(dated + TEMPLATE).startswith("01 Jan 2026|Thursday 1 January|2026-01-01[26]<|im_start|>user")
    assert chat_of(dated + TEMPLATE)[0].definitions["date"] == PINNED_DATE == "2026-01-01"
    assert prompt(own + TEMPLATE).startswith("26 Jul 2024\n")


def test_identity(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    again(["a", "longer text"], padding=True, truncation=True, max_length=4)  # leaves traces in the tokenizer
    again.padding_side = "left"
    assert ChatFormat(again).identity == ChatFormat(tokenizer).identity
    assert ChatFormat(again, template=TEMPLATE).identity == ChatFormat(tokenizer).identity
    assert ChatFormat(again, template=TEMPLATE + "\n").identity != ChatFormat(tokenizer).identity
    assert tokenizer_identity(tiny_tokenizer(extra=("<|tool|>",))) != tokenizer_identity(tokenizer)


@pytest.mark.parametrize(
    ("change", "start"), [(".replace('<b>', '')", "So <b>much"), (".split('</think>')[-1]", "I see </think> and")]
)
def test_first_words_that_the_template_would_alter_are_unsupported(change, start):
    chat, _, _ = chat_of(TEMPLATE.replace("message['content']", f"message['content']{change}"))
    assert chat.supports(opened(USER)) and not chat.supports(opened(USER, start))
    with pytest.raises(Unsupported, match="first words of the answer do not appear unchanged"):
        chat.prefix(opened(USER, start))


THOUGHT = "<think>\nThey ask about metals.\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("qwen3", True),
        ("qwen3_5_think", True),
        ("nemotron_3_nano", True),
        ("glm4moe", True),
        ("qwen2_5", True),
        ("deepseek_r1_distill", False),
        ("deepseekv3", False),
    ],
)
@pytest.mark.skipif(not TEMPLATES, reason="needs the templates of TRL")
def test_a_row_with_reasoning_is_what_a_trainer_writes(name, kept):
    template = next(f for f in TEMPLATES if f.stem == name).read_text()
    chat, decoded, tokenizer = chat_of(template, ("<think>", "</think>"))
    turns = [{"role": "user", "content": USER[0].content}, {"role": "assistant", "content": THOUGHT + ANSWER}]
    trained, row = tokenizer.apply_chat_template(turns, tokenize=False), chat.render_trained(USER, THOUGHT + ANSWER)
    written = decoded(row.completion_ids)
    assert trained.startswith(decoded(row.prefix_ids) + written)
    assert ("They ask about metals." in written) == kept == (row.note == "") and ANSWER in written
    assert written.startswith("<think>") == kept and written.count("<think>") == kept
    assert chat.render_trained(USER, ANSWER) == chat.render(USER, ANSWER)  # rows without reasoning are as ever


def test_a_row_whose_answer_the_template_rewrites_is_refused_and_says_so():
    chat, _, _ = chat_of(TEMPLATE.replace("message['content']", "(message['content'] | replace('told', 'heard'))"))
    with pytest.raises(Unsupported, match="does not write the answer as it is given"):
        chat.render_trained(USER, ANSWER)
