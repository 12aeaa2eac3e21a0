"""The seam: what the rest of the library asks of anything that holds a model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from truing.types.records import (
    Answer,
    Capabilities,
    Checkpoint,
    Likelihood,
    LikelihoodRequest,
    Request,
    SamplingParams,
)


@runtime_checkable
class Backend(Protocol):
    """Makes models speak. Answers may come in any order; every ask is answered exactly once, failures as outcomes."""

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

    def prepare(self, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
        """Refuse now what cannot be measured; returns weight hash -> a line worth showing."""
        ...

    def loglikelihood(self, requests: Iterable[LikelihoodRequest]) -> Iterator[Likelihood]:
        """Score completions. A backend may hold as many asks as it likes before it answers the first."""
        ...

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """Draw one answer per ask."""
        ...

    def resolve(self, params: SamplingParams) -> SamplingParams:
        """`params` with dtype and device filled in, so that they are part of every response's key."""
        ...

    def weight_norm(self, checkpoint: Checkpoint) -> float | None:
        """Frobenius norm of the change against the base; None where weights are out of reach."""
        ...
