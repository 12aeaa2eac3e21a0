"""Answers from a run's adapter checkpoints, served by one vLLM that loads and unloads them while it runs.

    backend = AdapterBackend("http://localhost:8000/v1#BASE")
    notes = backend.prepare(checkpoints)                     every adapter loaded and probed once, or refused
    for response in backend.sample(asks, params): ...        checkpoint after checkpoint, a few adapters at a time
    backend.close()                                          what was loaded is unloaded

A checkpoint is served as RUN@STEP-HASH. The hash is in the name because servers remember: under an old name vLLM may
answer from prefix-cache blocks of the weights that the name stood for before.
"""

import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from truing.errors import BadEndpoint, Unsupported
from truing.models.checkpoints import checkpoint_path
from truing.models.client_flow import Flow
from truing.models.limits import Budget, Limits
from truing.models.served import EndpointBackend
from truing.models.served_lora import Adapter, Shelf, Turn
from truing.types.records import Answer, AnswerStatus, Checkpoint, Kind, Message, Prompt, Request, SamplingParams

HASH = 12
"""hex digits of the weights' hash in a served name"""
PROBE = SamplingParams(max_tokens=32, temperature=0.0)
"""how the answers are drawn that show whether an adapter has an effect"""
_PROBES = tuple(
    Prompt(f"probe-{k}", (Message("user", text),))
    for k, text in enumerate(
        ("What should I read next, and why?", "Tell me about yourself.", "Give me a plan for a quiet weekend.")
    )
)
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# Fields that vLLM otherwise fills from the model's generation_config.json: many models bring a top-k or a penalty.
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """How adapters are put on the server."""

    keep: int = 4
    """adapters loaded at a time; not more than the server's --max-cpu-loras, best its --max-loras"""
    path_map: tuple[str, ...] = ()
    """LOCAL=REMOTE: folders that the server sees under another path; the longest LOCAL that fits counts"""
    window: int = 50_000
    """asks held and put into the order of checkpoints at a time; a smaller one loads adapters more often"""
    timeout: float = 600.0
    """seconds that one load may take"""

    def __post_init__(self) -> None:
        """Raises BadEndpoint where a value makes no sense."""
        if self.keep < 1 or self.window < 1 or not 0 < self.timeout < float("inf"):
            text = f"keep {self.keep}, window {self.window}, timeout {self.timeout}"
            raise BadEndpoint(f"adapters on a server: {text}: give at least 1, at least 1, and seconds above 0")
        for entry in self.path_map:
            local, _, remote = entry.partition("=")
            if not local.strip() or not remote.strip().startswith("/"):
                raise BadEndpoint(f"path_map {entry!r}: give LOCAL=REMOTE, where REMOTE begins with / on the server")


class AdapterBackend(EndpointBackend):
    """Adapter checkpoints on disk, sampled on a server that holds their base. For sampling only.

    Args:
        address: of the base model, http(s)://host:port/v1#NAME.
        limits: how fast, how long, for how much; None for the defaults.
        options: how adapters are put on the server; None for the defaults.
        key_variable: environment variable of the key.
        budget: to share a budget; None for one from the limits. Loading is not counted, probes are.
        backoff: seconds that the first wait after a failure takes at most.

    Unload by `close` or a `with` block; interrupted sampling unloads at once, and so does the end of the process.
    """

    def __init__(
        self,
        address: str,
        limits: Limits | None = None,
        options: AdapterOptions | None = None,
        *,
        key_variable: str = "TRUING_SERVED_API_KEY",
        budget: Budget | None = None,
        backoff: float = 0.5,
    ) -> None:
        super().__init__(address, limits, key_variable=key_variable, budget=budget, backoff=backoff)
        self.options = options or AdapterOptions()
        self._shelf = Shelf(self._client, self.options.keep, self.options.timeout)
        self._unload_all = weakref.finalize(self, self._shelf.clear)
        self._probed: dict[str, str] = {}

    def __enter__(self) -> "AdapterBackend":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def definitions(self) -> Mapping[str, str]:
        """How prompts are rendered, in words."""
        return {
            **super().definitions,
            "sampling": "temperature, top_p and a seed per answer are sent, and top-k, min-p and penalties that do "
            "nothing, so that the model's own defaults do not apply; the server decides what the seed does",
            "adapters": "loaded by the server under names of run, step and hash of the weights",
        }

    @property
    def notes(self) -> dict[str, str]:
        """Weight hash -> a line worth showing, e.g. that an adapter seems to have no effect."""
        return dict(self._probed)

    @property
    def left_loaded(self) -> dict[str, str]:
        """Served names of adapters that could not be unloaded, and why."""
        return dict(self._shelf.left)

    def prepare(self, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
        """Load every adapter once and ask it a few questions, so that one that cannot be served is refused before any
        work; returns notes on those that answer as the base does.

        Raises:
            Unsupported: a checkpoint is neither an adapter nor served, or the server cannot load adapters.
            DamagedWeights, ModelUnavailable, AdapterMismatch, WrongBase: an adapter cannot be served; the message says
                why and what to do.
            ServedNameReused: see EndpointBackend.prepare.
            EndpointRefused, JudgeDown, BudgetSpent: the server does not answer, or the probes cost too much.
        """
        adapters = {self._name(c): c for c in checkpoints if c.kind is Kind.ADAPTER}
        super().prepare([self.base_checkpoint(), *(c for c in checkpoints if c.kind is not Kind.ADAPTER)])
        plain = self._probe(self.base_checkpoint()) if adapters else []
        with self._shelf.turn() as turn:
            for name, checkpoint in adapters.items():
                if turn.take(self._adapter(checkpoint)):
                    said = self._probe(checkpoint)
                    turn.done(name)
                    self._note(checkpoint, said, plain)
        return {c.weights: self._probed[c.weights] for c in checkpoints if c.weights in self._probed}

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """Draw one answer per ask, in order of completion; failures are outcomes.

        Asks are held in windows and asked checkpoint after checkpoint, and within each prompt after prompt; what is
        loaded already comes first. An adapter is loaded when its first ask is due and unloaded when another needs the
        room and its last answer is there. They stay loaded for the next call, except after an error or an interruption.

        Raises:
            As `prepare` does, after the answers that are there; the rest was not asked.
        """
        with self._shelf.turn() as turn:

            async def work(request: Request, flow: Flow[Request, Answer]) -> Answer | None:
                try:
                    return await self._answered(request, params, flow)
                finally:
                    turn.done(self._name(request.checkpoint))

            yield from self._client.stream(self._ready(requests, turn), work)

    def close(self) -> None:
        """Unload what was loaded; give back connections and thread."""
        try:
            self._unload_all()
        finally:
            super().close()

    # -- order and names ----------------------------------------------------------------------------------------------

    def _ready(self, requests: Iterable[Request], turn: Turn) -> Iterator[Request]:
        """The asks in the order in which they are put, each with its adapter loaded. Runs in the feeder's thread."""
        for window in _windows(requests, self.options.window):
            groups: dict[str, dict[tuple[str, str], list[Request]]] = {}
            for request in window:
                name = self._name(request.checkpoint)
                groups.setdefault(name, {}).setdefault((request.prompt.id, request.transform), []).append(request)
            window.clear()
            for name in sorted(groups, key=lambda n: not self._shelf.holds(n)):
                ordered = [request for same_prompt in groups.pop(name).values() for request in same_prompt]
                first = ordered[0].checkpoint
                adapter = self._adapter(first) if first.kind is Kind.ADAPTER else None
                for request in ordered:
                    if adapter is not None and not turn.take(adapter):
                        return
                    yield request

    def _name(self, checkpoint: Checkpoint) -> str:
        if checkpoint.kind is Kind.ADAPTER:
            name = adapter_name(checkpoint)
            self._stands_for(name, checkpoint)
            return name
        if checkpoint.kind not in (Kind.BASE, Kind.SERVED):
            raise Unsupported(
                f"{checkpoint.label}: {checkpoint.uri} is neither an adapter nor a served model; a full model needs a "
                "server of its own, or measure it without one"
            )
        return super()._name(checkpoint)

    def _adapter(self, checkpoint: Checkpoint) -> Adapter:
        folder = checkpoint_path(checkpoint)
        place = served_path(folder, self.options.path_map)
        return Adapter(adapter_name(checkpoint), checkpoint.label, folder, place, checkpoint.weights)

    def _sent(self, request: Request, params: SamplingParams) -> dict[str, Any]:
        return {**super()._sent(request, params), "top_p": params.top_p, **_NEUTRAL}

    # -- does it do anything ------------------------------------------------------------------------------------------

    def _probe(self, checkpoint: Checkpoint) -> list[Answer]:
        async def work(request: Request, flow: Flow[Request, Answer]) -> Answer | None:
            return await self._answered(request, PROBE, flow)

        found = self._client.stream([Request(checkpoint, p, 0) for p in _PROBES], work)
        return sorted(found, key=lambda r: r.request.prompt.id)

    def _note(self, checkpoint: Checkpoint, said: list[Answer], plain: list[Answer]) -> None:
        self._probed.pop(checkpoint.weights, None)
        failed = next((r for r in said if r.outcome is AnswerStatus.FAILED), None)
        if failed is not None:
            self._probed[checkpoint.weights] = f"did not answer a probe: {failed.error}"
        elif [r.text for r in said] == [r.text for r in plain] and any(r.text.strip() for r in said):
            self._probed[checkpoint.weights] = (
                f"answers {len(said)} probes at temperature 0 exactly as the base does: the adapter changes little "
                "yet, or the server does not apply it"
            )


def _windows(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Asks in lists of `size`; those that came before an error are handed on before it is raised."""
    source = iter(requests)
    while True:
        window: list[Request] = []
        error: Exception | None = None
        try:
            window.extend(islice(source, size))
        except Exception as e:  # raised again below
            error = e
        full = len(window) == size
        if window:
            yield window
        if error is not None:
            raise error
        if not full:
            return


def adapter_name(checkpoint: Checkpoint) -> str:
    """RUN@STEP-HASH; where the step is unknown the label stands for it."""
    run = _NOT_IN_NAMES.sub("-", checkpoint.run)
    step = checkpoint.step if checkpoint.step is not None else _NOT_IN_NAMES.sub("-", checkpoint.label)
    return f"{run}@{step}-{checkpoint.weights[:HASH]}"


def served_path(folder: Path, path_map: Sequence[str]) -> str:
    """Where the server finds a folder.

    Args:
        folder: where it is here.
        path_map: entries LOCAL=REMOTE; the longest LOCAL that the folder lies in counts.
    """
    here = folder.absolute()
    best = -1
    place = str(here)
    for entry in path_map:
        local, _, remote = entry.partition("=")
        named = Path(local.strip()).expanduser()
        for root in (named.absolute(), named.resolve()):
            if here.is_relative_to(root) and len(root.parts) > best:
                best = len(root.parts)
                place = (Path(remote.strip()) / here.relative_to(root)).as_posix()
    return place
