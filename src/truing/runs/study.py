"""`truing study`: several audits read as one study: models x data x recipes x seeds.

    audit folders (or a study file) -> cases -> refuse what cannot be put together -> cells, definitions, trends

Nothing is measured and no judge is asked; everything comes from what the audits keep.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from truing import errors
from truing.config import StudyConfig, Thresholds, configured
from truing.runs.scope import stored_rule
from truing.runs.sensitivity import StoredAnswers
from truing.runs.study_files import ReadAudit, read_study
from truing.stats.studies import (
    NOTHING,
    UNKNOWN,
    Cell,
    Definition,
    Outcome,
    SeedRun,
    Study,
    StudyCase,
    adjusted,
    cell_of,
    definition_row,
    outcome_of,
)
from truing.stats.trend import Trend, trend
from truing.store import Store
from truing.types.cases import Frozen
from truing.types.hashing import digest
from truing.types.traits import Rule


def study_cases(
    audits: Sequence[str | Path] | str | Path,
    config: StudyConfig | None = None,
    *,
    definitions: Sequence[Definition] | None = None,
    **options: Any,
) -> Study:
    """What several audits say together.

    Args:
        audits: audit folders, or one study file (TOML or JSON) with a list `case` of tables: audit, and any of model,
            data, recipe, seed, parameters, order; and optionally a list `definition` (name, kind, converged_at, lo, hi,
            cut, gate).
        config: options; None for the defaults.
        definitions: under which avoidance and retained performance are given; None for those of the study file, else
            the audits' own and how published shares are read.
        options: fields of `StudyConfig`: at, delta, seed.

    Raises:
        BadStudy: no audits, a study file that cannot be read, a checkpoint no audit has, different rules,
        judges or prompts, or two cases that are one run. NotAnAudit: a folder is none.
    """
    config = configured(StudyConfig, config, options)
    read, defined = read_study(audits)
    first = _refuse_mixed(read)
    rule, warnings = stored_rule(first.about), [*_refuse_same(read), *_doubts(read)]
    delta = rule.hi if config.delta is None else config.delta
    if not 0 < delta < 1:
        raise errors.BadStudy(f"delta {delta:g}: give a share over 0 and under 1, e.g. 0.03")
    runs = [_seed_run(r, config.at) for r in read]
    if all(run.step is None for run, r in zip(runs, read, strict=True) if r.verdict is not None):
        reasons = "; ".join({r.reason for r in runs})
        raise errors.BadStudy(f"--at {config.at}: no audit has labelled answers there; {reasons}")
    groups: defaultdict[tuple[str, str, str], list[SeedRun]] = defaultdict(list)
    for run in runs:
        groups[run.case.cell].append(run)
    level = Thresholds(**first.about["identity"].get("rule", {})).level
    cells = adjusted([cell_of(group, rule, delta=delta, level=level) for group in groups.values()])
    if definitions is None:
        definitions = [row.definition(rule) for row in defined] or default_definitions(rule)
    cases = [r.case for r in read]
    frozen = [_frozen(r) for r in read]
    statuses = {f.status if f is not None else "not frozen" for f in frozen}
    return Study(
        cases=tuple(_case(*of) for of in zip(read, runs, frozen, strict=True)),
        cells=cells,
        definitions=tuple(definition_row(d, cases, [_outcome(r, d, rule) for r in read]) for d in definitions),
        trends=_trends(cells, config.seed),
        at=config.at,
        delta=delta,
        rule=rule,
        judge=(first.verdict.judge if first.verdict is not None else None) or "",
        status=next(s for s in ("exploratory", "not frozen", "frozen") if s in statuses),
        warnings=tuple(warnings),
    )


def default_definitions(rule: Rule) -> list[Definition]:
    """The audits' own definition, the same with a learned task, and how published shares are read."""
    kinds, learned = ("certified", "estimated"), {"": None, ", task learned": 0.9}
    return [Definition(kind + name, rule, at, kind) for kind in kinds for name, at in learned.items()]


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be put together


def _refuse_mixed(read: Sequence[ReadAudit]) -> ReadAudit:
    """The first audit with a verdict on labelled answers, whose rule and judge are those of all.

    Raises:
        BadStudy: audits differ in what must be alike. BadStudy: there is no such verdict.
    """
    decided = [r for r in read if r.verdict is not None]
    if not decided:
        reasons = "; ".join(f"{r.path}: {r.reason}" for r in read)
        raise errors.BadStudy(f"no audit has a verdict on labelled answers: {reasons}")
    first = decided[0]
    for other in decided[1:]:
        now = _alike(other)
        for what, before in _alike(first).items():
            if before != now[what]:
                names = f"{first.path} has {_brief(before)}, {other.path} has {_brief(now[what])}"
                raise errors.BadStudy(f"different {what} ({names}); put only like audits together, or repeat one")
    return first


def _alike(r: ReadAudit) -> dict[str, Any]:
    """What must be alike in all audits of a study."""
    assert r.verdict is not None
    identity, far = r.about["identity"], (r.about.get("labels") or {}).get("far") or {}
    return {
        "traits": identity.get("trait"),
        "rules": identity.get("label_rule"),
        "thresholds": identity.get("rule"),
        "judges": r.verdict.judge,
        "rubrics or score methods of the judge": r.verdict.judge_key,
        "prompts": identity.get("prompts"),
        "training domains": sorted(p for p, is_far in far.items() if not is_far),
    }


def _brief(value: Any) -> str:
    return str(value) if len(str(value)) < 150 else f"hash {digest(value, 8)}"


def _refuse_same(read: Sequence[ReadAudit]) -> Iterator[str]:
    """Warnings about cases that are not independent.

    Raises:
        BadStudy: two cases are one run.
    """
    for a, b in combinations(read, 2):
        if a.path.resolve() == b.path.resolve():
            raise errors.BadStudy(f"{a.path} is given twice; give every audit once")
        own = {c.weights for c in a.subject if c.step != 0}
        shared = next((c for c in b.subject if c.step != 0 and c.weights in own), None)
        if shared is not None:
            text = f"have the same weights at {shared.label}: one run is one case, whatever its seed is called"
            raise errors.BadStudy(f"{a.path} and {b.path} {text}; leave one out")
        if a.case.cell != b.case.cell:
            continue
        if a.case.order and a.case.order == b.case.order:
            yield f"{a.path} and {b.path} saw the same data in the same order: as seeds they are not independent"
        if a.case.seed is not None and a.case.seed == b.case.seed:
            yield f"{a.path} and {b.path} both say seed {a.case.seed}, with different weights"


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
        return SeedRun(r.case, "", reason=r.reason)
    lines, onset, base = r.verdict.checkpoints, r.verdict.onset.status, r.verdict.checkpoints[0].labelled
    line = lines[-1] if at == "last" else next((c for c in lines if at in (c.label, str(c.step))), None)
    if line is None or line.labelled is None:
        why = f"{line.label} has no labelled answers" if line is not None else f"it has no checkpoint {at}"
        return SeedRun(r.case, onset, reason=why)
    excess = line.shown_excess or NOTHING
    return SeedRun(
        case=r.case,
        onset=onset,
        excess=excess,
        rate=line.labelled.rate,
        base=base.rate if base is not None else NOTHING,
        base_key=digest([r.about["identity"].get("base"), r.about.get("sampling") or {}, r.verdict.judge_key], 16),
        step=line.step,
        reason="" if excess.value is not None else f"no excess at {line.label}",
    )


def _outcome(r: ReadAudit, definition: Definition, rule: Rule) -> Outcome:
    """What a case comes to under a definition; under another rule than its own, from its stored answers."""
    if r.verdict is None or r.reason:
        return replace(UNKNOWN, reason=r.reason)
    if definition.rule == rule:
        return outcome_of(r.verdict, definition)
    if r.verdict.onset.errors:
        return replace(UNKNOWN, reason="answers sampled by a search decide under the audit's own rule only")
    with Store.read(r.path) as store:
        stored = StoredAnswers.of(store, r.about, r.verdict)
        return outcome_of(stored.verdict_under(definition.rule), definition)


def _trends(cells: Sequence[Cell], seed: int) -> dict[str, Trend]:
    """Excess against size, one trend per data set and recipe with at least two models."""
    groups: defaultdict[str, list[Cell]] = defaultdict(list)
    for c in cells:
        groups[", ".join(part for part in (c.data, c.recipe) if part)].append(c)
    return {
        name: trend([c.model for c in found], [c.parameters for c in found], [c.excess.value for c in found], seed=seed)
        for name, found in groups.items()
        if len(found) > 1
    }


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
    return Frozen.of(kept["lock"], kept["made"], changed)


def _case(r: ReadAudit, run: SeedRun, frozen: Frozen | None) -> StudyCase:
    recommended = r.verdict.recommended if r.verdict is not None else None
    return StudyCase(r.case, run.onset, recommended, frozen, (run.reason,) if run.reason else ())
