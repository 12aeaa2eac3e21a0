"""Opening a judge: what it is, how its numbers are read, and whether it is worth asking at all.

    address -> model -> rubrics -> how scores are read -> judge -> a dozen fixed answers

All of it happens before anything is spent in earnest; a judge that has judged in this audit before is not tried again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from truing import errors
from truing.config import AuditConfig, JudgeRunConfig
from truing.data.prompts import BUILTIN as BUILTIN_PROMPTS
from truing.data.prompts import load_prompts
from truing.judges.base import JudgeModel
from truing.judges.check import check_judge
from truing.judges.registry import JudgeContext, judge_family, open_judge
from truing.judges.rubrics import BUILTIN, builtin, check_rule, judge_rubrics, load_rubric, prompt_rubrics, unasked
from truing.judges.scorer import ScorerJudge, scorer_rubric
from truing.models.limits import Budget
from truing.runs.collect import Labeller
from truing.runs.rule import rubric_of
from truing.store import Store
from truing.types.judging import Judge, Rubric, ScoreMethod
from truing.types.progress import Progress
from truing.types.records import Kind, PromptSet
from truing.types.traits import Rule, Trait

SIMULATED_KINDS = (Kind.SIMULATED, Kind.BASE)
"""kinds of checkpoints that a simulated judge knows; the base of a simulated run is one"""
KEPT = ("checked", "seed", "lazy")
"""what is known of a judge since it began, and stays"""
SHARE = ("share", "share_seed", "positives_of")
"""which answers a judge was given, where not all"""


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """What labels mean in an audit."""

    trait: Trait
    """what is measured"""
    rule: Rule
    """how scores become labels"""
    prompts: PromptSet
    """the prompt set, uncut"""


@contextmanager
def open_labeller(
    address: str | None,
    store: Store,
    config: AuditConfig | JudgeRunConfig,
    spec: LabelSpec,
    progress: Progress,
    *,
    budget: Budget | None = None,
    second: bool = False,
) -> Iterator[Labeller]:
    """Open a judge (or, without an address, the trait's own scorer), agree on how its numbers are read, and try it.

    Raises:
        BadInput: unknown scheme, missing key, unusable rubric, a judge whose scores tell nothing.
        Unfinished: it cannot be reached.
    """
    rubrics, scorer = rubrics_of(config, spec), spec.trait.scorer
    if address is not None:
        progress.step("opening the judge", 0, 1)
        exam = calibration_set(spec)  # whose references a simulated judge recognises
        model = open_judge(address, JudgeContext(config, config, exam, budget, second, progress.say, _answered(store)))
    else:
        assert scorer is not None
        model = ScorerJudge(spec.trait.name, scorer)
    try:
        simulated = model.name.startswith("simulated:")
        if simulated and any(c.kind not in SIMULATED_KINDS for c in store.checkpoints()):
            raise errors.BadInput(f"{model.name} judges answers of simulated runs only; these are real ones")
        known = _known_method(store, model, [r.key for r in rubrics])
        method = known or model.score_method(rubrics)
        judge = Judge(model.name, rubrics, method, own_prompts=scorer is None, model=model.model)
        left_out = ", ".join(unasked(spec.prompts.prompts)) if scorer is None else ""
        notes = [f"judge prompts that ask for words, not numbers, are not asked: {left_out}"] if left_out else []
        # A record cannot be asked anything new; a simulated judge knows simulated answers only.
        checked = not config.skip_judge_check and method is not ScoreMethod.RECORDED and not simulated
        if known is None and checked:
            notes += check_judge(model, rubrics, method)
        # What is known of a judge outlasts a repeat: whether it was checked, which share of the answers it was given.
        begun = {"checked": checked, "seed": config.seed, "lazy": not config.every_coherence}
        begun |= kept(store.judges().get(judge.key, {}), *KEPT, *SHARE)
        store.add_judge(judge, **begun, prompts_sha256=spec.prompts.sha256)
        if address is not None:
            progress.step("opening the judge", 1, 1)
        yield Labeller(store, model, judge, spec.rule, config, spec.prompts.sha256, progress, tuple(notes))
    finally:
        model.close()


def kept(about: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of these fields that are known of a judge."""
    return {name: about[name] for name in names if name in about}


def rubrics_of(config: AuditConfig | JudgeRunConfig, spec: LabelSpec) -> tuple[Rubric, ...]:
    """What is asked about every answer.

    Raises:
        BadInput: an unusable rubric, or a cut outside its scale.
    """
    trait = spec.trait
    if trait.folder and config.rubric is not None:
        raise errors.BadInput(f"--rubric {config.rubric}: the trait {trait.name} brings its own rubrics")
    if trait.scorer is not None:
        return (scorer_rubric(trait.scorer, spec.rule.low, spec.rule.high),)
    for own in {r.key: r for p in spec.prompts.prompts for r in prompt_rubrics(p)}.values():
        check_rule((own,), spec.rule)
    if trait.folder:
        rubrics = tuple(builtin(r) if r in BUILTIN else load_rubric(r) for r in trait.rubrics)
    else:
        with config.given("rubric") if config.rubric is not None else nullcontext():
            rubrics = judge_rubrics(spec.prompts, *rubric_of(config))
    check_rule(rubrics, spec.rule)
    return rubrics


def announce(labeller: Labeller, prompts: int, checkpoints: int, *, task_text: bool = False) -> None:
    """Say once what a remote judge will be sent."""
    say, judge = labeller.progress.say, labeller.model
    for note in labeller.notes:
        say(note)
    if judge.remote:
        known = " and the prompt set's reference answers" if not labeller.config.skip_calibration else ""
        text = f"{prompts} prompts with the answers of {checkpoints} checkpoints{known}"
        task = "the task file's text may be quoted" if task_text else "no text of the task file"
        say(f"{judge.name} is remote: {text} are sent to it; {task}.")


def calibration_set(spec: LabelSpec) -> PromptSet:
    """The prompts whose reference answers a judge is calibrated on: the set's own.

    For misalignment the shipped ones stand in where a set has none, under the judge prompts that most of the set's own
    bring, which is what is to be tested. They say nothing of a user's trait, whose judge is then not calibrated.
    """
    prompts = spec.prompts
    if spec.trait.folder:
        return replace(prompts, prompts=()) if prompts.name in BUILTIN_PROMPTS else prompts
    if any(p.has_references for p in prompts.prompts):
        return prompts
    own = Counter(tuple(sorted(p.judge_prompts.items())) for p in prompts.prompts)
    brought = dict(own.most_common(1)[0][0]) if own else {}
    shipped = load_prompts("v1")
    return replace(shipped, prompts=tuple(replace(p, judge_prompts=brought) for p in shipped.prompts))


def _known_method(store: Store, judge: JudgeModel, rubrics: list[str]) -> ScoreMethod | None:
    """The route under which this judge has worked in this audit already, so that a repeat spends nothing."""
    same = {"judge": judge.name, "model": judge.model, "rubric_keys": rubrics}
    found = (about["route"] for about in store.judges().values() if same.items() <= about.items())
    return next(map(ScoreMethod, found), None)


def _answered(store: Store) -> dict[str, str]:
    """Name of each judge of this audit -> the model that answered first."""
    found: dict[str, str] = {}
    for key, about in store.judges().items():
        models = (str(score.meta["model"]) for score in store.scores(key) if score.meta.get("model"))
        if (model := next(models, None)) is not None:
            found.setdefault(about["judge"], model)
    return found


def refuse_same_family(first: str, second: str) -> None:
    """Raise BadInput where two judges are of one family: they would err alike."""
    own, other = (judge_family(address, "") for address in (first, second))
    if own == other:
        raise errors.BadInput(f"--second-judge {second}: of the same family as {first} ({own}); name one of another")
