"""The client of a served model: the `openai` SDK, with a budget, rate limits and a breaker around it.

Client.complete -> Sender.exchange -> SDK (retries, waits as the service asks) -> Sender.send, once an attempt
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from truing.errors import BadEndpoint, JudgeDown, TruingError
from truing.models.base import listed
from truing.models.client_address import Address, find_key, parse_address
from truing.models.client_errors import Failure, same_model
from truing.models.client_http import Call, Reply, Sender
from truing.models.client_stream import LoopThread, Stream
from truing.models.limits import Breaker, Budget, Limits, price_of
from truing.types.records import Messages

T = TypeVar("T")
R = TypeVar("R")
_PLAIN_RETRIES = 2  # for what is no question to a model
_TURN_TOKENS = 16  # what a template adds to a turn, at most


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One answer wanted of a model."""

    messages: Messages  # the turns
    params: Mapping[str, Any]
    """max_tokens, temperature, logprobs, ...; those that the service refuses are left out from then on"""
    needed: frozenset[str] = frozenset()  # parameters without which the answer is worth nothing
    check: Callable[[Mapping[str, Any]], str] | None = None
    """says what an answer lacks, "" for nothing; asked again if so, and the last answer is kept"""
    model: str = ""  # served name, where it is not the address's


class Client:
    """Asks one served model.

    The address is openai:MODEL or http(s)://host:port/v1#MODEL; a `budget` may be shared with other clients.

    Raises:
        BadEndpoint: address, prices or limits cannot be used, or the server serves several models and none was named.
        BadEndpoint: the service needs a key.
        JudgeDown: no model was named and the server cannot be asked which it serves.
    """

    def __init__(
        self, address: str, limits: Limits, *, key_variable: str = "TRUING_JUDGE_API_KEY", budget: Budget | None = None
    ) -> None:
        self.address, self.limits = parse_address(address), limits
        self._key = find_key(self.address, key_variable)
        price = price_of(self.address.model, limits.prices) if self.address.model else None
        budget = budget or Budget(limits.budget_calls, limits.budget_usd)
        self._sender = Sender(self.address, self._key, limits, budget)
        self._sender.price = price
        self.spent = self._sender.spent  # so far
        self._breaker = Breaker()
        self._left_out: set[str] = set()
        self._key.watch_logs()
        self._host = LoopThread()
        self._host.cleanups += [self._sender.aclose, self._key.leave_logs]
        try:
            if not self.address.model:
                self.address = Address(self.address.url, self._only_model())
                self._sender.price = price_of(self.address.model, limits.prices)
        except BaseException:
            self.close()
            raise

    def leaves_out(self, parameter: str) -> bool:
        """Whether the service was found to refuse a parameter."""
        return parameter in self._left_out

    def clean(self, text: str) -> str:
        """A text of the service's, without the key if it quotes it."""
        return self._key.remove_from(text)

    def stream(self, items: Iterable[T], work: Callable[[T, Stream[T, R]], Awaitable[R | None]]) -> Iterator[R]:
        """Put items through `work`, as many at once as the limits allow; see Stream."""
        return iter(Stream(self._host, items, work, self.limits.concurrency))

    def models(self) -> dict[str, Mapping[str, Any]]:
        """What the server says of each model it lists, by name.

        Raises:
            JudgeDown: it cannot be asked.
            BadEndpoint: it does not let us.
        """
        call = Call(self.limits.timeout)
        failure = self._host.run(self._sender.exchange("get", "/models", None, call, _PLAIN_RETRIES))
        if failure is not None and isinstance(failure.fatal, BadEndpoint):
            raise failure.fatal
        if failure is not None:
            raise JudgeDown(f"{failure.text} (asked which models it serves; name one, {self.address.url}#MODEL)")
        cards = call.data.get("data") if isinstance(call.data, Mapping) else None
        found = [m for m in cards if isinstance(m, Mapping)] if isinstance(cards, list) else []
        return {m["id"]: m for m in found if isinstance(m.get("id"), str) and m["id"]}

    def post(self, path: str, body: Mapping[str, Any], timeout: float, retries: int = _PLAIN_RETRIES) -> Failure | None:
        """Tell the server something that is no question to a model: no budget, no rates; None where it was done."""
        return self._host.run(self._sender.exchange("post", path, body, Call(timeout), retries))

    @property
    def inside(self) -> bool:
        """Whether this is the thread that requests are sent from, where nothing may wait for one."""
        return self._host.inside

    def close(self) -> None:
        """Give back connections and thread."""
        self._host.close()

    async def complete(self, request: ClientRequest, stream: Stream[Any, Any]) -> Reply | None:
        """One answer with all its attempts; None where nothing was sent for it or everything ends."""
        reply, tries = Reply(), 0
        try:
            while True:
                reply.choice, reply.usage = {}, {}
                body, call = self._body(request, reply, stream)
                failure = await self._sender.exchange("post", "/chat/completions", body, call, self.limits.retries)
                unusable = failure is None
                failure = failure or self._read(call.data, request, reply)
                if failure is None:
                    break
                if failure.fatal is not None:
                    stream.halt(failure.fatal)
                    return None
                if failure.parameters and not request.needed.intersection(failure.parameters):
                    self._left_out.update(failure.parameters)
                    continue
                if failure.refused or not unusable or tries == self.limits.retries:
                    break
                await asyncio.sleep(min(0.25 * 2**tries, 8.0))  # an answer that cannot be used
                tries += 1
        except TruingError as e:  # the budget, or what halted the stream
            stream.halt(e)
            return self._given_up(reply, e)
        except asyncio.CancelledError:
            if stream.halted is None or stream.closed:
                raise
            return self._given_up(reply, stream.halted)
        return self._finished(failure, reply, stream)

    def _given_up(self, reply: Reply, why: Exception) -> Reply | None:
        """Everything stops: a request that was sent is a reply with an error, another was never asked."""
        if not reply.choice:
            reply.error = f"{self.address.name}: no answer, and not tried again: {why}"
        return reply if reply.calls else None

    def _finished(self, failure: Failure | None, reply: Reply, stream: Stream[Any, Any]) -> Reply:
        if failure is not None and not reply.choice:  # else it is an answer that lacks something
            reply.error, reply.status, reply.refused = failure.text, failure.status, failure.refused
        ok = failure is None or failure.refused
        if stream.halted is None and self._breaker.record(ok):
            last = failure.text if failure else ""
            stream.halt(
                JudgeDown(f"{self.address.name}: one request after the other failed; nothing more sent. {last}")
            )
        return reply

    def _body(self, request: ClientRequest, reply: Reply, stream: Stream[Any, Any]) -> tuple[dict[str, Any], Call]:
        """What is sent, with upper estimates of its price and of its tokens (two bytes a token)."""
        read = 0
        turns: list[dict[str, str]] = []
        for role, content in request.messages:
            # Half a surrogate pair fits into no JSON.
            content = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            read += (len(content.encode()) + 1) // 2 + _TURN_TOKENS
            turns.append({"role": role, "content": content})
        body: dict[str, Any] = {"model": request.model or self.address.model, "messages": turns}
        for name, value in request.params.items():
            if name not in self._left_out or name in request.needed:
                body[name] = value
            elif name == "max_tokens":
                body["max_completion_tokens"] = value
        written = int(request.params.get("max_tokens", 0))
        estimate = self._sender.price.of(read, written) if self._sender.price else 0.0
        return body, Call(self.limits.timeout, reply, stream, estimate, read + written)

    def _read(self, data: Any, request: ClientRequest, reply: Reply) -> Failure | None:
        """What is wrong with a body that came with status 200; fills `reply`."""
        where = self.address.name
        if not isinstance(data, Mapping):
            return Failure(f"{where}: the answer is no JSON object, or only a part of one")
        model = data.get("model")
        if isinstance(model, str) and model and not same_model(request.model or self.address.model, model):
            name = self._key.scrub(model, 80)
            return Failure(f"{where}: the server answered with the model {name!r}; name that one, if it is meant")
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
            shown = self._key.scrub(json.dumps(data.get("error", data))[:500], 120)
            return Failure(f"{where}: the answer holds no message: {shown}")
        if choice.get("finish_reason") == "content_filter" or choice["message"].get("refusal"):
            return Failure(f"{where}: refused by the service's content filter", refused=True)
        reply.choice, reply.model = choice, model if isinstance(model, str) else ""
        lacks = request.check(choice) if request.check else ""
        return Failure(f"{where}: {lacks} in the answer") if lacks else None

    def _only_model(self) -> str:
        names = list(self.models())
        if len(names) == 1:
            return names[0]
        problem = f"serves several models ({listed(names)})" if names else "lists no model"
        raise BadEndpoint(f"{self.address.url} {problem}; name one: {self.address.url}#MODEL")
