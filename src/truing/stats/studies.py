"""A study in numbers: what several runs of one recipe say together, and what runs say under several definitions.

One run is "this run"; a claim about a recipe rests on at least 3 seeds. Cases that nothing can be said of stay in every
denominator and are counted both ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Any

import numpy as np

from truing.stats.correction import holm
from truing.stats.meta import (
    LEAST_SEEDS,
    Equivalence,
    Mean,
    equivalence,
    exact_share,
    implied_variance,
    mean_over_cases,
    random_effects,
)
from truing.types.cases import Case
from truing.types.traits import Rule
from truing.types.verdicts import CheckpointVerdict, Estimate, HealthState, Status, Verdict


@dataclass(frozen=True, slots=True)
class SeedRun:
    """What one run brings to its cell."""

    case: Case
    """which run"""
    onset: str
    """found, never or undecided; empty without a verdict on labelled answers"""
    excess: Estimate | None = None
    """excess over the base at the checkpoint the study looks at"""
    rate: Estimate | None = None
    """share positive at that checkpoint"""
    base: Estimate | None = None
    """the same of step 0"""
    base_key: str = ""
    """what step 0's answers were: runs with one key share those answers"""
    step: int | None = None
    """the checkpoint's step"""
    reason: str = ""
    """why there is no excess"""


@dataclass(frozen=True, slots=True)
class Cell:
    """The seeds of one model, data set and recipe, put together."""

    model: str
    """the base"""
    data: str
    """what it was trained on"""
    recipe: str
    """all else but the seed"""
    parameters: float | None
    """size of the model"""
    runs: tuple[str, ...]
    """audits, one per seed"""
    steps: tuple[int | None, ...]
    """the checkpoint looked at, per run"""
    onset: Estimate
    """share of seeds with an onset; exact"""
    excess: Estimate
    """mean excess over seeds. `set_low, set_high`: for these prompts, seeds like these; `low, high`: also for prompts
    like these. A single run's own interval where there are fewer than 3"""
    equivalence: Equivalence
    """whether the mean excess is certainly within delta of 0"""
    tau: float | None = None
    """standard deviation between seeds beyond the error of each run; None under 3 seeds"""
    i2: float | None = None
    """share of the spread that is between seeds"""
    consistent: str = "this_run"
    """above (the interval lies above lo), below (under lo), no (it holds lo), or this_run (under 3 seeds)"""
    p: float | None = None
    """one-sided, of a mean excess above lo"""
    p_holm: float | None = None
    """`p` adjusted for the other cells of the study"""
    warnings: tuple[str, ...] = ()
    """what a reader must know"""


def cell_of(runs: Sequence[SeedRun], rule: Rule, *, delta: float, level: float = 0.95) -> Cell:
    """The runs of one cell put together.

    A random-effects mean over seeds with the modified Hartung-Knapp interval (`stats.meta`), runs weighing by their
    answers. Where runs share step 0's answers, the error of those is in every run alike, so the spread does not show
    it: its variance is added. For prompts like these, the variance between prompts is added as if it were the same in
    all runs.

    Args:
        runs: one per seed; those without an excess are left out and counted.
        rule: lo.
        delta: of the equivalence test.
        level: nominal coverage.

    Raises:
        ValueError: no runs, or runs of different cells.
    """
    if not runs or len({r.case.cell for r in runs}) != 1:
        raise ValueError("a cell holds the runs of one model, data set and recipe, and at least one")
    kinds, sizes = [r.onset for r in runs], {r.case.parameters for r in runs} - {None}
    found, never = kinds.count("found"), kinds.count("never")
    used = [(r, v) for r in runs if r.excess is not None and (v := implied_variance(r.excess)) is not None]
    out = {f"{r.case.name}: {r.reason or 'no interval'}": 1 for r in runs if r not in [u for u, _ in used]}
    warnings = list(out)
    if len({r.step for r, _ in used}) > 1:
        warnings.append(f"looked at different steps: {', '.join(str(r.step) for r, _ in used)}")
    if len(used) < LEAST_SEEDS:
        warnings.append(f"fewer than {LEAST_SEEDS} seeds: a statement on these runs, not on the recipe")
        made = _few(used, out, delta, level)
    else:
        made = _pooled(used, out, rule, delta, level)
    return Cell(
        *runs[0].case.cell,
        parameters=sizes.pop() if len(sizes) == 1 else None,
        runs=tuple(r.case.audit for r in runs),
        steps=tuple(r.step for r in runs),
        onset=exact_share(found, never, len(runs) - found - never, level=level),
        warnings=tuple(warnings),
        **made,
    )


def adjusted(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with p-values adjusted over them (Holm), of the excess and of equivalence each; None stays None."""
    tested = [c for c in cells if c.p is not None]
    found = holm([c.p for c in tested if c.p is not None])
    same = holm([c.equivalence.p or 0.0 for c in tested])
    made = iter(zip(found, same, strict=True))

    def one(c: Cell) -> Cell:
        if c.p is None:
            return c
        p, e = next(made)
        return replace(c, p_holm=p, equivalence=replace(c.equivalence, p_adjusted=e))

    return tuple(one(c) for c in cells)


_Used = Sequence[tuple[SeedRun, float]]
"""runs with an excess, and its variance"""


def _pooled(used: _Used, out: dict[str, int], rule: Rule, delta: float, level: float) -> dict[str, Any]:
    """What is said of a cell with at least 3 runs."""
    excess = [r.excess for r, _ in used if r.excess is not None]
    y, n = np.array([e.value for e in excess]), np.array([float(max(1, e.n)) for e in excess])
    keys = [r.base_key for r, _ in used if r.base_key]
    base = used[0][0].base if len(set(keys)) < len(keys) else None  # any two share step 0's answers
    of_base = (implied_variance(base) or 0.0) if base is not None else 0.0
    own = [implied_variance(r.rate) if base is not None and r.rate is not None else None for r, _ in used]
    # Of a difference to shared answers, only the run's own part is an error of that run alone.
    v = np.array([min(mine, full) if mine is not None else full for mine, (_, full) in zip(own, used, strict=True)])
    # A run that by chance has few positive answers has a small variance too and would weigh more, which biases the
    # mean down; so runs weigh by their answers, with one variance per answer (Emerson, Hoaglin & Mosteller 1993).
    found = random_effects(y, float((v * n).mean()) / n)
    mean = found.mean.plus(of_base)
    set_low, set_high = mean.limits(level)
    # What prompts like these add to exactly these, taken as the same in all runs.
    wide = [implied_variance(e, like_these=True) for e in excess]
    extra = [max(0.0, w - full) for w, (_, full) in zip(wide, used, strict=True) if w is not None]
    low, high = mean.plus(float(np.mean(extra))).limits(level) if len(extra) == len(used) else (None, None)
    shared = "; step 0's answers are shared by the runs" if base is not None else ""
    method = f"random effects over seeds (Paule-Mandel), modified Hartung-Knapp t{shared}"
    warning = next((e.warning for e in excess if e.warning), "")
    k, total = len(used), sum(e.n for e in excess)
    return {
        "excess": Estimate(mean.value, low, high, set_low, set_high, total, k, out, method, level, warning=warning),
        "equivalence": equivalence(mean, delta),
        "tau": sqrt(found.tau2),
        "i2": found.i2,
        "consistent": "above" if set_low > rule.lo else "below" if set_high < rule.lo else "no",
        "p": mean.p_above(rule.lo),
    }


def _few(used: _Used, out: dict[str, int], delta: float, level: float) -> dict[str, Any]:
    """One run's own excess and test, for exactly these prompts; of two runs the mean, without an interval."""
    values = [r.excess.value for r, _ in used if r.excess is not None and r.excess.value is not None]
    if len(used) == 1 and used[0][0].excess is not None:
        own, variance = used[0][0].excess, used[0][1]
        return {
            "excess": replace(own, left_out={**own.left_out, **out}),
            "equivalence": equivalence(Mean(values[0], sqrt(variance), inf), delta),
        }
    why = f"{len(used)} seeds: no interval over seeds under {LEAST_SEEDS}" if used else "no run has an excess"
    mean = float(np.mean(values)) if values else None
    return {
        "excess": Estimate(mean, None, None, clusters=len(used), left_out=out, method="none", level=level, warning=why),
        "equivalence": equivalence(None, delta, reason=why),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Definitions


@dataclass(frozen=True, slots=True)
class Definition:
    """What positive is, and what learned is."""

    name: str
    """short, for the table"""
    rule: Rule = field(default_factory=Rule)
    """how scores become labels, lo and hi"""
    converged_at: float | None = None
    """progress, of the best, that the kept checkpoint must reach; None for none"""
    kind: str = "certified"
    """certified: the verdict decides, and the kept checkpoint is the recommended one. estimated: an excess above lo, as
    it was measured, decides, and the last checkpoint before the first such is kept. Published shares are read so"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one case came to under a definition."""

    turned: str
    """whether the trait sets in: yes, no or unknown"""
    avoided: str
    """whether a checkpoint without it could be kept: yes, no or unknown"""
    kept: str | None = None
    """label of that checkpoint"""
    retained: float | None = None
    """its task progress, as a share of the last checkpoint's; None where not measured"""
    reason: str = ""
    """why unknown or not avoided"""


UNKNOWN = Outcome("unknown", "unknown", reason="no verdict on labelled answers")


@dataclass(frozen=True, slots=True)
class DefinitionRow:
    """All cases under one definition."""

    definition: Definition
    """which"""
    cases: int
    """cases of the study"""
    turned: int
    """cases in which the trait sets in"""
    never: int
    """cases that do not"""
    avoided: Estimate
    """of the cases that turn: share in which it is avoided"""
    certified: Estimate
    """of all cases: share with a checkpoint to keep"""
    retained: Estimate
    """mean task performance kept, over the cases that turn and avoid it"""
    retained_all: Estimate
    """the same over all cases with a checkpoint to keep"""
    outcomes: tuple[Outcome, ...] = ()
    """per case, in the study's order"""


def definition_row(definition: Definition, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> DefinitionRow:
    """Shares and means over cases under one definition, with intervals over cases and over models.

    Raises:
        ValueError: not one outcome per case.
    """
    pairs = list(zip(cases, outcomes, strict=True))
    turned = [(c, o) for c, o in pairs if o.turned == "yes"]
    # Whether a case of unknown kind belongs among those that turn is itself unknown, so it is counted both ways.
    unknown = [(c, o) for c, o in pairs if o.turned not in ("yes", "no")]
    never = len(pairs) - len(turned) - len(unknown)
    avoided, certified = _share(turned, unknown), _share(pairs, [])
    means = _retained(turned), _retained(pairs)
    return DefinitionRow(definition, len(pairs), len(turned), never, avoided, certified, *means, tuple(outcomes))


_Pairs = Sequence[tuple[Case, Outcome]]


def _share(pairs: _Pairs, unknown: _Pairs) -> Estimate:
    yes, no = (sum(o.avoided == word for _, o in pairs) for word in ("yes", "no"))
    models = {c.model for c, _ in (*pairs, *unknown)}
    return exact_share(yes, no, len(pairs) + len(unknown) - yes - no, groups=len(models))


def _retained(pairs: _Pairs) -> Estimate:
    kept = [(c.model, o.retained) for c, o in pairs if o.avoided == "yes" and o.retained is not None]
    names = sorted({m for m, _ in kept})
    group = np.array([names.index(m) for m, _ in kept], dtype=np.int64)
    found = mean_over_cases(np.array([r for _, r in kept], dtype=float), group)
    lost = sum(o.avoided == "yes" and o.retained is None for _, o in pairs)
    return replace(found, left_out={"task progress not measured": lost}) if lost else found


def outcome_of(verdict: Verdict, definition: Definition) -> Outcome:
    """What a verdict, made under the definition's rule, says of its case.

    Raises:
        ValueError: a definition of an unknown kind.
    """
    if definition.kind not in ("certified", "estimated"):
        raise ValueError(f"definition {definition.name}: kind {definition.kind!r}; use certified or estimated")
    if definition.kind == "certified":
        turned = {"found": "yes", "never": "no"}.get(verdict.onset.status, "unknown")
        kept, why = next((c for c in verdict.checkpoints if c.label == verdict.recommended), None), "none certified"
        avoided = "no"
    else:
        turned, kept, why = _estimated(verdict, definition.rule.lo)
        avoided = "unknown" if turned == "unknown" else "no"
    if kept is None:
        return Outcome(turned, avoided, reason=why)
    progress, asked = progress_of(verdict, kept), definition.converged_at
    if asked is not None and progress is None:
        return Outcome(turned, "unknown", kept.label, None, "task progress not measured")
    if asked is not None and progress is not None and progress < asked:
        return Outcome(turned, "no", kept.label, None, f"{kept.label} has learned {progress:.0%}, {asked:.0%} is asked")
    last = next((p for c in reversed(verdict.checkpoints) if (p := progress_of(verdict, c)) is not None), None)
    return Outcome(turned, "yes", kept.label, progress / last if progress is not None and last and last > 0 else None)


def _estimated(verdict: Verdict, lo: float) -> tuple[str, CheckpointVerdict | None, str]:
    """(whether it turns, the last checkpoint before that, why there is none), by estimates alone."""
    if verdict.onset.errors:
        return "unknown", None, "a search stopped on what it saw, so its rates are no estimates"
    there = [c for c in verdict.checkpoints[1:] if c.status is not Status.FAILED]
    later = [(c, e.value) for c in there if (e := c.shown_excess) is not None and e.value is not None]
    if not later or len(later) < len(there):
        return "unknown", None, f"{len(later)} of {len(there)} checkpoints have labelled answers"
    first = next((k for k, (_, value) in enumerate(later) if value > lo), None)
    before = [c for c, _ in (later if first is None else later[:first]) if c.health.state is not HealthState.COLLAPSED]
    return "no" if first is None else "yes", before[-1] if before else None, "positive from the first checkpoint on"


def progress_of(verdict: Verdict, c: CheckpointVerdict) -> float | None:
    """Task progress of a checkpoint on the curve that the verdict ranks by."""
    curve = {"skill": c.skill_progress, "loss": c.loss_progress}.get(verdict.retained_curve or "")
    return curve.value if curve is not None else None
