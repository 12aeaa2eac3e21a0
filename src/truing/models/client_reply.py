"""What a service sent -> a `Completion`. All that is read of an answer is checked here, and nothing is mended.

A body is one JSON object, or a stream of them as server-sent events, which are put together to one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truing.files import parse_json

MOST_CHOICES = 128
"""choices, and candidates for a token, that an answer may hold; a few more than were asked for are common"""
_KEPT_TOKENS = 16
_LONGEST_NAME = 200
_NEVER = 10**9  # tokens of one answer


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Block(_Strict):
    type: str
    text: Any = None


class _Message(_Strict):
    content: str | list[str | _Block] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(_Strict):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None


class _Body(_Strict):
    choices: list[Any] = Field(min_length=1, max_length=MOST_CHOICES)
    model: Annotated[str, Field(max_length=_LONGEST_NAME)] | None = None
    system_fingerprint: Any = None


class _Candidate(_Strict):
    token: str
    logprob: float = Field(le=0.01, allow_inf_nan=False)


class _First(_Strict):
    top_logprobs: list[_Candidate] = Field(max_length=MOST_CHOICES)


class Usage(BaseModel):
    """What a service says a call took."""

    model_config = ConfigDict(strict=True, frozen=True)
    prompt_tokens: int = Field(ge=0, le=_NEVER)
    """read"""
    completion_tokens: int = Field(ge=0, le=_NEVER)
    """written"""
    completion_tokens_details: Any = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The first choice of an answer."""

    text: str
    """what the model wrote, as it came; texts of several blocks joined, without blocks of thinking"""
    tokens: tuple[str, ...] = ()
    """the first tokens, where log-probabilities came"""
    top: Mapping[str, float] | None = None
    """probability of each candidate for the first token, equal strings added up; None where that makes no sense"""
    thinks: bool = False
    """whether thinking came beside the text"""
    cut_off: bool = False
    """whether it ended at the limit of tokens"""
    filtered: bool = False
    """whether a content filter refused"""
    model: str = ""
    """which model says it answered"""
    fingerprint: str = ""
    """of the system that answered, where the service gives one"""


def parse_body(raw: bytes) -> Any:
    """The JSON of a body, of a stream put together. Raises ValueError."""
    text = raw.decode("utf-8-sig").strip()
    if text.startswith(("data:", "event:", "id:", "retry:", ":")):
        return _joined(text)
    return parse_json(text)


def read_completion(data: Any) -> Completion:
    """The first choice of a body. Raises ValueError, which says what is wrong, where there is none."""
    if not isinstance(data, Mapping):
        raise ValueError("the answer is no JSON object")
    if data.get("error") and not data.get("choices"):
        raise ValueError(f"the answer is an error: {data['error']}")
    try:
        body = _Body.model_validate(data)
        choice = _Choice.model_validate(body.choices[0])
    except ValidationError as e:
        _complain(e)
    if choice.finish_reason == "error":
        raise ValueError("the answer was broken off by an error")
    message, blocks = choice.message, choice.message.content
    if isinstance(blocks, list):
        texts = [b if isinstance(b, str) else b.text for b in blocks if isinstance(b, str) or b.type in _TEXTS]
        if not all(isinstance(t, str) for t in texts):
            raise ValueError("the answer's message.content: a block of text holds none")
        text, thinks = "".join(texts), len(texts) < len(blocks)
    else:
        text, thinks = blocks or "", False
    listed = choice.logprobs.get("content") if isinstance(choice.logprobs, Mapping) else None
    tokens = [t for t in listed[:_KEPT_TOKENS] if isinstance(t, Mapping)] if isinstance(listed, list) else []
    usage = read_usage(data)
    counted = usage.completion_tokens_details if usage else None
    thinks |= bool(message.reasoning_content or message.reasoning)
    return Completion(
        text,
        tuple(str(t.get("token")) for t in tokens),
        _top(tokens[0]) if tokens else None,
        thinks or bool(isinstance(counted, Mapping) and counted.get("reasoning_tokens")),
        choice.finish_reason == "length",
        choice.finish_reason == "content_filter" or bool(message.refusal),
        body.model or "",
        mark[:_LONGEST_NAME] if isinstance(mark := body.system_fingerprint, str) else "",
    )


def read_usage(data: Any) -> Usage | None:
    """What a body says was used; None where it says nothing that makes sense."""
    try:
        return Usage.model_validate(data.get("usage") if isinstance(data, Mapping) else None)
    except ValidationError:
        return None


_TEXTS = ("text", "output_text")


def _top(token: Mapping[str, Any]) -> dict[str, float] | None:
    found: dict[str, float] = {}
    try:
        candidates = _First.model_validate(dict(token)).top_logprobs
    except ValidationError:
        return None
    for t in candidates:
        found[t.token] = found.get(t.token, 0.0) + math.exp(min(t.logprob, 0.0))
    return found if 0 < sum(found.values()) <= 1.05 else None


def _complain(error: ValidationError) -> NoReturn:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    raise ValueError(f"the answer holds no message: {place}: {problem['msg'].lower()}") from None


def _joined(text: str) -> dict[str, Any]:
    """The answer that the events of a stream make up; choices but the first are left out."""
    whole: dict[str, Any] = {}
    content: list[Any] = []
    tokens: list[Any] = []
    message: dict[str, Any] = {"content": content}
    choice: dict[str, Any] = {"message": message, "finish_reason": None}
    ended = False
    for data in _events(text):
        if data == "[DONE]":
            ended = True
            break
        chunk = parse_json(data)
        if not isinstance(chunk, dict):
            raise ValueError("a part of the streamed answer is no JSON object")
        if chunk.get("error"):
            raise ValueError(f"the answer is an error: {chunk['error']}")
        whole |= {name: chunk[name] for name in ("model", "usage", "system_fingerprint") if chunk.get(name)}
        parts = chunk.get("choices") or []
        first = parts[0] if isinstance(parts, list) and parts else {}
        delta = first.get("delta") or {} if isinstance(first, dict) else None
        if not isinstance(parts, list) or not isinstance(first, dict) or not isinstance(delta, dict):
            raise ValueError("a part of the streamed answer holds no message")
        if first.get("index") not in (None, 0):
            continue
        said = delta.get("content")
        content += said if isinstance(said, list) else [said] if said is not None else []
        message |= {n: delta[n] for n in ("refusal", "reasoning_content", "reasoning") if delta.get(n)}
        choice["finish_reason"] = first.get("finish_reason") or choice["finish_reason"]
        logprobs = first.get("logprobs")
        listed = logprobs.get("content") if isinstance(logprobs, dict) else None
        tokens += listed if isinstance(listed, list) else []
    if not ended and choice["finish_reason"] is None:
        raise ValueError("the streamed answer was broken off")
    return {**whole, "choices": [{**choice, "logprobs": {"content": tokens} if tokens else None}]}


def _events(text: str) -> list[str]:
    """The data of each event."""
    events = text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
    lines = [[x.partition(":")[2].removeprefix(" ") for x in e.split("\n") if x.startswith("data:")] for e in events]
    return [data for parts in lines if (data := "\n".join(parts).strip())]
