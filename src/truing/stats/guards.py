"""Guards against artefacts: a task score that jumps because the form of the answers changed, not the task.

A held-out loss falls when a model takes on the training answers' format, length or style, without the task. So where
the loss jumps and, at the same checkpoint, the share of formatted, repetitive or cut-off answers certainly changes,
the jump is flagged, unless the skill, which sets one answer against another of the same form, jumps with it.
"""

from itertools import pairwise

import numpy as np

from truing.config import Thresholds
from truing.stats.bands import wilson
from truing.stats.evidence import RunEvidence
from truing.stats.progress import Progress
from truing.stats.rates import limits_of_difference

JUMP = 0.2
"""share of the total gain from one checkpoint to the next that counts as a jump"""
FOLLOWS = 0.5
"""the skill jumps too if its share of its own gain is at least this part of the loss's"""
LEAST_CHANGE = 0.15
"""change of a share of answers under which it is not called a change of form"""
FEW_ROWS = 0.1
"""share of held-out rows missing at a checkpoint over which it is flagged"""
FORMS = {"formatted": "formatted", "repetitive": "repetitive", "empty": "empty", "cut-off": "truncated"}
"""forms of an answer, and the counts of `AnswerCounts` that hold how many have them"""


def artefacts(run: RunEvidence, loss: Progress | None, skill: Progress | None, rule: Thresholds) -> dict[int, str]:
    """Index of a checkpoint -> why progress by loss there may be none of the task.

    Args:
        run: the run; its answers and its loss rows are looked at.
        loss: its loss curve; without one there is nothing to guard.
        skill: its skill curve, if measured.
        rule: level of the tests, shared out over all of them (Bonferroni).
    """
    if loss is None:
        return {}
    rows, forms = _changed_rows(run), _form_jumps(run, loss, skill, rule)
    return {s: "; ".join(found[s] for found in (rows, forms) if s in found) for s in sorted({*rows, *forms})}


def _changed_rows(run: RunEvidence) -> dict[int, str]:
    """Checkpoints whose held-out rows are not those of step 0: other token counts, or missing ones."""
    out: dict[int, str] = {}
    if run.loss is None:
        return out
    there, tokens = np.isfinite(run.loss), run.row_tokens
    for s in range(1, len(run.labels)):
        lost = int((there[0] & ~there[s]).sum())
        if there[s].any() and lost > FEW_ROWS * there[0].sum():
            out[s] = f"{lost} of {int(there[0].sum())} held-out rows could not be scored here, so none counts them"
        if tokens is None:
            continue
        both = np.isfinite(tokens[0]) & np.isfinite(tokens[s])
        other = int((tokens[0, both] != tokens[s, both]).sum())
        if other:
            changed = f"{other} of {int(both.sum())} held-out answers have other token counts than at step 0"
            out[s] = f"{changed} (another template, tokenizer or cut): losses are not comparable"
    return out


def _form_jumps(run: RunEvidence, loss: Progress, skill: Progress | None, rule: Thresholds) -> dict[int, str]:
    """Checkpoints at which the loss jumps together with the form of the answers, and the skill does not."""
    if not loss.learned(rule):
        return {}
    order = [k for k in range(len(run.labels)) if np.isfinite(loss.value[k])]
    level = 1 - (1 - rule.level) / max(1, len(FORMS) * (len(order) - 1))
    out: dict[int, str] = {}
    for before, s in pairwise(order):
        jump = float(loss.progress[s] - loss.progress[before])
        moved = _skill_jump(skill, before, s, rule)
        if abs(jump) < JUMP or (moved is not None and np.sign(jump) * moved >= FOLLOWS * abs(jump)):
            continue
        told = []
        for name, form in FORMS.items() if run.answers else ():
            (old, n_old), (new, n_new) = ((getattr(a, form), a.n) for a in (run.answers[before], run.answers[s]))
            if min(old, new) < 0 or min(n_old, n_new) < max(1, rule.min_answers):
                continue
            p, q = old / n_old, new / n_new
            low, high = limits_of_difference((q, *wilson(new, n_new, level)), (p, *wilson(old, n_old, level)))
            if abs(q - p) >= LEAST_CHANGE and (low > 0 or high < 0):
                told.append(f"{name} answers go from {p:.0%} to {q:.0%}")
        if told:
            tail = f", while the skill moves by {moved:.0%} of its gain" if moved is not None else ""
            way = "rises" if jump > 0 else "falls"
            out[s] = f"progress by loss {way} by {abs(jump):.0%} here as {' and '.join(told)}{tail}"
    return out


def _skill_jump(skill: Progress | None, before: int, s: int, rule: Thresholds) -> float | None:
    """Share of the skill's gain between two checkpoints; 0 where the skill was not learned, None if not measured."""
    if skill is None or not (np.isfinite(skill.value[s]) and np.isfinite(skill.value[before])):
        return None
    return float(skill.progress[s] - skill.progress[before]) if skill.learned(rule) else 0.0
