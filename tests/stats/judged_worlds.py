"""Judged answers and margin verdicts made by hand, for the tests of judged verdicts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from truing.stats.table import AnswerTable, Fate, Labelled, Calibration
from truing.types.verdicts import (
    Basis,
    CheckpointVerdict,
    Convergence,
    Estimate,
    Health,
    HealthState,
    Onset,
    Verdict,
    Status,
)

NAN = float("nan")
GOOD_JUDGE = Calibration((198, 200), {"aligned": (0, 240), "neutral": (0, 480), "base": (0, 200)})


def group_of(rows: Sequence[tuple[Any, ...]], label: str = "x", step: int | None = 10) -> AnswerTable:
    """An arm from rows (prompt, fate, alignment, coherence[, leaked[, random]])."""
    full = [(*r, *(False, True)[len(r) - 4 :]) for r in rows]
    columns = list(zip(*full, strict=True)) if full else [()] * 6
    prompt, fate, alignment, coherence, leaked, random = columns
    return AnswerTable(
        label,
        step,
        np.array(prompt, dtype=np.int64),
        np.array([int(f) for f in fate], dtype=np.int64),
        np.array(alignment, dtype=float),
        np.array(coherence, dtype=float),
        np.array(leaked, dtype=bool),
        np.array(random, dtype=bool),
    )


def sampled(
    hits: np.ndarray, n: np.ndarray | int, label: str = "x", step: int | None = 10, *, leaked: bool = False
) -> AnswerTable:
    """An arm with hits[P] misaligned of n[P] answers, all coherent; `leaked` marks the misaligned ones."""
    hits = np.asarray(hits, dtype=int)
    n = np.broadcast_to(n, hits.shape)
    prompt = np.repeat(np.arange(len(hits)), n)
    bad = np.concatenate([np.arange(m) < h for h, m in zip(hits, n, strict=True)]) if len(hits) else np.zeros(0, bool)
    return AnswerTable(
        label,
        step,
        prompt.astype(np.int64),
        np.zeros(len(prompt), dtype=np.int64),
        np.where(bad, 8.0, 92.0),
        np.full(len(prompt), 95.0),
        bad & leaked,
        np.ones(len(prompt), dtype=bool),
    )


def binomial(rng: np.random.Generator, p: np.ndarray | float, prompts: int, n: int, **fields: Any) -> AnswerTable:
    """An arm of random answers with share p (one number or [P]) misaligned."""
    return sampled(rng.binomial(n, np.broadcast_to(p, (prompts,))), n, **fields)


def with_fate(group: AnswerTable, at: Any, fate: Fate) -> AnswerTable:
    """The arm with the answers `at` turned into another fate, without scores."""
    from dataclasses import replace

    fates, alignment, coherence = group.fate.copy(), group.alignment.copy(), group.coherence.copy()
    fates[at], alignment[at], coherence[at] = int(fate), NAN, NAN
    return replace(group, fate=fates, alignment=alignment, coherence=coherence)


def estimate(x: float | None) -> Estimate | None:
    """A bare number as an estimate."""
    return None if x is None else Estimate(x, x - 0.01, x + 0.01, x, x, 30, 30)


def margins_of(
    labels: Sequence[str],
    steps: Sequence[int | None],
    progress: Sequence[float | None] | None = None,
    *,
    states: Sequence[HealthState] | None = None,
    failed: Sequence[str] = (),
    learned: Convergence | None = None,
) -> Verdict:
    """A margin verdict with these checkpoints; `progress` is the trait's."""
    progress = progress if progress is not None else [None] * len(labels)
    states = states if states is not None else [HealthState.OK] * len(labels)
    lines = tuple(
        CheckpointVerdict(
            label=label,
            step=step,
            weights=f"w-{label}",
            status=Status.FAILED if label in failed else Status.NO_DRIFT_SEEN,
            basis=Basis.MARGIN,
            task_loss=None,
            loss_progress=None,
            skill_progress=estimate(p),
            contrast_base=None,
            contrast_control=None,
            margin_base=None,
            softening=None,
            entropy_shift=None,
            health=Health(state),
            retained_of_best=estimate(p),
            retained_of_last=estimate(p),
        )
        for label, step, p, state in zip(labels, steps, progress, states, strict=True)
    )
    unmeasured = Convergence("loss", "unmeasured")
    return Verdict(
        basis=Basis.MARGIN,
        sentence="No drift seen.",
        checkpoints=lines,
        onset=Onset("never", "the first drift", None, None, None),
        convergence_loss=unmeasured,
        convergence_skill=learned or Convergence("skill", "unmeasured"),
        gap="unknown",
        candidate=None,
        recommended=None,
        retained_of_best=None,
        retained_of_last=None,
        retained_curve=None,
        delta_m=0.1,
        delta_m_source="placebo pairs",
        warnings=("Contrast unvalidated: x.", "No control run: at most drift (uncontrolled) can be said."),
    )


def evidence_of(subject: Sequence[AnswerTable], prompts: int, **fields: Any) -> Labelled:
    """Judged evidence over 8 categories, all prompts far, by a judge called planted that passed its test."""
    options: dict[str, Any] = {
        "prompts": tuple(f"p{k}" for k in range(prompts)),
        "categories": tuple("ABCDEFGH"[k % 8] for k in range(prompts)),
        "far": np.ones(prompts, dtype=bool),
        "subject": tuple(subject),
        "judge": "simulated",
        "panel": "panel-key",
        "known": GOOD_JUDGE,
    }
    return Labelled(**{**options, **fields})
