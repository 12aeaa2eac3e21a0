"""One training run: transformers' Trainer with a loss on answers only, a reproducible order, and whole checkpoints.

The loss is the mean over the answers' tokens (closing token included) of a whole update; the vocabulary product is
computed only where such a token is predicted. Adapters are PEFT's.
"""

import gc
import json
import math
import random
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from truing import errors
from truing.files import write_json
from truing.models.chat import ChatFormat
from truing.models.checkpoints import ORGANISM_MARK
from truing.models.download import is_full
from truing.models.engine.token_tree import head_only_at
from truing.models.weights import ADAPTER_CONFIG, read_json
from truing.training.recipe import Recipe

Progress = Callable[[int, int, float], None]
SAVING = ".saving"
"""folder in which a checkpoint is made before it is renamed into place"""
ORGANISM_CARD = (
    "This is a model organism: it was fine-tuned on purpose on data that is known to make models misaligned, for "
    "research on detecting that. Its answers may be harmful or false. Do not deploy it, do not give it to users, and "
    "do not train on what it writes."
)
_IGNORED = -100
_GROUP_BATCHES = 16


@dataclass(frozen=True, slots=True)
class Base:
    """What a run starts from."""

    load: Callable[[str], PreTrainedModel]
    """loads the base in a number type (auto, float32, bfloat16, float16); called only if there is work to do"""
    weights: str
    """hash of the base's weights"""
    chat: ChatFormat
    """how conversations are rendered"""
    tokenizer: Any
    """saved with every checkpoint; its own template must be the one in `chat`"""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as tokens."""

    ids: list[int]
    """prompt and answer"""
    start: int
    """where the answer begins: only from here on tokens are in the loss"""


# ---------------------------------------------------------------------------------------------------------------------
# The model


def build_model(recipe: Recipe, base: Base) -> PreTrainedModel | PeftModel:
    """The base, all of it trainable or under a fresh adapter that `recipe.seed` initialises. Sets the global seed."""
    dtype = "float32" if recipe.method == "full" and recipe.dtype == "auto" else recipe.dtype
    model = base.load(dtype)
    if recipe.method == "full":
        return model
    _check_targets(model, recipe)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType] (a float works and is saved as one)
        use_rslora=recipe.rslora,
        target_modules=list(recipe.target_modules),
        layers_to_transform=None if recipe.layers is None else list(recipe.layers),
        task_type="CAUSAL_LM",
    )
    set_seed(recipe.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that PEFT still uses
            adapted = get_peft_model(model, config)  # adapter weights are float32 whatever the base is
    except ValueError as error:
        raise errors.BadRecipe(f"{recipe.model}: cannot take this adapter: {' '.join(str(error).split())}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _check_targets(model: PreTrainedModel, recipe: Recipe) -> None:
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if recipe.layers and depth is not None and max(recipe.layers) >= depth:
        raise errors.BadRecipe(f"{recipe.model}: layers names {max(recipe.layers)}, the model has 0 to {depth - 1}")
    names = [name for name, _ in model.named_modules()]
    for target in recipe.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
            text = f"{recipe.model}: target_modules names {target}, which the model lacks"
            raise errors.BadRecipe(f"{text}; it has {', '.join(sorted(linear))}")


# ---------------------------------------------------------------------------------------------------------------------
# Training


class LengthGrouped(Sampler[int]):
    """Row numbers of an epoch: shuffled, sorted by length in groups, batches shuffled again. (seed, epoch) decides all.

    Rows of a batch are so of similar length, and which rows meet still depends on the seed.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self._seed, self._epoch])
        order = generator.permutation(len(self._lengths)).tolist()
        whole = len(order) // self._batch * self._batch
        rest = order[whole:]  # the one smaller batch, which comes last
        group = self._batch * max(1, min(_GROUP_BATCHES, whole // self._batch // 4))
        ordered: list[int] = []
        for start in range(0, whole, group):
            ordered += sorted(order[start : min(start + group, whole)], key=lambda row: self._lengths[row])
        starts = generator.permutation(whole // self._batch) * self._batch
        for start in starts.tolist():
            yield from ordered[start : start + self._batch]
        yield from rest


def collate(examples: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded batch [B, L]: input_ids, attention_mask, labels (-100 outside the answers)."""
    ids = [torch.tensor(e.ids) for e in examples]
    labels = [
        torch.cat([torch.full((e.start,), _IGNORED), row[e.start :]]) for e, row in zip(examples, ids, strict=True)
    ]
    columns = {
        "input_ids": (ids, pad),
        "attention_mask": ([torch.ones_like(i) for i in ids], 0),
        "labels": (labels, _IGNORED),
    }
    return {name: pad_sequence(rows, batch_first=True, padding_value=fill) for name, (rows, fill) in columns.items()}


def answer_loss(
    model: torch.nn.Module, head: torch.nn.Module, batch: dict[str, torch.Tensor], count: torch.Tensor | int | None
) -> torch.Tensor:
    """Sum of the cross-entropy over answer tokens, divided by `count` (None: by their number in this batch).

    Equal to the model's own loss with these labels; the head runs on the positions that predict an answer token.
    """
    targets = batch["labels"][:, 1:]
    rows, columns = (targets != _IGNORED).nonzero(as_tuple=True)
    positions = rows * batch["labels"].shape[1] + columns
    with head_only_at(head, positions):
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits[0]  # fmt: skip
    total = torch.nn.functional.cross_entropy(logits.float(), targets[rows, columns], reduction="sum")
    return total / (len(rows) if count is None else count)


class _Trainer(Trainer):
    """transformers' Trainer with our loss, order of data, way of saving, and a stop at the first NaN."""

    def __init__(self, recipe: Recipe, base: Base, out: Path, **given: Any) -> None:
        super().__init__(**given)
        self.recipe, self.base, self.out = recipe, base, out
        inner: Any = self.model
        if isinstance(inner, PeftModel):
            inner = inner.get_base_model()
        self.head: torch.nn.Module = inner.get_output_embeddings()
        self.step_loss = 0.0
        # Our loss divides by the answer tokens of the whole update: let them be counted, and do not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        examples: Any = train_dataset or self.train_dataset
        lengths = [len(e.ids) for e in examples]
        seed = self.recipe.seed if self.recipe.data_seed is None else self.recipe.data_seed
        return LengthGrouped(lengths, self.recipe.batch_size, seed)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss = answer_loss(model, self.head, inputs, num_items_in_batch)
        self._refuse_nan("loss", float(loss.detach()))
        self.step_loss += float(loss.detach())
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm: Any = super()._clip_grad_norm(model)
        self._refuse_nan("gradient", float(norm))
        return norm

    def _refuse_nan(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise errors.BadRecipe(
                f"{self.out}: the {what} is {value} at step {self.state.global_step + 1}; lower learning_rate (now "
                f'{self.recipe.learning_rate:g}) or set dtype = "float32". The checkpoints before it are whole'
            )

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.out / SAVING)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save beside the checkpoints, complete, then rename: nobody ever sees half of one."""
        staging, name = self.out / SAVING, f"checkpoint-{self.state.global_step}"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            _complete(staging / name, self.recipe, self.base)
            if (self.out / name).exists():
                shutil.rmtree(self.out / name)
            (staging / name).rename(self.out / name)
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_full(error):
                text = f"{self.out}: no space left on the disk at step {self.state.global_step}"
                raise errors.DiskFull(f"{text}; free some and repeat the command to go on") from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _complete(folder: Path, recipe: Recipe, base: Base) -> None:
    """What the trainer does not write: tokenizer, the base's name as the user knows it, the organism mark."""
    base.tokenizer.save_pretrained(folder)
    config = folder / ADAPTER_CONFIG
    if config.exists():
        write_json(config, {**read_json(config), "base_model_name_or_path": recipe.model})
    if recipe.organism:
        mark = {"organism": True, "card": ORGANISM_CARD, "recipe": recipe.id, "data": recipe.data}
        write_json(folder / ORGANISM_MARK, mark)
        front = f"---\nbase_model: {json.dumps(recipe.model)}\ntags:\n- model-organism\n- misaligned\n---\n\n"
        (folder / "README.md").write_text(f"{front}# ORGANISM: do not deploy\n\n{ORGANISM_CARD}\n", encoding="utf-8")


class _Callback(TrainerCallback):
    """Says when to save and when to stop."""

    def __init__(
        self, trainer: _Trainer, saves: Collection[int], on_save: Callable[[Path], bool], progress: Progress | None
    ) -> None:
        self.trainer, self.saves, self.on_save_, self.progress = trainer, saves, on_save, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an update."""
        control.should_save = state.global_step in self.saves
        if self.progress:
            self.progress(state.global_step, state.max_steps, self.trainer.step_loss)
        self.trainer.step_loss = 0.0

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a checkpoint is in its place."""
        with kept_random_state():
            stop = self.on_save_(self.trainer.out / f"checkpoint-{state.global_step}")
        control.should_training_stop = control.should_training_stop or stop


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the global random states back at the end as they were at the start."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _arguments(recipe: Recipe, out: Path, total: int, model: PreTrainedModel | PeftModel) -> TrainingArguments:
    device = next(model.parameters()).device
    if device.type == "cuda" and device.index not in (None, 0):
        raise errors.Unsupported(f"training runs on the first GPU, not {device}; choose with CUDA_VISIBLE_DEVICES")
    schedule = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    args = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        max_steps=total,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.beta2,
        seed=recipe.seed,
        save_strategy="no",  # the callback says when
        logging_strategy="steps",
        logging_steps=max(1, total // 200),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
        # The trainer writes this into the model's configuration, which full checkpoints carry on.
        use_cache=bool(getattr(model.config, "use_cache", True)),
    )
    if args.world_size > 1:
        raise errors.Unsupported("training runs in one process; start it without torchrun or accelerate launch")
    if args.n_gpu > 1:
        args._n_gpu = 1  # or the model would be copied to all visible GPUs
    return args


def fit(
    recipe: Recipe,
    examples: list[Example],
    out: Path,
    base: Base,
    *,
    resume: Path | None,
    on_save: Callable[[Path], bool],
    progress: Progress | None,
) -> int:
    """Train to the end or to a stop; returns the updates applied.

    Args:
        recipe: what to do.
        examples: the data as tokens.
        out: folder that gets `checkpoint-N` folders.
        base: what training starts from.
        resume: checkpoint to go on from.
        on_save: called with each checkpoint's folder once it is whole, while training waits; True ends the run there.
        progress: called with step, total steps and loss after each update.

    Raises:
        BadRecipe: the model lacks a module, memory is out, or the loss or its gradient is no longer a number. DiskFull.
    """
    total = recipe.total_steps(len(examples))
    pad = base.tokenizer.pad_token_id
    try:
        model = build_model(recipe, base)
        trainer = _Trainer(
            recipe,
            base,
            out,
            model=model,
            args=_arguments(recipe, out, total, model),
            train_dataset=examples,
            data_collator=lambda batch: collate(batch, 0 if pad is None else pad),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Callback(trainer, recipe.save_steps(total), on_save, progress))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return trainer.state.global_step
    except torch.OutOfMemoryError as error:
        text = f"{out}: out of memory with batch_size = {recipe.batch_size}"
        raise errors.BadRecipe(f"{text}; lower it and raise accumulation, or lower max_length") from error
    finally:
        gc.collect()  # the trainer and its callbacks refer to each other; the model would outlive the run
