"""A judge behind an OpenAI-compatible server.

judge = EndpointJudge("http://localhost:8000/v1#Qwen2.5-32B-Instruct")
route = judge.score_method(rubrics)             a handful of calls: can it give the probabilities of whole numbers?
for reply in judge.replies(requests): ...    every request answered once, in order of completion
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from truing.errors import JudgeDown
from truing.models.client import Client, ClientRequest, Reply, Spent
from truing.models.client_stream import Stream
from truing.models.limits import Budget, Limits
from truing.types.judging import JudgeReply, JudgeRequest, Rubric, ScoreMethod
from truing.types.records import Message

TOP = 20
"""candidates asked for, the most that OpenAI gives"""
REPORTED_TOKENS = 64
"""room for a number, or two with their names"""
REASONING_TOKENS = 2048
"""the same for models that think before they write; what they do not use costs nothing"""
PROBES = ("85", "100")
_PROBE = "Write the number {} in digits. Write nothing else."
_PROBE_ATTEMPTS = 3
_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.S)
_ONE_TOKEN: Mapping[str, Any] = {
    "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": TOP, "seed": 0
}  # fmt: skip
_WANTED = frozenset(("temperature", "logprobs", "top_logprobs", "max_tokens"))  # else the route is REPORTED


class EndpointJudge:
    """Puts filled rubrics to a served model; holds to the protocol `JudgeModel`.

    Args:
        address: openai:MODEL, or http(s)://host:port/v1#MODEL (without #MODEL if the server serves just one).
        limits: how fast, how long, for how much; None for the defaults.
        key_variable: environment variable of the key, for URLs; a second judge elsewhere needs one of its own.
        budget: to share one budget between judges; None for one from the limits.

    Raises:
        BadEndpoint: see Client.
        JudgeDown: no model was named and the server cannot be asked.
    """

    model = ""
    """nothing says more than the name: what a service serves under it is its own affair"""

    def __init__(
        self,
        address: str,
        limits: Limits | None = None,
        *,
        key_variable: str = "TRUING_JUDGE_API_KEY",
        budget: Budget | None = None,
    ) -> None:
        self._client = Client(address, limits or Limits(), key_variable=key_variable, budget=budget)
        self.name: str = self._client.address.name
        """address and model; never a key"""
        self.remote: bool = self._client.address.remote
        """whether text leaves this machine"""
        self.spent: Spent = self._client.spent
        """calls, tokens and dollars so far"""
        self._route: ScoreMethod | None = None
        self._reported_tokens = REPORTED_TOKENS

    def close(self) -> None:
        """Nothing is open between two calls."""

    # -- the route ----------------------------------------------------------------------------------------------------

    def score_method(self, rubrics: Sequence[Rubric]) -> ScoreMethod:
        """How numbers are read from this judge: probabilities of one token, or the number it writes.

        Asks for "85" and "100" with 4 tokens. Where each comes back as one token with its probabilities the route is
        LOGPROBS. It is REPORTED where a number is split over tokens ("8", "5": the first would be read as 8), where
        there are no log-probabilities or they are refused, where the model thinks first, and for rubrics with parts,
        which ask for two numbers in one call. What is learnt on the way (parameters that the service refuses, whether
        it thinks) is kept for all later calls.

        Raises:
            JudgeDown, BadEndpoint, BadModel, BudgetSpent: the judge cannot be asked.
        """
        if self._route is None and all(self._whole(number) for number in PROBES):
            self._route = ScoreMethod.LOGPROBS
        if self._route is None or (self._route is ScoreMethod.LOGPROBS and any(r.parts for r in rubrics)):
            self._learn_to_report()
            self._route = ScoreMethod.REPORTED
        return self._route

    def _whole(self, number: str) -> bool:
        """Whether a number comes as one token with probabilities; a chance failure does not decide."""
        tokens: list[str] = []
        for _ in range(_PROBE_ATTEMPTS):
            reply = self._probe(number, {**_ONE_TOKEN, "max_tokens": 4})
            if any(self._client.leaves_out(p) for p in _WANTED) or reply.error:
                return False  # a model that thinks may need more than 4 tokens to answer at all
            tokens = [str(t.get("token")).strip() for t in _tokens(reply.choice)] if _top(reply.choice) else []
            if number in "".join(tokens):
                break
        return tokens[:1] == [number] and not any(c.isdigit() for c in "".join(tokens[1:]))

    def _learn_to_report(self) -> None:
        """Find out whether it thinks first, and that it can be asked at all."""
        reply = Reply()
        refuses = any(self._client.leaves_out(p) for p in ("max_tokens", "temperature"))  # as thinkers do
        for self._reported_tokens in (REASONING_TOKENS,) if refuses else (REPORTED_TOKENS, REASONING_TOKENS):
            reply = self._probe(PROBES[0], self._reported)
            details = reply.usage.get("completion_tokens_details")
            counted = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
            message = reply.choice.get("message", {})
            thinks = counted or message.get("reasoning_content") or message.get("reasoning") or "<think" in reply.text
            if PROBES[0] in reply.text and not thinks:
                return
        if reply.error:
            raise JudgeDown(reply.error)

    @property
    def _reported(self) -> dict[str, Any]:
        return {"max_tokens": self._reported_tokens, "temperature": 0, "seed": 0}

    def _probe(self, number: str, params: Mapping[str, Any]) -> Reply:
        request = ClientRequest((Message("user", _PROBE.format(number)),), params)
        return next(iter(list(self._client.stream([request], self._client.complete))), Reply())

    # -- asking -------------------------------------------------------------------------------------------------------

    def replies(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """Every request answered exactly once, in order of completion; a failure is a reply with an error.

        `requests` is pulled at most twice the concurrency ahead of what was consumed. An error that it raises comes out
        here, after the replies in flight. Closing the iterator cancels what is in flight.

        Raises:
            BadEndpoint, BadModel: every call would fail; replies in flight come first.
            JudgeDown: the last 20 requests failed, or the first 8; the rest was not sent.
            BudgetSpent: the rest was not sent.
        """
        if self._route is None:
            self.score_method(())
        yield from self._client.stream(requests, self._one)

    async def _one(self, request: JudgeRequest, stream: Stream[JudgeRequest, JudgeReply]) -> JudgeReply | None:
        by_probability = self._route is ScoreMethod.LOGPROBS and not request.rubric.parts
        params = _ONE_TOKEN if by_probability else self._reported
        needed, check = (_WANTED, _lacks) if by_probability else (frozenset[str](), None)
        wanted = ClientRequest(request.messages, params, needed, check)
        reply = await self._client.complete(wanted, stream)
        if reply is None:
            return None
        text = self._client.clean(reply.text)
        return JudgeReply(
            request,
            text=text if by_probability else _THOUGHT.sub("", text).strip(),
            probabilities=_top(reply.choice) if by_probability else None,
            error=reply.error,
            refused=reply.failure is not None and reply.failure.refused,
            calls=reply.calls,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            model=reply.model,
        )


def _lacks(choice: Mapping[str, Any]) -> str:
    return "" if _top(choice) else "no log-probabilities"


class _Candidate(BaseModel):
    token: str
    logprob: float = Field(le=0.01, strict=True)


class _First(BaseModel):
    top_logprobs: list[_Candidate]


def _tokens(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is said of each token written; empty where there is nothing."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return [t for t in content if isinstance(t, Mapping)] if isinstance(content, list) else []


def _top(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """Probability of each candidate for the first token, equal strings added up; None where it makes no sense."""
    tokens, found = _tokens(choice), dict[str, float]()
    try:
        candidates = _First.model_validate(tokens[0]).top_logprobs if tokens else []
    except ValidationError:
        return None
    for t in candidates:
        found[t.token] = found.get(t.token, 0.0) + math.exp(min(t.logprob, 0.0))
    return found if 0 < sum(found.values()) <= 1.05 else None


def open_endpoint(address: str, context: Any) -> EndpointJudge:
    """A judge behind a server, for the registry; `context` is a `JudgeContext`."""
    variable = "TRUING_SECOND_JUDGE_API_KEY" if context.second else "TRUING_JUDGE_API_KEY"
    config = context.config
    names = ("concurrency", "rpm", "tpm", "budget_calls", "budget_usd", "prices", "allow_plain_http")
    same = {name: getattr(config, name) for name in names}
    limits = Limits(timeout=config.judge_timeout, retries=config.judge_retries, **same)
    return EndpointJudge(address, limits, key_variable=variable, budget=context.budget)
