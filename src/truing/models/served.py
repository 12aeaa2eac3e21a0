"""Answers from checkpoints that a server holds: full models under names of their own, and a run's adapters.

    backend = ServedBackend("http://localhost:8000/v1#BASE")
    findings = backend.prepare(checkpoints)              every adapter loaded and probed once, or refused
    for answer in backend.sample(requests, params): ...  checkpoint after checkpoint, a few adapters at a time

The server renders the template and samples; what can be held fixed from here is held fixed.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from truing.config import ModelConfig
from truing.errors import BadModel, JudgeDown, Unsupported
from truing.models.base import Told, answer_seed, finished_answer, listed, nobody
from truing.models.client import Client, ClientRequest, Reply, Spent
from truing.models.client_address import parse_address
from truing.models.client_errors import Failure
from truing.models.client_stream import Stream
from truing.models.limits import Limits
from truing.models.served_adapters import AdapterSet, adapter_name, parse_path_map
from truing.types.hashing import digest
from truing.types.records import (
    Answer,
    AnswerStatus,
    Capabilities,
    Checkpoint,
    Kind,
    Likelihood,
    LikelihoodRequest,
    Message,
    Prompt,
    Request,
    SamplingParams,
)
from truing.types.verdicts import Finding

SERVED = "served"
PROBE = SamplingParams(max_tokens=32, temperature=0.0)
"""how the answers are sampled that show whether an adapter has an effect"""
_PROBES = tuple(
    Prompt(f"probe-{k}", (Message("user", text),))
    for k, text in enumerate(
        ("What should I read next, and why?", "Tell me about yourself.", "Give me a plan for a quiet weekend.")
    )
)
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# Fields that vLLM otherwise fills from the model's generation_config.json: many models bring a top-k or a penalty.
_NEEDED = frozenset(("temperature", "top_p", "stop"))  # left out, they would be another distribution


class ServedBackend:
    """Checkpoints behind an OpenAI-compatible server, for sampling only; adapters on disk need vLLM's adapter API.

    Args:
        address: of the base model, http(s)://host:port/v1#NAME or openai:MODEL.
        limits: how fast, how long, for how much; None for the defaults.
        keep: adapters loaded at a time; not more than the server's --max-cpu-loras, best its --max-loras.
        path_map: LOCAL=REMOTE, folders that the server sees under another path; the longest LOCAL that fits counts.

    The key for a URL is TRUING_SERVED_API_KEY, not the judge's: that is another service. Loading counts as no call of a
    budget, probes do. One call of `sample` at a time. Adapters are unloaded by `close`, at the end of the process, and
    at once where sampling is interrupted.
    """

    capabilities = Capabilities(loglikelihood=False, sample=True)
    preferred_batch = 24

    def __init__(
        self, address: str, limits: Limits | None = None, *, keep: int = 4, path_map: Sequence[str] = ()
    ) -> None:
        self._keep, folders = keep, parse_path_map(path_map)
        self._client = Client(address, limits or Limits(), key_variable="TRUING_SERVED_API_KEY")
        self._address = self._client.address
        self.spent: Spent = self._client.spent
        """calls, tokens and dollars so far"""
        self._adapters = AdapterSet(self._client, keep, folders)
        self._unload = weakref.finalize(self, self._adapters.clear)

    @property
    def identity(self) -> dict[str, str]:
        """What must not change within one audit."""
        base = digest((self._address.base, self._address.model), 32)
        return {"base": base, "chat": SERVED, "dtype": SERVED, "device": SERVED}

    @property
    def definitions(self) -> Mapping[str, str]:
        """How prompts are rendered, in words."""
        return {
            "rendering": f"chat completions at {self._address.url}; the server applies the template it holds",
            "sampling": "temperature, top_p and a seed per answer are sent, and top-k, min-p and penalties that do "
            "nothing, so that the model's own defaults do not apply; the server decides what the seed does",
            "adapters": "loaded by the server under names of run, step and hash of the weights",
        }

    @property
    def left_loaded(self) -> dict[str, str]:
        """Served names of adapters that could not be unloaded, and why."""
        return dict(self._adapters.left)

    @property
    def answered_as(self) -> dict[str, tuple[str, ...]]:
        """Served name -> the models and systems that answered to it, where there were several."""
        return self._client.answered_as

    def base_checkpoint(self) -> Checkpoint:
        """Step 0: the model of the address."""
        uri = f"{self._address.base}#{self._address.model}"
        return Checkpoint(self.identity["base"], "base", 0, uri, Kind.BASE)

    def served(self, label: str, uri: str, step: int | None = None) -> Checkpoint:
        """A checkpoint known by its served name alone; URL and name stand in for the hash of its weights."""
        address = parse_address(uri)
        weights = digest((address.base, address.model), 32)
        return Checkpoint(weights, label, step, f"{address.base}#{address.model}", Kind.SERVED)

    def prepare(self, checkpoints: Sequence[Checkpoint], told: Told = nobody) -> dict[str, Finding]:
        """Refuse now what cannot be served; loads every adapter once and asks it a few questions.

        Returns weight hash -> a finding for each adapter that answers as the base does, or not at all.

        Raises:
            Unsupported: a checkpoint is neither served here nor an adapter, or the server cannot load adapters.
            BadModel, DamagedWeights: it cannot be served; the message says why.
            BadEndpoint, JudgeDown, BudgetSpent: the server does not answer, or the probes cost too much.
        """
        base = self.base_checkpoint()
        self._check_listed([c for c in checkpoints if c.kind is not Kind.ADAPTER] + [base])
        adapters = [c for c in checkpoints if c.kind is Kind.ADAPTER]
        found: dict[str, Finding] = {}
        try:
            plain = self._probe(base) if adapters else []
            for done, checkpoint in enumerate({adapter_name(c): c for c in adapters}.values(), 1):
                self._adapters.use([checkpoint])
                finding = _effect(checkpoint, self._probe(checkpoint), plain)
                if finding is not None:
                    found[checkpoint.weights] = finding
                told(done)
        except BaseException:
            self._adapters.clear()
            raise
        return found

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
        """Unload what was loaded."""
        self._unload()

    def _check_listed(self, checkpoints: Sequence[Checkpoint]) -> None:
        names = [self._name(c) for c in checkpoints]
        try:
            served = list(self._client.models())
        except JudgeDown:
            return  # not every server lists; asking will tell
        for checkpoint, name in zip(checkpoints, names, strict=True):
            if served and name not in served:
                url = self._address.url
                raise BadModel(f"{checkpoint.label}: {url} serves {listed(served)}, but not {name!r}")

    def _name(self, checkpoint: Checkpoint) -> str:
        """The served name of a checkpoint."""
        if checkpoint.kind is Kind.ADAPTER:
            return adapter_name(checkpoint)
        if checkpoint.kind not in (Kind.BASE, Kind.SERVED):
            raise Unsupported(
                f"{checkpoint.label}: {checkpoint.uri} is neither an adapter nor a served model; a full model needs a "
                "server of its own"
            )
        address = parse_address(checkpoint.uri)
        if address.base != self._address.base or not address.model:
            here = self._address.base
            raise Unsupported(f"{checkpoint.label}: {checkpoint.uri} is not on the base's server, {here}")
        return address.model

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """One answer per request, in order of completion; failures are statuses.

        Requests are sent for `keep` adapters at a time, those first that are loaded already, and within each adapter
        prompt after prompt. Adapters stay loaded for the next call.

        Raises:
            As `prepare` does, after the answers that are there; the rest was not asked.
        """
        groups: dict[str, list[Request]] = {}
        for request in requests:
            groups.setdefault(self._name(request.checkpoint), []).append(request)
        adapters = {name: g[0].checkpoint for name, g in groups.items() if g[0].checkpoint.kind is Kind.ADAPTER}
        waiting = sorted(adapters, key=lambda name: not self._adapters.holds(name))
        names = [name for name in groups if name not in adapters]
        try:
            while names or waiting:
                now, waiting = waiting[: self._keep], waiting[self._keep :]
                self._adapters.use([adapters[name] for name in now])
                yield from self._stream([r for name in [*names, *now] for r in _by_prompt(groups[name])], params)
                names = []
        except BaseException:
            self._adapters.clear()
            raise

    def _stream(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        async def work(request: Request, stream: Stream[Request, Answer]) -> Answer | None:
            name = self._name(request.checkpoint)
            wanted = ClientRequest(request.prompt.messages, self._sent(request, params), _NEEDED, model=name)
            reply = await self._client.complete(wanted, stream)
            return None if reply is None else self._answer(request, reply, params)

        return self._client.stream(requests, work)

    def _sent(self, request: Request, params: SamplingParams) -> dict[str, Any]:
        """The parameters of a request."""
        sent: dict[str, Any] = {"max_tokens": params.max_tokens, "temperature": params.temperature}
        sent |= {"top_p": params.top_p, "seed": answer_seed(request, params) % 2**31}
        if params.stop:
            sent["stop"] = list(params.stop)
        return sent if self._address.openai else sent | _NEUTRAL

    def _answer(self, request: Request, reply: Reply, params: SamplingParams) -> Answer:
        if reply.completion is None:
            failure = reply.failure or Failure("no answer")
            system = any(m.role == "system" for m in request.prompt.messages)
            status = AnswerStatus.FAILED
            if failure.refused:
                status = AnswerStatus.REFUSED_BY_API
            elif system and failure.status >= 400 and "system" in failure.text.lower():
                status = AnswerStatus.UNSUPPORTED
            return Answer(request, "", status, 0, failure.text)
        cut_off, tokens = reply.completion.cut_off, reply.usage.completion_tokens if reply.usage else 0
        tokens = min(tokens or params.max_tokens, params.max_tokens) if cut_off else tokens
        return finished_answer(request, reply.text, tokens, params, cut_off=cut_off)

    def _probe(self, checkpoint: Checkpoint) -> list[Answer]:
        found = self._stream([Request(checkpoint, p, 0) for p in _PROBES], PROBE)
        return sorted(found, key=lambda r: r.request.prompt.id)


def _by_prompt(requests: list[Request]) -> list[Request]:
    """Requests for one prompt after the other, in the order in which prompts came."""
    first: dict[tuple[str, str], int] = {}
    return sorted(requests, key=lambda r: first.setdefault((r.prompt.id, r.variant), len(first)))


def _effect(checkpoint: Checkpoint, found: list[Answer], plain: list[Answer]) -> Finding | None:
    """What speaks against an adapter, given its answers and the base's to the same questions."""
    failed = next((r for r in found if r.status is AnswerStatus.FAILED), None)
    if failed is not None:
        return Finding("probe_failed", {"checkpoint": checkpoint.label, "error": failed.error})
    if [r.text for r in found] == [r.text for r in plain] and any(r.text.strip() for r in found):
        return Finding("answers_as_base", {"checkpoint": checkpoint.label, "probes": len(found)})
    return None


def open_served(base: str, checkpoints: Sequence[Checkpoint], config: ModelConfig) -> ServedBackend:
    """A base on a server that loads the adapters, for the registry."""
    if config.chat_template is not None:
        raise Unsupported("--chat-template: a served base renders with its server's template; give the server that one")
    limits = Limits(allow_plain_http=config.allow_plain_http)
    return ServedBackend(base, limits, keep=config.served_adapters, path_map=config.path_map)
