"""The client of a served model, on the `openai` SDK: one request with all that can go wrong with it, many at a time.

ask -> budget -> rate limits -> request -> (again, after a while) -> answer -> breaker

The SDK sends and parses; its own retries are off, since every attempt must be counted, paid for and held to the limits.
"""

import asyncio
import json
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from truing.errors import BadEndpoint, BudgetSpent, EndpointRefused, JudgeDown, MissingExtra
from truing.models.client_address import OPENAI_HOST, Address, QuietLogs, find_key, parse_address
from truing.models.client_failures import Failure, refused_parameters, same_model, status_failure
from truing.models.client_flow import Flow, LoopThread
from truing.models.limits import Breaker, Bucket, Budget, Limits, Taken, price_of
from truing.types.records import Messages

try:
    import openai
except ImportError as e:
    raise MissingExtra("served models need the openai package: pip install 'truing[endpoint]'") from e

T = TypeVar("T")
R = TypeVar("R")
POOL = 8
"""connections of one pool"""
LONGEST_BACKOFF = 30.0
"""seconds"""
_TURN_TOKENS = 16  # what a template adds to a turn, at most
_LISTED = 12
_HEADERS = frozenset(
    ("host", "content-type", "content-length", "accept", "accept-encoding", "connection", "user-agent", "authorization")
)  # what other hosts than OpenAI's get: no organisation, no custom headers, no telemetry


@dataclass(frozen=True, slots=True)
class Spent:
    """What an endpoint was asked so far."""

    calls: int
    """requests sent, retries included"""
    prompt_tokens: int
    """as reported"""
    completion_tokens: int
    """as reported"""
    usd: float
    """at the given prices; an upper estimate where the service did not report; 0 without prices"""
    retries: Mapping[str, int]
    """further attempts by the reason for them"""
    failures: Mapping[str, int]
    """requests without a usable answer by reason, whether tried again or not"""


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One answer wanted of a model."""

    messages: Messages
    """the turns"""
    params: Mapping[str, Any]
    """max_tokens, temperature, logprobs, ...; those that the service refuses are left out from then on"""
    needed: frozenset[str] = frozenset()
    """parameters without which the answer is worth nothing"""
    check: Callable[[Mapping[str, Any]], str] | None = None
    """says what an answer lacks, "" for nothing; asked again if so, and the last answer is kept"""
    model: str = ""
    """served name, where it is not the address's"""


@dataclass(slots=True)
class Reply:
    """What became of a wish."""

    choice: Mapping[str, Any] = field(default_factory=dict)
    """the first choice of the service's answer; empty if there was none"""
    usage: Mapping[str, Any] = field(default_factory=dict)
    """of the last call, as reported"""
    error: str = ""
    """why there is no answer"""
    failure: Failure | None = None
    """the last failure, even where a later attempt succeeded"""
    lacking: bool = False
    """answered, but without what `check` asks for"""
    refused: bool = False
    """a content filter said no"""
    calls: int = 0
    """requests sent for it"""
    prompt_tokens: int = 0
    """over all calls, as reported"""
    completion_tokens: int = 0
    """over all calls, as reported"""
    model: str = ""
    """which model says it answered"""

    @property
    def text(self) -> str:
        """What the model wrote."""
        content = self.choice.get("message", {}).get("content")
        return content if isinstance(content, str) else ""


class Client:
    """Asks one served model.

    Args:
        address: openai:MODEL or http(s)://host:port/v1#MODEL.
        limits: how fast, how long, for how much.
        key_variable: environment variable of the key for URLs.
        budget: shared with other clients; None for one made from `limits`.
        backoff: seconds that the first wait after a failure takes at most; doubles each time.
        clock: seconds, for the rate limits.

    Raises:
        BadEndpoint: address, prices or limits cannot be used, or the server serves several models and none was named.
        MissingKey: the service needs a key.
        JudgeDown: no model was named and the server cannot be asked which it serves.
    """

    def __init__(
        self,
        address: str,
        limits: Limits,
        *,
        key_variable: str = "TRUING_JUDGE_API_KEY",
        budget: Budget | None = None,
        backoff: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = parse_address(address)
        self.limits, self.backoff, self._clock = limits, backoff, clock
        self._key = find_key(self.address, key_variable)
        self._price = price_of(self.address.model, limits.prices) if self.address.model else None
        self.budget = budget or Budget(limits.budget_calls, limits.budget_usd)
        self._rpm, self._tpm, self._breaker = Bucket(limits.rpm), Bucket(limits.tpm), Breaker()
        self._rng = random.Random(limits.seed)
        self._left_out: set[str] = set()
        self._calls = self._read = self._written = 0
        self._usd = 0.0
        self._retries: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._lines: list[openai.AsyncOpenAI] = []
        self._host = LoopThread("truing-endpoint")
        self._host.cleanups.append(QuietLogs(self._key).install())
        try:
            if not self.address.model:
                self.address = Address(self.address.url, self._only_model())
                self._price = price_of(self.address.model, limits.prices)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Client({self.address.name!r})"

    @property
    def spent(self) -> Spent:
        """Counters, so far."""
        retries, failures = dict(self._retries), dict(self._failures)
        return Spent(self._calls, self._read, self._written, self._usd, retries, failures)

    def leaves_out(self, parameter: str) -> bool:
        """Whether the service was found to refuse a parameter."""
        return parameter in self._left_out

    def clean(self, text: str) -> str:
        """A text of the service's, without the key if it quotes it."""
        return self._key.scrub(text, None)

    def stream(
        self, items: Iterable[T], work: Callable[[T, Flow[T, R]], Awaitable[R | None]], concurrency: int | None = None
    ) -> Iterator[R]:
        """Put items through `work`, as many at once as the limits allow; see Flow."""
        return iter(Flow(self._host, items, work, concurrency or self.limits.concurrency))

    def models(self) -> list[str]:
        """Names that the server lists.

        Raises:
            JudgeDown: it cannot be asked.
            EndpointRefused: it does not let us.
        """
        return list(self.cards())

    def cards(self) -> dict[str, Mapping[str, Any]]:
        """What the server says of each model it lists, by name; raises as `models` does."""
        failure, data = self._host.run(self._request("get", "/models", None))
        for attempt in range(min(self.limits.retries, 2)):
            if failure is None or not failure.passing:
                break
            time.sleep(self._wait(attempt, failure.wait))
            failure, data = self._host.run(self._request("get", "/models", None))
        if failure is not None and isinstance(failure.fatal, EndpointRefused):
            raise failure.fatal
        if failure is not None:
            raise JudgeDown(f"{failure.text} (asked which models it serves; name one, {self.address.url}#MODEL)")
        listed = data.get("data") if isinstance(data, Mapping) else None
        found = [m for m in listed if isinstance(m, Mapping)] if isinstance(listed, list) else []
        return {m["id"]: m for m in found if isinstance(m.get("id"), str) and m["id"]}

    def post(self, path: str, body: Mapping[str, Any], timeout: float) -> Failure | None:
        """Tell the server something that is no question to a model, once: no budget, no rate limit, no second attempt.

        Args:
            path: below the base URL.
            body: the JSON to send.
            timeout: seconds.
        """
        return self._host.run(self._request("post", path, body, timeout=timeout, plain=True))[0]

    @property
    def inside(self) -> bool:
        """Whether this is the thread that requests are sent from, where nothing may wait for one."""
        return self._host.inside

    def close(self) -> None:
        """Give back connections and thread."""
        self._host.close()

    # -- one answer, in the loop --------------------------------------------------------------------------------------

    async def complete(self, wish: ClientRequest, flow: Flow[Any, Any]) -> Reply | None:
        """One answer with all its attempts; None where nothing was sent for it or everything ends."""
        answer = Reply()
        retries = 0
        while True:
            body, estimate, tokens = self._body(wish)
            if not await self._admit(estimate, tokens, flow):
                return self._given_up(answer, flow)
            failure = await self._attempt(body, wish, answer, estimate, tokens)
            if failure is None:
                self._record(True, answer, flow)
                return answer
            if failure.fatal is not None:
                flow.halt(failure.fatal)
                return None
            if failure.parameters:
                continue  # without them; each can be left out only once
            if failure.refused:
                answer.refused, answer.error = True, failure.text
                self._record(True, answer, flow)
                return answer
            if not failure.passing or retries >= self.limits.retries:
                break
            if flow.halted is not None or await flow.sleep(self._wait(retries, failure.wait)):
                return self._given_up(answer, flow)
            self._retries[failure.kind] += 1
            retries += 1
        if not answer.lacking:
            answer.error = failure.text
        self._record(False, answer, flow)
        return answer

    def _given_up(self, answer: Reply, flow: Flow[Any, Any]) -> Reply | None:
        """Everything stops: an ask that was sent once is an answer with an error, another was never asked."""
        if not answer.calls:
            return None
        if not answer.lacking:
            answer.error = f"{answer.failure.text if answer.failure else 'no answer'} (not tried again: {flow.halted})"
        return answer

    def _record(self, ok: bool, answer: Reply, flow: Flow[Any, Any]) -> None:
        if flow.halted is None and self._breaker.record(ok):
            last = answer.failure.text if answer.failure else answer.error
            flow.halt(
                JudgeDown(f"{self.address.name}: one ask after the other failed, so nothing more was sent. {last}")
            )

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds: exponential with full jitter, or what the service asked for and a little more."""
        if asked:
            return asked + self._rng.uniform(0, self.backoff)
        return self._rng.uniform(0, min(LONGEST_BACKOFF, self.backoff * 2**attempt))

    def _body(self, wish: ClientRequest) -> tuple[dict[str, Any], float, int]:
        """The request, and upper estimates of its price in dollars and of its tokens."""
        read = 0
        turns: list[dict[str, str]] = []
        for role, content in wish.messages:
            try:
                size = len(content.encode())
            except UnicodeEncodeError:  # half a surrogate pair: no JSON can carry it
                content = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                size = len(content.encode())
            read += (size + 1) // 2 + _TURN_TOKENS
            turns.append({"role": role, "content": content})
        body: dict[str, Any] = {"model": wish.model or self.address.model, "messages": turns}
        for name, value in wish.params.items():
            if name not in self._left_out or name in wish.needed:
                body[name] = value
            elif name == "max_tokens":
                body["max_completion_tokens"] = value
        written = int(wish.params.get("max_tokens", 0))
        return body, self._price.of(read, written) if self._price else 0.0, read + written

    async def _admit(self, estimate: float, tokens: int, flow: Flow[Any, Any]) -> bool:
        """Wait for money and for the rate limits; False where everything stops."""
        while True:
            if flow.halted is not None:
                return False
            taken = self.budget.take(estimate)
            if taken is Taken.YES:
                break
            if taken is Taken.NO:
                flow.halt(
                    BudgetSpent(f"{self.address.name}: the budget is spent ({self.budget}); what is done is kept")
                )
                return False
            await flow.sleep(0.02)
        try:
            now = self._clock()
            wait = max(self._rpm.reserve(1, now), self._tpm.reserve(tokens, now))
            stopped = wait > 0 and await flow.sleep(wait)
        except BaseException:
            self.budget.give_back(estimate)
            raise
        if stopped:
            self.budget.give_back(estimate)
        return not stopped

    async def _attempt(
        self, body: Mapping[str, Any], wish: ClientRequest, answer: Reply, estimate: float, tokens: int
    ) -> Failure | None:
        """Send one request that the budget has taken; fills `answer`."""
        self._calls += 1
        answer.calls += 1
        answer.choice, answer.usage, answer.lacking = {}, {}, False
        cost = estimate  # unless we learn better: whoever hangs up half-way may still be charged
        try:
            failure, data = await self._request("post", "/chat/completions", body)
            if failure is None:
                cost = self._use(data, answer, estimate, tokens)
                failure = self._judge_answer(data, wish, answer)
            elif not failure.charged:
                cost = 0.0
        finally:
            self.budget.settle(estimate, cost)
            self._usd += cost
        if failure is None:
            return None
        answer.failure = failure
        if failure.parameters and not wish.needed.intersection(failure.parameters):
            self._left_out.update(failure.parameters)
        elif failure.parameters:
            failure = Failure("bad request", failure.text, passing=False)
        self._failures[failure.kind] += 1
        return failure

    def _use(self, data: object, answer: Reply, estimate: float, tokens: int) -> float:
        """Count the reported tokens; returns the price of the call."""
        usage = data.get("usage") if isinstance(data, Mapping) else None
        counts = [usage.get(n) if isinstance(usage, Mapping) else None for n in ("prompt_tokens", "completion_tokens")]
        if not isinstance(usage, Mapping) or not all(type(n) is int and n >= 0 for n in counts):
            return estimate
        read, written = (int(n) for n in counts if n is not None)
        answer.usage = usage
        answer.prompt_tokens += read
        answer.completion_tokens += written
        self._read += read
        self._written += written
        self._tpm.refund(tokens - read - written)
        return self._price.of(read, written) if self._price else 0.0

    def _judge_answer(self, data: object, wish: ClientRequest, answer: Reply) -> Failure | None:
        """What is wrong with a body that came with status 200."""
        where = self.address.name
        if not isinstance(data, Mapping):
            return Failure("not JSON", f"{where}: the answer is no JSON object: {self._key.scrub(str(data), 80)}")
        model = data.get("model")
        if isinstance(model, str) and model and not same_model(wish.model or self.address.model, model):
            said = self._key.scrub(model, 80)
            return Failure(
                "wrong model", f"{where}: the server answered with the model {said!r}; name that one, if it is meant"
            )
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
            said = self._key.scrub(json.dumps(data.get("error", data))[:500], 120)
            return Failure("malformed", f"{where}: the answer holds no message: {said}")
        answer.choice, answer.model = choice, model if isinstance(model, str) else ""
        if choice.get("finish_reason") == "content_filter" or choice["message"].get("refusal"):
            return Failure("content filter", f"{where}: refused by the service's content filter", False, refused=True)
        lacks = wish.check(choice) if wish.check else ""
        answer.lacking = bool(lacks)
        return Failure(lacks, f"{where}: {lacks} in the answer") if lacks else None

    async def _request(
        self, verb: str, path: str, body: Mapping[str, Any] | None, *, timeout: float | None = None, plain: bool = False
    ) -> tuple[Failure | None, object]:
        """Send it and say what came back; no exception of the SDK leaves here, since they hold the headers sent."""
        where = self.address.name
        seconds = timeout or self.limits.timeout
        sdk = self._line()
        try:
            async with asyncio.timeout(seconds):
                if verb == "get":
                    data = await sdk.get(path, cast_to=object)
                else:
                    data = await sdk.post(path, cast_to=object, body=body, options={"timeout": seconds})
            # A wrong content type comes as text, and so does what is no JSON on purpose.
            return None, json.loads(data) if isinstance(data, str) and not plain else data
        except (TimeoutError, openai.APITimeoutError):
            return Failure("timeout", f"{where}: no answer within {seconds:g} s"), None
        except openai.APIConnectionError as e:
            cause = type(e.__cause__).__name__
            never = cause.startswith("Connect")
            what = "cannot be reached" if never else "broke the connection"
            said = self._key.scrub(str(e.__cause__ or ""), 120)
            return Failure("connection", f"{where} {what} ({cause}: {said})", charged=not never), None
        except openai.APIStatusError as e:
            said = self._key.scrub(_message(e.body), 300)
            parameters = refused_parameters(e.status_code, e.body, body or {})
            if parameters:
                text = f"{where}: HTTP {e.status_code}, {said}"
                return Failure("refused parameter", text, charged=False, parameters=parameters), None
            found = status_failure(e.status_code, e.response.headers, e.body, where, said)
            return replace(found, status=e.status_code), None
        except (ValueError, RecursionError):  # JSON that ends early or is nested beyond reason
            return Failure("not JSON", f"{where}: the answer is no JSON, or only a part of it"), None
        finally:
            self._lines.append(sdk)

    def _line(self) -> openai.AsyncOpenAI:
        """A client with a connection to spare, the last one used first.

        The transport walks over all connections of a pool for every request, so that one pool of 256 costs several
        times the processor time of many small ones.
        """
        if not self._lines:
            sdk = _sdk(self.address, self._key.reveal(), self.limits.timeout)
            self._host.cleanups.insert(0, sdk.close)
            self._lines += [sdk] * POOL
        return self._lines.pop()

    def _only_model(self) -> str:
        names = self.models()
        if len(names) == 1:
            return names[0]
        listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        problem = f"serves several models ({listed})" if names else "lists no model"
        raise BadEndpoint(f"{self.address.url} {problem}; name one: {self.address.url}#MODEL")


def _message(body: object) -> str:
    """The sentence in an error's body."""
    if isinstance(body, Mapping):
        error = body.get("error", body)
        if isinstance(error, Mapping):
            for name in ("message", "detail"):
                if isinstance(error.get(name), str):
                    return str(error[name])
        return json.dumps(error, ensure_ascii=False, default=str)
    return str(body or "")


def _sdk(address: Address, key: str, timeout: float) -> openai.AsyncOpenAI:
    """The SDK's client with a small pool, and with what the environment adds for OpenAI kept from other hosts."""
    own = address.openai or address.host == OPENAI_HOST

    async def only_known(request: Any) -> None:
        for name in {n.lower() for n in request.headers} - _HEADERS:
            del request.headers[name]
        request.headers["authorization"] = f"Bearer {key}"

    http = openai.DefaultAsyncHttpxClient(
        timeout=timeout,
        limits=type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=2 * POOL, max_keepalive_connections=POOL),
        # Loading certificates takes 50 ms; where none are needed there are none, so that TLS would fail, not pass.
        verify=True if address.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        follow_redirects=False,  # neither texts nor keys go where they were not sent
        trust_env=address.remote,  # no proxy between this machine and itself
        event_hooks={} if own else {"request": [only_known]},
    )
    return openai.AsyncOpenAI(api_key=key, base_url=address.url, max_retries=0, timeout=timeout, http_client=http)
