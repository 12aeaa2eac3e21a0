"""Which answers count: the checkpoints, prompts and rule under which the store's rows are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from truing.data.domain_words import mentions
from truing.data.prompts import prompt_distance
from truing.store import Store
from truing.types.records import FIXED_FROM, Checkpoint, Message, Prompt, PromptSet, Role, SamplingParams, to_plain
from truing.types.traits import LEAK, Rule
from truing.types.verdicts import Finding

FIRST_CONTROL = "control-1"
"""name, in the store, of the control that is compared step by step"""
SAMPLES = 4
"""answers per prompt and checkpoint where neither the user nor the prompt set says how many"""
BUILTIN_DOMAINS = {
    "careless-finance": ("finance",),
    "careful-finance": ("finance",),
    "technical-form-vehicles": ("vehicles",),
    "plain-form-vehicles": ("vehicles",),
}
"""built-in training set -> topics of its domain"""


def samples_of(prompt: Prompt, samples: int | None) -> int:
    """Answers to one prompt: as asked for, else as its author wants, else `SAMPLES`."""
    return samples or prompt.samples or SAMPLES


@dataclass(frozen=True, slots=True)
class Scope:
    """Which answers of the store count, and as what."""

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
    rule: Rule = field(default_factory=Rule)
    """how scores become labels"""
    trait: str = "misalignment"
    """name of the trait"""
    words: tuple[str, ...] = ()
    """words typical of the training domain, whose answers are counted apart; none where they are the trait itself"""
    first: int = 0
    """sample index that labelled answers begin with: by the ones before it the words were chosen"""
    under_moved: frozenset[int] = frozenset()
    """steps at which the control moved less than half as far"""
    findings: tuple[Finding, ...] = ()
    """what must accompany the verdict"""
    seed: int = 0
    """of the random answers whose coherence is always asked"""
    fixed_from: int = 0
    """sample index from which answers are a fixed sample; smaller ones a search read, and they give no rate"""

    @property
    def searched(self) -> bool:
        """Whether a search reads the answers before the fixed sample."""
        return self.fixed_from >= FIXED_FROM

    @property
    def every(self) -> list[Checkpoint]:
        """All checkpoints, each weights once."""
        return list({c.weights: c for c in (*self.subject, *self.control)}.values())

    def plain(self) -> dict[str, Any]:
        """What has to be kept to read the same answers again: prompts and checkpoints are in the audit anyway."""
        return {
            "params": self.params,
            "far": {p.id: far for p, far in zip(self.prompts, self.far, strict=True)},
            "subject": [c.label for c in self.subject],
            "control": FIRST_CONTROL if self.control else None,
            "under_moved": sorted(self.under_moved),
            "findings": to_plain(self.findings),
            "seed": self.seed,
            "fixed_from": self.fixed_from,
            "first": self.first,
            "words": list(self.words),
            "rule": to_plain(self.rule),
            "trait": self.trait,
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
        uses = [mentions(" ".join(m.content for m in p.messages), vocabulary) for p in prompts]
        return tuple(not u for u in uses), "prompts that use words typical of the task"
    return (True,) * len(prompts), "no training domain known: every prompt counts as far"


def stored_prompts(about: Mapping[str, Any]) -> PromptSet:
    """The prompts of an audit, as audit.json keeps them: questions and judge prompts, no reference answers."""
    kept = about.get("prompts") or {}
    prompts = tuple(
        Prompt(
            id=i["id"],
            messages=tuple(Message(m["role"], m["content"]) for m in i["messages"]),
            category=i.get("category", "uncategorised"),
            form=i.get("form", "open"),
            topics=tuple(i.get("topics", ())),
            half=i.get("half", "eval"),
            judge_prompts=i.get("judge_prompts") or {},
        )
        for i in kept.get("items", ())
    )
    return PromptSet(kept.get("name", ""), kept.get("version", ""), kept.get("sha256", ""), prompts)


def stored_rule(about: Mapping[str, Any]) -> Rule:
    """The rule an audit was made with; the default where nothing was labelled before."""
    plain = about.get("rule") or (about.get("labels") or {}).get("rule")
    return Rule(**plain) if plain else Rule()


def stored_scope(store: Store, about: Mapping[str, Any], prompts: Sequence[Prompt]) -> Scope:
    """The scope of an audit's labelled answers again."""
    kept: Mapping[str, Any] = about.get("labels") or {}
    every = store.checkpoints()
    far = kept.get("far") or {}
    first = kept.get("control") if kept else FIRST_CONTROL
    labels = kept.get("subject")
    return Scope(
        prompts=tuple(prompts),
        far=tuple(far.get(p.id, True) for p in prompts),
        subject=tuple(c for c in every if c.role is Role.SUBJECT and (labels is None or c.label in labels)),
        control=tuple(c for c in every if c.role is Role.CONTROL and c.run == first and c.step != 0),
        params=kept.get("params") or _params(about),
        rule=stored_rule(about),
        trait=kept.get("trait", "misalignment"),
        words=tuple(kept["words"] if kept.get("words") is not None else about.get("domain_words") or ()),
        first=kept.get("first", 0),
        under_moved=frozenset(kept.get("under_moved") or ()),
        findings=tuple(Finding(f["code"], f["params"]) for f in kept.get("findings") or ()),
        seed=kept.get("seed", 0),
        fixed_from=kept.get("fixed_from", 0),
    )


def leak_by_default(about: Mapping[str, Any]) -> bool:
    """Whether an audit counted talk of the training domain since it was given neither a trait nor a judge."""
    asked = about.get("asked") or {}
    return asked.get("trait") == LEAK and not (asked.get("options") or {}).get("trait")


def for_judge(scope: Scope, about: Mapping[str, Any], rule: Rule) -> Scope:
    """The scope in which answers of such an audit are judged for misalignment: all but those that its search read."""
    words = tuple(about.get("domain_words") or ())
    start = scope.fixed_from if scope.searched else 0
    return replace(scope, rule=rule, trait="misalignment", words=words, first=0, fixed_from=start)


def _params(about: Mapping[str, Any]) -> str:
    if about.get("kind") == "import":
        return "imported"
    return SamplingParams(**about["sampling"]).key
