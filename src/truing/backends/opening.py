"""Which backend holds a model. The heavy ones are imported here, on demand, so that nothing else has to."""

from collections.abc import Sequence

from truing.backends.seam import Backend
from truing.base.records import Checkpoint, ModelOptions


def open_backend(base: str, checkpoints: Sequence[Checkpoint], options: ModelOptions) -> Backend:
    """The backend for a base model and the checkpoints that will be measured on it.

    Raises:
        ModelUnavailable, NoChatTemplate, TemplateMismatch: as the local backend does.
    """
    from truing.backends.local import LocalBackend

    return LocalBackend(base, checkpoints, options)
