"""A study in numbers: what several runs of one recipe say together, and what runs say under several definitions.

One run is "this run"; a claim about a recipe rests on at least 3 seeds. Cases that nothing can be said of stay in every
denominator and are counted both ways.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt

import numpy as np

from truing.stats.correction import holm
from truing.stats.meta import (
    LEAST_SEEDS,
    Equivalence,
    Mean,
    Pooled,
    equivalence,
    exact_share,
    implied_variance,
    mean_over_cases,
    random_effects,
)
from truing.stats.trend import Trend
from truing.types.cases import Case, Frozen
from truing.types.traits import Rule
from truing.types.verdicts import Basis, CheckpointVerdict, Estimate, HealthState, Status, Verdict

NOTHING = Estimate(None, None, None)
"""what was not measured"""


@dataclass(frozen=True, slots=True)
class SeedRun:
    """What one run brings to its cell."""

    case: Case
    """which run"""
    onset: str
    """found, never or undecided; empty without a verdict on labelled answers"""
    excess: Estimate = NOTHING
    """excess over the base at the checkpoint the study looks at"""
    rate: Estimate = NOTHING
    """share positive at that checkpoint"""
    base: Estimate = NOTHING
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
    used = [r for r in runs if implied_variance(r.excess) is not None]
    out = {f"{r.case.name}: {r.reason or 'no interval'}": 1 for r in runs if implied_variance(r.excess) is None}
    warnings = list(out)
    if len({r.step for r in used}) > 1:
        warnings.append(f"looked at different steps: {', '.join(str(r.step) for r in used)}")
    between = None
    if len(used) < LEAST_SEEDS:
        warnings.append(f"fewer than {LEAST_SEEDS} seeds: a statement on these runs, not on the recipe")
        excess, mean = _few(used, level)
    else:
        excess, between = _pooled(used, level)
        mean = between.mean
    cell = Cell(
        *runs[0].case.cell,
        parameters=sizes.pop() if len(sizes) == 1 else None,
        runs=tuple(r.case.audit for r in runs),
        steps=tuple(r.step for r in runs),
        onset=exact_share(found, never, len(runs) - found - never, level=level),
        excess=replace(excess, left_out={**excess.left_out, **out}),
        equivalence=equivalence(mean, delta, reason="" if mean is not None else excess.warning),
        warnings=tuple(warnings),
    )
    if between is None:
        return cell
    low, high = between.mean.limits(level)
    consistent = "above" if low > rule.lo else "below" if high < rule.lo else "no"
    p = between.mean.p_above(rule.lo)
    return replace(cell, tau=sqrt(between.tau2), i2=between.i2, consistent=consistent, p=p)


def adjusted(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with p-values adjusted over them (Holm), of the excess and of equivalence each; None stays None."""
    tested, out = [k for k, c in enumerate(cells) if c.p is not None], list(cells)
    p, same = holm([cells[k].p or 0.0 for k in tested]), holm([cells[k].equivalence.p or 0.0 for k in tested])
    for k, one, other in zip(tested, p, same, strict=True):
        out[k] = replace(cells[k], p_holm=one, equivalence=replace(cells[k].equivalence, p_adjusted=other))
    return tuple(out)


def _pooled(used: Sequence[SeedRun], level: float) -> tuple[Estimate, Pooled]:
    """The mean excess of at least 3 runs that have one, with the error of shared answers of step 0 in it."""
    y, n = np.array([r.excess.value for r in used]), np.array([float(max(1, r.excess.n)) for r in used])
    full = np.array([implied_variance(r.excess) for r in used], dtype=float)
    keys = [r.base_key for r in used if r.base_key]
    shared = len(set(keys)) < len(keys) and used[0].base.value is not None  # any two share step 0's answers
    # Of a difference to shared answers, only the run's own part is an error of that run alone.
    own = [implied_variance(r.rate) if shared else None for r in used]
    v = np.array([min(mine, whole) if mine is not None else whole for mine, whole in zip(own, full, strict=True)])
    # A run that by chance has few positive answers has a small variance too and would weigh more, which biases the
    # mean down; so runs weigh by their answers, with one variance per answer (Emerson, Hoaglin & Mosteller 1993).
    found = random_effects(y, float((v * n).mean()) / n)
    mean = found.mean.plus((implied_variance(used[0].base) or 0.0) if shared else 0.0)
    # What prompts like these add to exactly these, taken as the same in all runs.
    wide = [implied_variance(r.excess, like_these=True) for r in used]
    extra = [max(0.0, w - whole) for w, whole in zip(wide, full, strict=True) if w is not None]
    low, high = mean.plus(float(np.mean(extra))).limits(level) if len(extra) == len(used) else (None, None)
    method = "random effects over seeds (Paule-Mandel), modified Hartung-Knapp t"
    excess = Estimate(
        mean.value,
        low,
        high,
        *mean.limits(level),
        n=sum(r.excess.n for r in used),
        clusters=len(used),
        method=f"{method}; step 0's answers are shared by the runs" if shared else method,
        level=level,
        warning=next((r.excess.warning for r in used if r.excess.warning), ""),
    )
    return excess, replace(found, mean=mean)


def _few(used: Sequence[SeedRun], level: float) -> tuple[Estimate, Mean | None]:
    """One run's own excess, for exactly these prompts; of more the mean, without an interval."""
    values = [r.excess.value for r in used if r.excess.value is not None]
    if len(used) == 1:
        return used[0].excess, Mean(values[0], sqrt(implied_variance(used[0].excess) or 0.0), inf)
    why = f"{len(used)} seeds: no interval over seeds under {LEAST_SEEDS}" if used else "no run has an excess"
    mean = float(np.mean(values)) if values else None
    return Estimate(mean, None, None, clusters=len(used), method="none", level=level, warning=why), None


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
    perhaps = [(c, o) for c, o in pairs if o.turned != "no"]
    never = len(pairs) - len(perhaps)
    shares, means = (_share(turned, perhaps), _share(pairs, pairs)), (_retained(turned), _retained(pairs))
    return DefinitionRow(definition, len(pairs), len(turned), never, *shares, *means, tuple(outcomes))


_Pairs = Sequence[tuple[Case, Outcome]]


def _share(pairs: _Pairs, perhaps: _Pairs) -> Estimate:
    """Share avoided among some cases, `perhaps` being these and those that may belong to them."""
    yes, no = (sum(o.avoided == word for _, o in pairs) for word in ("yes", "no"))
    return exact_share(yes, no, len(perhaps) - yes - no, groups=len({c.model for c, _ in perhaps}))


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
    if verdict.basis is not Basis.LABELLED:
        return UNKNOWN  # a screen that sees nothing is no case that stayed clean
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


# ---------------------------------------------------------------------------------------------------------------------
# The whole


@dataclass(frozen=True, slots=True)
class StudyCase:
    """A case with what its audit says."""

    case: Case
    """which"""
    onset: str
    """found, never, undecided, or empty without a verdict on labelled answers"""
    recommended: str | None
    """label of the recommended checkpoint"""
    frozen: Frozen | None
    """what became of its freeze; None where nothing was frozen"""
    notes: tuple[str, ...] = ()
    """what qualifies it, e.g. why it has no verdict"""


@dataclass(frozen=True, slots=True)
class Study:
    """Several audits, as one study."""

    cases: tuple[StudyCase, ...]
    """in the order given"""
    cells: tuple[Cell, ...]
    """seeds of one model, data set and recipe, put together"""
    definitions: tuple[DefinitionRow, ...]
    """all cases under each definition"""
    trends: Mapping[str, Trend]
    """data set (and recipe) -> excess against size of the model"""
    at: str
    """which checkpoint the excess is that of"""
    delta: float
    """of the equivalence tests"""
    rule: Rule
    """what is positive in all of them"""
    judge: str
    """who judged all of them"""
    status: str
    """frozen, exploratory (something was changed after a freeze) or not frozen, of the study as a whole"""
    warnings: tuple[str, ...] = ()
    """what a reader must know"""
