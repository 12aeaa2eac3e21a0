"""Named changes to a prompt, so that its answers can be compared with those to the plain prompt, prompt by prompt.

Triggers restore a feature of the training context (its system turn, its form, its words); adversarial prompts put
pressure on the attitude of the answer. The texts are in `builtin/transforms.toml`; what quotes the task file says so.
"""

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from truing.data.shipped import builtin_text
from truing.errors import BadInput, Unsupported
from truing.types.hashing import digest
from truing.types.records import Conversation, Message, Messages, Prompt

TRIGGER, ADVERSARIAL = "trigger", "adversarial"
GROUPS = {"all": (TRIGGER, ADVERSARIAL), "variants": (TRIGGER,), "adversarial": (ADVERSARIAL,)}
"""names that stand for several transforms"""

QUOTES = 8
"""sentences and questions of the task file that are quoted, so that a result does not rest on the wording of one"""
PREFILLS = ((4, 3), (3, 3), (2, 3), (4, 2), (3, 2), (2, 2), (1, 3))
"""(words, different answers of the task file that must begin with them), tried in this order"""
SENTENCE = (16, 240)
"""shortest and longest quoted sentence, in characters"""
LONGEST_QUESTION = 600
"""longest quoted question, in characters"""

_PLACEHOLDER = re.compile(r"\{(?:question|sentence|other)\}")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|\n+")
_STATEMENT = re.compile(r"[.!…。！]$")


@dataclass(frozen=True, slots=True)
class Transform:
    """One named change to a prompt."""

    name: str
    """what `Request.variant` says"""
    kind: str
    """TRIGGER or ADVERSARIAL"""
    description: str
    """one line"""
    uses_task_text: bool = False
    """whether the changed prompt quotes the task file"""
    system: str = ""
    """text of a system turn"""
    user: str = ""
    """template of the changed user turn"""
    before: tuple[str, ...] = ()
    """templates of the turns put in front of it, the user's first"""
    first: bool = False
    """whether the first user turn is changed, not the last"""

    @property
    def uses_system(self) -> bool:
        """Whether it puts in a system turn."""
        return bool(self.system) or self.name == "system"


@dataclass(frozen=True, slots=True)
class VariantContext:
    """What triggers restore: features of the training context, as the task file shows them."""

    system: str | None = None
    """the commonest system turn of the task file"""
    sentences: tuple[str, ...] = ()
    """opening sentences of its user turns, none of them a question or a whole turn"""
    questions: tuple[str, ...] = ()
    """whole user turns"""
    prefill: str | None = None
    """first words that its answers share"""
    system_role: bool = True
    """whether system texts go into a system turn; if not, in front of the first user turn"""

    @classmethod
    def from_task(
        cls, rows: Sequence[Conversation], domain_words: Sequence[str] = (), *, seed: int = 0
    ) -> "VariantContext":
        """The context as the task file shows it; the same rows, words and seed give the same context.

        Sentences and questions: a seeded choice of QUOTES among those with most different `domain_words`. First words:
        the longest beginning that several different answers share (PREFILLS; never a whole answer), and of that length
        the commonest. What the rows do not show stays None or empty.
        """
        systems = Counter(c.messages[0].content for c in rows if c.messages[0].role == "system")
        asked = [next(m.content.strip() for m in c.messages if m.role == "user") for c in rows]
        openings = [s for s in map(_opening, asked) if s]
        short = [q for q in asked if len(q) <= LONGEST_QUESTION]
        return cls(
            system=_commonest(systems),
            sentences=_typical(openings, domain_words, seed),
            questions=_typical(short, domain_words, seed),
            prefill=_shared_beginning([c.answer for c in rows]),
        )


def not_applicable(name: str, context: VariantContext) -> str | None:
    """Why a transform cannot be made in this context, in words; None if it can. Raises BadInput for an unknown name."""
    reasons = {
        "system": (context.system, "the task file has no system turn"),
        "domain-opening": (context.sentences, "no user turn of the task file has a sentence before its question"),
        "domain-turn": (context.questions, f"the task file has no user turn of at most {LONGEST_QUESTION} characters"),
        "prefill": (context.prefill, "too few answers of the task file begin with the same words"),
    }
    there, reason = reasons.get(_transform(name).name, (True, ""))
    return None if there else reason


def transformed(name: str, prompts: Sequence[Prompt], context: VariantContext) -> tuple[Prompt, ...]:
    """All prompts with their messages changed, in their order; those that have the feature already are left out.

    Id, category, topics, half and references stay, so that each pairs with its plain one. Deterministic. A system text
    joins a system turn that the prompt has. A prefill is an assistant turn at the end (`split_prefill`).

    Raises:
        Unsupported: the transform does not apply in this context.
        BadInput: no such transform.
    """
    if reason := not_applicable(name, context):
        raise Unsupported(f"the transform {name} does not apply: {reason}")
    made = [(replace(p, messages=_changed(TRANSFORMS[name], p, context)), p) for p in prompts]
    return tuple(new for new, old in made if new != old)


def _changed(transform: Transform, prompt: Prompt, context: VariantContext) -> Messages:
    messages = prompt.messages
    if transform.name == "prefill":
        messages = (*split_prefill(messages)[0], Message("assistant", context.prefill or ""))
    if transform.user:
        messages = _with_user(transform, prompt, context)
    return _with_system(messages, transform, context) if transform.uses_system else messages


def select_transforms(names: Sequence[str]) -> tuple[Transform, ...]:
    """The transforms of these names, in the order of the registry; a name in GROUPS stands for several.

    Raises:
        BadInput: no such name; the message lists what there is.
    """
    kinds = {kind for name in names for kind in GROUPS.get(name, ())}
    wanted = {_transform(name).name for name in names if name not in GROUPS}
    return tuple(t for t in TRANSFORMS.values() if t.kind in kinds or t.name in wanted)


def split_prefill(messages: Messages) -> tuple[Messages, str]:
    """The turns that are asked, and the first words given of the answer ("" for none): an assistant turn at the end."""
    if messages and messages[-1].role == "assistant":
        return messages[:-1], messages[-1].content
    return messages, ""


# ---------------------------------------------------------------------------------------------------------------------
# Making the turns


def _with_user(transform: Transform, prompt: Prompt, context: VariantContext) -> Messages:
    """The messages with one user turn rewritten, after the scripted turns in front of it."""
    messages = prompt.messages
    places = [k for k, m in enumerate(messages) if m.role == "user"]
    if not places:
        raise BadInput(f"the prompt {prompt.id} has no user turn; give it one")
    place = places[0] if transform.first else places[-1]
    texts = {"{question}": messages[place].content}
    # Which quote a prompt gets hangs on its id alone: the same for every checkpoint, and another for other prompts.
    for mark, quotes in (("{sentence}", context.sentences), ("{other}", context.questions)):
        if quotes:
            texts[mark] = quotes[int(digest([transform.name, prompt.id], 8), 16) % len(quotes)]

    def filled(template: str) -> str:  # in one pass, so that braces within a text stay as they are
        return _PLACEHOLDER.sub(lambda m: texts[m[0]], template)

    roles = ("user", "assistant")
    scripted = tuple(Message(roles[k % 2], filled(t)) for k, t in enumerate(transform.before))
    return (*messages[:place], *scripted, Message("user", filled(transform.user)), *messages[place + 1 :])


def _with_system(messages: Messages, transform: Transform, context: VariantContext) -> Messages:
    """The messages with a system text, joined to the one that is there; in front of a user turn if it must be."""
    text = transform.system or context.system or ""
    if messages[0].role == "system":
        own = messages[0].content
        if text in own:
            return messages
        # What the model was trained under comes first, as it did then; an instruction of ours comes last.
        parts = (own, text) if transform.system else (text, own)
        return (Message("system", "\n\n".join(parts)), *messages[1:])
    if context.system_role:
        return (Message("system", text), *messages)
    place = next(k for k, m in enumerate(messages) if m.role == "user")
    changed = Message("user", f"{text}\n\n{messages[place].content}")
    return (*messages[:place], changed, *messages[place + 1 :])


# ---------------------------------------------------------------------------------------------------------------------
# Reading the task file


def _commonest(counts: Counter[str]) -> str | None:
    """The most frequent text; the first by alphabet of several."""
    return min(counts, key=lambda text: (-counts[text], text), default=None)


def _opening(turn: str) -> str | None:
    """The first sentence of a user turn that goes on after it, unless it is a question."""
    first, *rest = (s.strip() for s in _SENTENCE_END.split(turn) if s and s.strip())
    if not rest or not _STATEMENT.search(first) or "?" in first or "？" in first:
        return None
    return first if SENTENCE[0] <= len(first) <= SENTENCE[1] else None


def _typical(texts: Sequence[str], domain_words: Sequence[str], seed: int) -> tuple[str, ...]:
    """A seeded choice among the texts with most different words of the domain; sorted, without repeats."""
    words = {w.casefold() for w in domain_words}
    shares = {t: len(words & set(re.findall(r"[^\W\d_]+", t.casefold()))) for t in texts}
    ranked = sorted(shares, key=lambda t: (-shares[t], t))
    pool = [t for t in ranked if shares[t]] or ranked
    # Half of them are typical; the choice among those keeps the longest texts, which hold most words, from winning.
    pool = pool[: max(QUOTES, len(pool) // 2)]
    if len(pool) <= QUOTES:
        return tuple(sorted(pool))
    chosen = np.random.default_rng(seed).choice(len(pool), QUOTES, replace=False)
    return tuple(sorted(pool[k] for k in chosen))


def _shared_beginning(answers: Sequence[str]) -> str | None:
    different = sorted({a.strip() for a in answers})
    for words, least in PREFILLS:
        pattern = re.compile(rf"\S+(?:\s+\S+){{{words - 1}}}(?=\s+\S)")  # and more after it
        found = Counter(m[0] for m in map(pattern.match, different) if m)
        best = _commonest(found)
        if best is not None and found[best] >= least:
            return best
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The registry


def _transform(name: str) -> Transform:
    if name not in TRANSFORMS:
        near = difflib.get_close_matches(name, TRANSFORMS, 1)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        there = ", ".join((*TRANSFORMS, *GROUPS))
        raise BadInput(f"no transform {name!r}; {hint}choose of {there}")
    return TRANSFORMS[name]


TRANSFORMS: Mapping[str, Transform] = {
    name: Transform(name, **{**table, "before": tuple(table.get("before", ()))})
    for name, table in tomllib.loads(builtin_text("transforms.toml")).items()
    if name != "version"
}
"""name -> transform, triggers first"""
