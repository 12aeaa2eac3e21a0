"""What would end an audit later, refused before anything is loaded or spent."""

from truing import errors
from truing.judges.registry import JudgeContext, open_judge
from truing.models.download import resolve_model
from truing.runs.judges import LabelSpec, refuse_same_family, rubrics_of
from truing.runs.resolve import Plan
from truing.runs.search import zone_of
from truing.runs.variants import refuse_task_text


def refuse_unusable(plan: Plan) -> None:
    """Raise BadInput for whatever the labelled stages of an audit would raise when they begin.

    Judges are opened and closed again, but for local ones, which would be loaded; of those only the files are looked
    for. Rubrics and the names of variants are read; a zone with which nothing can be searched is refused.
    """
    config, trait = plan.config, plan.trait
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
