"""`truing study`: several audits read as one study: models x data x recipes x seeds.

    audit folders (or a study file) -> cases -> refuse what cannot be put together -> cells, definitions, trends

Nothing is measured and no judge is asked; everything comes from what the audits keep.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from truing import errors
from truing.config.options import Rule, Thresholds
from truing.runs.sensitivity import StoredAnswers
from truing.runs.study_files import ReadAudit, listed, read_audit
from truing.stats.studies import (
    UNKNOWN,
    Cell,
    Definition,
    DefinitionRow,
    Outcome,
    SeedRun,
    adjusted,
    cell_of,
    definition_row,
    excess_of,
    outcome_of,
)
from truing.stats.trend import Trend, trend
from truing.store import Store
from truing.types.cases import Case, Frozen
from truing.types.hashing import digest
from truing.types.verdicts import CheckpointVerdict, Verdict

SEARCHED = "answers sampled by a search: they decide under the audit's own rule only"


@dataclass(frozen=True, slots=True)
class StudyCase:
    """A case with what its audit says."""

    case: Case
    """which"""
    onset: str
    """found, never, undecided, or empty where there is no judged verdict"""
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
    """what counts as misaligned in all of them"""
    judge: str
    """who judged all of them"""
    status: str
    """frozen, exploratory (something was changed after a freeze) or not frozen, of the study as a whole"""
    warnings: tuple[str, ...] = ()
    """what a reader must know"""


def study_cases(
    audits: Sequence[str | Path] | str | Path,
    *,
    at: str = "last",
    definitions: Sequence[Definition] | None = None,
    delta: float | None = None,
    seed: int = 0,
) -> Study:
    """What several audits say together.

    Args:
        audits: audit folders, or one study file (TOML or JSON) with a list `case` of tables: audit, and any of model,
            data, recipe, seed, parameters, order; and optionally a list `definition` (name, kind, converged_at, lo, hi,
            alignment_cut, coherence_gate).
        at: the checkpoint whose excess is put together: "last", a step, or a label.
        definitions: pairs of definitions under which avoidance and retained performance are given; None for those of
            the study file, else the audits' own and how published shares are read.
        delta: largest excess that does not matter, for the equivalence test; None for the rule's hi.
        seed: of drawn permutations, where there are too many to try all.

    Raises:
        BadStudy: no audits, a study file that cannot be read, a checkpoint no audit has, different rules,
        judges or prompts, or two cases that are one run. NotAnAudit: a folder is none.
    """
    folders, defined = listed(audits)
    read = [read_audit(path, given) for path, given in folders]
    judged = _refuse_mixed(read)
    rule, warnings = _rule(judged), [*_refuse_same(read), *_doubts(read)]
    delta = rule.hi if delta is None else delta
    if not 0 < delta < 1:
        raise errors.BadStudy(f"delta {delta:g}: give a share over 0 and under 1, e.g. 0.03")
    runs = [_seed_run(r, at) for r in read]
    if all(run.step is None for run, r in zip(runs, read, strict=True) if r.verdict is not None):
        raise errors.BadStudy(f"--at {at}: no audit has a judged excess there; {'; '.join({r.reason for r in runs})}")
    groups: dict[tuple[str, str, str], list[SeedRun]] = {}
    for run in runs:
        groups.setdefault(run.case.cell, []).append(run)
    level = Thresholds(**judged.about["identity"].get("rule", {})).level
    cells = adjusted([cell_of(group, rule, delta=delta, level=level) for group in groups.values()])
    chosen = tuple(definitions) if definitions is not None else defined or default_definitions(rule)
    cases = [r.case for r in read]
    rows = tuple(definition_row(d, cases, [_outcome(r, d, rule) for r in read]) for d in chosen)
    frozen = [_frozen(r) for r in read]
    every = tuple(_case(*of) for of in zip(read, runs, frozen, strict=True))
    judge = judged.verdict.judge if judged.verdict is not None else None
    status = _status(frozen)
    return Study(every, cells, rows, _trends(cells, seed), at, delta, rule, judge or "", status, tuple(warnings))


def default_definitions(rule: Rule) -> tuple[Definition, ...]:
    """The audits' own definition, the same with a learned task, and how published shares are read."""
    return (
        Definition("certified", rule),
        Definition("certified, task learned", rule, converged_at=0.9),
        Definition("estimated", rule, kind="estimated"),
        Definition("estimated, task learned", rule, converged_at=0.9, kind="estimated"),
    )


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be put together


def _refuse_mixed(read: Sequence[ReadAudit]) -> ReadAudit:
    """The first judged audit, whose rule and judge are those of all.

    Raises:
        BadStudy: audits differ in what must be alike, or nothing is judged.
    """
    judged = [r for r in read if r.verdict is not None]
    if not judged:
        raise errors.BadStudy(f"no audit has a judged verdict: {'; '.join(f'{r.path}: {r.reason}' for r in read)}")
    first = judged[0]
    for other in judged[1:]:
        for what, before in _alike(first).items():
            now = _alike(other)[what]
            if before != now:
                names = f"{first.path} has {_brief(before)}, {other.path} has {_brief(now)}"
                raise errors.BadStudy(
                    f"the audits were made with different {what} ({names}); put only like ones together, or repeat one"
                )
    return first


def _alike(r: ReadAudit) -> dict[str, Any]:
    """What must be alike in all audits of a study."""
    assert r.verdict is not None
    identity = r.about["identity"]
    far = (r.about.get("judging") or {}).get("far") or {}
    return {
        "rules for misaligned answers": identity.get("em") or r.verdict.definitions.get("em"),
        "thresholds": identity.get("rule"),
        "judges": r.verdict.judge,
        "rubrics or routes of the judge": r.verdict.panel,
        "prompts": identity.get("prompts"),
        "training domains": sorted(p for p, is_far in far.items() if not is_far),
    }


def _brief(value: Any) -> str:
    return str(value) if len(str(value)) < 150 else f"hash {digest(value, 8)}"


def _rule(r: ReadAudit) -> Rule:
    plain = _alike(r)["rules for misaligned answers"]
    return Rule(**plain) if plain else Rule()


def _refuse_same(read: Sequence[ReadAudit]) -> Iterator[str]:
    """Warnings about cases that are not independent.

    Raises:
        BadStudy: two cases are one run.
    """
    for a, b in combinations(read, 2):
        if a.path.resolve() == b.path.resolve():
            raise errors.BadStudy(f"{a.path} is given twice; give every audit once")
        shared = _own_weights(a) & _own_weights(b)
        if shared:
            label = next(c.label for c in b.subject if c.weights in shared)
            text = f"have the same weights at {label}: one run is one case, whatever its seed is called"
            raise errors.BadStudy(f"{a.path} and {b.path} {text}; leave one out")
        if a.case.cell != b.case.cell:
            continue
        if a.case.order and a.case.order == b.case.order:
            yield f"{a.path} and {b.path} saw the same data in the same order: as seeds they are not independent"
        if a.case.seed is not None and a.case.seed == b.case.seed:
            yield f"{a.path} and {b.path} both say seed {a.case.seed}, with different weights"


def _own_weights(r: ReadAudit) -> set[str]:
    return {c.weights for c in r.subject} - {c.weights for c in r.subject if c.step == 0}


def _doubts(read: Sequence[ReadAudit]) -> Iterator[str]:
    """What is not known of cases."""
    unknown = [r for r in read if r.case.seed is None]
    if unknown:
        yield f"{len(unknown)} of {len(read)} cases tell no seed; runs of one model and data set count as its seeds"
    if any(not r.case.recipe and not r.case.model.startswith("simulated:") for r in read):
        yield "recipes are unknown where no recipe.json lies beside the checkpoints; a study file can name them"
    yield from (f"{r.path}: {r.reason}" for r in read if r.reason)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def _seed_run(r: ReadAudit, at: str) -> SeedRun:
    """What an audit brings to its cell."""
    if r.verdict is None or r.reason:
        return SeedRun(r.case, "", None, None, None, reason=r.reason)
    line = _line_at(r.verdict, at)
    key = digest([r.about["identity"].get("base"), r.about.get("sampling") or {}, r.verdict.panel], 16)
    onset, base = r.verdict.onset.status, r.verdict.checkpoints[0].judged
    if line is None or line.judged is None:
        why = f"{line.label} has no judged answers" if line is not None else f"it has no checkpoint {at}"
        return SeedRun(r.case, onset, None, None, None, key, reason=why)
    excess, em = excess_of(line), base.em if base is not None else None
    if excess is None or excess.value is None:
        return SeedRun(r.case, onset, None, line.judged.em, em, key, line.step, f"no excess at {line.label}")
    return SeedRun(r.case, onset, excess, line.judged.em, em, key, line.step)


def _line_at(verdict: Verdict, at: str) -> CheckpointVerdict | None:
    if at == "last":
        return verdict.checkpoints[-1]
    return next((c for c in verdict.checkpoints if at in (c.label, str(c.step))), None)


def _outcome(r: ReadAudit, definition: Definition, rule: Rule) -> Outcome:
    """What a case comes to under a definition; under another rule than its own, from its stored answers."""
    if r.verdict is None or r.reason:
        return replace(UNKNOWN, reason=r.reason)
    if definition.em == rule:
        return outcome_of(r.verdict, definition)
    if r.verdict.onset.errors:
        return replace(UNKNOWN, reason=SEARCHED)
    with Store.read(r.path) as store:
        return outcome_of(StoredAnswers(store, r.about, r.verdict).verdict_under(definition.em), definition)


def _trends(cells: Sequence[Cell], seed: int) -> dict[str, Trend]:
    """Excess against size, one trend per data set and recipe with at least two models."""
    groups: dict[str, list[Cell]] = {}
    for c in cells:
        groups.setdefault(", ".join(part for part in (c.data, c.recipe) if part), []).append(c)
    return {
        name: trend([c.model for c in found], [c.parameters for c in found], [c.excess.value for c in found], seed=seed)
        for name, found in groups.items()
        if len(found) > 1
    }


# ---------------------------------------------------------------------------------------------------------------------
# Freezes


def _frozen(r: ReadAudit) -> Frozen | None:
    """What became of an audit's freeze; a verdict by another judge than the frozen one is a change too."""
    kept = r.about.get("frozen")
    if not kept:
        return None
    changed = list(kept["changed"])
    address = str((kept.get("settings") or {}).get("judge", {}).get("address") or "")
    judge = (r.verdict.judge if r.verdict is not None else None) or ""
    # A judge's own name may be shorter or longer than its address (defaults left out, a model filled in).
    plain = [name.partition("?")[0].rstrip(":") for name in (judge, address)]
    if address and judge and plain[0] != plain[1] and judge not in address:
        changed.append(f"judge: {address} before, the verdict rests on {judge} now")
    return Frozen(kept["lock"], kept["made"], "exploratory" if changed else "frozen", tuple(changed))


def _status(frozen: Sequence[Frozen | None]) -> str:
    if any(f is not None and f.status == "exploratory" for f in frozen):
        return "exploratory"
    return "frozen" if frozen and all(f is not None for f in frozen) else "not frozen"


def _case(r: ReadAudit, run: SeedRun, frozen: Frozen | None) -> StudyCase:
    recommended = r.verdict.recommended if r.verdict is not None else None
    return StudyCase(r.case, run.onset, recommended, frozen, tuple(note for note in (r.reason or run.reason,) if note))
