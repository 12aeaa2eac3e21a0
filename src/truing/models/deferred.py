"""A local base that is loaded once something has to be measured; until then an audit's record of it is enough.

A finished audit that is repeated asks the model nothing, and so waits neither for its weights nor for torch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from truing import errors
from truing.files import is_file
from truing.models.base import Backend, Told, nobody, set_callback
from truing.models.checkpoints import tokenizer_folder
from truing.models.download import resolve_model
from truing.models.weights import weights_hash
from truing.types.hashing import digest, file_digest
from truing.types.records import (
    Answer,
    Capabilities,
    Checkpoint,
    Kind,
    Likelihood,
    LikelihoodRequest,
    Request,
    SamplingParams,
)
from truing.types.verdicts import Finding

_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "additional_chat_templates/*.jinja")
"""files beside weights: configuration, tokenizer, chat template"""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a local base said of itself when it was opened."""

    of: str
    """hash of what it was opened from (`opening`)"""
    identity: dict[str, str]
    """as `Backend.identity`"""
    definitions: dict[str, str]
    """as `Backend.definitions`"""


_OPENED = TypeAdapter(Opened)


def opening(base: str, checkpoints: Sequence[Checkpoint], options: Mapping[str, Any]) -> str:
    """Hash of what decides what a local base says of itself: its files, the checkpoints' tokenizers, and options.

    Empty where that cannot be read; opening it then tells why.
    """
    try:
        folder = resolve_model(base)
        folders = dict.fromkeys((folder, *map(tokenizer_folder, checkpoints)))
        beside = [[[file.name, file_digest(file)] for file in _beside(place)] for place in folders]
        return digest([weights_hash(folder), beside, options], 32)
    except (OSError, errors.BadInput):
        return ""


def _beside(folder: Path) -> list[Path]:
    return sorted({file for pattern in _BESIDE for file in folder.glob(pattern) if is_file(file)})


def recorded(value: Any, of: str) -> Opened | None:
    """A record of a base that was opened from the same; None for any other value."""
    try:
        found = _OPENED.validate_python(value)
    except ValidationError:
        return None
    return found if of and found.of == of else None


class DeferredBackend:
    """A local base, opened when the first text is to be scored or sampled."""

    capabilities = Capabilities(loglikelihood=True, sample=True)

    def __init__(self, base: str, known: Opened, make: Callable[[], Backend]) -> None:
        """
        Args:
            base: alias, path or hub id.
            known: what it says of itself.
            make: opens it.
        """
        self._base, self._known, self._make = resolve_model(base), known, make
        self._backend: Backend | None = None
        self._callback: Callable[[Any], None] | None = None

    def _opened(self) -> Backend:
        """Raises AuditChanged where it is not what was recorded: on another device, in another number type."""
        if self._backend is None:
            backend, known = self._make(), self._known
            for name, value in {**backend.identity, **backend.definitions}.items():
                if (before := {**known.identity, **known.definitions}.get(name)) != value:
                    text = f"the audit was made with another {name} ({before!s:.40} before, {value:.40} now)"
                    raise errors.AuditChanged(f"{text}; choose another --out")
            set_callback(backend, self._callback)
            self._backend = backend
        return self._backend

    def set_callback(self, callback: Callable[[Any], None] | None) -> None:
        """Have `callback` called after every pass while answers are generated; None for nobody."""
        self._callback = callback
        if self._backend is not None:
            set_callback(self._backend, callback)

    @property
    def identity(self) -> dict[str, str]:
        """What must not change within one audit."""
        return dict(self._known.identity)

    @property
    def definitions(self) -> Mapping[str, str]:
        """What decides the rendering, in words."""
        return self._known.definitions

    @property
    def preferred_batch(self) -> int:
        """Requests that are worth sending at once."""
        return self._opened().preferred_batch

    def base_checkpoint(self) -> Checkpoint:
        """Step 0."""
        return Checkpoint(self._known.identity["base"], "base", 0, f"file:{self._base}", Kind.BASE)

    def resolve(self, params: SamplingParams) -> SamplingParams:
        """Parameters with dtype and device filled in."""
        return replace(params, dtype=self._known.identity["dtype"], device=self._known.identity["device"])

    def prepare(self, checkpoints: Sequence[Checkpoint], told: Told = nobody) -> dict[str, Finding]:
        """Refuse now what cannot be measured."""
        return self._opened().prepare(checkpoints, told)

    def loglikelihood(self, requests: Iterable[LikelihoodRequest]) -> Iterator[Likelihood]:
        """Score completions."""
        first = next(rest := iter(requests), None)
        return iter(()) if first is None else self._opened().loglikelihood(chain((first,), rest))

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """Sample one answer per request."""
        first = next(rest := iter(requests), None)
        return iter(()) if first is None else self._opened().sample(chain((first,), rest), params)

    def weight_norm(self, checkpoint: Checkpoint) -> float | None:
        """Frobenius norm of the change against the base."""
        return self._opened().weight_norm(checkpoint)
