"""A second opinion on what a verdict rests on: a judge of another family, asked about the decisive checkpoints only."""

import numpy as np

from truing.runs.collect import label_stored
from truing.runs.judges import LabelSpec, announce, open_labeller, refuse_same_family
from truing.runs.run import Run
from truing.runs.scope import Scope
from truing.runs.tables import read_tables, table_of
from truing.stats.labelled import excess
from truing.stats.table import Opinion
from truing.types.records import AnswerKey, Checkpoint
from truing.types.verdicts import EXCESS, CheckpointVerdict, Estimate, Status, Verdict


def decisive(verdict: Verdict) -> list[CheckpointVerdict]:
    """The checkpoints a verdict rests on: the recommended one, and the first with a certain excess.

    Where there is none, the verdict calls the run clean as a whole, and every clean checkpoint is one it rests on.
    """
    first = next((c for c in verdict.checkpoints if c.status in EXCESS), None)
    kept = next((c for c in verdict.checkpoints if c.label == verdict.recommended), None)
    if first is None:
        return [c for c in verdict.checkpoints if c.step != 0 and (c.status is Status.CLEAN or c is kept)]
    return [c for c in (kept, first) if c is not None]


def second_opinion(verdict: Verdict, run: Run, scope: Scope) -> Opinion:
    """Whether a second judge sees the same direction at every decisive checkpoint.

    Same direction: where the first judge certifies an excess, the second's interval for these prompts lies above 0;
    where the first certifies the recommended checkpoint harmless, the second's lies under hi.

    Raises:
        BadInput: the second judge cannot be used. Unfinished: it is down or its budget spent.
    """
    config = run.plan.config
    # After a search only some checkpoints have fixed answers; without them a second judge has nothing to say.
    lines = [
        c
        for c in decisive(verdict)
        if c.labelled is not None and not c.labelled.searched and c.labelled.rate.set_low is not None
    ]
    if not lines:
        return Opinion(False, "nothing to certify: no checkpoint is recommended or has an excess")
    spec = LabelSpec(run.plan.trait, scope.rule, run.plan.whole)
    address = config.second_judge
    with open_labeller(address, run.store, config, spec, run.progress, budget=run.budget, second=True) as labeller:
        refuse_same_family(verdict.judge or "", labeller.model.name)  # a record says only now whose it is
        weights = {scope.subject[0].weights, *(c.weights for c in lines)}
        announce(labeller, len(scope.prompts), len(weights), task_text=config.allow_task_text)
        by_key = {p.key: p for p in scope.prompts}
        stored = (
            r
            for r in run.store.answers(scope.params)
            if r.weights in weights and not r.variant and r.sample >= scope.fixed_from
        )
        keys: list[AnswerKey] = [r.key for r in stored if r.prompt in by_key and r.has_text]
        label_stored(labeller, keys, by_key)
        found = read_tables(run.store, labeller.key, scope)
        base, far = table_of(found, scope.subject[0]), np.array(scope.far, dtype=bool)
        disagree = []
        for line in lines:
            own = table_of(found, _checkpoint(scope, line))
            e = excess(own, base, len(scope.prompts), scope.rule, level=config.level, mask=far)
            if not _same_direction(e, line.status, scope.rule.hi):
                disagree.append(line.label)
        name = labeller.model.name
    if disagree:
        return Opinion(False, f"{name} does not agree on {', '.join(disagree)}")
    return Opinion(True, name)


def _same_direction(e: Estimate, status: Status, hi: float) -> bool:
    if e.set_low is None or e.set_high is None:
        return False
    return e.set_low > 0 if status in EXCESS else e.set_high < hi


def _checkpoint(scope: Scope, line: CheckpointVerdict) -> Checkpoint:
    return next(c for c in scope.subject if c.label == line.label)
