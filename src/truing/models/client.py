"""The client of a served model: the `openai` SDK, with a budget, rate limits and a breaker around it.

    Client.complete -> SDK -> Client._attempt, once an attempt

The SDK tries again and waits as the service asks. Below it an attempt waits for rates and money, is sent, counted and
read; an answer that cannot be used is handed up to the SDK as an error 502, so that it is asked for again.
"""

import asyncio
import logging
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from truing.errors import BadEndpoint, BadInput, JudgeDown, TruingError
from truing.models.base import listed
from truing.models.client_address import AZURE_HOSTS, find_key, parse_address, refuse_plain
from truing.models.client_errors import Answering, Failure, status_failure
from truing.models.client_stream import Stream
from truing.models.limits import Breaker, Budget, Limits, Price, Rate, price_of
from truing.types.records import Messages

try:
    import httpx2
    import openai

    from truing.models.client_http import BadBody, Send, Sender, Teller, attempt
    from truing.models.client_reply import Completion, Usage, parse_body, read_completion, read_usage
except ImportError as e:
    raise BadInput("served models need the openai package: pip install 'truing[endpoint]'") from e

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
CONNECT_SECONDS = 10.0
_PLAIN_RETRIES = 2  # for what is no question to a model
_TURN_TOKENS = 16  # what a template adds to a turn, at most
_HEADERS = frozenset(
    ["host", "content-type", "content-length", "accept", "accept-encoding", "connection", "user-agent", "authorization"]
)  # what other hosts than OpenAI's get: no organisation, no custom headers, no telemetry


@dataclass(slots=True)
class Spent:
    """What an endpoint was asked so far."""

    calls: int = 0  # attempts sent
    prompt_tokens: int = 0  # as reported
    completion_tokens: int = 0  # as reported
    usd: float = 0.0  # at the given prices; an upper estimate where the service did not report; 0 without prices


@dataclass(slots=True)
class Reply:
    """What became of a request."""

    completion: Completion | None = None
    """the service's answer; None if there was none"""
    failure: Failure | None = None  # of the last call; beside a completion, what that lacks
    usage: Usage | None = None  # of the last call, as reported
    calls: int = 0  # attempts sent for it
    prompt_tokens: int = 0  # over all calls, as reported
    completion_tokens: int = 0  # over all calls, as reported

    @property
    def error(self) -> str:
        """Why there is no answer; never holds a key."""
        return self.failure.text if self.failure and self.completion is None else ""

    @property
    def text(self) -> str:
        """What the model wrote, as it came."""
        return self.completion.text if self.completion else ""


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One answer wanted of a model."""

    messages: Messages  # the turns
    params: Mapping[str, Any]
    """max_tokens, temperature, logprobs, ...; those that the service refuses are left out from then on"""
    needed: frozenset[str] = frozenset()  # parameters without which the answer is worth nothing
    check: Callable[[Completion], str] | None = None
    """says what an answer lacks, "" for nothing; asked again if so, and the last answer is kept"""
    model: str = ""  # served name, where it is not the address's


@dataclass(slots=True)
class _Call:
    """A request under way."""

    request: ClientRequest
    stream: Stream[Any, Any]
    body: Mapping[str, Any]
    tokens: tuple[int, int]  # read and written, at most
    reply: Reply = field(default_factory=Reply)


class Client:
    """Asks one served model. Nothing is open between two calls.

    Args:
        address: openai:MODEL or http(s)://host:port/v1#MODEL, where MODEL may be a name that stands for another.
        limits: how fast, how long, for how much.
        key_variable: environment variable of the key, for URLs.
        budget: to share with other clients; None for one from the limits.
        answered: address -> the model that answered there before; another one now is a failure.
        say: told once what was not asked for but is taken, as that another name answers; None for a log.

    Raises:
        BadEndpoint: address, prices or limits cannot be used, or the server serves several models and none was named.
        BadEndpoint: the service needs a key.
        JudgeDown: no model was named and the server cannot be asked which it serves.
    """

    def __init__(
        self,
        address: str,
        limits: Limits,
        *,
        key_variable: str = "TRUING_JUDGE_API_KEY",
        budget: Budget | None = None,
        answered: Mapping[str, str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.address, self.limits, self.spent = parse_address(address), limits, Spent()
        self._say: Callable[[str], None] = say or log.warning
        self._key = find_key(self.address, key_variable)
        if not limits.allow_plain_http:
            refuse_plain(self.address, self._key)
        if self._key.short:
            self._say(f"the key in {self._key.variable} is too short to be one: messages may show it")
        self._budget = budget or Budget(limits.budget_calls, limits.budget_usd)
        # Without bursts: one request at a time, and tokens of six seconds.
        self._requests, self._tokens = Rate(limits.rpm), Rate(limits.tpm, ahead=6.0)
        self._admitting = threading.Lock()  # streams of one client run in threads of their own
        self._expected = 0  # tokens estimated for the calls that reported theirs
        self._breaker = Breaker()
        self._left_out: set[str] = set()
        self._streams = False  # whether the service answers in streams only
        secure = self.address.url.startswith("https:")
        self._http: dict[str, Any] = {
            "auth": self._authorised,
            "timeout": httpx2.Timeout(None, connect=CONNECT_SECONDS),
            # Certificates are loaded once; where none are needed there are none, so that TLS would fail, not pass.
            "verify": httpx2.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            "follow_redirects": False,  # neither texts nor keys go where they were not sent
            "trust_env": self.address.remote,  # no proxy between this machine and itself
        }
        self._sdk: dict[str, Any] = {"api_key": self._key.reveal(), "base_url": self.address.url}
        self._sdk["default_query"] = self.address.parameters
        if not self.address.model:
            self.address = replace(self.address, model=self._only_model())
        before = (answered or {}).get(self.address.name)
        self._answering = Answering({self.address.model: before} if before else {}, self._say)
        self._price = price_of(self.address.model, limits.prices) or Price(0.0, 0.0)

    def leaves_out(self, parameter: str) -> bool:
        """Whether the service was found to refuse a parameter."""
        return parameter in self._left_out

    # -- what is no question to a model: no budget, no rates -----------------------------------------------------------

    def models(self) -> dict[str, Mapping[str, Any]]:
        """What the server says of each model it lists, by name.

        Raises:
            JudgeDown: it cannot be asked.
            BadEndpoint: it does not let us.
        """
        data, failure = self._tell("/models", None, self.limits.timeout, _PLAIN_RETRIES)
        if failure is not None and isinstance(failure.fatal, BadEndpoint) and failure.status != 403:
            raise failure.fatal
        if failure is not None:  # many services, and keys, do not list
            raise JudgeDown(f"{failure.text} (asked which models it serves; name one, {self.address.base}#MODEL)")
        cards = data.get("data") if isinstance(data, Mapping) else None
        found = [m for m in cards if isinstance(m, Mapping)] if isinstance(cards, list) else []
        return {m["id"]: m for m in found if isinstance(m.get("id"), str) and m["id"]}

    def post(self, path: str, body: Mapping[str, Any], timeout: float, retries: int = _PLAIN_RETRIES) -> Failure | None:
        """Tell the server something; None where it was done."""
        return self._tell(path, body, timeout, retries)[1]

    def _tell(
        self, path: str, body: Mapping[str, Any] | None, timeout: float, retries: int
    ) -> tuple[Any, Failure | None]:
        """Post, or get where there is no body; gives the JSON of the answer."""
        options: Any = {"max_retries": retries, "timeout": httpx2.Timeout(timeout, connect=CONNECT_SECONDS)}
        pool = httpx2.Limits(max_keepalive_connections=0)  # so that nothing has to be closed
        http = Teller(timeout, limits=pool, **self._http)
        sdk = openai.OpenAI(http_client=http, **self._sdk)
        try:
            if body is None:
                return _parsed(sdk.get(path, cast_to=httpx2.Response, options=options)), None
            return _parsed(sdk.post(path, cast_to=httpx2.Response, body=body, options=options)), None
        except openai.APIError as e:  # goes no further, since it holds the headers sent
            return None, replace(self._failure(e, body or {}), unsure=http.cut_off)

    def _only_model(self) -> str:
        names = list(self.models())
        if len(names) == 1:
            return names[0]
        problem = f"serves several models ({listed(names)})" if names else "lists no model"
        raise BadEndpoint(f"{self.address.base} {problem}; name one: {self.address.base}#MODEL")

    # -- questions ----------------------------------------------------------------------------------------------------

    def stream(self, items: Iterable[T], work: Callable[[T, Stream[T, R]], Awaitable[R | None]]) -> Iterator[R]:
        """Put items through `work`, as many at once as the limits allow; see Stream."""
        return iter(Stream(self._opened(), items, work, self.limits.concurrency))

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[openai.AsyncOpenAI]:
        pool = httpx2.Limits(max_connections=None, max_keepalive_connections=self.limits.concurrency)
        async with Sender(limits=pool, **self._http) as http:
            yield openai.AsyncOpenAI(http_client=http, max_retries=self.limits.retries, **self._sdk)

    async def complete(self, request: ClientRequest, stream: Stream[Any, Any]) -> Reply | None:
        """One answer with all its attempts; None where nothing was sent for it or everything ends."""
        call = _Call(request, stream, *self._body(request))
        reply = call.reply
        attempt.set(partial(self._attempt, call))
        try:
            while await self._asks_otherwise(call):
                call.body = self._body(request)[0]
        except TruingError as e:  # the budget
            stream.halt(e)
        except asyncio.CancelledError:
            if stream.halted is None:
                raise
        else:
            if reply.failure is not None and reply.failure.fatal is not None:
                stream.halt(reply.failure.fatal)
                return None
            if stream.halted is None and self._breaker.record(reply.failure is None or reply.failure.refused):
                said = f"one request after the other failed; nothing more sent. {reply.error}"
                stream.halt(JudgeDown(f"{self.address.name}: {said}"))
            return reply
        reply.failure = Failure(f"{self.address.name}: no answer, and not tried again: {stream.halted}")
        return reply if reply.calls else None  # a request that was sent is a reply, another was never asked

    async def _asks_otherwise(self, call: _Call) -> bool:
        """Send a call, as often as it takes; whether it was refused for its form and may be sent in another."""
        try:
            await call.stream.opened.post("/chat/completions", cast_to=httpx2.Response, body=call.body)
        except openai.APIStatusError:
            pass  # `_attempt` has read it
        except openai.APIError as e:
            call.reply.failure = self._failure(e, call.body)
        failure = call.reply.failure
        if failure is not None and failure.streams:
            self._streams = True
            return True
        if failure is None or not failure.parameters or call.request.needed.intersection(failure.parameters):
            return False
        self._left_out.update(failure.parameters)
        return True

    def _body(self, request: ClientRequest) -> tuple[dict[str, Any], tuple[int, int]]:
        """What is sent, and how many tokens are read and written at most (two bytes a token)."""
        # Half a surrogate pair fits into no JSON.
        texts = [m.content.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for m in request.messages]
        turns = [{"role": m.role, "content": text} for m, text in zip(request.messages, texts, strict=True)]
        body: dict[str, Any] = {"model": request.model or self.address.model, "messages": turns}
        for name, value in request.params.items():
            if name not in self._left_out or name in request.needed:
                body[name] = value
            elif name == "max_tokens":
                body["max_completion_tokens"] = value
        if self._streams:
            body["stream"] = True
            if "stream_options" not in self._left_out:
                body["stream_options"] = {"include_usage": True}
        read = sum((len(text.encode()) + 1) // 2 + _TURN_TOKENS for text in texts)
        return body, (read, int(request.params.get("max_tokens", 0)))

    # -- one attempt --------------------------------------------------------------------------------------------------

    async def _attempt(self, call: _Call, send: Send) -> httpx2.Response:
        """Raises BudgetSpent where it cannot be paid, and CancelledError where everything stops."""
        reply, sending = call.reply, call.stream.sending
        reply.completion, reply.usage, reply.failure = None, None, None
        await self._admit(call)
        cost = estimate = self._price.of(*call.tokens)  # whoever hangs up half-way may still be charged
        sending.add(asyncio.current_task())
        try:
            async with asyncio.timeout(self.limits.timeout):
                response = await send()
            data = _parsed(response)
            cost = self._used(call, data, estimate) if response.is_success else 0.0
        except (httpx2.RequestError, TimeoutError) as e:
            cost = 0.0 if isinstance(e, httpx2.ConnectError | httpx2.ConnectTimeout) else cost
            if call.stream.halted is not None:
                raise asyncio.CancelledError from None  # no further attempt
            if isinstance(e, TimeoutError):
                raise httpx2.ReadTimeout(f"no answer within {self.limits.timeout:g} s") from None
            raise
        finally:
            sending.discard(asyncio.current_task())
            self._budget.settle(estimate, cost)
            self.spent.usd += cost
        if not response.is_success:
            reply.failure = self._refusal(response, call.body)
        elif (failure := self._read(data, call.request, reply)) is not None:
            reply.failure, response.status_code = failure, 502
        if call.stream.halted is not None or (reply.failure and (reply.failure.fatal or reply.failure.refused)):
            response.headers["x-should-retry"] = "false"
        return response

    async def _admit(self, call: _Call) -> None:
        """Wait until the rates and the money allow it; takes nothing before all of them do."""
        estimate = self._price.of(*call.tokens)
        while True:
            if call.stream.halted is not None:
                raise asyncio.CancelledError
            self._budget.check(estimate)  # not after a wait
            with self._admitting:
                wait = max(self._requests.wait, self._tokens.wait)
                if not wait and self._budget.take(estimate):
                    self._requests.take(1)
                    self._tokens.take(sum(call.tokens) * self._share)
                    break
            await asyncio.sleep(wait or 0.02)
        self.spent.calls += 1
        call.reply.calls += 1

    @property
    def _share(self) -> float:
        """Tokens used of those estimated so far: estimates are generous."""
        used = self.spent.prompt_tokens + self.spent.completion_tokens
        return min(used / self._expected, 1.0) if self._expected else 1.0

    def _used(self, call: _Call, data: Any, estimate: float) -> float:
        """Count the reported tokens; returns the price of the attempt."""
        call.reply.usage = usage = read_usage(data)
        if usage is None:
            return estimate
        read, written = usage.prompt_tokens, usage.completion_tokens
        for count in (call.reply, self.spent):
            count.prompt_tokens += read
            count.completion_tokens += written
        self._expected += sum(call.tokens)
        return self._price.of(read, written)

    @property
    def answered_as(self) -> dict[str, tuple[str, ...]]:
        """Name asked for -> the models and systems that answered to it, where there were several."""
        return self._answering.several

    def _read(self, data: Any, request: ClientRequest, reply: Reply) -> Failure | None:
        """What is wrong with a body that came with status 200; fills `reply`."""
        where, asked = self.address.name, request.model or self.address.model
        try:
            if isinstance(data, Exception):
                raise ValueError(f"the answer is no JSON object, or only a part of one ({data})")
            found = read_completion(data)
        except ValueError as e:
            return Failure(f"{where}: {self._key.scrub(str(e), 200)}")
        if self._key.within(found.text, found.model, found.fingerprint, *found.tokens, *(found.top or ())):
            return Failure(f"{where}: the answer quotes the key, so it is not kept")
        if found.model and (changed := self._answering.changed(asked, found.model)):
            return Failure(f"{where}: {changed}")
        self._answering.note(asked, f"system {found.fingerprint}" if found.fingerprint else "")
        if found.filtered:
            return Failure(f"{where}: refused by the service's content filter", refused=True)
        reply.completion = found
        lacks = request.check(found) if request.check else ""
        return Failure(f"{where}: {lacks} in the answer") if lacks else None

    def _authorised(self, request: httpx2.Request) -> httpx2.Request:
        if not self.address.own:
            for name in {n.lower() for n in request.headers} - _HEADERS:
                del request.headers[name]
            request.headers["authorization"] = f"Bearer {self._key.reveal()}"
        if self.address.azure and self._key.variable and not self._key.reveal().startswith("eyJ"):  # a token of Entra's
            request.headers["api-key"] = self._key.reveal()
            if self.address.host.endswith(AZURE_HOSTS):  # others, with the same query, may look for either
                del request.headers["authorization"]
        request.headers["accept-encoding"] = "gzip"
        return request

    def _failure(self, error: openai.APIError, body: Mapping[str, Any]) -> Failure:
        """What an exception of the SDK means."""
        if isinstance(error, openai.APIStatusError):
            return self._refusal(error.response, body)
        cause, where = error.__cause__, self.address.name
        text = self._key.scrub(str(cause or ""), 120)
        if isinstance(cause, httpx2.ReadTimeout | BadBody):
            return Failure(f"{where}: {text or 'no answer in time'}")
        what = "cannot be reached" if type(cause).__name__.startswith("Connect") else "broke the connection"
        return Failure(f"{where} {what} ({type(cause).__name__}: {text})")

    def _refusal(self, response: httpx2.Response, body: Mapping[str, Any]) -> Failure:
        data = _parsed(response)
        said = response.text if isinstance(data, Exception) else data
        query = f"?{self.address.query}" if self.address.query else ""
        tried = f"{self.address.url}/chat/completions{query}" if "messages" in body else ""
        found = status_failure(response.status_code, said, body, self.address.name, self._key, tried)
        wait = self._key.scrub(response.headers.get("retry-after", ""), 40)
        return replace(found, text=f"{found.text} (it asks to wait: {wait})") if wait and not found.fatal else found


def _parsed(response: httpx2.Response) -> Any:
    """The JSON of a body, or why there is none."""
    try:
        return parse_body(response.content)
    except ValueError as e:
        return e
