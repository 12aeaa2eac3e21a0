"""What a verdict rests on besides answers and their scores, kept as rows of the store, and the verdict made again.

    measurements -> the screen's verdict -> labelled answers (the search read again) -> decide -> variants, certificate

No model is loaded and no judge is asked: a verdict that the evidence does not give is not believed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from truing import errors
from truing.config import AuditConfig, Thresholds, configured
from truing.runs.certify import with_certificate
from truing.runs.measurements import Reading, failures, gather
from truing.runs.scope import Scope, stored_prompts, stored_scope
from truing.runs.search import SearchRequests, new_search, outcomes_of, run_search
from truing.runs.tables import keep_rows, labelled_of, stored_calibration, with_scores
from truing.stats.decide import decide, under_moved, with_earlier_variants
from truing.stats.samples import Outcome, SampleRequest
from truing.stats.table import Evidence
from truing.store import Measurement, Store
from truing.traits.label import label
from truing.types.records import SamplingParams, to_plain
from truing.types.verdicts import Finding, Onset, VariantResult, Verdict

VARIANT = "variant"
"""kind of the rows that say what became of a checkpoint under prompt variants"""


def keep_variants(store: Store, verdict: Verdict) -> None:
    """Keep what became of the checkpoint under prompt variants."""
    weights = {c.label: c.weights for c in verdict.checkpoints}
    keep_rows(
        store,
        (
            Measurement(weights[v.checkpoint], VARIANT, v.name, verdict.judge_key or "", v.excess.value, 1, to_plain(v))
            for v in verdict.variants
        ),
    )


def _stored_variants(store: Store, stored: Verdict) -> tuple[VariantResult, ...]:
    """Those of the judge whose tests the verdict names."""
    labels = {c.weights: c.label for c in stored.checkpoints}
    rows = [m for m in store.measurements(VARIANT) if m.checkpoint in labels]
    own = [m for m in rows if m.item == stored.judge_key] or rows
    made = TypeAdapter(tuple[VariantResult, ...]).validate_python([m.meta for m in own])
    return tuple(replace(v, checkpoint=labels[m.checkpoint]) for v, m in zip(made, own, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The verdict again


def verdict_again(store: Store, about: Mapping[str, Any]) -> Verdict:
    """The verdict that the evidence of a finished audit gives, from the store alone.

    Raises:
        BadInput: evidence is missing, or labels are not what scores make of them. LookupError, TypeError, ValueError:
            audit.json does not tell what was asked.
    """
    stored, prompts = Verdict.from_plain(about["verdict"]), stored_prompts(about).prompts
    rule, options = Thresholds(**about["identity"]["rule"]), configured(AuditConfig, None, about["asked"]["options"])
    measured = gather(Reading.stored(store, about, prompts))
    screened = decide(Evidence(measured), rule, seed=options.seed)
    if stored.judge_key is None:
        return screened
    scope, broken = stored_scope(store, about, prompts), failures(store)
    alive = tuple(c for c in scope.control if c.weights not in broken)
    scope = replace(scope, control=alive, under_moved=under_moved(measured, rule))
    _refuse_relabelled(store, stored.judge_key, scope)
    search, findings = None, scope.findings
    if scope.searched and stored.onset.errors:
        search = _search_again(store, stored.judge_key, scope, options, screened, about)
    elif scope.searched:
        findings = (*findings, Finding("search_by_another_judge"))
    counts = stored_calibration(store, stored.judge_key) if stored.calibration is not None else None
    labelled = labelled_of(store, stored.judge_key, replace(scope, findings=findings), counts, search)
    made = decide(Evidence(None, labelled, screened=screened), rule)
    made = with_earlier_variants(made, replace(stored, variants=_stored_variants(store, stored)))
    return with_certificate(made, store, scope)


def _refuse_relabelled(store: Store, judge: str, scope: Scope) -> None:
    """Raise where labels are not those that the scores give, or nothing is labelled at all."""
    if judge not in store.judges():
        raise errors.NotAnAudit("the judge of the verdict is not among those of the evidence")
    kept = store.labelled(judge, scope.rule, scope.params)
    found, there = with_scores(store, judge, scope.params), False
    by_key = {r.key: said for r, said in found if said}
    for r, given in kept:
        if given is None:
            continue
        there, made = True, label(r, by_key.get(r.key, ()), scope.rule)
        if (made.value, made.reason) != (given.value, given.reason):
            raise errors.NotAnAudit("the labels of answers are not those that their scores give")
    if not there:
        raise errors.NotAnAudit("no answer is labelled by the judge of the verdict")


def _search_again(
    store: Store, judge: str, scope: Scope, options: AuditConfig, screened: Verdict, about: Mapping[str, Any]
) -> Onset:
    """What the search found, from the answers that it read."""
    params, asked = SamplingParams(**about["sampling"]), SearchRequests(scope)

    def outcomes(samples: Sequence[SampleRequest]) -> list[Outcome | float]:
        return outcomes_of(store, judge, scope, params, asked.of(samples))

    return run_search(new_search(scope, options, screened), outcomes)


def difference(stored: Verdict, made: Verdict) -> str | None:
    """Where two verdicts part, in words; None where they say the same but for wording."""
    found = _first(_said(stored), _said(made), ())
    if found is None:
        return None
    (*where, name), before, now = found
    labels = [c.label for c in stored.checkpoints]
    if where[:1] == ["checkpoints"] and len(where) > 1 and where[1] < len(labels):
        where = [labels[where[1]], *where[2:]]
    place = " ".join(map(str, [*where, name]))
    return f"{place} is {before!s:.60} in audit.json, and {now!s:.60} by the evidence"


def _said(v: Verdict) -> Any:
    plain = to_plain(v)
    lines = [{k: x for k, x in c.items() if k != "findings"} for c in plain["checkpoints"]]
    out = {k: x for k, x in plain.items() if k not in ("findings", "definitions", "certified_by")}
    return {**out, "checkpoints": lines}


def _first(a: Any, b: Any, at: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any, Any] | None:
    """The first place at which plain values differ, numbers by more than rounding."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        pairs = ((k, a.get(k), b.get(k)) for k in {**a, **b})
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = ((k, x, y) for k, (x, y) in enumerate(zip(a, b, strict=True)))
    elif (
        isinstance(a, float | int)
        and isinstance(b, float | int)
        and not isinstance(a, bool)
        and not isinstance(b, bool)
    ):
        return None if abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b)) else (at, a, b)
    else:
        return None if a == b else (at or ("verdict",), a, b)
    found = (_first(x, y, (*at, k)) for k, x, y in pairs)
    return next((f for f in found if f is not None), None)
