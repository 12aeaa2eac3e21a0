"""`truing study`: several audits read as one study: models x data x recipes x seeds.

    audit folders (or a study file) -> cases -> refuse what cannot be put together -> cells, definitions, trends

Nothing is measured and no judge is asked; everything comes from what the audits keep.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from truing import errors
from truing.config import Thresholds
from truing.runs.judge import stored_prompts, stored_run
from truing.runs.stages import group_of, judge_groups
from truing.runs.study_files import ReadAudit, listed, read_audit
from truing.stats.judged_checks import with_variants
from truing.stats.status import judge_verdict
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
from truing.stats.table import Labelled
from truing.stats.trend import Trend, trend
from truing.store import Store
from truing.types.cases import Case, Frozen
from truing.types.hashing import digest
from truing.types.traits import Rule
from truing.types.verdicts import CheckpointVerdict, Verdict

SEARCHED = "answers drawn by a search: they decide under the audit's own rule only"


@dataclass(frozen=True, slots=True)
class StudyCase:
    """A case with what its audit says."""

    case: Case
    """which"""
    status: str
    """done, or the state that its audit was left in"""
    onset: str
    """found, never, undecided, or empty where there is no judged verdict"""
    recommended: str | None
    """label of the recommended checkpoint"""
    frozen: Frozen | None
    """what became of its freeze; None where nothing was frozen"""
    sentence: str
    """its verdict"""
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
        definitions: pairs of definitions under which avoidance and retained performance are told; None for those of
            the study file, else the audits' own and how published shares are read.
        delta: largest excess that does not matter, for the equivalence test; None for the rule's hi.
        seed: of drawn permutations, where there are too many to try all.

    Raises:
        BadStudy: no audits, a study file that cannot be read, a checkpoint no audit has. MixedStudy: different rules,
        judges or prompts. SameRun: two cases are one run. NotAnAudit: a folder is none.
    """
    given, told = listed(audits)
    read = [read_audit(path, said) for path, said in given]
    rule, judge = _refuse_mixed(read)
    warnings = [*_refuse_same(read), *_doubts(read)]
    delta = rule.hi if delta is None else delta
    if not 0 < delta < 1:
        raise errors.BadStudy(f"delta {delta:g}: give a share over 0 and under 1, e.g. 0.03")
    level = _thresholds(read).level
    runs = [_seed_run(r, at) for r in read]
    if all(
        run.step is None and run.excess is None and r.verdict is not None for run, r in zip(runs, read, strict=True)
    ):
        raise errors.BadStudy(f"--at {at}: no audit has a judged excess there; {'; '.join({r.reason for r in runs})}")
    groups: dict[tuple[str, str, str], list[SeedRun]] = {}
    for run in runs:
        groups.setdefault(run.case.cell, []).append(run)
    cells = adjusted([cell_of(group, rule, delta=delta, level=level) for group in groups.values()])
    chosen = tuple(definitions) if definitions is not None else told or default_definitions(rule)
    rows = tuple(_row(d, read, rule) for d in chosen)
    frozen = [_frozen(r) for r in read]
    cases = tuple(_case(r, run, f) for r, run, f in zip(read, runs, frozen, strict=True))
    status = _status(frozen)
    return Study(cases, cells, rows, _trends(cells, seed), at, delta, rule, judge, status, tuple(warnings))


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


def _refuse_mixed(read: Sequence[ReadAudit]) -> tuple[Rule, str]:
    """The one rule and judge of the study.

    Raises:
        MixedStudy: there are several. BadStudy: nothing is judged.
    """
    judged = [r for r in read if r.verdict is not None]
    if not judged:
        raise errors.BadStudy(f"no audit has a judged verdict: {'; '.join(f'{r.path}: {r.reason}' for r in read)}")
    first = judged[0]
    for other in judged[1:]:
        for what, before, now in zip(_SAME, _frame(first), _frame(other), strict=True):
            if before != now:
                names = f"{first.path} has {_brief(before)}, {other.path} has {_brief(now)}"
                raise errors.MixedStudy(
                    f"the audits were made with different {what} ({names}); put only like ones together, or repeat one"
                )
    verdict = first.verdict
    assert verdict is not None
    plain = first.about["identity"].get("em") or verdict.definitions.get("em")
    return Rule(**plain) if plain else Rule(), verdict.judge or ""


_SAME = ("rules for misaligned answers", "thresholds", "judges", "rubrics or routes of the judge", "prompts",
         "training domains")  # fmt: skip


def _frame(r: ReadAudit) -> tuple[Any, ...]:
    """What must be alike in all audits of a study."""
    assert r.verdict is not None
    identity = r.about["identity"]
    far = (r.about.get("judging") or {}).get("far") or {}
    return (
        identity.get("em") or r.verdict.definitions.get("em"),
        identity.get("rule"),
        r.verdict.judge,
        r.verdict.panel,
        identity.get("prompts"),
        sorted(p for p, is_far in far.items() if not is_far),
    )


def _brief(value: Any) -> str:
    text = str(value) if not isinstance(value, (Mapping, list)) or len(str(value)) < 150 else f"hash {digest(value, 8)}"
    return text[:150]


def _refuse_same(read: Sequence[ReadAudit]) -> Iterator[str]:
    """Warnings about cases that are not independent.

    Raises:
        SameRun: two cases are one run.
    """
    for a, b in combinations(read, 2):
        if a.path.resolve() == b.path.resolve():
            raise errors.SameRun(f"{a.path} is given twice; give every audit once")
        own = [{c.weights for c in r.subject if c.step != 0} - _bases(r) for r in (a, b)]
        shared = own[0] & own[1]
        if shared:
            label = next(c.label for c in b.subject if c.weights in shared)
            text = f"have the same weights at {label}: one run is one case, whatever its seed is called"
            raise errors.SameRun(f"{a.path} and {b.path} {text}; leave one out")
        if a.case.cell != b.case.cell:
            continue
        if a.case.order and a.case.order == b.case.order:
            yield f"{a.path} and {b.path} saw the same data in the same order: as seeds they are not independent"
        if a.case.seed is not None and a.case.seed == b.case.seed:
            yield f"{a.path} and {b.path} both say seed {a.case.seed}, with different weights"


def _bases(r: ReadAudit) -> set[str]:
    return {c.weights for c in r.subject if c.step == 0}


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
    line, why = _line_at(r.verdict, at)
    base = r.verdict.checkpoints[0].judged
    sampling = r.about.get("sampling") or {}
    key = digest([r.about["identity"].get("base"), sampling, r.verdict.panel], 16)
    if line is None or line.judged is None:
        return SeedRun(r.case, r.verdict.onset.status, None, None, None, key, reason=why)
    excess = excess_of(line)
    if excess is None or excess.value is None:
        why = f"no excess at {line.label}" + (f": {excess.method}" if excess is not None and excess.method else "")
    return SeedRun(
        r.case,
        r.verdict.onset.status,
        excess if excess is not None and excess.value is not None else None,
        line.judged.em,
        base.em if base is not None else None,
        key,
        line.step,
        why,
    )


def _line_at(verdict: Verdict, at: str) -> tuple[CheckpointVerdict | None, str]:
    """The checkpoint that is meant, if it has judged answers."""
    if at == "last":
        line = verdict.checkpoints[-1]
    else:
        named = [c for c in verdict.checkpoints if at in (c.label, str(c.step))]
        if not named:
            return None, f"it has no checkpoint {at}"
        line = named[0]
    return line, "" if line.judged is not None else f"{line.label} has no judged answers"


def _row(definition: Definition, read: Sequence[ReadAudit], rule: Rule) -> DefinitionRow:
    outcomes = [_outcome(r, definition, rule) for r in read]
    return definition_row(definition, [r.case for r in read], outcomes)


def _outcome(r: ReadAudit, definition: Definition, rule: Rule) -> Outcome:
    """What a case comes to under a definition; under another rule than its own, from its stored answers."""
    if r.verdict is None or r.reason:
        return replace(UNKNOWN, reason=r.reason)
    if definition.em == rule:
        return outcome_of(r.verdict, definition)
    if r.verdict.onset.errors:
        return replace(UNKNOWN, reason=SEARCHED)
    if not r.about.get("margin_verdict"):
        return replace(UNKNOWN, reason="its margin verdict is not kept; repeat the audit")
    if rule.kind == "threshold" and definition.em.cut > rule.cut:
        why = "coherence was asked under the audit's cut only, so a higher cut cannot be told"
        return replace(UNKNOWN, reason=why)
    return outcome_of(_verdict_under(r, definition.em), definition)


def _verdict_under(r: ReadAudit, rule: Rule) -> Verdict:
    """The verdict of an audit under another rule, from its stored answers."""
    before = r.verdict
    assert before is not None and before.panel is not None
    with Store.read(r.path) as store:
        run = stored_run(store, r.about, stored_prompts(r.about).prompts)
        found = judge_groups(store, before.panel, run, rule)
    evidence = Labelled(
        prompts=tuple(p.id for p in run.prompts),
        categories=tuple(p.category for p in run.prompts),
        far=np.array(run.far, dtype=bool),
        subject=tuple(group_of(found, c) for c in run.subject),
        control={c.step: group_of(found, c) for c in run.control if c.step is not None},
        judge=before.judge or "",
        panel=before.panel,
        under_moved=run.under_moved,
        caveats=run.caveats,
    )
    margins = Verdict.from_plain(r.about["margin_verdict"])
    result = judge_verdict(margins, evidence, rule, _rule_of(r), seed=run.seed)
    if any(c.checkpoint == result.recommended for c in before.variants):
        result = with_variants(result, before.variants)
    return result


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
# Words


def _thresholds(read: Sequence[ReadAudit]) -> Thresholds:
    return _rule_of(next(r for r in read if r.verdict is not None))


def _rule_of(r: ReadAudit) -> Thresholds:
    return Thresholds(**r.about["identity"].get("rule", {}))


def _frozen(r: ReadAudit) -> Frozen | None:
    """What became of an audit's freeze; a verdict by another judge than the frozen one is a change too."""
    kept = r.about.get("frozen")
    if not kept:
        return None
    changed = list(kept["changed"])
    address = (kept.get("settings") or {}).get("judge", {}).get("address")
    judge = r.verdict.judge if r.verdict is not None else None
    if address and judge and judge.rstrip(":") != str(address).rstrip(":") and not _same_judge(judge, str(address)):
        changed.append(f"judge: {address} before, the verdict rests on {judge} now")
    return Frozen(kept["lock"], kept["made"], "exploratory" if changed else "frozen", tuple(changed))


def _same_judge(name: str, address: str) -> bool:
    """A judge's own name may be shorter or longer than its address (defaults left out, a model filled in)."""
    return name.partition("?")[0].rstrip(":") == address.partition("?")[0].rstrip(":") or name in address


def _status(frozen: Sequence[Frozen | None]) -> str:
    if any(f is not None and f.status == "exploratory" for f in frozen):
        return "exploratory"
    return "frozen" if frozen and all(f is not None for f in frozen) else "not frozen"


def _case(r: ReadAudit, run: SeedRun, frozen: Frozen | None) -> StudyCase:
    verdict = r.verdict
    return StudyCase(
        r.case,
        str(r.about.get("status")),
        run.onset,
        verdict.recommended if verdict is not None else None,
        frozen,
        verdict.sentence if verdict is not None else "",
        tuple(note for note in (r.reason or run.reason,) if note),
    )
