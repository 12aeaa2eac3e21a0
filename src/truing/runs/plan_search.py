"""The part of a plan that is a search: what it is expected to ask, and the fixed answers after it.

How many answers a search takes is not known beforehand, so a few runs of the same design are simulated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from truing.config import AuditConfig
from truing.data.guard import domain_words
from truing.runs.plan_costs import Wanted
from truing.runs.resolve import Resolved
from truing.runs.rule import rule_of
from truing.runs.scope import JudgedRun, far_prompts
from truing.stats.forecast import RUNS, Forecast, SearchDesign, answers_to_confirm, forecast
from truing.stats.status import STAGES

MOST_ESTIMATE = 64
"""fixed answers per prompt up to which a plan looks for enough"""


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What a search and the fixed answers after it are expected to take."""

    steps: int
    """later checkpoints"""
    far: tuple[bool, ...]
    """whether each prompt is far from the training domain: the search asks those"""
    forecasts: tuple[Forecast, ...]
    """simulated searches: a run that turns, and one that never does"""
    base_rate: float
    """share misaligned at step 0 that was assumed"""
    correlation: float
    """correlation of two answers to one prompt that was assumed"""
    estimate: int
    """fixed answers per prompt at the first misaligned and the last checkpoint and their controls"""
    confirm: int
    """fixed answers per prompt at the base and the checkpoint to keep: one, two or four times as many"""
    compared: int
    """checkpoints with `estimate` answers per prompt"""
    notes: tuple[str, ...] = ()
    """what the figures rest on"""

    def wanted(self, *, most: bool = False) -> list[Wanted]:
        """The answers of the search and the fixed ones, as expected or at most: 95 % of searches, all looks."""
        answers = max(f.most if most else f.answers for f in self.forecasts)
        far, confirm = sum(self.far), self.estimate * 2 ** (STAGES - 1) if most else self.confirm
        fixed = float(self.estimate * self.compared + 2 * confirm)
        long = max(self.forecasts, key=lambda f: f.most if most else f.answers)
        said = f"mean of {long.runs} simulated runs that {turns(long)}"
        return [
            Wanted("search", [answers / far if is_far else 0.0 for is_far in self.far], 0, said),
            Wanted("fixed answers", [fixed] * len(self.far), self.compared + 2, "base, first misaligned, last, kept"),
        ]


def turns(f: Forecast) -> str:
    """A simulated run in words."""
    return f"turn, to {100 * f.height:g} points" if f.height else "never turn"


def searched_run(asked: Resolved, config: AuditConfig) -> JudgedRun:
    """The frame that a judged audit would have, as far as a plan knows it."""
    prompts = asked.prompts.prompts
    general = [p.aligned for p in prompts if p.aligned]
    words = tuple(domain_words(asked.rows, general)) if asked.rows and general else ()
    far, _ = far_prompts(prompts, config.domain, asked.asked["task"], words)
    control = asked.controls[0] if asked.controls else ()
    # The base is not opened for a plan; it has step 0 whatever it is, and only later checkpoints are looked at.
    return JudgedRun(prompts, far, (asked.subject[0], *asked.subject), tuple(c for c in control if c.step != 0), "")


def plan_search(
    run: JudgedRun, config: AuditConfig, *, height: float, base_rate: float, correlation: float
) -> SearchPlan:
    """Simulate the search of an audit, and count its fixed answers.

    Args:
        run: prompts and checkpoints.
        config: zone, level, and what is asked of the search.
        height: excess at the end of the simulated run that turns.
        base_rate: share misaligned at step 0.
        correlation: correlation of two answers to one prompt.
    """
    em = rule_of(config)
    steps, compared = {c.step for c in run.subject[1:]}, {c.step for c in run.control}
    design = SearchDesign(
        steps=len(steps),
        categories=[p.category for p, is_far in zip(run.prompts, run.far, strict=True) if is_far],
        lo=em.lo,
        hi=em.hi,
        error=1 - config.level,
        assume_monotone=config.assume_monotone,
        control=bool(compared) and steps <= compared,
        base_rate=base_rate,
        correlation=correlation,
    )
    found = tuple(forecast(design, h, runs=RUNS, seed=config.seed) for h in dict.fromkeys((height, 0.0)))
    confirm = answers_to_confirm(sum(run.far), config.estimate, em.hi, level=config.level)
    # The kept checkpoint is counted with the base; of the others, the first misaligned and the last, with controls.
    others = min(len(steps) - 1, 2) + (min(len(steps), 2) if design.control else 0)
    return SearchPlan(
        steps=len(steps),
        far=run.far,
        forecasts=found,
        base_rate=base_rate,
        correlation=correlation,
        estimate=config.estimate,
        confirm=confirm or config.estimate * 2 ** (STAGES - 1),
        compared=others,
        notes=tuple(_notes(sum(run.far), config, confirm)),
    )


def _notes(far: int, config: AuditConfig, confirm: int | None) -> Sequence[str]:
    em, each, out = rule_of(config), config.estimate, []
    out.append("a search asks until it is certain: its answers were simulated, not counted")
    if config.mode == "simulated":
        out.append(
            "--mode simulated asks fewer; its thresholds take minutes to find, so these are the guaranteed ones'"
        )
    if em.kind == "mean":
        out.append("mean scores were simulated as answers that are misaligned or not")
    if em.kind == "mean" or confirm is not None:
        return out
    level = config.level
    enough = (n for n in range(each + 1, MOST_ESTIMATE) if answers_to_confirm(far, n, em.hi, level=level) is not None)
    text = (
        f"{far} far prompts with {each}, at last {each * 2 ** (STAGES - 1)} fixed answers can certify no checkpoint "
        f"under {100 * em.hi:g} points, so none would be recommended"
    )
    needed = next(enough, None)
    return [*out, f"{text}: give more prompts, or --estimate {needed}" if needed else f"{text}: give more prompts"]
