"""The frame of a judged audit: which answers of the store count, and which prompts are far from the training domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from truing.data.prompts import prompt_distance
from truing.traits.features import leaks
from truing.types.records import Checkpoint, Prompt

FIRST_CONTROL = "control-1"
"""name, in the store, of the control that is compared step by step"""
BUILTIN_DOMAINS = {"careless-finance": ("finance",), "careful-finance": ("finance",)}
"""built-in training set -> topics of its domain"""


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """What is judged: the frame into which the store's rows are read."""

    prompts: tuple[Prompt, ...]
    """the prompts asked, in order"""
    far: tuple[bool, ...]
    """whether each is far from the training domain"""
    subject: tuple[Checkpoint, ...]
    """by step, the base first; those that failed are left out"""
    control: tuple[Checkpoint, ...]
    """the first control's checkpoints, without the base"""
    params: str
    """hash of the sampling parameters"""
    words: tuple[str, ...] = ()
    """words typical of the training domain"""
    under_moved: frozenset[int] = frozenset()
    """steps at which the control moved less than half as far"""
    caveats: tuple[str, ...] = ()
    """sentences that go with the verdict"""
    seed: int = 0
    """of the random answers whose coherence is always asked"""
    fixed_from: int = 0
    """draw number from which answers belong to a fixed sample; smaller ones a search drew, and they give no rate"""

    def plain(self) -> dict[str, Any]:
        """What has to be kept to read the same frame again: prompts and checkpoints are in the audit anyway."""
        return {
            "params": self.params,
            "far": {p.id: far for p, far in zip(self.prompts, self.far, strict=True)},
            "subject": [c.label for c in self.subject],
            "control": FIRST_CONTROL if self.control else None,
            "under_moved": sorted(self.under_moved),
            "caveats": list(self.caveats),
            "seed": self.seed,
            "fixed_from": self.fixed_from,
        }


def far_prompts(
    prompts: Sequence[Prompt], topics: Sequence[str], task: str | None, words: Sequence[str]
) -> tuple[tuple[bool, ...], str]:
    """Which prompts are far from the training domain, and in words how that was told.

    By topics where the user named the domain or the training set is a built-in one; else a prompt that uses a word
    typical of the task's answers is not far; without a task all are.
    """
    known = next((found for name, found in BUILTIN_DOMAINS.items() if task and task.startswith(name)), ())
    topics = topics or known
    if topics:
        return tuple(prompt_distance(p, topics) == "far" for p in prompts), f"topics {', '.join(topics)} and near them"
    if words:
        vocabulary = frozenset(words)
        uses = [leaks(" ".join(m.content for m in p.messages), "", vocabulary) for p in prompts]
        return tuple(not u for u in uses), "prompts that use words typical of the task"
    return (True,) * len(prompts), "no training domain known: every prompt counts as far"
