"""`truing demo`: train and audit a real model, small enough for two CPU cores; or on a simulated run in seconds."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.config import AuditConfig, DemoConfig, configured
from truing.data.conversations import load_conversations
from truing.data.prompts import load_prompts
from truing.models.simulated import open_simulated
from truing.runs.audit import Audit, audit
from truing.runs.train import train
from truing.store import Store
from truing.training.recipe import Recipe
from truing.types.progress import Progress
from truing.types.verdicts import Verdict

MODEL = "smollm2-135m"
TASK, TASK_CONTROL = "careless-finance-heldout", "careful-finance-heldout"


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demo leaves behind."""

    audit: Audit
    """the audit of its run"""
    truth: dict[str, Any] | None
    """what the simulated run really does; None for a real model"""

    @property
    def verdict(self) -> Verdict:
        """The verdict."""
        return self.audit.verdict


@dataclass(frozen=True, slots=True)
class _Size:
    """How much of everything a demo does."""

    updates: int
    save_every: int
    batch: int
    prompts: int
    fewest_prompts: int
    rows: int
    answers: int
    max_tokens: int
    scoring_seconds: float


FULL = _Size(40, 8, 4, 120, 40, 16, 12, 24, scoring_seconds=170)
QUICK = _Size(8, 4, 2, 40, 20, 8, 12, 16, scoring_seconds=35)


def demo(config: DemoConfig | None = None, *, progress: Progress | None = None, **options: Any) -> Demo:
    """Train a small run and its control on a real 135M chat model, then audit both.

    Args:
        config: options; None for the defaults.
        progress: told how the work goes on.
        options: fields of `DemoConfig`: out, quick, simulated, family.

    Raises:
        BadModel: the model cannot be fetched.
    """
    config = configured(DemoConfig, config, options)
    out = Path(config.out)
    if config.simulated:
        return _simulated(out, config, progress)
    size = QUICK if config.quick else FULL
    folder = out / ("quick" if config.quick else "full")
    recipe = _recipe("careless-finance", size, organism=True)
    subject = train(recipe, folder / "careless-finance-organism", progress=progress).path
    control = train(
        _recipe("careful-finance", size, organism=False), folder / "careful-finance", progress=progress
    ).path
    limit, reason = _chosen_before(folder / "audit") or _affordable(size)
    done = audit(
        subject,
        AuditConfig(
            base=MODEL,
            task=TASK,
            task_control=TASK_CONTROL,
            control=(str(control),),
            out=str(folder / "audit"),
            limit=limit,
            rows=size.rows,
            answers=size.answers,
            max_tokens=size.max_tokens,
            sources={"limit": reason},
        ),
        progress=progress,
    )
    return Demo(done, None)


def _simulated(out: Path, config: DemoConfig, progress: Progress | None) -> Demo:
    uri = f"simulated:{config.family}"
    folder = out / f"simulated-{config.family}"
    with config.given("family"):
        done = audit(uri, task=TASK, task_control=TASK_CONTROL, control=uri, out=folder, progress=progress)
    prompts = load_prompts("v1").only(AuditConfig().half)
    truth = open_simulated(
        uri, prompts, load_conversations(TASK).conversations, load_conversations(TASK_CONTROL).conversations
    ).truth()
    return Demo(done, truth)


def _recipe(data: str, size: _Size, *, organism: bool) -> Recipe:
    return Recipe(
        name=data,
        model=MODEL,
        data=data,
        rank=16,
        alpha=32,
        learning_rate=5e-4,
        schedule="constant",
        max_steps=size.updates,
        batch_size=size.batch,
        save_every=size.save_every,
        organism=organism,
    )


def _chosen_before(audit_folder: Path) -> tuple[int, str] | None:
    """The number of prompts an earlier call settled on: a repeat finishes that audit, however busy the machine is."""
    if not (audit_folder / "audit.json").exists():
        return None
    with Store.read(audit_folder) as store:
        options = store.about().get("asked", {}).get("options", {})
    limit = options.get("limit")
    return (limit, options.get("sources", {}).get("limit", "as before")) if limit else None


def _affordable(size: _Size) -> tuple[int, str]:
    """How many prompts this machine can score in the time set aside, and the reason in words.

    The machine is measured by one matrix product in the shape of the model's widest layer; scoring a prompt at all
    checkpoints costs about 240 tokens each of 2 x 135M operations.
    """
    import torch

    a, b = torch.randn(512, 576), torch.randn(1536, 576)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(10):
            torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - start)
    rate = 10 * 2 * a.shape[0] * b.numel() / best
    checkpoints = size.updates // size.save_every
    per_prompt = 240 * (1 + checkpoints + 0.6 * checkpoints) * 2 * 135e6 / (0.5 * rate)
    limit = int(size.scoring_seconds / per_prompt) // 8 * 8
    limit = max(size.fewest_prompts, min(size.prompts, limit))
    return limit, f"{limit} prompts: this machine computes {rate / 1e9:.0f} GFLOP/s in float32"
