"""What went wrong with a request to a served model, and what to do about it: try again, give up, or stop altogether."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from truing.errors import BadEndpoint, EndpointRefused, ModelUnavailable, TruingError

LONGEST_WAIT = 300.0
"""seconds a service may ask us to wait; an ask that should wait longer fails"""
_FILTERED = re.compile(
    r"content_filter|content_policy|content management policy|responsibleaipolicy|data_inspection_failed"
    r"|\bmoderation\b|\bflagged\b",
    re.I,
)
_NO_MONEY = re.compile(r"insufficient_quota|billing|credit balance|payment required|exceeded your current quota", re.I)
_REFUSES = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|not allowed|not permitted|forbidden|extra|deprecated|incompatible"
    r"|invalid|remove",
    re.I,
)
_TOO_MUCH = re.compile(r"too large|too long|maximum context|context length|was reached|exceed", re.I)
_DATED = re.compile(r"[-@:](?:\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{4}|\d{2}-\d{4}|\d{3})(?:-v\d+(?::\d+)?)?|@[\w.\-/]+")
_LATEST = re.compile(r"-latest$")
_GROUPS = {"logprobs": ("logprobs", "top_logprobs"), "top_logprobs": ("logprobs", "top_logprobs")}
_OPTIONAL = ("temperature", "top_p", "seed", "logprobs", "top_logprobs", "max_tokens")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one request gave no answer that can be used."""

    kind: str
    """a few words, the same for all of a kind; what counters count"""
    text: str
    """what happened, without keys"""
    passing: bool = True
    """whether another attempt may succeed"""
    wait: float | None = None
    """seconds the service asks us to wait"""
    refused: bool = False
    """a content filter"""
    fatal: TruingError | None = None
    """what to raise where every call would fail alike"""
    charged: bool = True
    """whether the service may have charged for it"""
    parameters: tuple[str, ...] = ()
    """what the service does not take; the request may be sent again without them"""
    status: int = 0
    """of the HTTP answer; 0 where there was none, or none that could be read"""


def status_failure(status: int, headers: Mapping[str, str], body: object, where: str, said: str) -> Failure:
    """What an HTTP error means.

    Args:
        status: 300 to 599.
        headers: of the answer.
        body: of the answer, parsed if it was JSON.
        where: address of the model, for messages.
        said: the body as text without keys, for messages.
    """
    text = f"{where}: HTTP {status}{f', {said}' if said else ''}"
    meaning = body_text(body)
    if status in (400, 403, 422, 451) and _FILTERED.search(meaning):
        return Failure("content filter", text, False, refused=True, charged=False)
    fatal = _fatal(status, meaning, text)
    if fatal is not None:
        kind = "no money" if status in (402, 429) else "not allowed" if status in (401, 403) else "not found"
        return Failure(kind, text, False, fatal=fatal, charged=False)
    if status == 429 or status in (408, 409, 425) or status >= 500:
        kind = {429: "rate limit", 408: "timeout", 409: "conflict"}.get(status, "server error")
        wait = retry_after(headers, time.time())
        if wait is not None and wait > LONGEST_WAIT:
            return Failure(kind, f"{text} (asks to wait {wait:.0f} s)", False, charged=False)
        return Failure(kind, text, True, wait, charged=False)
    return Failure("bad request", text, False, charged=False)


def _fatal(status: int, meaning: str, text: str) -> TruingError | None:
    if status == 401:
        return EndpointRefused(f"{text}. The key is missing or wrong; nothing more was sent")
    if status == 403:
        return EndpointRefused(f"{text}. The key may not use this model; nothing more was sent")
    if status == 402 or (status == 429 and _NO_MONEY.search(meaning)):
        return EndpointRefused(f"{text}. The account has no money left; nothing more was sent")
    if status in (404, 405):
        return ModelUnavailable(f"{text}. No such model or path; a base URL usually ends in /v1")
    if 300 <= status < 400:
        return BadEndpoint(f"{text}. It points elsewhere; texts and keys do not follow, so give the final URL")
    return None


def body_text(body: object) -> str:
    """The body of an error as one searchable text."""
    return body[:4000] if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str)[:4000]


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a service asks to wait (Retry-After in seconds or as a date, retry-after-ms), or None.

    Args:
        headers: of its answer, names in any case.
        now: seconds since 1970, for dates.
    """
    plain = {k.lower(): v.strip() for k, v in headers.items() if k.lower().startswith("retry-after")}
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(plain[name]) / unit
        except (KeyError, ValueError):
            continue
        return max(seconds, 0.0) if seconds == seconds else None
    try:
        return max(parsedate_to_datetime(plain["retry-after"]).timestamp() - now, 0.0)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def refused_parameters(status: int, body: object, sent: Mapping[str, Any]) -> tuple[str, ...]:
    """Parameters of a request that the service says it does not take; empty where it complains of something else.

    Reads `param` of OpenAI's errors and the message of others (vLLM, transformers serve, gateways).
    """
    if status not in (400, 403, 422):
        return ()
    text = body_text(body)
    if _TOO_MUCH.search(text) or not _REFUSES.search(text):
        return ()
    named = [p for p in _OPTIONAL if p in sent and re.search(rf"\b{p}\b", text)]
    error = body.get("error", body) if isinstance(body, Mapping) else None
    param = error.get("param") if isinstance(error, Mapping) else None
    if isinstance(param, str) and param in sent:  # the message may mention others, e.g. what to use instead
        named = [param] if param in _OPTIONAL else []
    return tuple(dict.fromkeys(p for name in named for p in _GROUPS.get(name, (name,)) if p in sent))


def same_model(asked: str, answered: str) -> bool:
    """Whether the model that answered is the one asked for; a dated or pinned version of it is.

    gpt-4o may answer as gpt-4o-2024-08-06 and org/name as name or org/name@main, but not as gpt-4o-mini.
    """
    a, b = (name.strip().lower().removeprefix("models/") for name in (asked, answered))
    if "/" in a and "/" not in b:
        a = a.rsplit("/", 1)[1]
    if a == b:
        return True
    stem = _LATEST.sub("", a)
    return b.startswith(stem) and (b == stem or _DATED.fullmatch(b[len(stem) :]) is not None)
