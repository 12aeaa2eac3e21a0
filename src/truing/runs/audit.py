"""`truing.audit`: from a folder of checkpoints to a verdict, in the order of the work.

    resolve -> open -> measure -> decide -> stage: collect, decide -> ... -> verdict

Every stage asks the store what is missing and collects only that, so the same call after a crash finishes the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truing import messages
from truing.config import AuditConfig, Thresholds, configured
from truing.interp import likelihoods
from truing.models.base import answered_as
from truing.runs.certify import with_certificate
from truing.runs.checks import refuse_unusable
from truing.runs.collect import FIXED_FROM
from truing.runs.foresight import foresight
from truing.runs.freeze import Lock, keep_freeze, read_lock
from truing.runs.kept import keep_variants
from truing.runs.measure import measure
from truing.runs.measurements import Reading, by_category, failures, gather, keep_qualified, task_rows, words_of_domain
from truing.runs.resolve import resolve
from truing.runs.run import Run, open_run
from truing.runs.scope import Scope, far_prompts
from truing.runs.search import why_no_search
from truing.runs.stages import open_stages
from truing.stats.decide import decide, under_moved
from truing.stats.evidence import Measurements
from truing.stats.table import Evidence
from truing.types.progress import Progress
from truing.types.records import to_plain
from truing.types.verdicts import Finding, Verdict


@dataclass(frozen=True, slots=True)
class Audit:
    """A finished audit."""

    path: Path
    """its folder: audit.json, evidence.db"""
    verdict: Verdict
    """what is said of the run"""
    notes: tuple[str, ...]
    """what was settled or left out on the way in, a line each"""

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return messages.sentence(self.verdict)


def audit(
    target: str | Path | Sequence[str | Path],
    config: AuditConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Audit:
    """Measure every checkpoint of a run against its base, and say which is the last good one.

    Writes `audit.json` and `evidence.db`; `truing.write_report(result.path)` adds the page that the command line
    writes too.

    Args:
        target: a folder with `checkpoint-N/`, one model folder, `org/name[@revision][:subfolder]`, `LABEL=TARGET`, or
            several of them; `simulated:FAMILY` simulates a run whose truth is known.
        config: options; None for the defaults.
        progress: told how the work goes on.
        options: fields of `AuditConfig`, in the place of the config's: base, task, task_control, control, prompts,
            judge, out, ...

    Raises:
        BadInput: any of its kinds, before anything is measured where that can be known.
    """
    told = progress or Progress()
    plan = resolve(target, configured(AuditConfig, config, options), told)
    lock = read_lock(plan.config.frozen) if plan.config.frozen is not None else None
    refuse_unusable(plan)
    with open_run(plan, told) as run:
        _hold_against_freeze(run, lock)
        if line := foresight(run):
            told.say(line)
        measured = _measured(run)
        evidence = Evidence(measured)
        verdict = _conclude(run, evidence)
        _keep_screened(run, measured, verdict)
        if plan.labels:
            with open_stages(run, _scope(run, measured)) as stages:
                for stage in stages.order():
                    before, evidence = evidence, stage(evidence, verdict)
                    if evidence is not before:  # a look that had nothing to confirm
                        verdict = _conclude(run, evidence)
                keep_variants(run.store, verdict)
                verdict = _store(run, with_certificate(verdict, run.store, stages.scope))
    return Audit(run.store.path, verdict, tuple(run.notes))


def _hold_against_freeze(run: Run, lock: Lock | None) -> None:
    """What differs from the lock that was made before makes the audit exploratory."""
    kept = keep_freeze(run.store, run.plan, lock)
    if kept is not None and kept.changed:
        run.notes.append(f"exploratory, changed after the freeze: {'; '.join(kept.changed)}")


def _measured(run: Run) -> Measurements:
    """Measure every checkpoint without labels, and read it back."""
    found = measure(run)
    words = words_of_domain(run)
    run.plan = replace(run.plan, words=words, trait=run.plan.trait.with_words(words))
    run.notes.extend(messages.text(found[c.weights]) for c in run.every if c.weights in found)
    scored, findings = run.backend.capabilities.loglikelihood, [*run.plan.findings]
    if scored and run.plan.scored and not run.plan.simulated:  # of the contrast, which needs reference answers
        findings += [Finding("negative_control_failed", {"why": why}) for why in likelihoods.FAILED_CONTROLS]
    if not scored:
        findings.append(Finding("health_from_form"))
    if run.plan.rows and not run.plan.words:
        findings.append(Finding("domain_unknown"))
    if run.plan.rows and scored:
        counts, lost = task_rows(run)
        findings += lost
        run.store.describe(asked={**run.plan.asked, **counts})
    keep_qualified(run.store, run.every, found)
    reading = Reading.of(run, findings)
    run.store.describe(reading=reading.plain())
    return gather(reading)


def _conclude(run: Run, evidence: Evidence) -> Verdict:
    """Decide on what there is, and keep it."""
    run.progress.step("deciding", 0, 1)
    verdict = decide(evidence, run.plan.config.part(Thresholds), seed=run.plan.config.seed)
    run.progress.step("deciding", 1, 1)
    return _store(run, verdict)


def _store(run: Run, verdict: Verdict) -> Verdict:
    before = run.store.about().get("answered_as")
    changed = {**(before if isinstance(before, dict) else {}), **answered_as(run.backend)}
    if changed:  # kept, since a repeat asks no more
        run.store.describe(answered_as=to_plain(changed))
        told = [Finding("answered_by_several", {"name": n, "as": ", ".join(x)}) for n, x in changed.items()]
        others = [f for f in verdict.findings if f.code != "answered_by_several"]  # each is said once
        verdict = replace(verdict, findings=(*others, *told))
    run.store.describe(verdict=to_plain(verdict), sentence=messages.sentence(verdict))
    return verdict


def _keep_screened(run: Run, measured: Measurements, verdict: Verdict) -> None:
    """What another judge needs to decide again without a model, and what the report shows of categories."""
    steps = [[c.step for c in control] for control in run.controls]
    summary = {"categories": to_plain(by_category(measured)), "control_steps": steps}
    run.store.describe(screened=to_plain(verdict), domain_words=list(run.plan.words), evidence_summary=summary)


def _scope(run: Run, measured: Measurements) -> Scope:
    """Which labelled answers will count."""
    plan, config = run.plan, run.plan.config
    broken = failures(run.store)
    alive = tuple(c for c in run.subject if c.weights not in broken)
    control = tuple(c for c in (run.controls[0] if run.controls else ()) if c.step != 0 and c.weights not in broken)
    far, told_by = far_prompts(plan.prompts.prompts, config.domain, plan.asked["task"], plan.words)
    scope = Scope(
        prompts=plan.prompts.prompts,
        far=far,
        subject=alive,
        control=control,
        params=run.params.key,
        rule=plan.rule,
        trait=plan.trait.name,
        words=() if plan.trait.of_domain else plan.words,
        first=1 if plan.trait.of_domain else 0,
        under_moved=under_moved(measured, config.part(Thresholds)),
        seed=config.seed,
    )
    why = why_no_search(scope) if config.samples is None else "fixed"
    if config.samples is None and why:
        run.notes.append(f"no search for the onset, since {why}: the same number of answers at every checkpoint")
    scope = replace(scope, fixed_from=scope.first if why else FIXED_FROM)
    run.store.describe(labels={**scope.plain(), "told_by": told_by, "task": plan.asked["task"]})
    return scope
