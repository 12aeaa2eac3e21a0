"""What went wrong with a request to a served model: refused, not worth another call, or no reason to stop."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from truing.errors import BadEndpoint, BadModel, TruingError
from truing.models.client_address import Secret

_FILTERED = re.compile(
    r"content_filter|content_policy|content management policy|responsibleaipolicy|data_inspection_failed"
    r"|\bmoderation\b|\bflagged\b",
    re.I,
)
_NO_MONEY = re.compile(r"insufficient_quota|billing|credit balance|payment required|exceeded your current quota", re.I)
"""a 429 that no waiting mends"""
_REFUSES = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|not allowed|not permitted|forbidden|extra|deprecated|incompatible"
    r"|invalid|remove",
    re.I,
)
_TOO_MUCH = re.compile(r"too large|too long|maximum context|context length|was reached|exceed", re.I)
_FATAL: Mapping[int, tuple[type[TruingError], str]] = {
    300: (BadEndpoint, "It points elsewhere; texts and keys do not follow, so give the final URL"),
    401: (BadEndpoint, "The key is missing or wrong; nothing more was sent"),
    402: (BadEndpoint, "The account has no money left; nothing more was sent"),
    403: (BadEndpoint, "The key may not use this model; nothing more was sent"),
    404: (BadModel, "No such model or path"),
    405: (BadModel, "No such model or path"),
}
_STREAMS = re.compile(
    r"non-?stream|\bstream(?:ing)?\b[^.]{0,40}\b(?:only|required|true|enabled?|must|mode)\b"
    r"|\b(?:only|requires?|enable|must|set)\b[^.]{0,40}\bstream",
    re.I,
)
_MARKUP = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.I | re.S)
_DATED = re.compile(r"[-@:](?:\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{4}|\d{2}-\d{4}|\d{3})(?:-v\d+(?::\d+)?)?|@[\w.\-/]+")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request gave no answer that can be used."""

    text: str  # what happened, without keys
    status: int = 0  # HTTP status of the last attempt; 0 where it had none
    refused: bool = False  # by a content filter
    fatal: TruingError | None = None  # what to raise where every call would fail alike
    parameters: tuple[str, ...] = ()  # what the service does not take; the request may be sent again without them
    streams: bool = False  # the service answers in a stream only; the request may be sent again for one
    unsure: bool = False  # an attempt was cut off, so that the server may have done what it was asked


def status_failure(
    status: int, body: object, sent: Mapping[str, Any], where: str, key: Secret, tried: str = ""
) -> Failure:
    """What an HTTP error means, from its body (parsed if it was JSON) and the body `sent` to the address `where`.

    `tried` is the URL that was asked, which is told where there may be another.
    """
    if isinstance(body, str):
        body = " ".join(_MARKUP.sub(" ", body[:4000]).split())
    meaning = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str)[:4000]
    error = body.get("error", body) if isinstance(body, Mapping) else body
    said = [error.get(n) for n in ("message", "detail")] if isinstance(error, Mapping) else [error]
    said = next((s for s in said if isinstance(s, str)), meaning if error else "")
    text = f"{where}: HTTP {status}, {key.scrub(said)}".rstrip(", ")
    if status in (400, 422) and "messages" in sent and "stream" not in sent and _STREAMS.search(meaning):
        return Failure(text, status, streams=True)
    if status in (400, 403, 422) and (parameters := _refused_parameters(meaning, error, sent)):
        return Failure(text, status, parameters=parameters)
    if status in (400, 403, 422, 451) and _FILTERED.search(meaning):
        return Failure(text, status, refused=True)
    status_meant = 402 if status == 429 and _NO_MONEY.search(meaning) else 300 if 300 <= status < 400 else status
    kind, remedy = _FATAL.get(status_meant, (None, ""))
    if kind is BadModel and tried:
        remedy += f"; asked was {tried}. {_other_url(tried)}".rstrip()
    return Failure(text, status, fatal=kind(f"{text}. {remedy}") if kind else None)


def _other_url(tried: str) -> str:
    """Where else a server may take questions; "" where all was said."""
    base = tried.removesuffix("/chat/completions")
    if base == tried:  # with a query
        return ""
    if "/deployments/" in base:
        return f"Azure's deployments need a version: {base}?api-version=2024-10-21#MODEL"
    root = base.removesuffix("/v1")
    if root == base:
        return f"A base URL usually ends in /v1: {base}/v1#MODEL"
    at_root = root.count("/") == 2
    return f"Where the server has no /v1, give {root}/chat/completions#MODEL" if at_root else f"Or is it {root}#MODEL?"


def _refused_parameters(text: str, body: object, sent: Mapping[str, Any]) -> tuple[str, ...]:
    """Parameters that the service says it does not take; empty where it complains of something else.

    Reads `param` of OpenAI's errors and the message of others (vLLM, transformers serve, gateways).
    """
    optional = [p for p in sent if p not in ("model", "messages", "stream", "max_completion_tokens")]
    if _TOO_MUCH.search(text) or not _REFUSES.search(text):
        return ()
    named = {p for p in optional if re.search(rf"\b{p}\b", text)}
    param = body.get("param") if isinstance(body, Mapping) else None
    if isinstance(param, str) and param in sent:  # the message may mention others, e.g. what to use instead
        named = {param}.intersection(optional)
    if named & {"logprobs", "top_logprobs"}:
        named |= {"logprobs", "top_logprobs"}
    return tuple(p for p in optional if p in named)


_MOST_MARKS = 8
"""systems remembered of one name"""


class Answering:
    """As which model each name that is asked for answers: a deployment's or an alias is not the model's.

    Args:
        known: name asked for -> the model that answered to it before.
        say: told once where a name is not the model's.
    """

    def __init__(self, known: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._seen, self._say = dict(known), say
        self._marks: dict[str, dict[str, None]] = {}

    def note(self, asked: str, mark: str) -> None:
        """Remember as what a name answered: another model, or the fingerprint of a system."""
        if mark and len(held := self._marks.setdefault(asked, {})) < _MOST_MARKS:
            held[mark] = None

    @property
    def several(self) -> dict[str, tuple[str, ...]]:
        """Name asked for -> as what it answered, in order, where that changed."""
        return {name: tuple(marks) for name, marks in self._marks.items() if len(marks) > 1}

    def changed(self, asked: str, answered: str) -> str:
        """What is wrong with the model that answered; "" for nothing."""
        before = self._seen.get(asked)
        if before is None:
            own = same_model(asked, answered)
            others = (name for name, model in self._seen.items() if name != asked and answered in (name, model))
            if not own and (other := next(others, None)) is not None:
                return f"the server answered with the model {answered!r} to {asked!r}, as it does to {other!r}"
            self._seen[asked] = answered
            if not own:
                self._say(f"{asked!r} answers as the model {answered!r}; another one from now on would be an error")
        elif not (same_model(before, answered) or same_model(answered, before)):
            self.note(asked, f"model {before}")
            self.note(asked, f"model {answered}")
            return (
                f"the server answered with the model {answered!r}, and with {before!r} before: answers of two models "
                "are not compared. Name an address that stays with one, or begin anew in another folder"
            )
        elif len(answered) > len(before):
            self._seen[asked] = answered  # with the date, where it was without
        return ""


def same_model(asked: str, answered: str) -> bool:
    """Whether the model that answered is the one asked for; a dated or pinned version of it is.

    gpt-4o may answer as gpt-4o-2024-08-06 and org/name as name or org/name@main, but not as gpt-4o-mini.
    """
    a, b = (name.strip().lower().removeprefix("models/") for name in (asked, answered))
    if "/" in a and "/" not in b:
        a = a.rsplit("/", 1)[1]
    stem = a.removesuffix("-latest")
    return a == b or b == stem or (b.startswith(stem) and _DATED.fullmatch(b[len(stem) :]) is not None)
