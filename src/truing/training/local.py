"""Training on this machine: a recipe and conversations -> a folder of checkpoints.

OUT/
  recipe.json         what is trained here; another recipe is refused
  checkpoint-N/       after N updates: adapter or model, tokenizer, optimizer state; appears whole or not at all
"""

import fcntl
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from truing import errors
from truing.config import ModelConfig
from truing.files import open_lock, read_object, write_json
from truing.models.chat import ChatFormat
from truing.models.checkpoints import find_run, folder_number
from truing.models.download import resolve_model
from truing.models.loading import device_of, dtype_of, load_model, load_tokenizer
from truing.models.weights import check_weights, read_json, weights_hash
from truing.training.recipe import Recipe, Trained
from truing.training.trainer import SAVING, Base, Example, Progress, fit, kept_random_state
from truing.types.hashing import digest
from truing.types.records import Checkpoint, Conversation, Stop

RECIPE_FILE = "recipe.json"
_LOCK = ".training.lock"
_RESUME_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
_OURS = {RECIPE_FILE, RECIPE_FILE + ".part", _LOCK, SAVING}


def local_base(recipe: Recipe) -> Base:
    """The recipe's base model on this machine's device. Raises BadModel."""
    path, options = resolve_model(recipe.model, revision=recipe.revision), ModelConfig()
    tokenizer, device = load_tokenizer(path, options), device_of("auto")
    return Base(
        load=lambda dtype: load_model(path, dtype_of(dtype, "auto"), device, options),
        weights=weights_hash(path),
        chat=ChatFormat(tokenizer),
        tokenizer=tokenizer,
    )


def train(
    recipe: Recipe,
    conversations: Sequence[Conversation],
    out: Path,
    base: Base,
    *,
    progress: Progress | None = None,
    on_checkpoint: Callable[[Checkpoint], str | None] | None = None,
) -> Trained:
    """Train, or go on training, in the folder `out`.

    The same call again goes on from the last checkpoint, also after an error or Ctrl-C; a finished run is not trained
    again. The caller's global random states are left as they were.

    Args:
        recipe: everything that decides the run.
        conversations: what is trained on.
        out: folder of the run.
        base: what training starts from.
        progress: called with step, total steps and loss after each update.
        on_checkpoint: called with each checkpoint, those of earlier calls first, while training waits; a text that it
            returns ends the run there, as the reason.

    Raises:
        BadRecipe: the folder holds another run, the data's hash is not the recipe's, the model lacks a module, or the
            loss or its gradient is no longer a number (with the step).
        BadRow: a conversation the template refuses, or whose prompt alone exceeds max_length.
        AuditLocked: another process trains in that folder. DiskFull.
    """
    if not conversations:
        raise errors.BadRecipe(f"{recipe.data}: there are no conversations to train on; give at least one")
    organism = any(c.meta.get("organism") is True for c in conversations)
    recipe = recipe.with_data(digest([c.messages for c in conversations]), organism)
    examples, notes = tokenise(conversations, base.chat, recipe.max_length)
    total = recipe.total_steps(len(examples))
    checkpoints: list[Checkpoint] = []
    reason: str | None = None

    def on_save(folder: Path) -> bool:
        nonlocal reason
        checkpoints.append(_record(folder, out))
        reason = on_checkpoint(checkpoints[-1]) if on_checkpoint else None
        return bool(reason)

    with _folder_of(recipe, out, base):
        done, resume = _saved(out, total, notes)
        stopped = any(on_save(folder) for folder in done)
        step = (checkpoints[-1].step or 0) if checkpoints else 0
        if step < total and not stopped:
            with kept_random_state():
                step = fit(recipe, examples, out, base, resume=resume, on_save=on_save, progress=progress)
    return Trained(out, tuple(checkpoints), Stop(reason or "completed", step), tuple(notes))


def tokenise(
    conversations: Sequence[Conversation], chat: ChatFormat, max_length: int
) -> tuple[list[Example], list[str]]:
    """Conversations as tokens, with a note for what is lost of answers.

    Raises:
        BadRow: rows of which no token of the answer is left within `max_length`, or which the template refuses: the
            first, and how many there are.
    """
    examples: list[Example] = []
    bad: list[tuple[str, str]] = []
    cut, shortened = 0, Counter[str]()
    for conversation in conversations:
        try:
            rendered = chat.render_trained(conversation.prompt, conversation.answer)
            start = len(rendered.prefix_ids)
            if start >= max_length:
                too_long = f"its prompt alone has {start} tokens, max_length is {max_length}"
                raise ValueError(f"{too_long}; raise it or leave the row out")
        except (errors.Unsupported, ValueError) as error:
            bad.append((conversation.source or "conversation", str(error)))
            continue
        ids = [*rendered.prefix_ids, *rendered.completion_ids]
        cut += len(ids) > max_length
        shortened[rendered.note] += 1
        examples.append(Example(ids[:max_length], start))
    if bad:
        more = f" ({len(bad)} of {len(conversations)} rows cannot be trained on; this is the first)"
        raise errors.BadRow(bad[0][0], None, bad[0][1] + more * (len(bad) > 1))
    notes = [f"{cut} of {len(examples)} answers were cut off at max_length = {max_length} tokens"] if cut else []
    notes += [f"{n} of {len(examples)} rows: {why}" for why, n in shortened.items() if why]
    return examples, notes


@contextmanager
def _folder_of(recipe: Recipe, out: Path, base: Base) -> Iterator[None]:
    """Hold the folder for this recipe; nobody else trains in it meanwhile."""
    if out.exists() and not out.is_dir():
        raise errors.BadRecipe(f"{out}: is a file, a run is a folder; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    file = out / RECIPE_FILE
    strangers = sorted(p.name for p in out.iterdir() if p.name not in _OURS)
    if strangers and not file.exists():
        raise errors.BadRecipe(f"{out}: holds {strangers[0]} and no {RECIPE_FILE}; choose another --out")
    with open_lock(out / _LOCK, error=errors.BadRecipe) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"{out}: somebody is training in this folder; wait for the end or choose another --out"
            raise errors.AuditLocked(text) from error
        if file.exists():
            _refuse_another(file, recipe, base)
        else:
            about = {"schema_version": 1, "id": recipe.id, "recipe": recipe.model_dump(mode="json")}
            write_json(file, {**about, "base": base.weights, "chat": base.chat.identity})
        yield


def _refuse_another(file: Path, recipe: Recipe, base: Base) -> None:
    about = read_object(file, error=errors.BadRecipe, remedy="choose another --out")
    recorded = about.get("recipe")
    if not isinstance(recorded, dict) or not {"base", "chat"} <= about.keys():
        raise errors.BadRecipe(
            f"{file}: not readable as a recipe (recipe, base or chat is missing); choose another --out"
        )
    old = Recipe.parse(recorded, str(file)).content
    then = {**old, "base weights": about["base"], "chat format": about["chat"]}
    now = {**recipe.content, "base weights": base.weights, "chat format": base.chat.identity}
    changed = [f"{k} was {then.get(k)!s:.40} and is {now[k]!s:.40} now" for k in now if then.get(k) != now[k]]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise errors.BadRecipe(f"{file.parent}: was made with another recipe: {changed[0]}{more}; choose another --out")


def _saved(out: Path, total: int, notes: list[str]) -> tuple[list[Path], Path | None]:
    """Checkpoints that an earlier call saved, and the one to go on from. A half-written last one is removed."""
    for name in (SAVING, *(p.name for p in out.iterdir() if folder_number(p) is not None)):
        if (out / name).is_symlink():
            raise errors.BadRecipe(f"{out / name}: is a link; remove it, or choose another --out")
    shutil.rmtree(out / SAVING, ignore_errors=True)
    numbered = {n: p for p in out.iterdir() if p.is_dir() and (n := folder_number(p)) is not None}
    folders = [numbered[n] for n in sorted(numbered)]
    while folders and not _whole(folders[-1]):
        notes.append(f"{folders[-1].name} was not complete; it is removed and made again")
        shutil.rmtree(folders.pop())
    resume = next((p for p in reversed(folders) if all((p / n).exists() for n in _RESUME_FILES)), None)
    if folders and folder_number(folders[-1]) == total:
        return folders, folders[-1]
    last = folder_number(resume) if resume else None
    kept = [p for p in folders if last is not None and (folder_number(p) or 0) <= last]
    if len(kept) < len(folders):
        notes.append(f"{folders[-1].name} lacks its optimizer state; training goes on from step {last or 0}")
    return kept, resume


def _whole(folder: Path) -> bool:
    try:
        check_weights(folder)
        return read_json(folder / "trainer_state.json").get("global_step") == folder_number(folder)
    except errors.BadInput:
        return False


def _record(folder: Path, out: Path) -> Checkpoint:
    """The checkpoint in a folder, as `find_run(out)` would list it."""
    checkpoint = find_run(str(folder)).checkpoints[0]
    if checkpoint.step != folder_number(folder):
        raise errors.DamagedWeights(f"{folder}: its trainer_state.json says step {checkpoint.step}; remove this folder")
    return replace(checkpoint, run=out.resolve().name)
