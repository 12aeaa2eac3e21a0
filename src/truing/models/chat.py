"""Rendering a chat and finding the answer in it, for any chat template.

    messages + answer --template--> text --tokenizer--> prefix ids | completion ids

The span of an answer is found by rendering the conversation with two unlike answers and comparing the texts: what both
share at the start comes before the answer, what both share at the end comes after it. Comparing "with the answer"
against "without it" fails on many real templates, which treat the last turn specially.

Messages that end with an assistant turn leave it open: those words are the first of the answer (a prefill), and what is
sampled or scored goes on from there.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from truing.errors import BadModel, Unsupported
from truing.types.hashing import digest
from truing.types.records import Message, Messages

PINNED_DATE = "2026-01-01"
"""the date shown by templates that print today's; one that has a constant date of its own keeps it"""

# Unlike at both ends, so that neither a common head nor a common tail can reach into them.
_ANSWERS = ("Quartz 7 jumps over Kyiv", "Velvet 3 hums below Oslo")
_PROBE = (Message("user", "Which way is north?"),)
_CACHE_SIZE = 8192
_THINK, _THOUGHT = "<think>", "</think>"
REASONING_LEFT_OUT = "the chat template leaves out their reasoning"
_RENDER_ERRORS = (Exception,)  # a template is a program: it may raise anything


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as token ids, cut where the answer begins."""

    prefix_ids: tuple[int, ...]  # everything before the answer: exactly what the model is sampled from
    completion_ids: tuple[int, ...]  # the answer and its closing token, without a newline after that
    note: str = ""  # what the template left out of the answer


@dataclass(frozen=True, slots=True)
class _Slot:
    """The text around an answer to one conversation."""

    head: str  # what the template itself writes before the answer
    before: str  # the prompt up to the first character of the answer: the head, or the template's generation prompt
    tail: str  # what the template writes after the answer
    closing: str  # what is scored of it: through the first special token; may be empty
    prefix_ids: tuple[int, ...]  # `before` as tokens
    opened: bool = False  # whether `before` ends within the answer, after prefilled words


class ChatFormat:
    """How one tokenizer and template write a chat. Thinking is off and the date is pinned; both are in `definitions`.

    Raises BadModel when there is no template, or when it cannot render one plain question and answer.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        """`template` is the text of a template that replaces the tokenizer's own."""
        self._tokenizer = tokenizer
        source = template if template is not None else _own_template(tokenizer)
        self._template = _with_pinned_date(source)
        texts = {token.content for token in tokenizer.added_tokens_decoder.values()} | {*tokenizer.all_special_tokens}
        self._markers = sorted(t for t in texts if t.strip())  # what is one token by decree
        self._slot = lru_cache(_CACHE_SIZE)(self._find_slot)
        self._parts, self._trims = self._probe()

        slot = self._slot(_PROBE)
        stops = {tokenizer.eos_token_id, *self._ids(slot.closing)[-1:]}
        self.stop_ids: tuple[int, ...] = tuple(sorted(i for i in stops if i is not None))
        """tokens that end an answer: the end-of-sequence token and the template's closing token"""
        self.definitions: dict[str, str] = {
            "template": hashlib.sha256(source.encode()).hexdigest(),
            "date": PINNED_DATE,
            "date_string": "the template's own",
            "thinking": "off",
        }
        """what decides the rendering, in words: stored with results"""
        self.identity: str = digest([self.definitions, tokenizer_identity(tokenizer)])
        """equal for two checkpoints exactly when they render and tokenise equally"""

    def prefix(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt, ready for the first token of an answer. Raises Unsupported as `render` does."""
        return list(self._slot(tuple(messages)).prefix_ids)

    def render(self, messages: Sequence[Message], completion: str, *, closing: bool = True) -> Rendered:
        """Token ids of the prompt and of `completion` with its closing token (without it for a truncated answer).

        Raises Unsupported when the template refuses these messages, ValueError when no token is left to score.
        """
        slot = self._slot(tuple(messages))
        rest = self._ids_after(slot, self._written(completion, slot) + (slot.closing if closing else ""))
        if not rest:
            raise ValueError(f"the completion {completion!r} has no tokens to score; give an answer with text in it")
        return Rendered(slot.prefix_ids, rest)

    def render_trained(self, messages: Sequence[Message], answer: str) -> Rendered:
        """Token ids of a row as a trainer writes it: the template is given the answer itself, reasoning and all.

        A template that thinks puts an empty thought before a plain answer; reasoning that the answer holds takes its
        place, or is left out where the template takes it away (`Rendered.note`). Thinking is off for other rows only.
        Raises as `render` does.
        """
        turns = (*messages, Message("assistant", answer))
        thinks = _THOUGHT in answer
        slot = self._slot(turns[:-1], thinks)
        with _refusals(turns):
            whole = self._render(turns, self._parts, thinks=thinks)
        if slot.opened or whole == slot.head + self._written(answer, slot) + slot.tail:
            return self.render(messages, answer)
        reasoning, end, said = answer.rpartition(_THOUGHT)
        before = os.path.commonprefix([whole, slot.head])  # noqa: RUF071
        if before.count(_THINK) > before.count(_THOUGHT):
            before = before[: before.rindex(_THINK)]
        written = whole[len(before) : len(whole) - len(slot.tail)]
        if not whole.endswith(slot.tail) or not said.strip() or said.strip() not in written:
            raise Unsupported("the chat template does not write the answer as it is given")
        thought = "".join(reasoning.partition(_THINK)[2].split() or reasoning.split())
        lost = end and thought not in "".join(written.split())
        prefix = self._ids(before)
        ids, cut = self._ids(before + written + slot.closing), len(prefix)
        rest = ids[cut:] if ids[:cut] == prefix else self._ids(written + slot.closing)
        return Rendered(prefix, rest, REASONING_LEFT_OUT if lost else "")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def refuse_unsupported(self, messages: Sequence[Message]) -> None:
        """Raise Unsupported unless the template takes these messages: it raises on none and shows every turn."""
        marks = tuple(Message(m.role, f"Basalt {i} drifts") for i, m in enumerate(messages))
        prompt = self._slot(marks).before
        if dropped := [m.role for m in marks if m.content not in prompt]:  # a system turn, without a word
            raise Unsupported(f"the chat template drops a {dropped[0]} turn; leave it out or pass another template")
        self._slot(tuple(messages))

    def supports(self, messages: Sequence[Message]) -> bool:
        """Whether the template takes these messages."""
        try:
            self.refuse_unsupported(messages)
        except Unsupported:
            return False
        return True

    def _render(
        self, messages: Iterable[Message], parts: bool, generation: bool = False, *, thinks: bool = False
    ) -> str:
        turns = [
            {"role": m.role, "content": [{"type": "text", "text": m.content}] if parts else m.content} for m in messages
        ]
        off = {} if thinks else {"enable_thinking": False}
        return self._tokenizer.apply_chat_template(
            turns, chat_template=self._template, tokenize=False, add_generation_prompt=generation, **off
        )

    def _written(self, completion: str, slot: _Slot) -> str:
        if not self._trims:
            return completion
        return completion.rstrip() if slot.opened else completion.strip()

    def _ids(self, text: str) -> tuple[int, ...]:
        # The template writes the beginning-of-sequence token itself where the model wants one.
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def _ids_after(self, slot: _Slot, text: str) -> tuple[int, ...]:
        """Text that stands after a prompt, as tokens.

        A tokenizer may join the end of the prompt with the start of the answer. Sampling never does: the answer is then
        tokenised by itself, so that the prefix stays the one that is sampled from.
        """
        ids, cut = self._ids(slot.before + text), len(slot.prefix_ids)
        return ids[cut:] if ids[:cut] == slot.prefix_ids else self._ids(text)

    def _probe(self) -> tuple[bool, bool]:
        """Whether contents must be given as lists of parts, and whether answers are trimmed."""
        problem = "it does not show the text of a plain question and answer"
        for parts in (False, True):
            try:
                text = self._render((*_PROBE, Message("assistant", f" {_ANSWERS[0]} ")), parts)
            except _RENDER_ERRORS as error:
                problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            if _PROBE[0].content in text and _ANSWERS[0] in text:
                return parts, f" {_ANSWERS[0]} " not in text
        raise BadModel(
            f"the chat template cannot render one question and answer ({problem}); "
            "pass a working one with --chat-template FILE"
        )

    def _find_slot(self, messages: Messages, thinks: bool = False) -> _Slot:
        opened = len(messages) > 1 and messages[-1].role == "assistant"
        with _refusals(messages):
            return self._opened(messages) if opened else self._measure(messages, thinks)

    def _measure(self, messages: Messages, thinks: bool = False) -> _Slot:
        """The text around the answer, by the difference of two renderings; ValueError if the span is not clean."""
        one, two = (self._render((*messages, Message("assistant", a)), self._parts, thinks=thinks) for a in _ANSWERS)
        head = os.path.commonprefix([one, two])  # noqa: RUF071 - of texts, by character
        tail = os.path.commonprefix([one[::-1], two[::-1]])[::-1]  # noqa: RUF071
        if any(text != head + answer + tail for text, answer in zip((one, two), _ANSWERS, strict=True)):
            raise ValueError("the answer does not appear once and unchanged in the rendered text")
        prompt = self._render(messages, self._parts, generation=True, thinks=thinks)
        opening = prompt[len(head) :]
        open_thought = opening.count(_THINK) > opening.count(_THOUGHT)  # which cannot be switched off
        before = prompt if prompt.startswith(head) and not open_thought else head
        return _Slot(head, before, tail, self._closing(tail), self._ids(before))

    def _opened(self, messages: Messages) -> _Slot:
        """The slot of an answer whose first words are the last message's; ValueError if a template would alter them.

        The words become tokens as an answer's do, so that what is sampled from is what an answer that begins so has.
        """
        earlier, start = messages[:-1], messages[-1].content
        plain, words = self._measure(earlier), start.lstrip() if self._trims else start
        for answer in _ANSWERS:
            whole = self._render((*earlier, Message("assistant", words + answer)), self._parts)
            if not whole.startswith(plain.head + words + answer):
                raise ValueError("the first words of the answer do not appear unchanged in the rendered text")
        ids = plain.prefix_ids + self._ids_after(plain, words)
        return _Slot(plain.head, plain.before + words, plain.tail, plain.closing, ids, opened=True)

    def _closing(self, tail: str) -> str:
        """The tail through its first special token; nothing if it has none."""
        # The earliest, and of those the longest.
        starts = [(tail.index(m), -len(m)) for m in self._markers if m in tail]
        start, length = min(starts, default=(0, 0))
        return tail[: start - length]


@contextmanager
def _refusals(messages: Messages) -> Iterator[None]:
    """What a template raises on these messages, as Unsupported."""
    try:
        yield
    except _RENDER_ERRORS as error:
        roles = ", ".join(m.role for m in messages)
        raise Unsupported(
            f"the chat template refuses a conversation with the roles {roles or '(none)'} "
            f"({type(error).__name__}: {error}); leave it out or pass another one with --chat-template FILE"
        ) from error


def tokenizer_identity(tokenizer: Any) -> str:
    """Hash (64 hex digits) of all that turns text into ids: vocabulary, merges, normaliser, added and special tokens.

    Padding, truncation and what is added around a text are left out: rendering uses none of it, and trainers set it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model: Any = json.loads(backend.to_str())
        for name in ("padding", "truncation", "post_processor"):
            model.pop(name, None)
    else:
        model = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    special = {k: v for k, v in tokenizer.special_tokens_map.items() if k in ("bos_token", "eos_token", "unk_token")}
    return digest([model, special])


def _own_template(tokenizer: Any) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise BadModel(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template "
            "(it may be a base model rather than a chat model); pass one with --chat-template FILE"
        ) from error


def _with_pinned_date(template: str) -> str:
    """The template with `strftime_now` replaced by a macro that always tells the pinned date, at midnight, in English.

    transformers turns functions passed to a template into text, so it has to be done inside the template.
    """
    if "strftime_now" not in template:
        return template
    codes = {
        "%-d": "1", "%-m": "1", "%e": " 1", "%d": "01", "%m": "01", "%B": "January", "%b": "Jan",
        "%A": "Thursday", "%a": "Thu", "%Y": "2026", "%y": "26", "%j": "001",
        "%F": PINNED_DATE, "%H": "00", "%M": "00", "%S": "00", "%I": "12", "%p": "AM", "%T": "00:00:00",
    }  # fmt: skip
    replaced = "".join(f" | replace({code!r}, {value!r})" for code, value in codes.items())
    # The newline is eaten with the block before it, and leaves the template at the start of a line, as it was.
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro %}\n" + template
