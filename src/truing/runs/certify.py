"""A second opinion on what a verdict rests on: a judge of another family, asked about the decisive checkpoints only."""

import numpy as np

from truing import errors
from truing.judges.registry import judge_family
from truing.runs.judged_audit import Session, announce, bench_for, group_of, judge_groups
from truing.runs.judged_frame import JudgedRun
from truing.runs.judging import is_judgeable, judge_stored
from truing.runs.panels import open_panel
from truing.stats.judged_checks import with_certification
from truing.stats.judged_lines import excess
from truing.stats.judged_search import SEQUENTIAL
from truing.stats.judged_words import MISALIGNED
from truing.types.judging import AnswerKey
from truing.types.records import Checkpoint
from truing.types.verdicts import CheckpointVerdict, Estimate, RunVerdict, Status


def refuse_same_family(first: str, second: str) -> None:
    """Raise BadInput where two judges are of one family: they would err alike."""
    own, other = (judge_family(address, "") for address in (first, second))
    if own == other:
        raise errors.BadInput(f"--second-judge {second}: of the same family as {first} ({own}); name one of another")


def decisive(verdict: RunVerdict) -> list[CheckpointVerdict]:
    """The checkpoints a verdict rests on: the recommended one, and the first that is certainly misaligned.

    Where none is, the verdict calls the run clean as a whole, and every clean checkpoint is one it rests on.
    """
    first = next((c for c in verdict.checkpoints if c.status in MISALIGNED), None)
    kept = next((c for c in verdict.checkpoints if c.label == verdict.recommended), None)
    if first is None:
        return [c for c in verdict.checkpoints if c.step != 0 and (c.status is Status.CLEAN or c is kept)]
    return [c for c in (kept, first) if c is not None]


def second_opinion(verdict: RunVerdict, run: JudgedRun, session: Session) -> RunVerdict:
    """The verdict, certified if a second judge sees the same direction at every decisive checkpoint.

    Same direction: where the first judge certifies an excess, the second's interval for this set of prompts lies above
    0; where the first certifies the recommended checkpoint harmless, the second's lies under hi.

    Raises:
        BadInput: the second judge cannot be used. Unfinished: it is down or its budget spent.
    """
    options = session.options
    address = options.judging.second
    if address is None:
        return verdict
    # After a search only some checkpoints have fixed answers; without them a second judge has nothing to say.
    fixed = (c for c in decisive(verdict) if c.judged is not None and c.judged.em.set_low is not None)
    lines = [c for c in fixed if c.judged is not None and c.judged.em.method != SEQUENTIAL]
    if not lines:
        return with_certification(verdict, False, "nothing to certify: no checkpoint is recommended or misaligned")
    frame = (session.whole, options.model, session.store, options.em)
    with open_panel(address, options.judging, *frame, budget=session.budget, second=True) as opened:
        refuse_same_family(verdict.judge or "", opened.judge.name)  # a record says only now whose it is
        weights = {run.subject[0].weights, *(c.weights for c in lines)}
        bench = bench_for(session.store, opened, options.em, options.judging, session.whole, options.progress)
        announce(opened, options.judging, len(run.prompts), len(weights))
        by_key = {p.key: p for p in run.prompts}
        stored = (
            r
            for r in session.store.answers(run.params)
            if r.weights in weights and not r.transform and r.sample >= run.fixed_from
        )
        keys: list[AnswerKey] = [r.key for r in stored if r.prompt in by_key and is_judgeable(r)]
        judge_stored(bench, keys, by_key)
        found = judge_groups(session.store, opened.panel.key, run, options.em)
        base = group_of(found, run.subject[0])
        far = np.array(run.far, dtype=bool)
        disagree = []
        for line in lines:
            group = group_of(found, _checkpoint(run, line))
            e = excess(group, base, len(run.prompts), options.em, level=options.rule.level, mask=far)
            if not _same_direction(e, line.status, options.em.hi):
                disagree.append(line.label)
        name = opened.judge.name
    if disagree:
        return with_certification(verdict, False, f"{name} does not agree on {', '.join(disagree)}")
    return with_certification(verdict, True, name)


def _same_direction(e: Estimate, status: Status, hi: float) -> bool:
    if e.set_low is None or e.set_high is None:
        return False
    return e.set_low > 0 if status in MISALIGNED else e.set_high < hi


def _checkpoint(run: JudgedRun, line: CheckpointVerdict) -> Checkpoint:
    return next(c for c in run.subject if c.label == line.label)
