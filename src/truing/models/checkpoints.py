"""What is at a TARGET: the checkpoints of one run, as any trainer leaves them.

find_run("runs/medical")                     a folder with checkpoint-N/ and perhaps a final model in its root
find_run("runs/medical/checkpoint-100")      one model folder
find_run("org/name@v2:checkpoint-100")       a hub repository, a revision and a folder in it
find_run("control=runs/careful")             any of them under a label
find_run("100=runs/medical/global_step_100") one model folder and how many optimizer updates it is after
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from truing.errors import BadInput, BadModel, DamagedWeights, UnreadableCheckpoint
from truing.files import is_folder
from truing.models.base import listed
from truing.models.cache import WORTH
from truing.models.download import hub_snapshot
from truing.models.weights import (
    ADAPTER_CONFIG,
    HalfWritten,
    check_weights,
    classify,
    pickled_only,
    read_json,
    weights_hash,
    weights_size,
)
from truing.types.progress import Progress
from truing.types.records import Checkpoint, Kind, Role

ORGANISM_MARK = "truing-organism.json"
_LABELLED = re.compile(r"([\w.-]+)=(.+)")
_HUB = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^:\s]+))?(?::(?P<folder>[^:\s]+))?")
# What trainers number: checkpoint-100, global_step_100, global_step100, step-100, iter_0000100, epoch_3, ckpt_100, ...
_NUMBERED = re.compile(
    r"(?:(?:checkpoint|ckpt|model)[-_])?(?:checkpoint|ckpt|global[-_]?step|step|iteration|iter|epoch)[-_=]?0*([0-9]{1,15})"
)
_UPDATES = re.compile(
    r"checkpoint-0*([0-9]{1,15})"
)  # the one name whose number is optimizer updates: transformers' own
_COUNTED = {"epoch": "epochs", "iter": "iterations", "step": "a trainer's own steps of several updates each"}
"""what a name holds -> what its number may count instead of optimizer updates"""
_LIKE = ("checkpoint", "ckpt", "global", "step", "iter", "epoch")  # how other names begin that may have been meant so
# Where trainers put the weights in such a folder: verl's actor; else a folder with the adapter's own name.
_INNER = ("actor/lora_adapter", "actor", "actor/huggingface", "lora_adapter", "huggingface")
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CARTRIDGE")
"""kinds of adapters that PEFT cannot switch off: they are tokens put before the prompt, or modules of another kind"""
# Initialisations of LoRA that subtract from the base weights (peft.tuners.lora.layer: pissa_init, corda_init,
# olora_init, loftq_init, lora_ga_init). "gaussian", "orthogonal", "eva" and "mica" leave the base alone.
_ALTERING = ("pissa", "corda", "olora", "loftq", "lora_ga", "kasa")
_CONFIG = {"base": "base_model_name_or_path", "peft_type": "peft_type", "rank": "r", "alpha": "lora_alpha"}
"""what a checkpoint tells of an adapter's configuration -> its field there"""


@dataclass(frozen=True)
class FoundRun:
    """The checkpoints found at one target."""

    label: str | None  # what the user called it (LABEL=TARGET), if anything; a number is the optimizer updates
    path: Path  # the folder, downloaded where it came from a hub
    checkpoints: tuple[Checkpoint, ...]  # by step, without step 0; one without a step comes last
    notes: tuple[str, ...]  # what was left out or settled, and why, a line each


def find_run(
    target: str, *, role: Role = Role.SUBJECT, allow_pickle: bool = False, progress: Progress | None = None
) -> FoundRun:
    """Find and check the checkpoints at a target. Reads every weight file once, to hash it, and tells `progress`.

    A checkpoint still being saved (configuration without weights) is skipped with a note as long as another is usable.

    Raises BadModel, DamagedWeights or UnreadableCheckpoint, each with the remedy.
    """
    match = None if os.path.exists(target) else _LABELLED.fullmatch(target)  # a folder may have "=" in its name
    label, place = match.groups() if match else (None, target)
    path, hub = _resolve(place, allow_pickle)
    name = label or (hub.split("@")[0].split("/")[-1] if hub else path.name)
    notes: list[str] = []
    found: list[Checkpoint] = []
    usable = _usable(path, allow_pickle, notes)
    steps = _steps(path, list(usable), label, notes)
    for weights, _ in usable.values():
        check_weights(weights)
    read = reading([weights for weights, _ in usable.values()], progress or Progress())
    for folder, (weights, kind) in usable.items():
        config = read_json(weights / ADAPTER_CONFIG) if kind is Kind.ADAPTER else {}
        _refuse_unmeasured(weights, config)
        own = "final" if folder == path and folder_number(path) is None else folder.name
        marked = any((f / ORGANISM_MARK).exists() for f in (folder, path))
        about = {name: config.get(field) for name, field in _CONFIG.items()}
        if (revision := config.get("revision")) not in (None, "", "main") and _HUB.fullmatch(str(about["base"])):
            about["base"] = f"{about['base']}@{revision}"
        about |= {"pickled": bool(pickled_only(weights)), "hub": hub, "organism": marked}
        about = {k: v for k, v in about.items() if v not in (None, False, "")}
        weights_id, uri = weights_hash(weights, read), f"file:{weights}"
        checkpoint = Checkpoint(weights_id, own, steps[folder], uri, kind, name, role, about)
        same = next((c for c in found if c.weights == checkpoint.weights), None)
        if same and folder == path:
            notes.append(f"the model in the root of {path} equals {same.label} and is left out")
            continue
        if same:
            notes.append(f"{checkpoint.label} holds the same weights as {same.label}")
        found.append(checkpoint)
    found.sort(key=lambda c: (c.step is None, c.step or 0))
    for one, two in pairwise(found):
        if one.step is not None and one.step == two.step:
            notes.append(f"{one.label} and {two.label} are both step {one.step}")
    return FoundRun(label, path, tuple(found), tuple(notes))


def reading(folders: Iterable[Path], progress: Progress) -> Callable[[int], None]:
    """What `weights_hash` tells of the bytes that it reads in these folders: a stage in MB, none where they are few."""
    total, done = sum(map(weights_size, folders)), 0

    def read(n: int) -> None:
        nonlocal done
        done += n
        if total >= WORTH:
            progress.step("reading weights, MB", done // 10**6, total // 10**6)

    return read


def checkpoint_path(checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint found here."""
    return Path(checkpoint.uri.removeprefix("file:"))


def tokenizer_folder(checkpoint: Checkpoint) -> Path:
    """Where a checkpoint's own tokenizer is, if it has one: with its weights, or elsewhere in its numbered folder."""
    folder = checkpoint_path(checkpoint)
    top = _numbered_above(folder)
    inside = [p for p in folder.parents if p.is_relative_to(top)]
    places = (folder, *(place for p in inside for place in (p / "huggingface", p)))
    return next((p for p in places if (p / "tokenizer_config.json").exists()), folder)


def _numbered_above(path: Path) -> Path:
    """The folder checkpoint-N whose weights lie at a path: itself, or one of the two above; else the path."""
    return next((p for p in (path, *path.parents[:2]) if folder_number(p) is not None), path)


def _resolve(place: str, allow_pickle: bool) -> tuple[Path, str]:
    """The folder of a target, and `org/name@commit` if it came from a hub, else an empty text."""
    path = Path(place).expanduser()
    if is_folder(path):
        found = path.resolve()
        try:
            str(found).encode()
        except UnicodeEncodeError:
            raise BadModel(f"{place!r}: its path is not UTF-8, so no audit can name it; rename the folder") from None
        return found, ""
    if os.path.exists(path):
        raise BadModel(f"{place}: is a file; give the folder that holds it")
    match = _HUB.fullmatch(place)
    # A first part that is a folder here shows that a local path was meant.
    if match is None or os.path.exists(place.split("/")[0]):
        raise BadModel(f"{place}: no such folder; check the path")
    repo, revision, folder = match.groups()
    names = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", *(["*_model*.bin"] if allow_pickle else [])]
    root = hub_snapshot(repo, revision, [f"{folder.strip('/')}/{n}" for n in names] if folder else names)
    path = root / folder.strip("/") if folder else root
    if not path.is_dir():
        raise BadModel(f"{repo}: has no folder {folder}; leave it out to search the whole repository")
    if not any(path.rglob("*.safetensors")) and not allow_pickle:
        raise BadModel(
            f"{repo}: has no safetensors weights{f' in {folder}' if folder else ''}; "
            "if it has pickled ones and you trust them, pass --allow-pickle"
        )
    return path, f"{repo}@{root.name}"


def folder_number(folder: Path) -> int | None:
    """The number in a folder's name, if it is named checkpoint-N or as other trainers name a step."""
    match = _NUMBERED.fullmatch(folder.name)
    return int(match[1]) if match else None


def _usable(path: Path, allow_pickle: bool, notes: list[str]) -> dict[Path, tuple[Path, Kind]]:
    """Each subfolder checkpoint-N, by N, and the root, last -> where its weights are, and their kind.

    What is left out is noted.
    """
    numbered: list[tuple[int, Path]] = []
    for child in sorted(p for p in path.iterdir() if p.is_dir() and not _is_training_state(p)):
        if folder_number(child) is None and not child.name.startswith(_LIKE):
            continue
        number = folder_number(child)
        if number is None:
            notes.append(
                f"{child.name} is ignored: its name is not checkpoint-NUMBER; "
                "if it holds a model, name it so, with the number of optimizer updates"
            )
        elif number == 0 and _UPDATES.fullmatch(child.name):
            notes.append(f"{child.name} is left out: step 0 is the base model itself and is always measured")
        else:
            numbered.append((number, child))
    kinds: dict[Path, tuple[Path, Kind]] = {}
    first: BadInput | None = None
    root = _numbered_above(path)  # an adapter in a folder of its own name belongs to the checkpoint above
    for folder in (*(child for _, child in sorted(numbered)), path):
        name = "the root of the folder is left out" if folder == path else f"{folder.name} is skipped"
        try:
            found = _weights_in(folder, allow_pickle)
        except (HalfWritten, UnreadableCheckpoint) as error:
            if folder != path and not isinstance(error, HalfWritten):
                raise
            first = first or error
            notes.append(f"{name}: {error}")
            continue
        if found is not None:
            kinds[root if folder == path else folder] = found
        elif folder != path:
            notes.append(f"{name}: it holds no model ({_listing(folder)})")
    if not kinds:
        raise first or _nothing_here(path, allow_pickle, notes)
    return kinds


def _is_training_state(folder: Path) -> bool:
    """Whether it is the folder global_stepN in which DeepSpeed keeps its state inside a checkpoint."""
    inside = folder_number(folder.parent) is not None or (folder.parent / "zero_to_fp32.py").exists()
    return inside and re.fullmatch("global_step[0-9]+", folder.name) is not None


def _weights_in(folder: Path, allow_pickle: bool) -> tuple[Path, Kind] | None:
    """Where the weights of a checkpoint are: in its folder, or in a known place within it, or the only adapter's there.

    Raises:
        BadModel: several adapters lie in it, with their names.
    """
    first: BadInput | None = None
    step = folder_number(folder) is not None  # beside the steps of a run such folders are other runs
    named = sorted(p.parent for p in folder.glob(f"*/{ADAPTER_CONFIG}")) if step else []
    for place in dict.fromkeys((folder, *(folder / name for name in _INNER), *named)):
        try:
            kind = classify(place, allow_pickle) if place.is_dir() else None
        except (HalfWritten, UnreadableCheckpoint) as error:
            first = first or error
            continue
        if kind is not None and place in named and len(named) > 1:
            names = ", ".join(p.name for p in named)
            raise BadModel(
                f"{folder}: holds several adapters ({names}); give those of one name: {folder.parent}/*/NAME"
            )
        if kind is not None:
            return place, kind
    if first is not None:
        raise first
    return None


def _nothing_here(path: Path, allow_pickle: bool, notes: list[str]) -> BadInput:
    """The error for a folder without a usable checkpoint."""
    children = sorted(path.iterdir())
    if not children:
        return BadModel(f"{path}: the folder is empty; give a run's output folder")
    if runs := [child for child in children if child.is_dir() and _is_run(child, allow_pickle)]:
        few = listed(runs, 8)
        return BadModel(f"{path}: holds no checkpoints itself but {len(runs)} run(s); give one of: {few}")
    what = listed(notes, 3) if notes else f"only {_listing(path)}"
    return BadModel(
        f"{path}: holds no checkpoints, {what}; "
        "wanted are checkpoint-N/ folders, or an adapter or model saved as safetensors"
    )


def _is_run(folder: Path, allow_pickle: bool) -> bool:
    try:
        numbered = any(child.is_dir() and folder_number(child) is not None for child in folder.iterdir())
        return numbered or _weights_in(folder, allow_pickle) is not None
    except BadInput:
        return True


def _listing(path: Path) -> str:
    return listed(sorted(child.name + "/" * child.is_dir() for child in path.iterdir()))


def _steps(path: Path, folders: Sequence[Path], label: str | None, notes: list[str]) -> dict[Path, int | None]:
    """Each folder -> optimizer updates applied, None where nobody says: by the trainer, the user, or checkpoint-N.

    Raises:
        BadModel: a folder's number may count something else; the number that the user gave cannot be heeded.
    """
    counted = {folder: _counted(folder, notes) for folder in folders}
    given = int(label) if label is not None and re.fullmatch("[0-9]{1,15}", label) else None
    if given is not None:
        return _given(path, counted, given, notes)
    numbered = [f for f in folders if counted[f] is None and folder_number(f) is not None]
    named = {f: int(match[1]) for f in numbered if (match := _UPDATES.fullmatch(f.name))}
    strange = [f for f in numbered if f not in named]
    if strange and (label is None or len(folders) > 1):
        raise _unsaid(strange)
    if named:
        names = listed(f.name for f in named)
        notes.append(f"steps are as the names say: {names}; no trainer_state.json counts the optimizer updates")
    steps = {f: n if n is not None else named.get(f) for f, n in counted.items()}
    # The root may hold the best model rather than the last, while the state beside it counts to the end.
    last = max((n for f, n in steps.items() if f != path and n is not None), default=-1)
    own = steps.get(path)
    if len(folders) > 1 and own is not None and (own <= last or _is_best(path)):
        steps[path] = None
    return steps


def _given(path: Path, counted: Mapping[Path, int | None], given: int, notes: list[str]) -> dict[Path, int | None]:
    """The step that the user gave for a single model."""
    folder, said = next(iter(counted.items()))
    if len(counted) > 1:
        raise BadModel(
            f"{given}={path}: a number says after how many updates one model is, but here are {len(counted)}"
        )
    if given == 0:
        raise BadModel(
            f"0={path}: step 0 is the base itself and is always measured; leave it out, or name it with --base"
        )
    if said not in (None, given):
        raise BadModel(f"{given}={path}: its trainer_state.json counts {said} updates; leave out the number")
    if said is None:
        notes.append(f"{folder.name} is step {given}, as given")
    return {folder: given}


def _unsaid(folders: Sequence[Path]) -> BadModel:
    """The error for numbers of which nobody says what they count."""
    one, number = folders[0], folder_number(folders[0])
    other = next(what for name, what in _COUNTED.items() if name in one.name or name == "step")
    return BadModel(
        f"{one.parent}: the numbers in {listed(f.name for f in folders)} may be optimizer updates or {other}, and no "
        f"trainer_state.json tells; give each as UPDATES=FOLDER ({number}={one}, if they are updates), or name the "
        "folders checkpoint-UPDATES"
    )


def _counted(folder: Path, notes: list[str]) -> int | None:
    """Updates applied by the trainer's own count, None where it kept none."""
    file = folder / "trainer_state.json"
    try:
        step = read_json(file).get("global_step") if file.exists() else None
    except DamagedWeights as error:
        if _UPDATES.fullmatch(folder.name):
            notes.append(f"step of {folder.name} is taken from its name: {error}")
        return None
    number = folder_number(folder)
    if step is not None and number not in (None, step):
        notes.append(f"{folder.name} is step {step}: its trainer_state.json says so and counts more than its name")
    return step


def _is_best(folder: Path) -> bool:
    file = folder / "trainer_state.json"
    return file.exists() and bool(read_json(file).get("best_model_checkpoint"))


def _refuse_unmeasured(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise BadModel for an adapter without which the model is not the base, or that cannot be switched off."""
    if (kind := str(config.get("peft_type")).upper()) in _PROMPTS:
        raise BadModel(
            f"{folder}: is {kind.lower().replace('_', ' ')} (peft_type in {ADAPTER_CONFIG}), which puts trained tokens "
            "before the prompt; that is not measured: give LoRA adapters or full models"
        )
    how = "kasa" if config.get("kasa_config") else config.get("init_lora_weights")
    if isinstance(how, str) and how.lower().startswith(_ALTERING):
        raise BadModel(
            f"{folder}: its initialisation {how!r} changed the base weights, so that "
            "the base without the adapter is not where training started; convert it to a plain adapter (PEFT: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)), or merge it and give the full models"
        )
    if config.get("bias") not in (None, "none"):
        raise BadModel(
            f"{folder}: bias={config['bias']!r} trained the biases of the base, which stay changed when the adapter is "
            "off; merge it and give the full models"
        )
