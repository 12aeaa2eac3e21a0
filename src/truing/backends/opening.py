"""Which backend holds a model. The heavy ones are imported here, on demand, so that nothing else has to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from truing.backends.seam import Backend
from truing.base.options import ModelOptions
from truing.base.recipe import Recipe
from truing.base.records import Checkpoint, Conversation

if TYPE_CHECKING:
    from truing.backends.handoff import TrainingRun


def open_backend(base: str, checkpoints: Sequence[Checkpoint], options: ModelOptions) -> Backend:
    """The backend for a base model and the checkpoints that will be measured on it.

    Raises:
        ModelUnavailable, NoChatTemplate, TemplateMismatch: as the local backend does.
    """
    from truing.backends.local import LocalBackend

    return LocalBackend(base, checkpoints, options)


def start_training(
    recipe: Recipe, conversations: Sequence[Conversation], out: Path, progress: Callable[[int, int, float], None]
) -> "TrainingRun":
    """Start (or go on with) the run of a recipe where the recipe says; iterate over the result."""
    from truing.backends.local import train_locally

    return train_locally(recipe, conversations, out, progress)
