"""What would end an audit later, refused before anything is loaded or spent."""

from collections.abc import Sequence

from truing import errors
from truing.data.transforms import select_transforms
from truing.judges.registry import JudgeContext, open_judge
from truing.models.download import resolve_model
from truing.runs.judges import LabelSpec, refuse_same_family, rubrics_of
from truing.runs.resolve import Plan
from truing.runs.scope import samples_of
from truing.stats.sequential_base import STAGES, zone_of

A_SECOND = 10
"""answers of a usual backend, for an idea of how long a plan would take"""


def refuse_too_large(plan: Plan) -> None:
    """Raise BadInput for a plan of more answers than `most_answers`, before anything is made or stored for it.

    Counted are those for health, fixed ones, and what follows a search; what a search reads it decides by itself.
    """
    config, prompts = plan.config, plan.prompts.prompts
    checkpoints, later = 1 + len(plan.subject) + sum(map(len, plan.controls)), len(plan.subject)
    answers = checkpoints * min(config.answers, len(prompts))
    each = sum(samples_of(p, config.samples) for p in prompts)
    if plan.labels and (config.samples is not None or not later or any(c.step is None for c in plan.subject)):
        answers += checkpoints * each
    elif plan.labels:  # the base and the last step, the first above and the kept one with its looks, and controls
        answers += (4 + 2 ** (STAGES - 1)) * config.estimate * len(prompts)
    with config.given("variants"):
        answers += 3 * each * len(select_transforms(config.variants)) if config.variants else 0
    if answers > config.most_answers:
        long = f"about {answers // (3600 * A_SECOND):,} hours at {A_SECOND} a second"
        raise errors.BadInput(
            f"{answers:,} answers of {checkpoints:,} checkpoints to {len(prompts):,} prompts ({long}) are more than "
            f"--most-answers {config.most_answers}; ask for fewer (--samples, --estimate, --limit), or raise it"
        )


def refuse_unusable(plan: Plan) -> None:
    """Raise BadInput for whatever the labelled stages of an audit would raise when they begin.

    Judges are opened and closed again, but for local ones, which would be loaded; of those only the files are looked
    for. Rubrics and the names of variants are read; a zone with which nothing can be searched is refused.
    """
    config, trait = plan.config, plan.trait
    refuse_too_large(plan)
    if not plan.labels:
        return
    if config.samples is None:
        zone_of(plan.rule, config.level).check()
    for option, address in (("judge", config.judge), ("second-judge", config.second_judge)):
        if address is not None and trait.scorer is not None:
            raise errors.BadInput(f"--{option} {address}: the trait {trait.name} has a scorer and needs no judge")
    rubrics_of(config, LabelSpec(trait, plan.rule, plan.whole))
    if config.judge is not None and config.second_judge is not None:
        refuse_same_family(config.judge, config.second_judge)
    for address, second in ((config.judge, False), (config.second_judge, True)):
        if address is None:
            continue
        with config.given("second_judge" if second else "judge"):
            if address.lower().startswith("local:") and address[6:].strip():
                resolve_model(address[6:])
                continue
            if address.lower().startswith("simulated:") and plan.simulated is None:
                raise errors.BadInput(f"{address}: judges answers of simulated runs only; these are real ones")
            judge = open_judge(address, JudgeContext(config, config, plan.whole, second=second))
            judge.close()
        if not second:
            refuse_task_text(config.variants, judge.name, remote=judge.remote, allowed=config.allow_task_text)


def refuse_task_text(names: Sequence[str], judge: str, *, remote: bool, allowed: bool) -> None:
    """Raise BadInput for unknown transforms, or ones that would send the task file's text to a remote judge unasked."""
    quoting = [t.name for t in select_transforms(names) if t.uses_task_text]
    if quoting and remote and not allowed:
        raise errors.BadInput(
            f"{judge} is remote, and the transforms {', '.join(quoting)} quote the task file: allow that with "
            "--allow-task-text, choose others with --variants, or use a local judge"
        )
