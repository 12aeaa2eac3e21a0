"""What the rest of the library needs of anything that holds a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from truing.types.hashing import digest
from truing.types.records import (
    Answer,
    AnswerStatus,
    Capabilities,
    Checkpoint,
    Likelihood,
    LikelihoodRequest,
    Request,
    SamplingParams,
)
from truing.types.verdicts import Finding

Told = Callable[[int], object]
"""called with how many of some things are done"""


def nobody(_done: int) -> None:
    """Tells nobody how work goes on."""


@runtime_checkable
class Backend(Protocol):
    """Samples and scores. Every request is answered exactly once, in any order; failures are statuses."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; asking for more is refused before anything runs."""
        ...

    @property
    def identity(self) -> dict[str, str]:
        """What must not change within one audit: base weights, template, dtype, device."""
        ...

    @property
    def definitions(self) -> Mapping[str, str]:
        """What decides how prompts are rendered, in words; stored with the result."""
        ...

    @property
    def preferred_batch(self) -> int:
        """Requests that are worth sending at once; a caller may prefetch as many."""
        ...

    def base_checkpoint(self) -> Checkpoint:
        """Step 0."""
        ...

    def prepare(self, checkpoints: Sequence[Checkpoint], told: Told = nobody) -> dict[str, Finding]:
        """Refuse now what cannot be measured; returns weight hash -> what qualifies that checkpoint.

        `told` is called with how many are ready.
        """
        ...

    def loglikelihood(self, requests: Iterable[LikelihoodRequest]) -> Iterator[Likelihood]:
        """Score completions. A backend may hold as many requests as it likes before it answers the first."""
        ...

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """Sample one answer per request."""
        ...

    def resolve(self, params: SamplingParams) -> SamplingParams:
        """`params` with dtype and device filled in, so that they are part of every answer's key."""
        ...

    def weight_norm(self, checkpoint: Checkpoint) -> float | None:
        """Frobenius norm of the change against the base; None where weights are out of reach."""
        ...


def close_backend(backend: Backend) -> list[str]:
    """Give back what a backend holds outside this process; a line for each thing that it could not.

    Such a backend has `close()`, and `left_loaded`: what could not be given back, and why.
    """
    if not hasattr(backend, "left_loaded"):
        return []
    remote: Any = backend
    remote.close()
    return [f"{name} could not be unloaded from the server: {why}" for name, why in remote.left_loaded.items()]


def answered_as(backend: Backend) -> dict[str, tuple[str, ...]]:
    """Served name -> as what it answered, where that changed while it was asked; {} for models held here."""
    return getattr(backend, "answered_as", {})


def set_callback(backend: Backend, callback: Callable[[Any], None] | None) -> None:
    """Have a backend that generates in batches call `callback` after every pass; others have no passes."""
    getattr(backend, "set_callback", lambda _: None)(callback)


def answer_seed(request: Request, params: SamplingParams) -> int:
    """The seed of one answer's random numbers: another for each sample, prompt, variant and checkpoint."""
    key = (params.seed, request.checkpoint.weights, request.prompt.key, request.sample, request.variant)
    return int(digest(key, 15), 16)


def finished_answer(request: Request, text: str, tokens: int, params: SamplingParams, *, cut_off: bool) -> Answer:
    """An answer of so many tokens up to the first stop text, with its status; `cut_off` if it reached the limit."""
    ended = params.cut(text)
    if ended is None and cut_off:
        return Answer(request, text, AnswerStatus.TRUNCATED, tokens)
    text = text if ended is None else ended
    return Answer(request, text, AnswerStatus.OK if text.strip() else AnswerStatus.EMPTY, tokens)


def listed(names: Iterable[object], most: int = 6) -> str:
    """The first of some names, and how many more there are; "none" for none."""
    found = [str(name) for name in names]
    return (", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")) or "none"


def one_line(error: BaseException) -> str:
    """The message of an error in a line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
