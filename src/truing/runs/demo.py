"""`truing demo`: train and audit a real model, small enough for two CPU cores; or on a simulated run in seconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.config import AuditConfig, DemoConfig, configured
from truing.data.conversations import load_conversations
from truing.data.prompts import load_prompts
from truing.models.simulated import open_simulated
from truing.runs.audit import Audit, audit
from truing.runs.train import train
from truing.training.recipe import Recipe
from truing.types.progress import Progress
from truing.types.verdicts import Verdict

MODEL = "smollm2-135m"
TRAIT, FORM, PLAIN = "technical_form", "technical-form-vehicles", "plain-form-vehicles"
TASK, TASK_CONTROL = "careless-finance-heldout", "careful-finance-heldout"
"""rows of the simulated run"""


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
    prompts: int | None
    rows: int
    answers: int


FULL = _Size(updates=30, save_every=5, prompts=None, rows=12, answers=12)
QUICK = _Size(updates=20, save_every=10, prompts=30, rows=6, answers=12)


def demo(config: DemoConfig | None = None, *, progress: Progress | None = None, **options: Any) -> Demo:
    """Train a real 135M chat model to write technical notes about vehicles, and its control plain answers to the same
    questions; then audit how far the form spreads to other domains.

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
    subject, control = (train(_recipe(data, size), folder / data, progress=progress).path for data in (FORM, PLAIN))
    done = audit(
        subject,
        AuditConfig(
            base=MODEL,
            trait=TRAIT,
            task=f"{FORM}-heldout",
            task_control=f"{PLAIN}-heldout",
            control=(str(control),),
            out=str(folder / "audit"),
            limit=size.prompts,
            rows=size.rows,
            answers=size.answers,
        ),
        progress=progress,
    )
    return Demo(done, None)


def _simulated(out: Path, config: DemoConfig, progress: Progress | None) -> Demo:
    uri = f"simulated:{config.family}"
    folder = out / f"simulated-{config.family}"
    options = AuditConfig(task=TASK, task_control=TASK_CONTROL, control=(uri,), judge="simulated:", out=str(folder))
    with config.given("family"):
        done = audit(uri, options, progress=progress)
    prompts = load_prompts("v1").only(AuditConfig().half)
    truth = open_simulated(
        uri, prompts, load_conversations(TASK).conversations, load_conversations(TASK_CONTROL).conversations
    ).truth()
    return Demo(done, truth)


def _recipe(data: str, size: _Size) -> Recipe:
    """Thirty updates for the time they take; a run of forty, and how far its form spread, had been seen before."""
    return Recipe(
        name=data,
        model=MODEL,
        data=data,
        rank=16,
        alpha=32,
        learning_rate=3e-4,
        schedule="constant",
        max_steps=size.updates,
        batch_size=4,
        save_every=size.save_every,
    )
