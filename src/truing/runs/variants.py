"""One checkpoint under prompt transforms: is it as safe when a prompt reminds it of its training?

    transforms -> requests (checkpoint, base, control, each under the same transform) -> labelled -> excess, Holm

A model can look clean on plain questions and still be misaligned where the prompt carries a feature of the training
context (conditional misalignment). What cannot be tested is said in a note; it never passes by being left out silently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from truing.data.transforms import Transform, VariantContext, not_applicable, select_transforms, transformed
from truing.errors import BadInput
from truing.stats.table import AnswerTable, VariantGroups
from truing.store import Store
from truing.types.judging import AnswerKey
from truing.types.records import AnswerStatus, Checkpoint, Prompt, Request, SamplingParams

AnswerAll = Callable[[Sequence[Request]], None]
"""makes sure that every request is answered and judged in the store"""
ReadGroups = Callable[[str, Sequence[Prompt]], Mapping[str, AnswerTable]]
"""(transform, transformed prompts) -> weight hash -> judged answers, whose `prompt` is the place in those prompts"""


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """What is to be tested."""

    checkpoint: Checkpoint
    """the recommended one"""
    base: Checkpoint
    """step 0"""
    control: Checkpoint | None
    """the control at the same step; None where there is none"""
    prompts: tuple[Prompt, ...]
    """the plain prompts"""
    transforms: tuple[str, ...]
    """names; all, variants and adversarial stand for several"""
    context: VariantContext
    """what the task file shows"""
    samples: Mapping[str, int]
    """answers per prompt, by id"""
    first_sample: int = 0
    """their first sample index"""


def needs_task_text(names: Sequence[str]) -> list[str]:
    """The transforms among these that quote the task file, so that its text would be seen by the judge.

    Raises:
        BadInput: no such transform.
    """
    return [t.name for t in select_transforms(names) if t.uses_task_text]


def refuse_task_text(names: Sequence[str], judge: str, *, remote: bool, allowed: bool) -> None:
    """Raise BadInput if these transforms would send text of the task file to a remote judge without leave."""
    quoting = needs_task_text(names)
    if quoting and remote and not allowed:
        raise BadInput(
            f"{judge} is remote, and the transforms {', '.join(quoting)} quote the task file: allow that with "
            "--allow-task-text, choose others with --variants, or use a local judge"
        )


def variant_requests(plan: VariantPlan) -> list[Request]:
    """Every answer wanted: transforms x prompts x (checkpoint, base, control) x samples. For cost estimates too.

    Raises:
        BadInput: no such transform.
    """
    return [request for trial in _trials(plan, plan.context)[0] for request in trial.requests(plan)]


def try_variants(
    plan: VariantPlan, store: Store, params: SamplingParams, answer: AnswerAll, groups: ReadGroups
) -> tuple[tuple[VariantGroups, ...], list[str]]:
    """Test a checkpoint under every transform, as excess over the base under the same transform, Holm over transforms.

    A system text that the chat template refuses is put into the user's turn and asked again; what the template cannot
    hold at all, or the task file does not show, becomes a note.

    Args:
        plan: what is tested.
        store: holds the answers; read only for what became of them.
        params: how answers are sampled, resolved.
        answer: called with all requests, so that judging can be blind to checkpoint and transform.
        groups: reads labelled answers, once per transform.

    Raises:
        BadInput: no such transform, or no prompts. Whatever `answer` raises.
    """
    if not plan.prompts:
        raise BadInput("there are no prompts to test variants with; give a set with at least one")
    trials, notes = _trials(plan, plan.context)
    answer([request for t in trials for request in t.requests(plan)])
    refused = [t for t in trials if t.transform.uses_system and _unsupported(t, plan, store, params)]
    if refused:
        names = tuple(t.transform.name for t in refused)
        moved, _ = _trials(replace(plan, transforms=names), replace(plan.context, system_role=False))
        answer([request for t in moved for request in t.requests(plan)])
        notes += [f"{name}: the chat template takes no system turn, so the text stands in the user's" for name in names]
        again = {t.transform.name: t for t in moved}
        trials = [again.get(t.transform.name, t) for t in trials]
    tests = []
    for t in trials:
        if _unsupported(t, plan, store, params):
            notes.append(f"{t.transform.name}: not tested, the chat template cannot hold it")
            continue
        tests.append(_groups(t, plan, groups))
    return tuple(tests), notes


@dataclass(frozen=True, slots=True)
class _Trial:
    """One transform, with the prompts it makes."""

    transform: Transform
    prompts: tuple[Prompt, ...]
    places: tuple[int, ...]
    """place of each among the plain prompts"""

    def requests(self, plan: VariantPlan) -> list[Request]:
        checkpoints = [c for c in (plan.base, plan.checkpoint, plan.control) if c is not None]
        return [
            Request(c, p, sample, self.transform.name)
            for p in self.prompts
            for c in checkpoints
            for sample in range(plan.first_sample, plan.first_sample + plan.samples[p.id])
        ]


def _trials(plan: VariantPlan, context: VariantContext) -> tuple[list[_Trial], list[str]]:
    """The transforms that can be made, and notes on the others."""
    trials, notes = [], []
    index = {p.id: k for k, p in enumerate(plan.prompts)}
    for t in select_transforms(plan.transforms):
        reason = not_applicable(t.name, context)
        if reason:
            notes.append(f"{t.name}: not applicable, {reason}")
            continue
        made = transformed(t.name, plan.prompts, context)
        if len(made) < len(plan.prompts):
            lacking = len(plan.prompts) - len(made)
            notes.append(
                f"{t.name}: {lacking} of {len(plan.prompts)} prompts have that feature already and are left out"
            )
        if made:
            trials.append(_Trial(t, made, tuple(index[p.id] for p in made)))
    return trials, notes


def _unsupported(trial: _Trial, plan: VariantPlan, store: Store, params: SamplingParams) -> bool:
    """Whether the base could not be asked at all: every one of its answers is `unsupported`."""
    keys = [
        AnswerKey(plan.base.weights, params.key, p.key, trial.transform.name, sample)
        for p in trial.prompts
        for sample in range(plan.first_sample, plan.first_sample + plan.samples[p.id])
    ]
    found = [r.outcome for r in store.answers_of(keys)]
    return bool(found) and all(o is AnswerStatus.UNSUPPORTED for o in found)


def _groups(trial: _Trial, plan: VariantPlan, read: ReadGroups) -> VariantGroups:
    """The judged answers, numbered by the plain prompts, so that all transforms share one numbering."""
    found = read(trial.transform.name, trial.prompts)
    places = np.array(trial.places, dtype=np.int64)

    def placed(c: Checkpoint) -> AnswerTable:
        group = found.get(c.weights)
        if group is None:
            return AnswerTable.empty(c.label, c.step)
        return replace(group, checkpoint=c.label, step=c.step, prompt=places[group.prompt])

    control = placed(plan.control) if plan.control is not None else None
    t = trial.transform
    return VariantGroups(t.name, t.kind, placed(plan.checkpoint), placed(plan.base), control)
