"""Guards against artefacts: a task score that jumps because the form of the answers changed, not the task.

A held-out loss falls when a model takes on the training answers' format, length or style, without the task. So where
the loss jumps and, at the same checkpoint, the share of formatted, repetitive or cut-off answers certainly changes,
the jump is flagged, unless the skill, which sets one answer against another of the same form, jumps with it.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import numpy as np

from truing.config import Thresholds
from truing.stats.bands import share
from truing.stats.evidence import Array, RunEvidence
from truing.stats.progress import Progress

JUMP = 0.2
"""share of the total gain from one checkpoint to the next that counts as a jump"""
FOLLOWS = 0.5
"""the skill jumps too if its share of its own gain is at least this part of the loss's"""
LEAST_CHANGE = 0.15
"""change of a share of answers under which it is not called a change of form"""
FEW_ROWS = 0.1
"""share of held-out rows missing at a checkpoint over which it is flagged"""


def artefacts(
    run: RunEvidence,
    loss: Progress | None,
    skill: Progress | None,
    rule: Thresholds,
    *,
    truncated: Sequence[int] = (),
    row_tokens: Array | None = None,
) -> dict[int, str]:
    """Index of a checkpoint -> why progress by loss there may be none of the task.

    Args:
        run: the run; its answers and its loss rows are looked at.
        loss: its loss curve; without one there is nothing to guard.
        skill: its skill curve, if measured.
        rule: level of the tests, shared out over all of them (Bonferroni).
        truncated: [S] answers cut off at the length limit; -1 where unknown.
        row_tokens: [S, R] tokens each held-out answer had when it was scored; NaN where it was not.
    """
    if loss is None:
        return {}
    out: dict[int, list[str]] = {}
    for s, why in _changed_rows(run, row_tokens).items():
        out.setdefault(s, []).append(why)
    for s, why in _form_jumps(run, loss, skill, rule, truncated).items():
        out.setdefault(s, []).append(why)
    return {s: "; ".join(found) for s, found in sorted(out.items())}


def _changed_rows(run: RunEvidence, row_tokens: Array | None) -> dict[int, str]:
    """Checkpoints whose held-out rows are not those of step 0: other token counts, or missing ones."""
    out: dict[int, str] = {}
    if run.loss is None:
        return out
    there = np.isfinite(run.loss)
    for s in range(1, len(run.labels)):
        lost = int((there[0] & ~there[s]).sum())
        if there[s].any() and lost > FEW_ROWS * there[0].sum():
            out[s] = f"{lost} of {int(there[0].sum())} held-out rows could not be scored here, so none counts them"
        if row_tokens is None:
            continue
        both = np.isfinite(row_tokens[0]) & np.isfinite(row_tokens[s])
        other = int((row_tokens[0, both] != row_tokens[s, both]).sum())
        if other:
            changed = f"{other} of {int(both.sum())} held-out answers have other token counts than at step 0"
            out[s] = f"{changed} (another template, tokenizer or cut): losses are not comparable"
    return out


def _form_jumps(
    run: RunEvidence, loss: Progress, skill: Progress | None, rule: Thresholds, truncated: Sequence[int]
) -> dict[int, str]:
    """Checkpoints at which the loss jumps together with the form of the answers, and the skill does not."""
    if not loss.learned(rule):
        return {}
    order = [k for k in range(len(run.labels)) if np.isfinite(loss.value[k])]
    forms = _forms(run, truncated)
    level = 1 - (1 - rule.level) / max(1, len(forms) * (len(order) - 1))
    out: dict[int, str] = {}
    for before, s in pairwise(order):
        jump = float(loss.progress[s] - loss.progress[before])
        moved = _skill_jump(skill, before, s, rule)
        if abs(jump) < JUMP or (moved is not None and np.sign(jump) * moved >= FOLLOWS * abs(jump)):
            continue
        told = []
        for name, (hits, n) in forms.items():
            if hits[s] < 0 or hits[before] < 0 or min(n[s], n[before]) < rule.min_answers:
                continue
            if _certain_change(hits[before], n[before], hits[s], n[s], level):
                told.append(f"{name} answers go from {hits[before] / n[before]:.0%} to {hits[s] / n[s]:.0%}")
        if told:
            tail = f", while the skill moves by {moved:.0%} of its gain" if moved is not None else ""
            way = "rises" if jump > 0 else "falls"
            out[s] = f"progress by loss {way} by {abs(jump):.0%} here as {' and '.join(told)}{tail}"
    return out


def _forms(run: RunEvidence, truncated: Sequence[int]) -> dict[str, tuple[list[int], list[int]]]:
    """What is known of the form of answers: name -> counts and answers per checkpoint."""
    if not run.answers:
        return {}
    n = [a.n for a in run.answers]
    out = {
        "formatted": ([a.formatted for a in run.answers], n),
        "repetitive": ([a.repetitive for a in run.answers], n),
        "empty": ([a.empty for a in run.answers], n),
    }
    return out | ({"cut-off": (list(truncated), n)} if len(truncated) == len(n) else {})


def _skill_jump(skill: Progress | None, before: int, s: int, rule: Thresholds) -> float | None:
    """Share of the skill's gain between two checkpoints; 0 where the skill was not learned, None if not measured."""
    if skill is None or not (np.isfinite(skill.value[s]) and np.isfinite(skill.value[before])):
        return None
    return float(skill.progress[s] - skill.progress[before]) if skill.learned(rule) else 0.0


def _certain_change(a: int, n_a: int, b: int, n_b: int, level: float) -> bool:
    """Whether two shares of answers certainly differ, and by enough: Newcombe's interval (1998, method 10)."""
    p, q = share(a, n_a, level=level), share(b, n_b, level=level)
    ends = (p.value, p.low, p.high, q.value, q.low, q.high)
    if any(e is None for e in ends):
        return False
    x, x_low, x_high, y, y_low, y_high = (float(e) for e in ends if e is not None)
    d = y - x
    low = d - sqrt((y - y_low) ** 2 + (x_high - x) ** 2)
    high = d + sqrt((y_high - y) ** 2 + (x - x_low) ** 2)
    return abs(d) >= LEAST_CHANGE and (low > 0 or high < 0)
