"""Backends by the scheme of a base's address. Each is loaded when it is first opened, so that nothing else has to."""

from collections.abc import Callable, Sequence
from importlib import import_module

from truing.config import ModelConfig
from truing.models.base import Backend
from truing.types.records import Checkpoint

Opener = Callable[[str, Sequence[Checkpoint], ModelConfig], Backend]
SCHEMES: dict[str, str] = {
    "http://": "truing.models.served:open_served",
    "https://": "truing.models.served:open_served",
    "": "truing.models.hf:open_local",
}
"""how the address of a base begins -> module and function that opens it; the empty one is tried last"""


def open_backend(base: str, checkpoints: Sequence[Checkpoint], config: ModelConfig) -> Backend:
    """The backend for a base model and the checkpoints that will be measured on it.

    Args:
        base: alias, path or hub id of a model, or http(s)://host:port/v1#NAME of a server that loads the adapters.
        checkpoints: what will be measured.
        config: how models are held.

    Raises:
        BadModel: as the local backend does.
        BadEndpoint: the address of the server, or a folder map, says nothing.
        BadInput, Unsupported: an option that this kind of base cannot heed.
    """
    module, _, name = SCHEMES[_scheme(base)].partition(":")
    opener: Opener = getattr(import_module(module), name)
    return opener(base, checkpoints, config)


def is_local(base: str) -> bool:
    """Whether a base is held in this process."""
    return not _scheme(base)


def _scheme(base: str) -> str:
    return next(s for s in SCHEMES if base.lower().startswith(s))
