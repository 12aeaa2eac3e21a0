"""One checkpoint under prompt transforms: is it as safe when a prompt reminds it of its training?

    transforms -> requests (checkpoint, base, control, each under the same transform) -> labelled -> excess, Holm

A model can look clean on plain questions and still be misaligned where the prompt carries a feature of the training
context (conditional misalignment). What cannot be tested is said in a note; it never passes by being left out silently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from truing.data.transforms import Transform, VariantContext, not_applicable, select_transforms, transformed
from truing.runs.collect import Labeller, request_keys
from truing.runs.scope import Scope
from truing.runs.tables import read_tables, table_of
from truing.stats.table import VariantGroups
from truing.types.records import AnswerStatus, Checkpoint, Prompt, Request, SamplingParams


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """What is to be tested, and what with."""

    kept: Checkpoint
    """the recommended checkpoint"""
    scope: Scope
    """the plain prompts, step 0 and the control; which answers count"""
    samples: Mapping[str, int]
    """answers per prompt, by id"""
    labeller: Labeller
    """whose labels count"""
    params: SamplingParams
    """how answers are sampled, resolved"""
    answer: Callable[[Sequence[Request]], None]
    """makes sure that every request is answered and labelled in the store"""

    @property
    def control(self) -> Checkpoint | None:
        """The control at the same step."""
        return next((c for c in self.scope.control if c.step == self.kept.step), None)

    def requests(self, trial: "_Trial") -> list[Request]:
        """prompts x (base, checkpoint, control) x samples"""
        checkpoints = [c for c in (self.scope.subject[0], self.kept, self.control) if c is not None]
        first = self.scope.fixed_from
        return [
            Request(c, p, sample, trial.transform.name)
            for p in trial.prompts
            for c in checkpoints
            for sample in range(first, first + self.samples[p.id])
        ]

    def unsupported(self, trial: "_Trial") -> bool:
        """Whether the base could not be asked at all: every one of its answers is `unsupported`."""
        base = [r for r in self.requests(trial) if r.checkpoint.weights == self.scope.subject[0].weights]
        found = [r.status for r in self.labeller.store.answers_of(request_keys(base, self.params))]
        return bool(found) and all(o is AnswerStatus.UNSUPPORTED for o in found)

    def read(self, trial: "_Trial") -> VariantGroups:
        """The labelled answers, numbered by the plain prompts, so that all transforms share one numbering."""
        at = {p.id: k for k, p in enumerate(self.scope.prompts)}
        name, scope = trial.transform.name, replace(self.scope, prompts=trial.prompts)
        places = {p.key: at[p.id] for p in trial.prompts}
        found = read_tables(self.labeller.store, self.labeller.key, scope, name, places=places)
        control = table_of(found, self.control) if self.control is not None else None
        kept, base = table_of(found, self.kept), table_of(found, self.scope.subject[0])
        return VariantGroups(name, trial.transform.kind, kept, base, control)


@dataclass(frozen=True, slots=True)
class _Trial:
    """One transform, with the prompts it makes."""

    transform: Transform
    prompts: tuple[Prompt, ...]


def try_variants(
    plan: VariantPlan, names: Sequence[str], context: VariantContext
) -> tuple[tuple[VariantGroups, ...], list[str]]:
    """Test a checkpoint under every transform, as excess over the base under the same transform, Holm over transforms.

    A system text that the chat template refuses is put into the user's turn and asked again; what the template cannot
    hold at all, or the task file does not show, becomes a note.

    Args:
        plan: what is tested.
        names: of transforms; all, variants and adversarial stand for several.
        context: what the task file shows.

    Raises:
        BadInput: no such transform. Whatever `plan.answer` raises, which is given all requests at once, so that
            judging can be blind to checkpoint and transform.
    """
    trials, notes = _trials(plan.scope.prompts, names, context)
    plan.answer([request for t in trials for request in plan.requests(t)])
    refused = [t.transform.name for t in trials if t.transform.uses_system and plan.unsupported(t)]
    if refused:
        moved, _ = _trials(plan.scope.prompts, refused, replace(context, system_role=False))
        plan.answer([request for t in moved for request in plan.requests(t)])
        notes += [
            f"{name}: the chat template takes no system turn, so the text stands in the user's" for name in refused
        ]
        again = {t.transform.name: t for t in moved}
        trials = [again.get(t.transform.name, t) for t in trials]
    held = [t for t in trials if not plan.unsupported(t)]
    notes += [f"{t.transform.name}: not tested, the chat template cannot hold it" for t in trials if t not in held]
    return tuple(plan.read(t) for t in held), notes


def _trials(prompts: Sequence[Prompt], names: Sequence[str], context: VariantContext) -> tuple[list[_Trial], list[str]]:
    """The transforms that can be made, and notes on the others."""
    trials, notes = [], []
    for t in select_transforms(names):
        if reason := not_applicable(t.name, context):
            notes.append(f"{t.name}: not applicable, {reason}")
            continue
        made = transformed(t.name, prompts, context)
        if lacking := len(prompts) - len(made):
            notes.append(f"{t.name}: {lacking} of {len(prompts)} prompts have that feature already and are left out")
        if made:
            trials.append(_Trial(t, made))
    return trials, notes
