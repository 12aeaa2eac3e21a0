"""The `openai` SDK as the client uses it, and what every attempt of it passes through."""

import asyncio
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from truing.errors import BadInput
from truing.models.client_address import OPENAI_HOST, Address, Secret
from truing.models.client_errors import NO_MONEY, Failure, status_failure
from truing.models.client_stream import Stream
from truing.models.limits import Budget, Limits, Price

try:
    import httpx2
    import openai
    from aiolimiter import AsyncLimiter
except ImportError as e:
    raise BadInput("served models need the openai package: pip install 'truing[endpoint]'") from e

CONNECT_SECONDS = 10.0
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

    choice: Mapping[str, Any] = field(default_factory=dict)
    """the first choice of the service's answer; empty if there was none"""
    usage: Mapping[str, Any] = field(default_factory=dict)  # of the last call, as reported
    error: str = ""  # why there is no answer; never holds a key
    status: int = 0  # HTTP status of that error; 0 for none
    refused: bool = False  # a content filter said no
    calls: int = 0  # attempts sent for it
    prompt_tokens: int = 0  # over all calls, as reported
    completion_tokens: int = 0  # over all calls, as reported
    model: str = ""  # which model says it answered

    @property
    def text(self) -> str:
        """What the model wrote."""
        content = self.choice.get("message", {}).get("content")
        return content if isinstance(content, str) else ""


@dataclass(slots=True)
class Call:
    """A request under way, as `Sender.send` sees it; the SDK calls that once an attempt."""

    timeout: float
    reply: Reply | None = None  # None for what is no question to a model: no budget, no rates
    stream: Stream[Any, Any] | None = None
    estimate: float = 0.0  # dollars, at most
    tokens: int = 0  # at most
    data: Any = None  # JSON of the answer; None where it was none
    unsure: bool = False  # whether an attempt was cut off, so that the server may have done what it was asked

    @property
    def halted(self) -> bool:
        return self.stream is not None and self.stream.halted is not None


CALL: ContextVar[Call] = ContextVar("CALL")  # what this task is sending


class Sender(httpx2.AsyncClient):
    """The SDK and, below it, what it sends with: every attempt is paid for, held to the rates, timed and counted."""

    def __init__(self, address: Address, key: Secret, limits: Limits, budget: Budget) -> None:
        super().__init__(
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=limits.concurrency),
            # Loading certificates takes 50 ms; where none are needed there are none, so that TLS would fail, not pass.
            verify=True if address.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            follow_redirects=False,  # neither texts nor keys go where they were not sent
            trust_env=address.remote,  # no proxy between this machine and itself
        )
        self.budget = budget
        self.price: Price | None = None
        self.spent = Spent()
        self._expected = 0  # tokens estimated for the calls that reported theirs
        self._address, self._key = address, key
        self._own = address.openai or address.host == OPENAI_HOST
        self._sdk = openai.AsyncOpenAI(
            api_key=key.reveal(), base_url=address.url, http_client=self, timeout=self.timeout
        )
        # Without bursts: one request at a time, and tokens of six seconds.
        self._rpm = AsyncLimiter(1, 60 / limits.rpm) if limits.rpm else None
        self._tpm = AsyncLimiter(limits.tpm / 10, 6) if limits.tpm else None

    async def send(self, request: Any, **options: Any) -> Any:
        """One attempt; raises BudgetSpent where it cannot be paid, and CancelledError where everything stops."""
        call = CALL.get()
        if not self._own:
            for name in {n.lower() for n in request.headers} - _HEADERS:
                del request.headers[name]
            request.headers["authorization"] = f"Bearer {self._key.reveal()}"
        if call.reply is None:
            return await self._send(request, call, options)
        await self._admit(call)
        self.spent.calls += 1
        call.reply.calls += 1
        cost, sending = call.estimate, call.stream.sending if call.stream else set()
        sending.add(asyncio.current_task())
        try:
            response = await self._send(request, call, options)
            cost = self._used(call, call.reply) if response.is_success else 0.0
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            cost = 0.0
            raise
        finally:  # whoever hangs up half-way may still be charged
            sending.discard(asyncio.current_task())
            self.budget.settle(call.estimate, cost)
            self.spent.usd += cost
        if response.status_code == 429 and NO_MONEY.search(response.text):
            response.headers["x-should-retry"] = "false"
        return response

    async def _send(self, request: Any, call: Call, options: Mapping[str, Any]) -> Any:
        call.data = None
        try:
            async with asyncio.timeout(call.timeout):
                response = await super().send(request, **options)
        except BaseException as e:
            call.unsure |= not isinstance(e, httpx2.ConnectError | httpx2.ConnectTimeout)
            if call.halted and isinstance(e, Exception):
                raise asyncio.CancelledError from None  # no further attempt
            if isinstance(e, TimeoutError):
                raise httpx2.ReadTimeout(f"no answer within {call.timeout:g} s") from None
            raise
        if response.is_success:
            try:
                call.data = response.json()
            except (ValueError, RecursionError):  # JSON that ends early or is nested beyond reason
                pass
        elif call.halted:
            response.headers["x-should-retry"] = "false"
        return response

    async def _admit(self, call: Call) -> None:
        """Wait for money and for the rates."""
        if call.halted:
            raise asyncio.CancelledError
        while not self.budget.take(call.estimate):
            await asyncio.sleep(0.02)
        try:
            if self._rpm is not None:
                await self._rpm.acquire()
            if self._tpm is not None:
                # Estimates are generous; what was reported so far says how much.
                used = self.spent.prompt_tokens + self.spent.completion_tokens
                left = call.tokens * min(used / self._expected if self._expected else 1.0, 1.0)
                while left > 0:
                    await self._tpm.acquire(min(left, self._tpm.max_rate))
                    left -= self._tpm.max_rate
        except BaseException:
            self.budget.give_back(call.estimate)
            raise

    def _used(self, call: Call, reply: Reply) -> float:
        """Count the reported tokens; returns the price of the call."""
        usage = call.data.get("usage") if isinstance(call.data, Mapping) else None
        usage = usage if isinstance(usage, Mapping) else {}
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if type(read) is not int or type(written) is not int or read < 0 or written < 0:
            return call.estimate
        reply.usage = usage
        reply.prompt_tokens += read
        reply.completion_tokens += written
        self.spent.prompt_tokens += read
        self.spent.completion_tokens += written
        self._expected += call.tokens
        return self.price.of(read, written) if self.price else 0.0

    async def exchange(
        self, verb: str, path: str, body: Mapping[str, Any] | None, call: Call, retries: int
    ) -> Failure | None:
        """Send it; no exception of the SDK leaves here, since they hold the headers sent."""
        CALL.set(call)
        where = self._address.name
        try:
            if verb == "get":
                await self._sdk.get(path, cast_to=httpx2.Response, options={"max_retries": retries})
            else:
                await self._sdk.post(path, cast_to=httpx2.Response, body=body, options={"max_retries": retries})
            return None
        except openai.APIStatusError as e:
            return status_failure(e.status_code, e.body, body or {}, where, self._key, call.unsure)
        except openai.APITimeoutError:
            text = f"{where}: no answer within {call.timeout:g} s"
        except openai.APIConnectionError as e:
            cause = type(e.__cause__).__name__
            what = "cannot be reached" if cause.startswith("Connect") else "broke the connection"
            text = f"{where} {what} ({cause}: {self._key.scrub(str(e.__cause__ or ''), 120)})"
        return Failure(text, unsure=call.unsure)
