"""A judge behind an OpenAI-compatible server.

judge = EndpointJudge("http://localhost:8000/v1#Qwen2.5-32B-Instruct")
route = judge.score_method(rubrics)             a handful of calls: can it give the probabilities of whole numbers?
for reply in judge.replies(requests): ...    every request answered once, in order of completion
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from truing.errors import JudgeDown
from truing.models.client import Client, ClientRequest, Completion, Reply, Spent
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
_THINKING = re.compile(
    r"\A.*(?:</(?:think(?:ing)?|thought|reasoning)>|\[/THINK\]|◁/think▷|<channel\|>|<\|channel\|>final[^<]*<\|message\|>)"
    r"|\Aanalysis.*assistantfinal",
    re.S,
)
"""everything up to the last end of thinking; the beginning is often part of the template, and not in the text"""
_STILL_THINKING = re.compile(r"\s*(?:<(?:think(?:ing)?|thought|reasoning)>|\[THINK\]|◁think▷|<\|?channel\|?>)")
_ENDS = re.compile(r"(?:<\|(?:return|end|im_end|eot_id)\|>\s*){1,3}\Z")
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
        answered: name of a judge -> the model that answered under it before, in the same audit.
        say: told once where the model that answers is called otherwise.

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
        answered: Mapping[str, str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        given: Any = {"key_variable": key_variable, "budget": budget, "answered": answered, "say": say}
        self._client = Client(address, limits or Limits(), **given)
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
            found = reply.completion
            tokens = [t.strip() for t in found.tokens] if found and found.top else []
            if number in "".join(tokens):
                break
        return tokens[:1] == [number] and not any(c.isdigit() for c in "".join(tokens[1:]))

    def _learn_to_report(self) -> None:
        """Find out whether it thinks first, and that it can be asked at all."""
        reply = Reply()
        refuses = any(self._client.leaves_out(p) for p in ("max_tokens", "temperature"))  # as thinkers do
        for self._reported_tokens in (REASONING_TOKENS,) if refuses else (REPORTED_TOKENS, REASONING_TOKENS):
            reply = self._probe(PROBES[0], self._reported)
            thinks = reply.completion is None or reply.completion.thinks or said(reply.text) != reply.text.strip()
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
        return JudgeReply(
            request,
            text=reply.text if by_probability else said(reply.text),
            probabilities=reply.completion.top if by_probability and reply.completion else None,
            error=reply.error,
            refused=reply.failure is not None and reply.failure.refused,
            calls=reply.calls,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            model=reply.completion.model if reply.completion else "",
        )


def _lacks(completion: Completion) -> str:
    return "" if completion.top else "no log-probabilities"


def said(text: str) -> str:
    """A text without the thinking before it, however that is marked; empty where it never ends."""
    rest = _THINKING.sub("", text)
    return "" if _STILL_THINKING.match(rest) else _ENDS.sub("", rest).strip()


def open_endpoint(address: str, context: Any) -> EndpointJudge:
    """A judge behind a server, for the registry; `context` is a `JudgeContext`."""
    variable = "TRUING_SECOND_JUDGE_API_KEY" if context.second else "TRUING_JUDGE_API_KEY"
    config = context.config
    names = ("concurrency", "rpm", "tpm", "budget_calls", "budget_usd", "prices", "allow_plain_http")
    same = {name: getattr(config, name) for name in names}
    limits = Limits(timeout=config.judge_timeout, retries=config.judge_retries, **same)
    more = {"budget": context.budget, "answered": context.answered, "say": context.say}
    return EndpointJudge(address, limits, key_variable=variable, **more)
