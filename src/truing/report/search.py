"""A searched onset in words and as rows of tables: what was tested, what was looked at, what may have been missed.

A search samples answers where it needs them, so some checkpoints have no test and some no answers at all. Neither is a
failure, and the shares among answers that a search drew have no interval: here both get words of their own.
"""

from collections.abc import Iterator
from typing import Any

from truing.report import reading
from truing.report.judged import em_words, ends, percent, searched
from truing.report.reading import MISSING, number, one_line
from truing.types.verdicts import CheckpointVerdict, Missed, Onset, Status, Tested, Verdict

NOT_CERTAIN = "not certain"
MEANINGS = {
    "spot-checked": "a few answers, no test",
    "looked at": "answers that steered the search, no test",
    "not asked": "the search did not need it",
}
"""words that only a search has for a checkpoint without a verdict -> what they mean"""


def status_words(line: CheckpointVerdict, verdict: Verdict) -> str:
    """The status of a checkpoint in words; under a search an unjudged one is told apart by what was asked of it."""
    if line.status is not Status.UNJUDGED or not searched(verdict):
        return reading.status_words(line)
    if line.judged is None:
        return "not asked"
    return "spot-checked" if line.step in verdict.onset.spots else "looked at"


def open_steps(onset: Onset) -> list[int]:
    """Steps in the onset set that no test certifies, up to the bracket: where a spike is not excluded."""
    certain = {t.step for t in onset.tested if t.claim != "inconclusive"}
    last = onset.clear_until or 0
    return [s for s in onset.steps if s not in certain and s < last]


def bracket(onset: Onset) -> tuple[int | None, int | None]:
    """The steps between which it begins or, where earlier ones are not all tested, between which it crosses."""
    if onset.latest is not None and (onset.clear_until or 0) > (onset.after or 0):
        return onset.clear_until, onset.latest
    return onset.after, onset.latest


def steps_words(steps: list[int]) -> str:
    """`step 10`, or `steps 10 to 60`."""
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def headline(onset: Onset) -> tuple[str, str]:
    """The onset a search found, and what it leaves open, for a reader in a hurry."""
    open_ = open_steps(onset)
    spike = f"a spike at {steps_words(open_)} is not excluded" if open_ else ""
    if onset.status == "found":
        later = {False: "not at every later checkpoint", None: "later checkpoints not all tested", True: ""}
        remarks = (spike, later[onset.sustained])
        return reading.window(*bracket(onset)), "; ".join(r for r in remarks if r)
    if onset.status == "never":
        return "none found", spike or "every later checkpoint is certified"
    return "undecided" + (f" after step {onset.clear_until}" if onset.clear_until else ""), spike


def tested_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """A row per tested step: step, label, word, tone, then cells (value and lines under it)."""
    lo, hi = _zone(verdict)
    lines = {c.step: c for c in verdict.checkpoints}
    return [
        {
            "step": str(t.step),
            "label": one_line(lines[t.step].label) if t.step in lines else "",
            "word": _said(t, lo, hi),
            "void": _void(verdict, t),
            "tone": {"above": "drift", "below": "calm"}.get(t.claim, "open") if not _void(verdict, t) else "broken",
            "cells": [
                (f"{t.n_run:,}", f"{t.n_reference:,} of the base"),
                (percent(t.rate_run), f"base {percent(t.rate_reference)}"),
                _limits(t),
                _control(t, lo),
                _breadth(t),
            ],
        }
        for t in verdict.onset.tested
    ]


def missed_rows(onset: Onset) -> list[tuple[str, str, str]]:
    """(height in points, probability at one step, at two steps next to each other) of a spike that went unnoticed."""
    heights = dict.fromkeys(m.height for m in onset.missed)
    return [(f"{100 * h:g}", _chance(onset, h, 1), _chance(onset, h, 2)) for h in heights]


def untested(verdict: Verdict) -> list[tuple[str, str]]:
    """(what was done, at which steps) of the checkpoints without a test or a fixed sample."""
    groups: dict[str, list[str]] = {}
    for c in verdict.checkpoints:
        if c.status is not Status.UNJUDGED or c.step is None:
            continue
        n = f" ({c.judged.em.n:,})" if c.judged is not None else ""
        groups.setdefault(status_words(c, verdict), []).append(f"{c.step}{n}")
    heads = {
        "spot-checked": "Spot-checked only, steps (answers)",
        "looked at": "Looked at to steer the search, steps (answers)",
        "not asked": "Not asked, steps",
    }
    return [(heads[word], ", ".join(steps)) for word, steps in groups.items() if word in heads]


def summary(verdict: Verdict) -> str:
    """How many answers a search took, and what its errors are."""
    o = verdict.onset
    level = verdict.definitions.get("level")
    error = f" at most {100 * (1 - level):.2g} % each" if isinstance(level, (int, float)) else " limited"
    said = f"the errors of all claims of misalignment, and of all claims of none, are{error}, at every look"
    assumed = "; an excess, once there, is assumed to stay" if o.assumed_monotone else ""
    return f"{o.answers_used:,} answers in all groups on far prompts; {said}{assumed}"


def terminal_lines(verdict: Verdict) -> Iterator[str]:
    """The search in a few lines: its size and errors, each test, what may have been missed."""
    o = verdict.onset
    yield f"Search: {summary(verdict)}"
    lo, hi = _zone(verdict)
    for t in o.tested:
        void, more = _void(verdict, t), [x for x in (_control(t, lo), _breadth(t)) if x[0] != MISSING]
        answers = f"{t.n_run:,} answers, {t.n_reference:,} of the base"
        parts = [*([void] if void else []), answers, *(f"{x[0]} ({x[1]})" for x in more)]
        low_high = ends(t.low, t.high)
        yield f"  step {t.step} {_said(t, lo, hi)}" + (f" [{low_high}]" if low_high else "") + f": {'; '.join(parts)}"
    rows = [(height, one) for height, one, _ in missed_rows(o) if one != MISSING]
    if rows:
        heights, chances = (" / ".join(x) for x in zip(*rows, strict=True))
        where = "before the crossing" if o.latest is not None else "without a test"
        yield f"  a spike of {heights} points at one step {where} would be missed with probability {chances}"


def _zone(verdict: Verdict) -> tuple[str, str]:
    words = em_words(verdict.definitions)
    lo, hi = ((f"{100 * x:g}" if x is not None else name) for x, name in ((words.lo, "lo"), (words.hi, "hi")))
    return f"{lo} point{'' if lo == '1' else 's'}", f"{hi} point{'' if hi == '1' else 's'}"


def _said(t: Tested, lo: str, hi: str) -> str:
    return {"above": f"certainly above {lo}", "below": f"certainly under {hi}"}.get(t.claim, "left open")


def _void(verdict: Verdict, t: Tested) -> str:
    """Why a test stands for nothing; empty where it does."""
    if verdict.validity is not None and not verdict.validity.absolute:
        return "does not count: the judge failed its test"
    status = next((c.status for c in verdict.checkpoints if c.step == t.step), Status.FAILED)
    return f"does not count: {status.value}" if status in (Status.BROKEN, Status.FAILED) else ""


def _limits(t: Tested) -> tuple[str, ...]:
    text = ends(t.low, t.high)
    return (f"[{text}]".replace("-", "−"),) if text else (MISSING,)


def _control(t: Tested, lo: str) -> tuple[str, ...]:
    if not t.control:
        return (MISSING,)
    word = f"above the control by {lo} too" if t.control == "above" else "not certainly above the control"
    return word, f"{t.n_control:,} answers of it"


def _breadth(t: Tested) -> tuple[str, ...]:
    b = t.breadth
    if b is None:
        return (MISSING,)
    spread = f"{b.prompts} prompts of {b.categories} categories in {b.n_run:,} answers"
    if b.broad:
        return "broad", spread
    why = []
    if b.evidence_without_top < t.enough:
        why.append(f"{NOT_CERTAIN} without {one_line(b.top_prompt)}")
    if b.evidence_without_domain is not None and b.evidence_without_domain < t.enough:
        why.append(f"{NOT_CERTAIN} without the training domain")
    return "not shown to be broad", "; ".join([spread, *why])


def _chance(onset: Onset, height: float, width: int) -> str:
    found: Missed | None = next((m for m in onset.missed if m.height == height and m.width == width), None)
    if found is None:
        return MISSING
    return "<0.1 %" if found.probability < 0.001 else f"{number(100 * found.probability, 1)} %"
