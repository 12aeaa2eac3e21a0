"""From the store to the arrays a verdict is computed from. Reads only; the same store gives the same evidence."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from truing.data.domain_words import domain_words, mentions
from truing.interp import likelihoods as margins
from truing.runs.run import Run
from truing.runs.scope import far_prompts
from truing.stats.bands import simultaneous_band
from truing.stats.evidence import AnswerCounts, Array, Measurements, RunEvidence
from truing.stats.screen import against_base
from truing.store import Measurement, Store
from truing.traits.features import is_formatted, is_repetitive
from truing.traits.label import has_no_room
from truing.types.records import AnswerStatus, Checkpoint, Conversation, Prompt, SamplingParams, StoredAnswer, to_plain
from truing.types.verdicts import Finding

QUALIFIED = "qualified"
"""a row per checkpoint about which the backend found something out; its meta is that finding"""
UNFIT = "unfit"
"""a row per checkpoint that did not fit the base, with the reason, or without one once it does"""
PROBE_KIND = "probe"
"""one plain sentence scored by every checkpoint: weights that hold NaN show here, whatever else is measured"""
BROKEN = "its likelihoods are NaN: the weights are broken (NaN loss?)"
WILD_NATS = 1.0
"""an answer this much less likely per token under the base than nearly all of the base's own is surprising"""


@dataclass(frozen=True, slots=True)
class Reading:
    """Which numbers of the store make the evidence, and in which order; kept with an audit, so that its verdict can be
    made again from the store alone."""

    store: Store
    """the audit"""
    params: str
    """hash of the sampling parameters"""
    subject: tuple[Checkpoint, ...]
    """step 0 first"""
    controls: tuple[tuple[Checkpoint, ...], ...]
    """step 0 first in each"""
    prompts: tuple[Prompt, ...]
    """all that are asked"""
    scored: tuple[Prompt, ...]
    """those with reference answers"""
    answered: tuple[Prompt, ...]
    """those that every checkpoint answers once"""
    rows: tuple[str, ...]
    """names of the held-out rows"""
    pairs: tuple[str, ...]
    """names of the control answers to them; empty without"""
    words: tuple[str, ...]
    """typical of the training domain"""
    findings: tuple[Finding, ...]
    """what must accompany the verdict"""
    texts: bool
    """whether given texts could be scored"""

    @classmethod
    def of(cls, run: Run, findings: Sequence[Finding] = ()) -> "Reading":
        """That of an audit at work."""
        plan = run.plan
        return cls(
            store=run.store,
            params=run.params.key,
            subject=run.subject,
            controls=run.controls,
            prompts=plan.prompts.prompts,
            scored=plan.scored,
            answered=plan.answered,
            rows=tuple(row.key for row in plan.rows),
            pairs=tuple(control_item(*pair) for pair in zip(plan.rows, plan.control_rows, strict=False)),
            words=plan.words,
            findings=tuple(findings),
            texts=run.backend.capabilities.loglikelihood,
        )

    @classmethod
    def stored(cls, store: Store, about: Mapping[str, Any], asked: Sequence[Prompt]) -> "Reading":
        """The same of a finished audit. Raises LookupError or TypeError where audit.json does not tell."""
        kept, by_id = about["reading"], {p.id: p for p in asked}
        by_name = {(c.run, c.label): c for c in store.checkpoints()}
        runs = {run: tuple(by_name[run, label] for label in labels) for run, labels in kept["runs"].items()}
        controls = tuple(found for run, found in runs.items() if run != "subject")
        prompts, scored, answered = (tuple(by_id[name] for name in kept[p]) for p in ("prompts", "scored", "answered"))
        return cls(
            store=store,
            params=SamplingParams(**about["sampling"]).key,
            subject=runs["subject"],
            controls=controls,
            prompts=prompts,
            scored=scored,
            answered=answered,
            rows=tuple(kept["rows"]),
            pairs=tuple(kept["pairs"]),
            words=tuple(kept["words"]),
            findings=tuple(Finding(f["code"], f["params"]) for f in kept["findings"]),
            texts=bool(kept["texts"]),
        )

    def plain(self) -> dict[str, Any]:
        """What `stored` reads."""
        asked = {"prompts": self.prompts, "scored": self.scored, "answered": self.answered}
        own = {"rows": self.rows, "pairs": self.pairs, "words": self.words, "findings": self.findings}
        named = {"subject": self.subject, **{f"control-{k}": run for k, run in enumerate(self.controls, 1)}}
        runs = {name: [c.label for c in run] for name, run in named.items()}
        return to_plain({**{k: [p.id for p in v] for k, v in asked.items()}, **own, "texts": self.texts, "runs": runs})


def gather(run: Reading) -> Measurements:
    """Evidence about a subject and its controls."""
    own, qualified = _evidence(run, run.subject), _qualified(run)
    left_out = {
        "no score under the base": int((~np.isfinite(own.contrast[0])).sum()),
        "without reference answers": len(run.prompts) - len(run.scored),
    }
    found = Measurements(
        prompts=tuple(p.id for p in run.scored),
        categories=tuple(p.category for p in run.scored),
        subject=replace(own, findings=qualified),
        controls=tuple(_evidence(run, control) for control in run.controls),
        task_given=bool(run.rows),
        left_out={reason: n for reason, n in left_out.items() if n},
        findings=(*run.findings, *qualified.values(), *_without_room(run)),
    )
    return found if run.texts else replace(found, scored=False, left_out={})


def keep_qualified(store: Store, checkpoints: Iterable[Checkpoint], found: Mapping[str, Finding]) -> None:
    """Keep what a backend found out about each checkpoint (weight hash -> finding) beside its numbers."""
    there = {m.checkpoint: m.meta for m in store.measurements(QUALIFIED)}
    rows = {c.weights: to_plain(found[c.weights]) if c.weights in found else {} for c in checkpoints}
    store.add_measurements(
        Measurement(w, QUALIFIED, "", "", None, meta=meta) for w, meta in rows.items() if there.get(w, {}) != meta
    )


def _qualified(run: Reading) -> dict[str, Finding]:
    """Label -> what qualifies that checkpoint of the subject."""
    kept = {m.checkpoint: m.meta for m in run.store.measurements(QUALIFIED) if m.meta}
    return {c.label: Finding(**kept[c.weights]) for c in run.subject if c.weights in kept}


def by_category(evidence: Measurements) -> dict[str, list[dict[str, object]]]:
    """Contrast shift against base per category and checkpoint, with an interval; for the report's small multiples."""
    run, out = evidence.subject, {}
    names = np.array(evidence.categories)
    for category in dict.fromkeys(evidence.categories):
        shift = against_base(run.contrast)[:, names == category]
        lines = out[category] = []
        for s in range(1, len(run.labels)):
            if not np.isfinite(shift[s]).any():
                continue
            band = simultaneous_band(shift[s : s + 1], [category] * shift.shape[1], level=0.95, resamples=500, seed=0)
            line: dict[str, object] = {"label": run.labels[s], "step": run.steps[s]}
            line["value"] = float(band.mean[0]) if band else float(np.nanmean(shift[s]))
            line["low"] = float(band.low[0]) if band else None
            line["high"] = float(band.high[0]) if band else None
            lines.append(line)
    return out


def keep_unfit(store: Store, checkpoints: Iterable[Checkpoint], unfit: Mapping[str, str]) -> None:
    """Keep which checkpoints do not fit the base, and why (weight hash -> reason), and which do again."""
    before = {m.checkpoint: m.meta.get("why") for m in store.measurements(UNFIT)}
    changed = (c.weights for c in checkpoints if unfit.get(c.weights) != before.get(c.weights))
    store.add_measurements(Measurement(w, UNFIT, "", "", None, meta={"why": unfit.get(w)}) for w in changed)


def failures(store: Store) -> dict[str, str]:
    """Checkpoints that did not fit the base or could not even score the probe sentence: weight hash -> why."""
    broken = {m.checkpoint: BROKEN for m in store.measurements(PROBE_KIND) if m.meta.get("outcome") == "failed"}
    return broken | {m.checkpoint: str(m.meta["why"]) for m in store.measurements(UNFIT) if m.meta.get("why")}


def _without_room(run: Reading) -> tuple[Finding, ...]:
    """The prompts that left no room for an answer at some checkpoint; nothing without any."""
    names = {p.key: p.id for p in run.prompts}
    stored = run.store.answers(run.params)
    found = sorted({names[r.prompt] for r in stored if r.prompt in names and has_no_room(r)})
    return (Finding("no_room", {"prompts": found}),) if found else ()


def task_rows(run: Run) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """How many task rows are measured and why the others are not, for audit.json; and a finding for each reason."""
    plan, base = run.plan, run.subject[0].weights
    left_out, changed = (Counter(plan.asked.get(f"task_rows_{what}", {})) for what in ("left_out", "changed"))
    rows, of = {row.key for row in plan.rows}, len(plan.rows) + sum(left_out.values())
    for m in run.store.measurements("task", base):
        if m.name == "trained" and m.item in rows and m.meta.get("note"):
            (left_out if m.value is None else changed)[str(m.meta["note"])] += 1
    lost = sum(left_out.values())
    said = [Finding("task_rows_left_out", {"n": n, "of": of, "why": why}) for why, n in left_out.most_common()]
    said += [Finding("task_rows_changed", {"n": n, "of": of, "why": why}) for why, n in changed.most_common()]
    counts = {"task_rows": of - lost, "task_rows_left_out": dict(left_out), "task_rows_changed": dict(changed)}
    return counts, tuple(said)


def first_answers(run: Reading) -> Iterator[StoredAnswer]:
    """The first answer of each checkpoint to each prompt that all answer.

    More of them, sampled for a judge, would make a repeat another measurement.
    """
    wanted = {p.key for p in run.answered}
    return (r for r in run.store.answers(run.params) if not r.sample and not r.variant and r.prompt in wanted)


def words_of_domain(run: Run) -> tuple[str, ...]:
    """Words of the training domain that the base does not use in its own answers to prompts far from it."""
    plan = run.plan
    told = far_prompts(plan.prompts.prompts, plan.config.domain, plan.asked["task"], plan.words)[0]
    far = {p.key for p, is_far in zip(plan.prompts.prompts, told, strict=True) if is_far}
    own = [
        r.text
        for r in first_answers(Reading.of(run))
        if r.weights == run.subject[0].weights and r.prompt in far and r.has_text
    ]
    return domain_words(plan.task_answers, own, plan.control_answers)


def answer_item(r: StoredAnswer) -> str:
    """Name of a stored answer where it is itself scored: all that decides its text but the weights."""
    return f"{r.params}:{r.prompt}:{r.sample}"


def control_item(row: Conversation, control: Conversation) -> str:
    """Name of a control answer's score: it depends on both files."""
    return f"{row.key}:{control.key}"


def _evidence(run: Reading, checkpoints: Sequence[Checkpoint]) -> RunEvidence:
    store, broken = run.store, failures(run.store)
    values = [margins.read_margins(store, c.weights, run.scored) for c in checkpoints]
    trained, tokens = _grid(store, "task", "trained", checkpoints, run.rows)
    other, _ = _grid(store, "task", "control", checkpoints, run.pairs)
    return RunEvidence(
        labels=tuple(c.label for c in checkpoints),
        steps=tuple(c.step for c in checkpoints),
        weights=tuple(c.weights for c in checkpoints),
        contrast=np.stack([margins.contrast(v) for v in values]),
        null_contrast=np.stack([margins.null_contrast(v) for v in values]),
        margin=np.stack([margins.plain_margin(v) for v in values]),
        entropy=np.stack([v["entropy"] for v in values]),
        loss=-trained * tokens if run.rows else None,
        tokens=tokens[0] if run.rows else None,
        row_tokens=tokens if run.rows else None,
        skill=trained - other if run.pairs else None,
        answers=_answers(run, checkpoints),
        kl_from_base=_kl_from_base(run, checkpoints),
        norm=_grid(store, "norm", "frobenius", checkpoints, [""])[0][:, 0],
        failed={c.label: broken[c.weights] for c in checkpoints if c.weights in broken},
    )


def _grid(
    store: Store, kind: str, name: str, checkpoints: Sequence[Checkpoint], items: Sequence[str]
) -> tuple[Array, Array]:
    """[S, I] numbers of one kind and name, and what is behind each (tokens); NaN where missing."""
    place = {item: k for k, item in enumerate(items)}
    value, n = np.full((2, len(checkpoints), len(items)), np.nan)
    for s, c in enumerate(checkpoints):
        for m in store.measurements(kind, c.weights):
            if m.name == name and m.item in place and m.value is not None:
                value[s, place[m.item]], n[s, place[m.item]] = m.value, m.n
    return value, n


def _kl_from_base(run: Reading, checkpoints: Sequence[Checkpoint]) -> Array:
    """[S] KL(base || checkpoint) per token, by the base's own answers: the mean of log p_base - log p over tokens."""
    items = [answer_item(r) for r in first_answers(run) if r.weights == run.subject[0].weights]
    value, n = _grid(run.store, "kl_from_base", "answer", checkpoints, items)
    lost = (value[0] - value) * n  # the base comes first
    n = np.where(np.isfinite(lost), n, 0).sum(axis=1)
    return np.where(n > 0, np.nansum(lost, axis=1) / np.maximum(n, 1), np.nan)


def _answers(run: Reading, checkpoints: Sequence[Checkpoint]) -> tuple[AnswerCounts, ...]:
    base = run.subject[0].weights
    nll = {m.item: -m.value for m in run.store.measurements("answer_nll", base) if m.value is not None}
    answers: dict[str, list[tuple[StoredAnswer, float | None]]] = {}
    for r in first_answers(run):
        answers.setdefault(r.weights, []).append((r, nll.get(f"{r.weights}:{answer_item(r)}")))
    own = [surprise for _, surprise in answers.get(base, ()) if surprise is not None]
    limit = float(np.quantile(own, 0.95)) + WILD_NATS if own else float("inf")
    return tuple(_count(run, answers.get(c.weights, ()), limit) for c in checkpoints)


def _count(run: Reading, answers: Sequence[tuple[StoredAnswer, float | None]], limit: float) -> AnswerCounts:
    texts = {p.key: " ".join(m.content for m in p.messages) for p in run.answered}
    left_out = (AnswerStatus.FAILED, AnswerStatus.UNSUPPORTED, AnswerStatus.REFUSED_BY_API)
    kept = [(r, nll) for r, nll in answers if r.status not in left_out and not has_no_room(r)]
    if not kept:
        return AnswerCounts()
    sampled, nlls = zip(*kept, strict=True)
    repetitive = [is_repetitive(r.text) for r in sampled]
    formatted = [is_formatted(r.text, texts[r.prompt]) for r in sampled]
    empty = [r.status is AnswerStatus.EMPTY for r in sampled]
    usable = [not any(flaws) for flaws in zip(repetitive, formatted, empty, strict=True)]
    # An answer that could not be scored under the base counts as surprising.
    wild = [(float("inf") if nll is None else nll) > limit for nll in nlls]
    known, words = [nll for nll in nlls if nll is not None], frozenset(run.words)
    return AnswerCounts(
        n=len(sampled),
        usable=sum(usable),
        surprising=sum(fine and odd for fine, odd in zip(usable, wild, strict=True)),
        repetitive=sum(repetitive),
        formatted=sum(formatted),
        empty=sum(empty),
        truncated=sum(r.status is AnswerStatus.TRUNCATED for r in sampled),
        in_domain=sum(mentions(r.text, words, texts[r.prompt]) for r in sampled) if words else -1,
        nll_base=float(np.mean(known)) if known else float("nan"),
    )
