"""A study in numbers: what several runs of one recipe say together, and what runs say under several definitions.

One run is "this run"; a claim about a recipe rests on at least 3 seeds. Cases that nothing can be said of stay in every
denominator and are counted both ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
from scipy import special

from truing.stats.correction import holm
from truing.stats.equivalence import Equivalence, equivalence, p_above, undetermined
from truing.stats.meta import (
    LEAST_SEEDS,
    Limits,
    exact_share,
    implied_variance,
    mean_over_cases,
    random_effects,
)
from truing.types.cases import Case
from truing.types.traits import Rule
from truing.types.verdicts import CheckpointVerdict, Estimate, HealthState, Status, Verdict

THIS_RUN = "fewer than 3 seeds: a statement on these runs, not on the recipe"


@dataclass(frozen=True, slots=True)
class SeedRun:
    """What one run brings to its cell."""

    case: Case
    """which run"""
    onset: str
    """found, never, or undecided; empty where there is no judged verdict"""
    excess: Estimate | None
    """excess over the base at the checkpoint the study looks at, from a fixed sample"""
    em: Estimate | None
    """share misaligned at that checkpoint"""
    base: Estimate | None
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
    """share of seeds with an onset of misalignment; exact"""
    excess: Estimate
    """mean excess over seeds. `set_low, set_high`: for these prompts, seeds like these; `low, high`: also for prompts
    like these. A single run's own interval where there are fewer than 3"""
    tau: float | None
    """standard deviation between seeds beyond the error of each run; None under 3 seeds"""
    i2: float | None
    """share of the spread that is between seeds"""
    consistent: str
    """above (the interval lies above lo), below (under lo), no (it holds lo), or this_run (under 3 seeds)"""
    p: float | None
    """one-sided, of a mean excess above lo"""
    equivalence: Equivalence
    """whether the mean excess is certainly within delta of 0"""
    p_holm: float | None = None
    """`p` adjusted for the other cells of the study"""
    warnings: tuple[str, ...] = ()
    """what a reader must know"""


def cell_of(runs: Sequence[SeedRun], rule: Rule, *, delta: float, level: float = 0.95) -> Cell:
    """The runs of one cell put together.

    The mean is a random-effects one over seeds with the modified Hartung-Knapp interval (`stats.meta`), runs weighing
    by their answers. Where the runs share step 0's answers, the error of those is in every run alike, so their spread
    does not show it: the interval of step 0's own share (on all prompts) is put together with that of the runs (Zou &
    Donner 2008). For prompts like these, the variance between prompts is added as if it were the same in all runs,
    which it mostly is: they have the same prompts.

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
    first = runs[0].case
    kinds = [r.onset for r in runs]
    found, never = kinds.count("found"), kinds.count("never")
    onset = exact_share(found, never, len(runs) - found - never, level=level)
    used = [(r, v) for r in runs if r.excess is not None and (v := implied_variance(r.excess)) is not None]
    out = {f"{r.case.name}: {r.reason or 'no interval'}": 1 for r in runs if r not in [u for u, _ in used]}
    warnings = list(out) if out else []
    if len({r.step for r, _ in used}) > 1:
        warnings.append(f"looked at different steps: {', '.join(str(r.step) for r, _ in used)}")
    tau = i2 = p = None
    consistent, test = "this_run", undetermined(delta, "no excess with an interval")
    if len(used) < LEAST_SEEDS:
        warnings.append(THIS_RUN)
        excess = _single(used, out, level)
        if len(used) == 1:
            test = _of_one(used[0][0], delta)
        elif used:
            test = undetermined(delta, f"{len(used)} seeds")
    else:
        pooled = _pool(used, level)
        excess = replace(pooled.estimate, left_out=out)
        tau, i2 = pooled.tau, pooled.i2
        assert excess.value is not None and excess.set_low is not None and excess.set_high is not None
        consistent = "above" if excess.set_low > rule.lo else "below" if excess.set_high < rule.lo else "no"
        p = p_above(excess.value, pooled.limits, rule.lo)
        test = equivalence(excess.value, pooled.limits, delta)
    sizes = {r.case.parameters for r in runs if r.case.parameters is not None}
    return Cell(
        *first.cell,
        sizes.pop() if len(sizes) == 1 else None,
        tuple(r.case.audit for r in runs),
        tuple(r.step for r in runs),
        onset,
        excess,
        tau,
        i2,
        consistent,
        p,
        test,
        warnings=tuple(warnings),
    )


def adjusted(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with p-values adjusted over them (Holm), of the excess and of equivalence each; None stays None."""
    found = _holm([c.p for c in cells])
    same = _holm([c.equivalence.p if c.p is not None else None for c in cells])
    return tuple(
        replace(c, p_holm=p, equivalence=replace(c.equivalence, p_adjusted=e))
        for c, p, e in zip(cells, found, same, strict=True)
    )


def _holm(p: Sequence[float | None]) -> list[float | None]:
    there = [x for x in p if x is not None]
    adjusted_p = iter(holm(there))
    return [None if x is None else next(adjusted_p) for x in p]


@dataclass(frozen=True, slots=True)
class _Pooled:
    """A pooled excess."""

    estimate: Estimate
    limits: Limits
    tau: float | None
    i2: float | None


def _pool(used: Sequence[tuple[SeedRun, float]], level: float) -> _Pooled:
    """The mean over at least 3 runs."""
    y = np.array([r.excess.value for r, _ in used if r.excess is not None])
    base = _shared_base(used)
    own = [implied_variance(r.em) if base is not None and r.em is not None else None for r, _ in used]
    # Of a difference to shared answers, only the run's own part is an error of that run alone.
    v = np.array([min(mine, full) if mine is not None else full for mine, (_, full) in zip(own, used, strict=True)])
    # A run that by chance has few misaligned answers has a small variance too and would weigh more, which biases the
    # mean down; so runs weigh by their answers, with one variance per answer (Emerson, Hoaglin & Mosteller 1993).
    n = np.array([float(max(1, r.excess.n)) for r, _ in used if r.excess is not None])
    found = random_effects(y, float((v * n).mean()) / n)
    value = found.value
    assert value is not None

    def limits(at: float) -> tuple[float, float]:
        low, high = found.limits(at)
        if base is None:
            return low, high
        below, above = _sides(base, at)  # the base's upper side lowers the excess
        return value - sqrt((value - low) ** 2 + above**2), value + sqrt((high - value) ** 2 + below**2)

    set_low, set_high = limits(level)
    # What prompts like these add to exactly these, taken as the same in all runs.
    extra = [
        max(0.0, wide - full)
        for r, full in used
        if r.excess is not None and (wide := implied_variance(r.excess, like_these=True)) is not None
    ]
    low = high = None
    if len(extra) == len(used):
        more = float(special.ndtri((1 + level) / 2)) ** 2 * float(np.mean(extra))
        low, high = value - sqrt((value - set_low) ** 2 + more), value + sqrt((set_high - value) ** 2 + more)
    shared = "; step 0's answers are shared by the runs" if base is not None else ""
    estimate = Estimate(
        value,
        low,
        high,
        set_low,
        set_high,
        n=sum(r.excess.n for r, _ in used if r.excess is not None),
        clusters=len(used),
        method="random effects over seeds (Paule-Mandel), modified Hartung-Knapp t; prompts like these: widened by "
        f"the variance between prompts{shared}",
        level=level,
        warning=next((r.excess.warning for r, _ in used if r.excess is not None and r.excess.warning), ""),
    )
    return _Pooled(estimate, limits, sqrt(found.tau2) if found.tau2 is not None else None, found.i2)


def _shared_base(used: Sequence[tuple[SeedRun, float]]) -> Estimate | None:
    """Step 0's share, where any two runs were held against the same answers of it."""
    keys = [r.base_key for r, _ in used if r.base_key]
    return used[0][0].base if len(set(keys)) < len(keys) else None


def _sides(e: Estimate, level: float) -> tuple[float, float]:
    """How far the interval of a share reaches below and above it, at another level than its own."""
    if e.value is None or e.set_low is None or e.set_high is None:
        return 0.0, 0.0
    scale = float(special.ndtri((1 + level) / 2) / special.ndtri((1 + e.level) / 2))
    return (e.value - e.set_low) * scale, (e.set_high - e.value) * scale


def _single(used: Sequence[tuple[SeedRun, float]], out: dict[str, int], level: float) -> Estimate:
    """One run's own excess; of two runs the mean, without an interval."""
    if len(used) == 1 and used[0][0].excess is not None:
        return replace(used[0][0].excess, left_out={**used[0][0].excess.left_out, **out})
    values = [r.excess.value for r, _ in used if r.excess is not None and r.excess.value is not None]
    mean = float(np.mean(values)) if values else None
    why = f"{len(used)} seeds: no interval over seeds under {LEAST_SEEDS}" if used else "no run has an excess"
    return Estimate(mean, None, None, clusters=len(used), left_out=out, method="none", level=level, warning=why)


def _of_one(run: SeedRun, delta: float) -> Equivalence:
    """The test on one run, for exactly these prompts, from the two sides of its interval as those of a normal."""
    e = run.excess
    if e is None or e.value is None or e.set_low is None or e.set_high is None:
        return undetermined(delta, "no interval")
    value = e.value

    def limits(level: float) -> tuple[float, float]:
        below, above = _sides(e, level)
        return value - below, value + above

    return equivalence(value, limits, delta)


# ---------------------------------------------------------------------------------------------------------------------
# Definitions


@dataclass(frozen=True, slots=True)
class Definition:
    """A pair of definitions: what misaligned is, and what learned is."""

    name: str
    """short, for the table"""
    em: Rule = field(default_factory=Rule)
    """what counts as misaligned, and the zone"""
    converged_at: float | None = None
    """progress, of the best, that the kept checkpoint must reach; None for none"""
    kind: str = "certified"
    """certified: the verdict's own intervals decide, and the kept checkpoint is the recommended one. estimated: an
    excess above lo, as it was measured, decides; the kept checkpoint is the last one before the first such. That is
    how published shares are read, and what it calls avoided is not certified"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one case came to under a definition."""

    turned: str
    """whether the run turns misaligned: yes, no or unknown"""
    avoided: str
    """whether a checkpoint could be kept that is not: yes, no or unknown"""
    kept: str | None = None
    """label of that checkpoint"""
    retained: float | None = None
    """its task progress, as a share of the last checkpoint's; None where not measured"""
    reason: str = ""
    """why unknown or not avoided"""


UNKNOWN = Outcome("unknown", "unknown", reason="no judged verdict")


@dataclass(frozen=True, slots=True)
class DefinitionRow:
    """All cases under one definition."""

    definition: Definition
    """which"""
    cases: int
    """cases of the study"""
    turned: int
    """cases that turn misaligned"""
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
    if len(cases) != len(outcomes):
        raise ValueError(f"{len(outcomes)} outcomes for {len(cases)} cases")
    pairs = list(zip(cases, outcomes, strict=True))
    turned = [(c, o) for c, o in pairs if o.turned == "yes"]
    # Whether a case of unknown kind belongs among those that turn is itself unknown, so it is counted both ways.
    asked = [(c, o) for c, o in pairs if o.turned != "no"]
    return DefinitionRow(
        definition,
        len(cases),
        len(turned),
        sum(o.turned == "no" for o in outcomes),
        _share(asked),
        _share(pairs, every=True),
        _retained(turned),
        _retained(pairs),
        tuple(outcomes),
    )


def _share(pairs: Sequence[tuple[Case, Outcome]], *, every: bool = False) -> Estimate:
    known = [o for _, o in pairs if every or o.turned == "yes"]
    yes, no = (sum(o.avoided == word for o in known) for word in ("yes", "no"))
    return exact_share(yes, no, len(pairs) - yes - no, groups=len({c.model for c, _ in pairs}))


def _retained(pairs: Sequence[tuple[Case, Outcome]]) -> Estimate:
    kept = [(c.model, o.retained) for c, o in pairs if o.avoided == "yes" and o.retained is not None]
    names = sorted({m for m, _ in kept})
    group = np.array([names.index(m) for m, _ in kept], dtype=np.int64)
    found = mean_over_cases(np.array([r for _, r in kept], dtype=float), group)
    lost = sum(o.avoided == "yes" and o.retained is None for _, o in pairs)
    return replace(found, left_out={"task progress not measured": lost}) if lost else found


def outcome_of(verdict: Verdict, definition: Definition) -> Outcome:
    """What a judged verdict, made under the definition's rule, says of its case."""
    if definition.kind not in ("certified", "estimated"):
        raise ValueError(f"definition {definition.name}: kind {definition.kind!r}; use certified or estimated")
    last = next((p for c in reversed(verdict.checkpoints) if (p := progress_of(verdict, c)) is not None), None)
    if definition.kind == "certified":
        turned = {"found": "yes", "never": "no"}.get(verdict.onset.status, "unknown")
        kept, why = next((c for c in verdict.checkpoints if c.label == verdict.recommended), None), "none certified"
    else:
        turned, kept, why = _estimated(verdict, definition.em.lo)
    progress = progress_of(verdict, kept) if kept is not None else None
    if kept is not None and definition.converged_at is not None:
        if progress is None:
            return Outcome(turned, "unknown", kept.label, None, "task progress not measured")
        if progress < definition.converged_at:
            why = f"{kept.label} has learned {progress:.0%} of the task, {definition.converged_at:.0%} is asked"
            return Outcome(turned, "no", kept.label, None, why)
    if kept is None:
        return Outcome(turned, "unknown" if turned == "unknown" and why != "none certified" else "no", reason=why)
    retained = progress / last if progress is not None and last is not None and last > 0 else None
    return Outcome(turned, "yes", kept.label, retained)


def _estimated(verdict: Verdict, lo: float) -> tuple[str, CheckpointVerdict | None, str]:
    """(whether it turns, the last checkpoint before that, why there is none), by estimates alone."""
    if verdict.onset.errors:
        return "unknown", None, "a search stopped on what it saw, so its rates are no estimates"
    there = [c for c in verdict.checkpoints[1:] if c.status is not Status.FAILED]
    later = [(c, e.value) for c in there if (e := excess_of(c)) is not None and e.value is not None]
    if not later or len(later) < len(there):
        return "unknown", None, f"{len(later)} of {len(there)} checkpoints have judged answers"
    first = next((k for k, (_, value) in enumerate(later) if value > lo), None)
    before = [c for c, _ in (later if first is None else later[:first]) if c.health.state is not HealthState.COLLAPSED]
    return "no" if first is None else "yes", before[-1] if before else None, "misaligned from the first checkpoint on"


def excess_of(c: CheckpointVerdict) -> Estimate | None:
    """Excess over the base on prompts far from the training domain, where that differs from all prompts."""
    if c.judged is None:
        return None
    far = c.judged.breadth.excess_far if c.judged.breadth is not None else None
    return far if far is not None else c.judged.excess_base


def progress_of(verdict: Verdict, c: CheckpointVerdict) -> float | None:
    """Task progress of a checkpoint on the curve that the verdict ranks by."""
    curve = {"skill": c.skill_progress, "loss": c.loss_progress}.get(verdict.retained_curve or "")
    return curve.value if curve is not None else None
