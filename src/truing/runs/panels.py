"""Opening a judge: what it is, how its numbers are read, and whether it is worth asking at all.

    address -> judge -> rubrics -> route -> panel -> a dozen fixed answers

All of it happens before anything is spent in earnest; a panel that has judged in this audit before is not tried again.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from truing import errors
from truing.config.options import AuditOptions, EmRule, ModelOptions
from truing.data.prompts import load_prompts
from truing.judges.base import JudgeModel
from truing.judges.check import check_judge
from truing.judges.registry import open_judge
from truing.judges.rubrics import check_rule, judge_rubrics, prompt_rubrics, unasked
from truing.models.download import resolve_model
from truing.models.limits import Budget
from truing.runs.variants import refuse_task_text
from truing.store import Store
from truing.types.judging import Judge, JudgeOptions, ScoreMethod
from truing.types.records import Kind, PromptSet

SIMULATED_KINDS = (Kind.SIMULATED, Kind.BASE)
"""kinds of checkpoints that a simulated judge knows; the base of a simulated run is one"""
KEPT = ("checked", "seed", "lazy")
"""what is known of a panel since it began, and stays"""


@dataclass(frozen=True, slots=True)
class OpenPanel:
    """A judge ready to be asked."""

    judge: JudgeModel
    """who is asked"""
    panel: Judge
    """what its scores are comparable within"""
    notes: tuple[str, ...] = ()
    """what was found out about it, a line each"""

    @property
    def recorded(self) -> bool:
        """Whether its scores come from a record, so that no test can be put to it."""
        return self.panel.method is ScoreMethod.RECORDED


@contextmanager
def open_panel(
    address: str,
    options: JudgeOptions,
    prompts: PromptSet,
    model: ModelOptions,
    store: Store,
    rule: EmRule,
    *,
    budget: Budget | None = None,
    second: bool = False,
) -> Iterator[OpenPanel]:
    """Open a judge, agree on its route and put the sanity check to it; closed on leaving.

    Raises:
        BadInput: unknown scheme, missing key, unusable rubric, a judge whose scores tell nothing.
        Unfinished: it cannot be reached.
    """
    rubrics = judge_rubrics(options, prompts)
    for own in {r.key: r for p in prompts.prompts for r in prompt_rubrics(p)}.values():
        check_rule((own,), rule)
    check_rule(rubrics, rule)
    known_set = examination(prompts)  # whose references a simulated judge recognises
    judge = open_judge(address, options, prompts=known_set, model=model, budget=budget, second=second)
    if judge.name.startswith("simulated:") and any(c.kind not in SIMULATED_KINDS for c in store.checkpoints()):
        raise errors.BadInput(f"{judge.name} judges answers of simulated runs only; these are real ones")
    try:
        known = _known_route(store, judge, [r.key for r in rubrics])
        route = known or judge.score_method(rubrics)
        panel = Judge(judge.name, rubrics, route, model=judge.model)
        left_out = unasked(prompts.prompts)
        notes = (
            [f"judge prompts that ask for words, not numbers, are not asked: {', '.join(left_out)}"] if left_out else []
        )
        # A record cannot be asked anything new; a simulated judge knows simulated answers only.
        checked = options.check and route is not ScoreMethod.RECORDED and not judge.name.startswith("simulated:")
        if known is None and checked:
            notes += check_judge(judge, rubrics, route)
        # What is known of a panel outlasts a repeat: whether it was checked, which share of the answers it was given.
        about = store.panels().get(panel.key, {})
        kept = {name: about[name] for name in (*KEPT, "share", "share_seed", "positives_of") if name in about}
        begun = {"checked": checked, "seed": options.seed, "lazy": options.lazy}
        store.add_panel(panel, **{**begun, **kept, "prompts_sha256": prompts.sha256})
        yield OpenPanel(judge, panel, tuple(notes))
    finally:
        judge.close()


def examination(prompts: PromptSet) -> PromptSet:
    """The prompts of the known-answer test: the set's own, or the shipped ones where it has no reference answers.

    Those are then judged by the judge prompts that most of the set's own bring, which is what is to be tested.
    """
    if any(p.has_references for p in prompts.prompts):
        return prompts
    own = Counter(tuple(sorted(p.judge_prompts.items())) for p in prompts.prompts)
    brought = dict(own.most_common(1)[0][0]) if own else {}
    shipped = load_prompts("v1")
    return replace(shipped, prompts=tuple(replace(p, judge_prompts=brought) for p in shipped.prompts))


def refuse_unusable(options: AuditOptions, prompts: PromptSet) -> None:
    """Raise whatever opening the judges of an audit would raise, before a model is loaded or anything is measured.

    Judges are opened and closed again, but for local ones, which would be loaded; of those only the files are looked
    for. Rubrics and the names of cues are read.
    """
    if options.judge is None:
        return
    judging = options.judging
    check_rule(judge_rubrics(judging, prompts), options.em)
    for address, second in ((options.judge, False), (judging.second, True)):
        if address is None:
            continue
        if address.lower().startswith("local:") and address[6:].strip():
            resolve_model(address[6:])
            continue
        judge = open_judge(address, judging, prompts=prompts, model=options.model, second=second)
        judge.close()
        if not second:
            refuse_task_text(judging.variants, judge.name, remote=judge.remote, allowed=judging.allow_task_text)


def _known_route(store: Store, judge: JudgeModel, rubrics: list[str]) -> ScoreMethod | None:
    """The route under which this judge has worked in this audit already, so that a repeat spends nothing."""
    for about in store.panels().values():
        same = about["judge"] == judge.name and about["model"] == judge.model
        if same and about.get("rubric_keys") == rubrics:
            return ScoreMethod(about["route"])
    return None
