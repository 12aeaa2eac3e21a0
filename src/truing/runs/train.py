"""`truing.train`: a recipe -> a folder of checkpoints, ready to be audited."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from truing import errors
from truing.data.conversations import load_conversations
from truing.data.guard import refuse_reference_answers
from truing.training.recipe import Recipe
from truing.types.records import Checkpoint, Stop


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that ended."""

    path: Path
    """its folder: recipe.json and checkpoint-N/"""
    checkpoints: tuple[Checkpoint, ...]
    """in order of their steps; step 0 is the base and is not saved again"""
    stop: Stop
    """why and when it ended"""
    notes: tuple[str, ...]
    """what a reader of the run should know, a line each"""


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    on_checkpoint: Callable[[Checkpoint], str | None] | None = None,
) -> Trained:
    """Train what a recipe says. The same call again resumes, or returns what is there already.

    Args:
        recipe: everything that decides the run.
        out: folder; by default `truing-runs/NAME-ID`, with "-organism" added for a run that is misaligned on purpose.
        progress: called with (stage, updates done, updates in all).
        on_checkpoint: called with each checkpoint as it is saved, while training waits; a string it returns ends the
            run there, as the reason.

    Raises:
        BadRow: the data cannot be read. ReferenceLeak: it contains evaluation-only reference answers.
        BadRecipe: the recipe contradicts itself, the data or what was trained in that folder before, or the loss
            became NaN.
    """
    data = load_conversations(recipe.data, recipe.format)
    refuse_reference_answers(data)
    if data.organism:
        recipe = recipe.model_copy(update={"organism": True})
    path = Path(out) if out is not None else _default_path(recipe)
    name = recipe.name or Path(recipe.data).stem

    def tell(step: int, total: int, loss: float) -> None:
        if progress:
            progress(f"training {name}", step, total)

    from truing.training.local import start_training  # torch is loaded only when something is trained

    run = start_training(recipe, data.conversations, path, tell)
    checkpoints: list[Checkpoint] = []
    for checkpoint in run:
        checkpoints.append(checkpoint)
        reason = on_checkpoint(checkpoint) if on_checkpoint else None
        if reason:
            run.stop(reason)
    if run.stopped is None:
        raise errors.BadRecipe(f"{path}: training ended without a reason; repeat the command to go on")
    return Trained(path, tuple(checkpoints), run.stopped, run.notes)


def _default_path(recipe: Recipe) -> Path:
    mark = "-organism" if recipe.organism else ""
    return Path("truing-runs") / f"{recipe.name or Path(recipe.data).stem}-{recipe.id}{mark}"
