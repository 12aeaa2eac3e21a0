"""Answers from checkpoints that a server holds: one served name per checkpoint, all on one OpenAI-compatible server.

    backend = EndpointBackend("http://localhost:8000/v1#base")
    backend.served("step-100", "http://localhost:8000/v1#run-step-100", step=100)

The server renders the template and draws; what can be held fixed from here is held fixed.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from truing.errors import JudgeDown, ModelUnavailable, ServedNameReused, Unsupported
from truing.models.client import Client, ClientRequest, Reply, Spent
from truing.models.client_address import parse_address
from truing.models.client_flow import Flow
from truing.models.limits import Budget, Limits
from truing.types.hashing import digest
from truing.types.records import (
    Answer,
    AnswerStatus,
    Capabilities,
    Checkpoint,
    Kind,
    Likelihood,
    LikelihoodRequest,
    Request,
    SamplingParams,
)

SERVED = "served"
_LISTED = 12
_seen: dict[tuple[str, str], str] = {}  # (URL, served name) -> weights: a server may answer from what it remembers
_seen_lock = threading.Lock()


class EndpointBackend:
    """Checkpoints behind a server, for sampling only.

    Args:
        address: of the base model, http(s)://host:port/v1#NAME or openai:MODEL.
        limits: how fast, how long, for how much; None for the defaults.
        key_variable: environment variable of the key, for URLs; not the judge's, which is another service.
        budget: to share a budget; None for one from the limits.
        backoff: seconds that the first wait after a failure takes at most.
    """

    capabilities = Capabilities(weights=False, loglikelihood=False, sample=True, train=False, checkpoints="none")
    preferred_batch = 24

    def __init__(
        self,
        address: str,
        limits: Limits | None = None,
        *,
        key_variable: str = "TRUING_SERVED_API_KEY",
        budget: Budget | None = None,
        backoff: float = 0.5,
    ) -> None:
        self._limits = limits or Limits()
        self._client = Client(address, self._limits, key_variable=key_variable, budget=budget, backoff=backoff)
        self._address = self._client.address

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> dict[str, str]:
        """What must not change within one audit."""
        base = digest((self._address.url, self._address.model), 32)
        return {"base": base, "chat": SERVED, "dtype": SERVED, "device": SERVED}

    @property
    def definitions(self) -> Mapping[str, str]:
        """How prompts are rendered, in words."""
        return {
            "rendering": f"chat completions at {self._address.url}; the server applies the template it holds",
            "sampling": "temperature, top_p and a seed per answer are sent; the server decides what the seed does",
        }

    @property
    def spent(self) -> Spent:
        """Calls, tokens, dollars, retries so far."""
        return self._client.spent

    def base_checkpoint(self) -> Checkpoint:
        """Step 0: the model of the address."""
        uri = f"{self._address.url}#{self._address.model}"
        return Checkpoint(self.identity["base"], "base", 0, uri, Kind.BASE)

    def served(self, label: str, uri: str, step: int | None = None) -> Checkpoint:
        """A checkpoint known by its served name alone; URL and name stand in for the hash of its weights."""
        address = parse_address(uri)
        weights = digest((address.url, address.model), 32)
        return Checkpoint(weights, label, step, f"{address.url}#{address.model}", Kind.SERVED)

    def prepare(self, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
        """Check that every checkpoint is served here, under a name of its own.

        Raises:
            Unsupported: it is not a served model, or on another server than the base.
            ServedNameReused: its name stood for other weights before, in this process.
            ModelUnavailable: the server lists its models and this one is not among them.
        """
        names = [self._name(c) for c in checkpoints]
        try:
            listed = self._client.models()
        except JudgeDown:
            listed = []  # not every server lists; asking will tell
        for checkpoint, name in zip(checkpoints, names, strict=True):
            if listed and name not in listed:
                known = ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")
                raise ModelUnavailable(f"{checkpoint.label}: {self._address.url} serves {known}, but not {name!r}")
        return {}

    def resolve(self, params: SamplingParams) -> SamplingParams:
        """Number type and device are the server's."""
        return replace(params, dtype=SERVED, device=SERVED)

    def weight_norm(self, checkpoint: Checkpoint) -> float | None:
        """Out of reach."""
        return None

    def loglikelihood(self, requests: Iterable[LikelihoodRequest]) -> Iterator[Likelihood]:
        """Refused: chat completions do not score given texts."""
        raise Unsupported("a served model cannot score given texts, so there are no margins; use --judge")

    def close(self) -> None:
        """Give back connections and thread."""
        self._client.close()

    def _name(self, checkpoint: Checkpoint) -> str:
        """The served name of a checkpoint, noted as standing for its weights."""
        if checkpoint.kind not in (Kind.SERVED, Kind.BASE) or "#" not in checkpoint.uri:
            raise Unsupported(f"{checkpoint.label}: {checkpoint.uri} is not a served model (http://host:port/v1#NAME)")
        address = parse_address(checkpoint.uri)
        if address.url != self._address.url or not address.model:
            raise Unsupported(f"{checkpoint.label}: {checkpoint.uri} is not on the base's server, {self._address.url}")
        self._stands_for(address.model, checkpoint)
        return address.model

    def _stands_for(self, name: str, checkpoint: Checkpoint) -> None:
        """Note that a served name stands for these weights; refuse it where it stood for others."""
        with _seen_lock:
            known = _seen.setdefault((self._address.url, name), checkpoint.weights)
        if known != checkpoint.weights:
            raise ServedNameReused(
                f"{checkpoint.label}: the served name {name!r} stood for other weights a moment ago; servers "
                "may answer from what they remember, so serve every checkpoint under a name of its own"
            )

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """Draw one answer per ask, in order of completion; failures are outcomes.

        Raises:
            Unsupported, ServedNameReused: see prepare.
            EndpointRefused, ModelUnavailable, JudgeDown, BudgetSpent: the rest was not asked.
        """

        async def work(request: Request, flow: Flow[Request, Answer]) -> Answer | None:
            return await self._answered(request, params, flow)

        yield from self._client.stream(requests, work)

    async def _answered(self, request: Request, params: SamplingParams, flow: Flow[Request, Answer]) -> Answer | None:
        needed = frozenset(("temperature", "top_p", "stop"))  # left out, they would be another distribution
        wish = ClientRequest(
            request.prompt.messages, self._sent(request, params), needed, model=self._name(request.checkpoint)
        )
        answer = await self._client.complete(wish, flow)
        return None if answer is None else self._answer(request, answer, params)

    def _sent(self, request: Request, params: SamplingParams) -> dict[str, Any]:
        """The parameters of a request."""
        sent: dict[str, Any] = {"max_tokens": params.max_tokens, "temperature": params.temperature}
        if params.top_p < 1:
            sent["top_p"] = params.top_p
        if params.stop:
            sent["stop"] = list(params.stop)
        sent["seed"] = _seed(request, params)
        return sent

    def _answer(self, request: Request, answer: Reply, params: SamplingParams) -> Answer:
        if answer.refused:
            return Answer(request, "", AnswerStatus.REFUSED_BY_API, 0, answer.error)
        if answer.error:
            system = any(m.role == "system" for m in request.prompt.messages)
            complains = answer.failure is not None and answer.failure.kind in ("bad request", "server error")
            unsupported = system and complains and "system" in answer.error.lower()
            outcome = AnswerStatus.UNSUPPORTED if unsupported else AnswerStatus.FAILED
            return Answer(request, "", outcome, 0, answer.error)
        text = self._client.clean(answer.text)
        sampled = answer.usage.get("completion_tokens")
        tokens = sampled if type(sampled) is int else 0
        ended = params.cut(text)
        if ended is not None:  # the server ignores stop texts
            return Answer(request, ended, AnswerStatus.OK if ended.strip() else AnswerStatus.EMPTY, tokens)
        if answer.choice.get("finish_reason") == "length":
            return Answer(request, text, AnswerStatus.TRUNCATED, min(tokens or params.max_tokens, params.max_tokens))
        return Answer(request, text, AnswerStatus.OK if text.strip() else AnswerStatus.EMPTY, tokens)


def _seed(request: Request, params: SamplingParams) -> int:
    """The stream of one answer, as for models in memory, within what servers take."""
    name = (params.seed, request.checkpoint.weights, request.prompt.key, request.sample, request.transform)
    return int(digest(name, 15), 16) % 2**31
