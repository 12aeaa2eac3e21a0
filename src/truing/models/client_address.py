"""Where a served model is, which key opens it, and how that key stays out of every log, row and error.

openai:MODEL                     OPENAI_BASE_URL or api.openai.com, key from OPENAI_API_KEY
http(s)://host:port/v1#MODEL     any OpenAI-compatible server, at the base URL as given; /v1 where there is no path
https://NAME.openai.azure.com/openai/deployments/DEPLOYMENT?api-version=2024-10-21
"""

import ipaddress
import json
import logging
import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from truing.errors import BadEndpoint

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
_FORM = "http://host:port/v1#MODEL"
NO_KEY = "none"  # what is sent to servers that need no key
_KEY_LIKE = re.compile(r"\b(?:sk|key|pk)-[\w*\-]{4,}|(?i:bearer)\s+[^\s\"',;]+")
_SHORTEST = 8  # pieces of a key that are taken out; what is shorter is no secret, but a word that servers ignore
_FOR_KEYS = re.compile(r"key|token|sig|secret|pass|pwd|pw|auth|cred|code|jwt|session|sas|pin|user", re.I)
_NO_SECRET = re.compile(r"v?\d{1,4}(?:[.\-]\d{1,4}){0,3}(?:-[a-z]{1,12})?|[a-z]{1,16}", re.I)
"""values of a query that may be stored and printed: a version, a date, a word"""
AZURE_HOSTS = (".azure.com", ".azure-api.net", ".azure.us", ".azure.cn")
"""which take a key in a header of its own"""
_LOGGERS = (
    *("openai", "openai._base_client", "openai._response", "openai._legacy_response", "httpx2"),
    *(f"httpcore2.{p}" for p in ("connection", "http11", "http2", "proxy", "socks")),
)
"""of the SDK and of what it sends with; a filter does not reach a logger's children"""


@dataclass(frozen=True, slots=True)
class Address:
    """A served model."""

    url: str  # base URL without a slash at the end; holds no user name, password or query
    model: str  # served name; empty where the server is to be asked
    openai: bool = False  # given as openai:MODEL
    query: str = ""  # goes with every request; holds nothing that looks like a key

    @property
    def base(self) -> str:
        """Base URL with its query, such that it leads back here."""
        root = self.url if self.url.count("/") > 2 else f"{self.url}/chat/completions"  # else /v1 is meant
        return f"{root}?{self.query}" if self.query else root

    @property
    def parameters(self) -> dict[str, str]:
        """The query by name."""
        return dict(parse_qsl(self.query))

    @property
    def azure(self) -> bool:
        """Whether a key is looked for where Azure does."""
        return self.host.endswith(AZURE_HOSTS) or "api-version" in self.parameters

    @property
    def host(self) -> str:
        """Lower case, without port."""
        return urlsplit(self.url).hostname or ""

    @property
    def own(self) -> bool:
        """Whether it is OpenAI's, or given as such."""
        return self.openai or self.host == OPENAI_HOST

    @property
    def name(self) -> str:
        """Address and model as they are recorded."""
        return f"openai:{self.model}" if self.openai and self.url == OPENAI_URL else f"{self.base}#{self.model}"

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
        BadEndpoint: another scheme, no host, or a URL that holds a user name, a password or a query other than
            versions and words: all of these may be secret, and addresses are stored and printed.
    """
    text = text.strip()
    if text.startswith(("http://", "https://")):
        url, query, model = _clean_url(text, "the address of a served model")
        deployment = re.search(r"/deployments/([^/]+)$", url)
        return Address(url, model or (deployment[1] if deployment else ""), query=query)
    scheme, _, model = (part.strip() for part in text.partition(":"))
    if scheme != "openai" or not model:
        raise BadEndpoint(f"{text.split('@')[-1][:80]!r} is no address of a served model; use openai:MODEL or {_FORM}")
    base = os.environ.get("OPENAI_BASE_URL", "").strip()
    url, query, _ = _clean_url(base, "OPENAI_BASE_URL") if base else (OPENAI_URL, "", "")
    return Address(url, model, openai=True, query=query)


def _clean_url(text: str, what: str) -> tuple[str, str, str]:
    """Base URL, query and fragment; messages quote nothing that might be secret."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise BadEndpoint(f"{what}: host or port cannot be read; a URL looks like {_FORM}") from None
    query = parse_qsl(parts.query, keep_blank_values=True)
    plain = all(re.fullmatch(r"[A-Za-z][\w.\-]{0,30}", n) and not _FOR_KEYS.search(n) for n, _ in query)
    plain = plain and all(_NO_SECRET.fullmatch(value) for _, value in query)
    if "@" in parts.netloc or (parts.query and not (query and plain)):
        raise BadEndpoint(
            f"{what} holds a user name, a password or a query other than versions (?api-version=2024-10-21); addresses "
            "are stored and printed, so put the key into the environment (TRUING_JUDGE_API_KEY) and leave it out here"
        )
    if (
        parts.scheme not in ("http", "https")
        or not re.fullmatch(r"[\w.:\-]+", host)
        or re.search(r"[\s\x00-\x1f]", parts.path)
    ):
        raise BadEndpoint(f"{what}: a URL looks like {_FORM}")
    path = parts.path.rstrip("/")
    path = path.removesuffix("/chat/completions") if path else "/v1"
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{path}", urlencode(query), parts.fragment.strip()


class _NoKeys(logging.Filter):
    """Drops what speaks of headers (they may echo a key), and takes every key in use out of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()
        """in every form in which they may be written"""

    def filter(self, record: logging.LogRecord) -> bool:
        """As in logging."""
        text = clean = record.getMessage()
        for key in self.keys:
            clean = clean.replace(key, "<key>")
        if clean != text:
            record.msg, record.args = clean, ()
        record.exc_info = record.exc_text = None  # what is wrong is raised; a traceback may quote anything
        return "header" not in text.lower()


_filter = _NoKeys()
for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_filter)


class Secret:
    """A key that does not show itself."""

    def __init__(self, value: str, variable: str) -> None:
        self._value = value
        self.variable = variable
        self.short = bool(variable) and len(value) < _SHORTEST
        """whether it is no secret: a word for servers that need no key ("EMPTY"), which stands in texts by chance"""
        written = {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}
        self._forms = sorted(written, key=len, reverse=True) if variable and not self.short else []
        _filter.keys.update(self._forms)

    def reveal(self) -> str:
        """The key itself; only for the client that sends it."""
        return self._value

    def __repr__(self) -> str:
        return f"<key from {self.variable}>" if self.variable else "<no key>"

    def within(self, *texts: str) -> bool:
        """Whether one of these quotes the key."""
        return any(form in text for form in self._forms for text in texts)

    def scrub(self, text: str, limit: int = 300) -> str:
        """One line of at most `limit` characters, without the key, pieces of it, or anything that looks like a key.

        For messages, never for what a model wrote.
        """
        text = text[: 20 * limit]
        for form in self._forms:
            text = text.replace(form, "<key>")
        text = _KEY_LIKE.sub("<key>", text)
        for size in range(len(self._value) - 1, _SHORTEST - 1, -1) if self._forms else ():
            text = text.replace(self._value[:size], "<key>").replace(self._value[-size:], "<key>")
        text = " ".join(text.split())
        return text if len(text) <= limit else f"{text[:limit]}..."


def find_key(address: Address, variable: str = "TRUING_JUDGE_API_KEY") -> Secret:
    """The key for an address; a key for one service is never sent to another.

    openai:MODEL takes OPENAI_API_KEY. A URL takes `variable`, else OPENAI_API_KEY if it is OpenAI's own host, else the
    word "none", which servers without keys accept.

    Raises:
        BadEndpoint: OpenAI without a key, or it holds characters that cannot be sent.
    """
    names = [*([] if address.openai else [variable]), *(["OPENAI_API_KEY"] if address.own else [])]
    for name in names:
        value = os.environ.get(name, "").strip()
        if value and (not value.isascii() or not value.isprintable() or " " in value):
            raise BadEndpoint(f"the key in {name} holds spaces, line breaks or letters that no key has; copy it again")
        if value:
            return Secret(value, name)
    if address.own:
        raise BadEndpoint(f"{address.name} needs a key: set the environment variable {names[-1]}")
    return Secret(NO_KEY, "")


def refuse_plain(address: Address, key: Secret) -> None:
    """Raise BadEndpoint where a key would go to another machine for anyone on the way to read."""
    if key.variable and address.remote and address.url.startswith("http:"):
        raise BadEndpoint(
            f"{address.url}: the key in {key.variable} would go to {address.host} unencrypted; use https, unset the "
            "key if that server needs none, or let it go with --allow-plain-http"
        )
