"""Opening a judge: what it is, how its numbers are read, and whether it is worth asking at all.

    address -> judge -> rubrics -> route -> panel -> a dozen fixed answers

All of it happens before anything is spent in earnest; a panel that has judged in this audit before is not tried again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from truing.backends.judges import open_judge
from truing.backends.seam import Judge
from truing.base.judged import JudgeOptions, Panel, Route
from truing.base.options import EmRule, ModelOptions
from truing.base.records import PromptSet
from truing.base.store import Store
from truing.judging.check import check_judge
from truing.judging.rubrics import check_rule, panel_rubrics, prompt_rubrics, unasked


@dataclass(frozen=True, slots=True)
class OpenPanel:
    """A judge ready to be asked."""

    judge: Judge
    """who is asked"""
    panel: Panel
    """what its scores are comparable within"""
    notes: tuple[str, ...] = ()
    """what was found out about it, a line each"""

    @property
    def recorded(self) -> bool:
        """Whether its scores come from a record, so that no test can be put to it."""
        return self.panel.route is Route.RECORDED


@contextmanager
def open_panel(
    address: str, options: JudgeOptions, prompts: PromptSet, model: ModelOptions, store: Store, rule: EmRule
) -> Iterator[OpenPanel]:
    """Open a judge, agree on its route and put the sanity check to it; closed on leaving.

    Raises:
        BadInput: unknown scheme, missing key, unusable rubric, a judge whose scores tell nothing.
        Unfinished: it cannot be reached.
    """
    rubrics = panel_rubrics(options, prompts)
    for own in {r.key: r for p in prompts.prompts for r in prompt_rubrics(p)}.values():
        check_rule((own,), rule)
    check_rule(rubrics, rule)
    judge = open_judge(address, options, prompts=prompts, model=model)
    try:
        known = _known_route(store, judge, [r.key for r in rubrics])
        route = known or judge.route(rubrics)
        panel = Panel(judge.name, rubrics, route, model=judge.model)
        left_out = unasked(prompts.prompts)
        notes = (
            [f"judge prompts that ask for words, not numbers, are not asked: {', '.join(left_out)}"] if left_out else []
        )
        if known is None and options.check and route is not Route.RECORDED:
            notes += check_judge(judge, rubrics, route)
        store.add_panel(panel, prompts_sha256=prompts.sha256, checked=options.check and route is not Route.RECORDED)
        yield OpenPanel(judge, panel, tuple(notes))
    finally:
        judge.close()


def _known_route(store: Store, judge: Judge, rubrics: list[str]) -> Route | None:
    """The route under which this judge has worked in this audit already, so that a repeat spends nothing."""
    for about in store.panels().values():
        same = about["judge"] == judge.name and about["model"] == judge.model
        if same and about.get("rubric_keys") == rubrics and about.get("checked"):
            return Route(about["route"])
    return None
