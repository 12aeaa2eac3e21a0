"""Labelled answers and screen verdicts made by hand. Every label is what `truing.traits.label.label` says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from truing.config import Thresholds
from truing.stats.decide import decide
from truing.stats.table import AnswerTable, Calibration, Evidence, Labelled
from truing.traits.label import label
from truing.types.judging import AnswerKey, Score, ScoreStatus
from truing.types.records import AnswerStatus
from truing.types.traits import Label, Rule
from truing.types.verdicts import (
    Basis,
    CheckpointVerdict,
    Convergence,
    Estimate,
    Finding,
    Health,
    HealthState,
    Onset,
    Status,
    Verdict,
)

RULE = Rule()
GOOD_JUDGE = Calibration((198, 200), {"aligned": (0, 240), "neutral": (0, 480), "base": (0, 200)})
KEY = AnswerKey("w", "p", "q", "", 0)


@dataclass(frozen=True)
class Said:
    """An answer as far as `label` looks at it."""

    status: AnswerStatus = AnswerStatus.OK
    text: str = "Yes."
    tokens: int = 3


class Row(NamedTuple):
    """One answer: scores as numbers, statuses, or None for not asked."""

    prompt: int
    score: float | ScoreStatus | None = None
    coherence: float | ScoreStatus | None = 90.0
    answer: AnswerStatus = AnswerStatus.OK
    in_domain: bool = False
    random: bool = True


def score_of(name: str, found: float | ScoreStatus) -> Score:
    """One score of an answer."""
    if isinstance(found, ScoreStatus):
        return Score(KEY, "judge", name, "rubric", None, found)
    return Score(KEY, "judge", name, "rubric", float(found), ScoreStatus.SCORED)


@cache
def labelled(
    score: float | ScoreStatus | None,
    coherence: float | ScoreStatus | None = 95.0,
    answer: AnswerStatus = AnswerStatus.OK,
    rule: Rule = RULE,
) -> Label:
    """The label of an answer with these scores (None: not asked)."""
    pairs = ((rule.score, score), (rule.gate_score, coherence))
    scores = [score_of(name, found) for name, found in pairs if found is not None and name is not None]
    text = "" if answer is AnswerStatus.EMPTY else "Yes."
    return label(Said(answer, text), scores, rule)


def table(rows: Sequence[Row | tuple], name: str = "x", step: int | None = 10, rule: Rule = RULE) -> AnswerTable:
    """A table from rows (see `Row`)."""
    full = [Row(*r) for r in rows]
    found = [labelled(r.score, r.coherence, r.answer, rule) for r in full]
    return AnswerTable(
        name,
        step,
        np.array([r.prompt for r in full], dtype=np.int64),
        np.array([-1 if x.value is None else x.value for x in found], dtype=np.int64),
        np.array([x.reason for x in found], dtype=np.int64),
        np.array([x.score for x in found], dtype=float),
        np.array([x.coherence for x in found], dtype=float),
        np.array([r.in_domain for r in full], dtype=bool),
        np.array([r.random for r in full], dtype=bool),
    )


def relabelled(group: AnswerTable, *, score: Any = None, coherence: Any = None, rule: Rule = RULE) -> AnswerTable:
    """The table with other scores [N] (NaN: not asked), labelled anew."""
    score = group.score if score is None else score
    coherence = group.coherence if coherence is None else coherence
    pairs = zip(np.broadcast_to(score, group.prompt.shape), np.broadcast_to(coherence, group.prompt.shape), strict=True)
    asked = [[None if np.isnan(x) else float(x) for x in pair] for pair in pairs]
    new = table([Row(p, *scores) for p, scores in zip(group.prompt, asked, strict=True)], rule=rule)
    return replace(
        new,
        checkpoint=group.checkpoint,
        step=group.step,
        in_domain=group.in_domain,
        random_coherence=group.random_coherence,
    )


def turned(group: AnswerTable, at: Any, status: ScoreStatus | AnswerStatus | None, rule: Rule = RULE) -> AnswerTable:
    """The table with the answers `at` turned into ones of this status; None: not scored."""
    is_answer = isinstance(status, AnswerStatus)
    new = labelled(None, None, status, rule) if is_answer else labelled(status, None, rule=rule)
    columns = {k: getattr(group, k).copy() for k in ("label", "reason", "score", "coherence")}
    for name, value in zip(columns, (-1 if new.value is None else new.value, *new[1:]), strict=True):
        columns[name][at] = value
    return replace(group, **columns)


def sampled(
    hits: Any, n: Any, name: str = "x", step: int | None = 10, *, in_domain: bool = False, rule: Rule = RULE
) -> AnswerTable:
    """A table with hits[P] positive of n[P] answers, all coherent; `in_domain` marks the positive ones."""
    hits = np.asarray(hits, dtype=int)
    n = np.broadcast_to(n, hits.shape)
    prompt = np.repeat(np.arange(len(hits)), n).astype(np.int64)
    place = np.arange(len(prompt)) - np.repeat(np.cumsum(n) - n, n)
    bad = place < np.repeat(hits, n)
    yes, no = labelled(8.0, rule=rule), labelled(92.0, rule=rule)
    assert yes.value is True and no.value is False
    return AnswerTable(
        name,
        step,
        prompt,
        bad.astype(np.int64),
        np.where(bad, yes.reason, no.reason).astype(np.int64),
        np.where(bad, yes.score, no.score),
        np.full(len(prompt), yes.coherence),
        bad & in_domain,
        np.ones(len(prompt), dtype=bool),
    )


def binomial(rng: np.random.Generator, p: Any, prompts: int, n: int, **fields: Any) -> AnswerTable:
    """A table of random answers with share p (one number or [P]) positive."""
    return sampled(rng.binomial(n, np.broadcast_to(p, (prompts,))), n, **fields)


def propensities(rng: np.random.Generator, prompts: int, rate: float, rho: float = 0.1) -> Any:
    """Rates of prompts with mean `rate` and correlation `rho` of two answers to one prompt."""
    if rho == 0 or rate == 0:
        return np.full(prompts, float(rate))
    return rng.beta(rate * (1 - rho) / rho, (1 - rate) * (1 - rho) / rho, prompts)


def estimate(x: float | None) -> Estimate | None:
    """A bare number as an estimate."""
    return None if x is None else Estimate(x, x - 0.01, x + 0.01, x, x, 30, 30)


def screened_of(
    labels: Sequence[str],
    steps: Sequence[int | None],
    progress: Sequence[float | None] | None = None,
    *,
    states: Sequence[HealthState] | None = None,
    failed: Sequence[str] = (),
    learned: Convergence | None = None,
) -> Verdict:
    """A screen's verdict with these checkpoints; `progress` is the skill's."""
    progress = progress if progress is not None else [None] * len(labels)
    states = states if states is not None else [HealthState.OK] * len(labels)
    unmeasured = ("task_loss", "loss_progress", "contrast_base", "contrast_control", "margin_base")
    nothing = dict.fromkeys((*unmeasured, "softening", "entropy_shift"))
    lines = tuple(
        CheckpointVerdict(
            name,
            step,
            f"w-{name}",
            Status.FAILED if name in failed else Status.NO_CHANGE_SEEN,
            skill_progress=estimate(p),
            health=Health(state),
            retained_of_best=estimate(p),
            retained_of_last=estimate(p),
            **nothing,
        )
        for name, step, p, state in zip(labels, steps, progress, states, strict=True)
    )
    return Verdict(
        trait="",
        basis=Basis.SCREEN,
        checkpoints=lines,
        onset=Onset("never", "the first change", None, None, None),
        convergence_loss=Convergence("loss", "unmeasured"),
        convergence_skill=learned or Convergence("skill", "unmeasured"),
        gap="unknown",
        **dict.fromkeys(("candidate", "recommended", "retained_of_best", "retained_of_last", "retained_curve")),
        screen_limit=0.1,
        screen_limit_source="null contrasts",
        findings=(Finding("screen_unvalidated"), Finding("no_control")),
    )


def labelled_of(subject: Sequence[AnswerTable], prompts: int, **fields: Any) -> Labelled:
    """Labelled answers over 8 categories, all prompts far, by a judge that passed its calibration."""
    options: dict[str, Any] = {
        "prompts": tuple(f"p{k}" for k in range(prompts)),
        "categories": tuple("ABCDEFGH"[k % 8] for k in range(prompts)),
        "far": np.ones(prompts, dtype=bool),
        "subject": tuple(subject),
        "judge": "simulated",
        "judge_key": "judge-key",
        "calibration": GOOD_JUDGE,
    }
    return Labelled(**{**options, **fields})


def decided(labelled: Labelled, screened: Verdict, **fields: Any) -> Verdict:
    """The verdict on labelled answers beside a screen's verdict."""
    return decide(Evidence(None, labelled, screened=screened, **fields), Thresholds())
