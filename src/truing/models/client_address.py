"""Where a served model is, which key opens it, and how that key stays out of every log, row and error.

openai:MODEL                     OPENAI_BASE_URL or api.openai.com, key from OPENAI_API_KEY
http(s)://host:port/v1#MODEL     any OpenAI-compatible server
"""

import ipaddress
import logging
import os
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from truing.errors import BadEndpoint, MissingKey

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
NO_KEY = "none"
"""what is sent to servers that need no key"""
_KEY_LIKE = re.compile(r"\b(?:sk|key|pk)-[\w*\-]{4,}|(?i:bearer)\s+[^\s\"',;]+")
_SHORTEST = 8
_CHATTY = (
    *("openai", "openai._base_client", "openai._response", "openai._legacy_response"),
    *(f"{name}{tail}" for name in ("httpx", "httpx2") for tail in ("", "._client")),
    *(
        f"{name}.{part}"
        for name in ("httpcore", "httpcore2")
        for part in ("connection", "http11", "http2", "proxy", "socks")
    ),
)
"""loggers of the SDK and of what it sends with; a filter does not reach a logger's children"""


@dataclass(frozen=True, slots=True)
class Address:
    """A served model."""

    url: str
    """base URL without a slash at the end; holds no user name, password or query"""
    model: str
    """served name; empty where the server is to be asked"""
    openai: bool = False
    """given as openai:MODEL"""

    @property
    def host(self) -> str:
        """Lower case, without port."""
        return urlsplit(self.url).hostname or ""

    @property
    def name(self) -> str:
        """Address and model as a panel records it."""
        if self.openai and self.url == OPENAI_URL:
            return f"openai:{self.model}"
        return f"{self.url}#{self.model}"

    @property
    def remote(self) -> bool:
        """Whether text leaves this machine: False only for localhost and loopback addresses."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        BadEndpoint: another scheme, no host, or a URL that holds a user name, a password or a query: all of these may
            be secret, and addresses are stored and printed.
    """
    text = text.strip()
    if text.startswith("openai:"):
        model = text.removeprefix("openai:").strip()
        if not model:
            raise BadEndpoint("openai: needs a model, e.g. openai:gpt-4.1-mini")
        base = os.environ.get("OPENAI_BASE_URL", "").strip()
        return Address(_clean_url(base, "OPENAI_BASE_URL")[0] if base else OPENAI_URL, model, openai=True)
    if not text.startswith(("http://", "https://")):
        shown = text.split("@")[-1][:80]
        raise BadEndpoint(f"{shown!r} is no address of a served model; use openai:MODEL or http://host:port/v1#MODEL")
    return Address(*_clean_url(text, "the address of a served model"))


def _clean_url(text: str, what: str) -> tuple[str, str]:
    """Base URL and fragment; messages quote nothing that might be secret."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        port_or_host = "port" if "port" in str(e).lower() else "host"
        raise BadEndpoint(f"{what}: the {port_or_host} cannot be read") from None
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch(r"[\w.:\-]+", host):
        raise BadEndpoint(f"{what}: a URL looks like http://host:port/v1#MODEL")
    if "@" in parts.netloc:
        raise BadEndpoint(
            f"{what} ({host}) holds a user name or password; addresses are stored and printed, so put the key into the "
            "environment (TRUING_JUDGE_API_KEY) and leave it out here"
        )
    if parts.query:
        raise BadEndpoint(f"{what} ({host}) holds a query (?...), which may be a key; leave it out")
    if re.search(r"[\s\x00-\x1f]", parts.path):
        raise BadEndpoint(f"{what} ({host}) holds blanks")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{path}", parts.fragment.strip()


class Secret:
    """A key that does not show itself."""

    __slots__ = ("_value", "variable")

    def __init__(self, value: str, variable: str) -> None:
        self._value = value
        self.variable = variable

    def reveal(self) -> str:
        """The key itself; only for the client that sends it."""
        return self._value

    def __repr__(self) -> str:
        return f"<key from {self.variable}>" if self.variable else "<no key>"

    def scrub(self, text: str, limit: int | None = 300) -> str:
        """`text` without the key, its beginning or its end, or anything else that looks like a key.

        Args:
            text: e.g. what a server sent; services like to quote keys in full or masked.
            limit: characters to keep, on one line; None for a text that is to stay as it is but for the key.
        """
        if limit is not None:
            text = text[: 20 * limit]
        if self.variable:
            text = text.replace(self._value, "<key>")
        if limit is None:
            return text
        text = _KEY_LIKE.sub("<key>", text)
        for size in range(len(self._value) - 1, _SHORTEST - 1, -1) if self.variable else ():
            text = text.replace(self._value[:size], "<key>").replace(self._value[-size:], "<key>")
        text = " ".join(text.split())
        return text if len(text) <= limit else f"{text[:limit]}..."


def find_key(address: Address, variable: str = "TRUING_JUDGE_API_KEY") -> Secret:
    """The key for an address; a key for one service is never sent to another.

    openai:MODEL takes OPENAI_API_KEY. A URL takes `variable`, else OPENAI_API_KEY if it is OpenAI's own host, else the
    word "none", which servers without keys accept.

    Raises:
        MissingKey: OpenAI without a key.
        BadEndpoint: the key holds characters that cannot be sent.
    """
    names = ["OPENAI_API_KEY"] if address.openai else [variable]
    if not address.openai and address.host == OPENAI_HOST:
        names.append("OPENAI_API_KEY")
    for name in names:
        value = os.environ.get(name, "").strip()
        if value and (not value.isascii() or not value.isprintable() or " " in value):
            raise BadEndpoint(f"the key in {name} holds spaces, line breaks or letters that no key has; copy it again")
        if value:
            return Secret(value, name)
    if address.openai or address.host == OPENAI_HOST:
        raise MissingKey(f"{address.name} needs a key: set the environment variable {names[-1]}")
    return Secret(NO_KEY, "")


class QuietLogs(logging.Filter):
    """Keeps headers and the key out of the SDK's and transport's logs, at every level."""

    def __init__(self, key: Secret) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop what speaks of headers (they may echo a key); scrub the rest."""
        text = record.getMessage()
        if "header" in text.lower():
            return False
        clean = self._key.scrub(text, None)
        if clean != text:
            record.msg, record.args = clean, ()
        return True

    def install(self) -> Callable[[], Coroutine[Any, Any, None]]:
        """Begin to filter; returns what ends it again, for when nothing of the client runs any more."""
        for name in _CHATTY:
            logging.getLogger(name).addFilter(self)

        async def remove() -> None:
            for name in _CHATTY:
                logging.getLogger(name).removeFilter(self)

        return remove
