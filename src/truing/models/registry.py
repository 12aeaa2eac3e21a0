"""Which backend holds a model. The heavy ones are imported here, on demand, so that nothing else has to."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from truing.config import ModelConfig
from truing.errors import BadInput, Unsupported
from truing.models.base import Backend
from truing.types.records import Checkpoint

if TYPE_CHECKING:
    from truing.models.engine.requests import Throughput

SERVED = ("http://", "https://")
"""how a base begins that a server holds"""


@runtime_checkable
class _Elsewhere(Protocol):
    """Holds something outside this process."""

    @property
    def left_loaded(self) -> Mapping[str, str]:
        """What could not be given back, and why."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


@runtime_checkable
class _Batched(Protocol):
    """Generates in passes over many answers."""

    def set_callback(self, callback: "Callable[[Throughput], None] | None") -> None:
        """Have `callback` called after every pass."""
        ...


def open_backend(base: str, checkpoints: Sequence[Checkpoint], config: ModelConfig) -> Backend:
    """The backend for a base model and the checkpoints that will be measured on it.

    Args:
        base: alias, path or hub id of a model, or http(s)://host:port/v1#NAME of a server that loads the adapters.
        checkpoints: what will be measured.
        config: how models are held.

    Raises:
        ModelUnavailable, NoChatTemplate, TemplateMismatch: as the local backend does.
        BadEndpoint: the address of the server, or a folder map, says nothing.
        BadInput, Unsupported: an option that this kind of base cannot heed.
    """
    if base.lower().startswith(SERVED):
        if config.chat_template is not None:
            raise Unsupported(
                "--chat-template: a served base renders with its server's template; give the server that one"
            )
        from truing.models.served import AdapterOptions, ServedBackend

        return ServedBackend(base, options=AdapterOptions(config.served_adapters, config.path_map))
    if config.path_map:
        raise BadInput(f"--path-map {config.path_map[0]}: is for a served base, --base http://host:port/v1#NAME")
    from truing.models.hf import LocalBackend

    return LocalBackend(base, checkpoints, config)


def close_backend(backend: Backend) -> list[str]:
    """Give back what a backend holds outside this process; a line for each thing that it could not."""
    if not isinstance(backend, _Elsewhere):
        return []
    backend.close()
    return [f"{name} could not be unloaded from the server: {why}" for name, why in backend.left_loaded.items()]


def set_callback(backend: Backend, callback: "Callable[[Throughput], None] | None") -> None:
    """Have a backend that generates in batches call `callback` after every pass; others have no passes."""
    if isinstance(backend, _Batched):
        backend.set_callback(callback)
