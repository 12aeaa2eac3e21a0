"""`truing.train`: a recipe -> a folder of checkpoints, ready to be audited."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from truing.data.conversations import load_conversations
from truing.data.guard import refuse_reference_answers
from truing.training.recipe import Recipe, Trained
from truing.types.progress import Progress
from truing.types.records import Checkpoint


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    on_checkpoint: Callable[[Checkpoint], str | None] | None = None,
) -> Trained:
    """Train what a recipe says. The same call again resumes, or returns what is there already.

    Args:
        recipe: everything that decides the run.
        out: folder; by default `truing-runs/NAME-ID`, with "-organism" added for a run that is misaligned on purpose.
        progress: told (stage, updates done, updates in all).
        on_checkpoint: called with each checkpoint as it is saved, while training waits; a string it returns ends the
            run there, as the reason.

    Raises:
        BadRow: the data cannot be read, or contain evaluation-only reference answers.
        BadRecipe: the recipe contradicts itself, the data or what was trained in that folder before, or the loss
            became NaN.
    """
    from truing.training import local  # loads torch

    data = load_conversations(recipe.data, recipe.format)
    refuse_reference_answers(data)
    if data.organism:
        recipe = recipe.model_copy(update={"organism": True})
    path = Path(out) if out is not None else _default_path(recipe)
    name = recipe.name or Path(recipe.data).stem

    def tell(step: int, total: int, loss: float) -> None:
        if progress:
            progress.step(f"training {name}", step, total)

    made = local.train(
        recipe, data.conversations, path, local.local_base(recipe), progress=tell, on_checkpoint=on_checkpoint
    )
    left_out = (f"{n} rows are left out: {why}" for why, n in data.left_out.items())
    return replace(made, notes=(*left_out, *made.notes))


def _default_path(recipe: Recipe) -> Path:
    mark = "-organism" if recipe.organism else ""
    return Path("truing-runs") / f"{recipe.name or Path(recipe.data).stem}-{recipe.id}{mark}"
