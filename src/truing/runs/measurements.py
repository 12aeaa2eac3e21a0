"""From the store to the arrays a verdict is computed from. Reads only; the same store gives the same evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from truing.interp import likelihoods as margins
from truing.stats.bands import simultaneous_band
from truing.stats.evidence import AnswerCounts, Array, Measurements, RunEvidence
from truing.stats.screen import against_base
from truing.store import Store, StoredAnswer
from truing.traits.features import is_formatted, is_repetitive, mentions_domain
from truing.traits.label import has_no_room
from truing.types.records import AnswerStatus, Checkpoint, Conversation, Prompt
from truing.types.verdicts import Finding

PROBE_KIND = "probe"
"""one plain sentence scored by every checkpoint: weights that hold NaN show here, whatever else is measured"""
WILD_NATS = 1.0
"""an answer this much less likely per token under the base than nearly all of the base's own is not usable"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of every checkpoint: the axes of the arrays."""

    prompts: tuple[Prompt, ...]
    """prompts of the audit, in order"""
    rows: tuple[Conversation, ...] = ()
    """held-out task rows"""
    control_rows: tuple[Conversation, ...] = ()
    """control answers to the same rows, in the same order; empty if there are none"""
    answered: tuple[Prompt, ...] = ()
    """prompts that every checkpoint answers"""
    params: str = ""
    """hash of the sampling parameters"""
    domain_words: tuple[str, ...] = ()
    """words typical of the training domain"""

    @property
    def scored(self) -> tuple[Prompt, ...]:
        """Prompts with reference answers: the P axis."""
        return tuple(p for p in self.prompts if p.has_references)


def gather(
    store: Store,
    asked: Asked,
    subject: Sequence[Checkpoint],
    controls: Sequence[Sequence[Checkpoint]],
    findings: Sequence[Finding] = (),
) -> Measurements:
    """Evidence about a subject and its controls; each run is given with step 0 first."""
    own = _run(store, asked, subject)
    missing = int((~np.isfinite(own.contrast[0])).sum())
    without = len(asked.prompts) - len(asked.scored)
    left_out = {"no score under the base": missing, "without reference answers": without}
    return Measurements(
        prompts=tuple(p.id for p in asked.scored),
        categories=tuple(p.category for p in asked.scored),
        subject=own,
        controls=tuple(_run(store, asked, run) for run in controls),
        task_given=bool(asked.rows),
        left_out={reason: n for reason, n in left_out.items() if n},
        findings=tuple(findings),
    )


def by_category(evidence: Measurements) -> dict[str, list[dict[str, object]]]:
    """Contrast shift against base per category and checkpoint, with an interval; for the report's small multiples."""
    run, out = evidence.subject, {}
    names = np.array(evidence.categories)
    for category in dict.fromkeys(evidence.categories):
        shift = against_base(run.contrast)[:, names == category]
        lines = []
        for s in range(1, len(run.labels)):
            if not np.isfinite(shift[s]).any():
                continue
            band = simultaneous_band(shift[s : s + 1], [category] * shift.shape[1], level=0.95, resamples=500, seed=0)
            line: dict[str, object] = {"label": run.labels[s], "step": run.steps[s]}
            line["value"] = float(band.mean[0]) if band else float(np.nanmean(shift[s]))
            line["low"] = float(band.low[0]) if band else None
            line["high"] = float(band.high[0]) if band else None
            lines.append(line)
        out[category] = lines
    return out


def failures(store: Store, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Weight hash -> reason, for checkpoints that could not even score the probe sentence."""
    reason = "its likelihoods are NaN: the weights are broken (NaN loss?)"
    found = {m.checkpoint for m in store.measurements(PROBE_KIND) if m.meta.get("outcome") == "failed"}
    return {c.weights: reason for c in checkpoints if c.weights in found}


def without_room(store: Store, asked: Asked) -> tuple[Finding, ...]:
    """The prompts that left no room for an answer at some checkpoint; nothing without any."""
    names = {p.key: p.id for p in asked.prompts}
    stored = store.answers(asked.params)
    found = sorted({names[r.prompt] for r in stored if r.prompt in names and has_no_room(r)})
    return (Finding("no_room", {"prompts": found}),) if found else ()


def _run(store: Store, asked: Asked, checkpoints: Sequence[Checkpoint]) -> RunEvidence:
    broken = failures(store, checkpoints)
    values = [margins.read_margins(store, c.weights, asked.scored) for c in checkpoints]
    loss, row_tokens = _loss(store, asked, checkpoints)
    answers = {key: list(found) for key, found in _answers_by_weights(store, asked).items()}
    base = checkpoints[0].weights
    return RunEvidence(
        labels=tuple(c.label for c in checkpoints),
        steps=tuple(c.step for c in checkpoints),
        weights=tuple(c.weights for c in checkpoints),
        contrast=np.stack([margins.contrast(v) for v in values]),
        null_contrast=np.stack([margins.null_contrast(v) for v in values]),
        margin=np.stack([margins.plain_margin(v) for v in values]),
        entropy=np.stack([v["entropy"] for v in values]),
        loss=loss,
        tokens=row_tokens[0] if row_tokens is not None else None,
        row_tokens=row_tokens,
        skill=_skill(store, asked, checkpoints),
        answers=_answers(store, asked, checkpoints, answers, base),
        kl_from_base=_kl_from_base(store, asked, checkpoints),
        norm=_norm(store, checkpoints),
        failed={c.label: broken[c.weights] for c in checkpoints if c.weights in broken},
    )


def _rows_of(
    store: Store, kind: str, name: str, checkpoint: Checkpoint, items: Mapping[str, int]
) -> tuple[Array, Array]:
    """Per-token log-likelihoods and token counts of one kind and name, on the axis `items`; NaN where missing."""
    value, n = np.full(len(items), np.nan), np.full(len(items), np.nan)
    for m in store.measurements(kind, checkpoint.weights):
        if m.name == name and m.item in items and m.value is not None:
            value[items[m.item]], n[items[m.item]] = m.value, m.n
    return value, n


def control_item(row: Conversation, control: Conversation) -> str:
    """Name of a control answer's score: it depends on both files."""
    return f"{row.key}:{control.key}"


def _loss(store: Store, asked: Asked, checkpoints: Sequence[Checkpoint]) -> tuple[Array | None, Array | None]:
    if not asked.rows:
        return None, None
    items = {row.key: k for k, row in enumerate(asked.rows)}
    pairs = [_rows_of(store, "task", "trained", c, items) for c in checkpoints]
    return np.stack([-value * n for value, n in pairs]), np.stack([n for _, n in pairs])


def _skill(store: Store, asked: Asked, checkpoints: Sequence[Checkpoint]) -> Array | None:
    if not asked.control_rows:
        return None
    own = {row.key: k for k, row in enumerate(asked.rows)}
    other = {control_item(*pair): k for k, pair in enumerate(zip(asked.rows, asked.control_rows, strict=True))}
    return np.stack(
        [
            _rows_of(store, "task", "trained", c, own)[0] - _rows_of(store, "task", "control", c, other)[0]
            for c in checkpoints
        ]
    )


def _kl_from_base(store: Store, asked: Asked, checkpoints: Sequence[Checkpoint]) -> Array:
    """KL(base || checkpoint) per token, by the base's own answers: the mean of log p_base - log p over their tokens."""
    items = {answer_item(asked.params, p.key, 0) for p in asked.answered}
    rows = store.measurements("kl_from_base", checkpoints[0].weights)
    own = {m.item: m for m in rows if m.value is not None and m.item in items}
    out = np.full(len(checkpoints), np.nan)
    for s, c in enumerate(checkpoints):
        lost, tokens = 0.0, 0
        for m in store.measurements("kl_from_base", c.weights):
            if m.value is not None and m.item in own:
                reference = own[m.item].value
                assert reference is not None
                lost, tokens = lost + (reference - m.value) * m.n, tokens + m.n
        if tokens:
            out[s] = lost / tokens
    return out


def _norm(store: Store, checkpoints: Sequence[Checkpoint]) -> Array:
    out = np.full(len(checkpoints), np.nan)
    for s, c in enumerate(checkpoints):
        for m in store.measurements("norm", c.weights):
            out[s] = np.nan if m.value is None else m.value
    return out


def _answers_by_weights(store: Store, asked: Asked) -> dict[str, list[StoredAnswer]]:
    out: dict[str, list[StoredAnswer]] = {}
    answered = {p.key for p in asked.answered}
    for r in store.answers(asked.params):
        if r.sample == 0 and not r.transform and r.prompt in answered:
            out.setdefault(r.weights, []).append(r)
    return out


def answer_item(params: str, prompt_key: str, sample: int) -> str:
    """Name of a stored answer where it is itself scored: all that decides its text but the weights."""
    return f"{params}:{prompt_key}:{sample}"


def _answers(
    store: Store,
    asked: Asked,
    checkpoints: Sequence[Checkpoint],
    answers: Mapping[str, Sequence[StoredAnswer]],
    base: str,
) -> tuple[AnswerCounts, ...]:
    nll = {m.item: -m.value for m in store.measurements("answer_nll", base) if m.value is not None}
    texts = {p.key: " ".join(m.content for m in p.messages) for p in asked.answered}
    own = [nll[i] for r in answers.get(base, ()) if r.prompt in texts and (i := _nll_item(r)) in nll]
    limit = float(np.quantile(own, 0.95)) + WILD_NATS if own else float("inf")
    words = frozenset(asked.domain_words)
    return tuple(_count(answers.get(c.weights, ()), nll, texts, limit, words) for c in checkpoints)


def _nll_item(r: StoredAnswer) -> str:
    return f"{r.weights}:{answer_item(r.params, r.prompt, r.sample)}"


def _count(
    answers: Sequence[StoredAnswer],
    nll: Mapping[str, float],
    texts: Mapping[str, str],
    limit: float,
    words: frozenset[str],
) -> AnswerCounts:
    left_out = (AnswerStatus.FAILED, AnswerStatus.UNSUPPORTED, AnswerStatus.REFUSED_BY_API)
    sampled = [r for r in answers if r.outcome not in left_out and not has_no_room(r) and r.prompt in texts]
    if not sampled:
        return AnswerCounts()
    repetitive = [is_repetitive(r.text) for r in sampled]
    formatted = [is_formatted(r.text, texts[r.prompt]) for r in sampled]
    empty = [r.outcome is AnswerStatus.EMPTY for r in sampled]
    # An answer that could not be scored under the base counts as wild unless it is empty anyway.
    surprise = [nll.get(_nll_item(r), float("inf")) for r in sampled]
    usable = [
        not (a or b or c) and s <= limit for a, b, c, s in zip(repetitive, formatted, empty, surprise, strict=True)
    ]
    finite = [s for s in surprise if np.isfinite(s)]
    return AnswerCounts(
        n=len(sampled),
        usable=sum(usable),
        repetitive=sum(repetitive),
        formatted=sum(formatted),
        empty=sum(empty),
        truncated=sum(r.outcome is AnswerStatus.TRUNCATED for r in sampled),
        in_domain=sum(mentions_domain(r.text, texts[r.prompt], words) for r in sampled) if words else -1,
        nll_base=float(np.mean(finite)) if finite else float("nan"),
    )
