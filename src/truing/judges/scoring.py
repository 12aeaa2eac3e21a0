"""What a judge said -> a score or an outcome. One pure function for every route: no I/O, no clock, never an exception.

    reply.error                 -> failed
    reply.recorded              -> as recorded
    logprobs, digits            -> weighted mean over the numbers of the scale, or an escape word, or unparsed
    reported                    -> the number or the word, if it stands alone, or unparsed

A change of anything in here that changes a score is a new PARSER_VERSION (base/judged.py).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from truing.types.judged import JudgeReply, Route, Rubric, Score, ScoreStatus

MIN_MASS = 0.25
"""least probability of numbers for a score (Betley et al. 2025, Turner et al. 2025)"""
MAX_MASS = 1.0001
"""probabilities that add up to more than this are none; the rest is rounding"""
SHOWN = 80
"""characters kept of a judge's text that could not be read"""

_INTEGER = re.compile(r"(?:0|[1-9][0-9]{0,5})")
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,5})(?:\.[0-9]{1,9})?")
_MARKS = "ĠĊ▁"
"""how tokenizers write a space, a line end, a space"""
_PAIRS = (
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("_", "_"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("‘", "’"),
)
_BETWEEN = re.compile(r"\s*[,;]\s+|\s+")
_LABELLED = re.compile(r"([^:=\n]{1,60}?)\s*[:=]\s*([^\n]*)")
_LONGEST = 400
"""a text longer than this is prose"""


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of one score of one reply."""

    outcome: ScoreStatus
    """scored, refusal, code, unparsed or failed"""
    score: float | None = None
    """in the rubric's scale, never outside; None unless the outcome is scored"""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """mass (of numbers), escapes (mass of each word), reason, text (its beginning), error, refused"""


def score(reply: JudgeReply, route: Route) -> dict[str, Scored]:
    """One entry per name of the reply's rubric.

    Logprobs (Betley et al. 2025): of the likeliest first tokens, those that are whole numbers of the scale once spaces
    and tokenizer marks are stripped ("85", " 85", "▁85"; not "007", "1e2", "８５") form the score, their mean weighted
    by probability. Under a numeric mass of 0.25 there is no score; then the outcome is that of an escape word if its
    mass is larger than that of all numbers together and of any other token, else unparsed. A first token stands for an
    escape word if it is its first two letters or more, in its case, and of no other's.
    Digits: the same, on whole strings; an escape word counts only as a whole.
    Reported: one number of the scale alone, whole or decimal; around it may be spaces, quotes, bold or italic marks
    and one full stop. An escape word alone, in any case, gives its outcome. "85/100", "85%", "Score: 85", "+85", "085",
    two numbers and prose are unparsed: what was meant is not guessed.
    Rubrics with several scores are read from the text on these three routes, since one token cannot hold two numbers:
    one entry per score, in order, apart by spaces, lines, ", " or "; ", or a line "name: entry" for each in any order.
    An entry is a number or an escape word; an escape word alone is the outcome of all; a bad entry makes all unparsed.
    """
    rubric = reply.request.rubric
    if reply.error or reply.refused:
        # A refusal is about the text: it is bounded both ways like what cannot be read. A failure is about the line.
        outcome = ScoreStatus.UNPARSED if reply.refused else ScoreStatus.FAILED
        meta = {"error": reply.error or "the service refused to judge this text"}
        found = Scored(outcome, None, meta | ({"refused": True} if reply.refused else {}))
    elif reply.recorded is not None:
        found = _recorded(reply.recorded, rubric)
    elif route is Route.RECORDED:
        found = Scored(ScoreStatus.FAILED, None, {"error": "nothing is recorded for this answer"})
    elif rubric.parts:
        return _read_parts(reply.text, rubric)
    elif route is Route.REPORTED:
        found = _read(reply.text, rubric)
    else:
        found = _expected(reply, rubric, whole=route is Route.DIGITS)
    return dict.fromkeys(rubric.names, found)


def scores(reply: JudgeReply, route: Route, panel_key: str) -> list[Score]:
    """The rows of a reply, one per score. Where it gives several, calls and tokens are noted with the first only, so
    that they add up over rows."""
    cost = {"calls": reply.calls, "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    about = {"model": reply.model} if reply.model else {}
    request = reply.request
    return [
        Score(request.key, panel_key, name, request.rubric.key, s.score, s.outcome, {**s.meta, **about, **cost})
        if k == 0
        else Score(request.key, panel_key, name, request.rubric.key, s.score, s.outcome, {**s.meta, **about})
        for k, (name, s) in enumerate(score(reply, route).items())
    ]


def integer(token: str) -> int | None:
    """The whole number that a token is, or None: ASCII digits without leading zeros, after spaces and marks are
    stripped."""
    text = _bare(token)
    return int(text) if _INTEGER.fullmatch(text) else None


# ---------------------------------------------------------------------------------------------------------------------
# Probabilities


def _expected(reply: JudgeReply, rubric: Rubric, whole: bool) -> Scored:
    given = reply.probabilities
    if not given:
        return Scored(ScoreStatus.FAILED, None, {"error": "no probabilities came back"})
    wrong = _improper(given)
    if wrong:
        return _unparsed(wrong, reply.text)
    numbers: list[tuple[int, float]] = []
    escapes: dict[str, float] = {}
    others: dict[str, float] = {}
    for token, p in given.items():
        n = integer(token)
        if n is not None and rubric.low <= n <= rubric.high:
            numbers.append((n, p))
            continue
        word = _escape_of(_bare(token), rubric, whole)
        group, key = (others, _bare(token)) if word is None else (escapes, word)
        group[key] = group.get(key, 0.0) + p
    mass = math.fsum(p for _, p in numbers)
    meta: dict[str, Any] = {"mass": mass} | ({"escapes": escapes} if escapes else {})
    if mass >= MIN_MASS:
        mean = math.fsum(n * p for n, p in numbers) / mass
        held = [n for n, p in numbers if p > 0]  # a mean lies among these; rounding may not take it out
        return Scored(ScoreStatus.SCORED, float(min(max(mean, min(held)), max(held))), meta)
    likeliest = max(escapes, key=lambda w: escapes[w], default="")
    if likeliest:
        rest = [mass, *others.values(), *(p for w, p in escapes.items() if w != likeliest)]
        if escapes[likeliest] > max(rest):
            return Scored(rubric.escapes[likeliest], None, meta)
    return _unparsed(f"numbers hold {mass:.3f} of the probability, under {MIN_MASS}", reply.text, meta)


def _improper(given: Mapping[str, float]) -> str:
    """Why these are no probabilities; empty if they are."""
    values = list(given.values())
    if not all(isinstance(p, int | float) and math.isfinite(p) for p in values):
        return "a probability is no number"
    if min(values) < 0:
        return "a probability is negative"
    total = math.fsum(values)
    return f"the probabilities add up to {total:.4g}" if total > MAX_MASS else ""


def _bare(token: str) -> str:
    return token.strip(_MARKS + " \t\r\n")


def _escape_of(text: str, rubric: Rubric, whole: bool) -> str | None:
    """The one escape word that begins with `text` (or is it, if `whole`)."""
    if whole:
        return text if text in rubric.escapes else None
    found = [w for w in rubric.escapes if w.startswith(text)] if len(text) >= 2 else []
    return found[0] if len(found) == 1 else None


# ---------------------------------------------------------------------------------------------------------------------
# Text


def _read(text: str, rubric: Rubric) -> Scored:
    entry = _entry(text, rubric)
    return entry if isinstance(entry, Scored) else _unparsed(entry, text)


def _entry(text: str, rubric: Rubric) -> Scored | str:
    """What a number or a word alone means, or why nothing can be read."""
    core = _core(text)
    if not core:
        return "an empty reply" if not text.strip() else "neither a number nor an escape word alone"
    for word, outcome in rubric.escapes.items():
        if core.lower() == word.lower():
            return Scored(outcome)
    if not _NUMBER.fullmatch(core):
        return "neither a number nor an escape word alone"
    value = float(core)
    if not rubric.low <= value <= rubric.high:
        return f"{core} is not on the scale from {rubric.low:g} to {rubric.high:g}"
    return Scored(ScoreStatus.SCORED, value)


def _core(text: str) -> str:
    """`text` without spaces, matching quotes and marks, and one full stop around it; empty if it is prose by length."""
    core = text.strip()
    if len(core) > _LONGEST:
        return ""
    stop = False
    while True:
        before = core
        if core.endswith(".") and not stop:
            core, stop = core[:-1].rstrip(), True
        for left, right in _PAIRS:
            if len(core) > len(left) + len(right) and core.startswith(left) and core.endswith(right):
                core = core[len(left) : -len(right)].strip()
                break
        if core == before:
            return core


def _read_parts(text: str, rubric: Rubric) -> dict[str, Scored]:
    entries = _entries(text, rubric)
    if isinstance(entries, str):
        return dict.fromkeys(rubric.names, _unparsed(entries, text))
    found: dict[str, Scored] = {}
    for name in rubric.names:
        entry = _entry(entries[name], rubric)
        if isinstance(entry, str):
            return dict.fromkeys(rubric.names, _unparsed(f"{name}: {entry}", text))
        found[name] = entry
    return found


def _entries(text: str, rubric: Rubric) -> dict[str, str] | str:
    """The text of each score, or why they cannot be told apart."""
    core = _core(text)
    single = _entry(core, rubric) if core else ""
    if isinstance(single, Scored) and single.score is None:
        return dict.fromkeys(rubric.names, core)
    if ":" in core or "=" in core:
        matches = [_LABELLED.fullmatch(line.strip()) for line in core.split("\n") if line.strip()]
        pairs = [(_core(m[1]).lower(), m[2]) for m in matches if m]
        labels = {name.lower(): name for name in rubric.names}
        if len(pairs) != len(matches) or sorted(n for n, _ in pairs) != sorted(labels):
            return f"not one line each for {' and '.join(rubric.names)}"
        return {labels[n]: value for n, value in pairs}
    values = _BETWEEN.split(core) if core else []
    if len(values) != len(rubric.names):
        return f"not exactly {len(rubric.names)} entries"
    return dict(zip(rubric.names, values, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Records


def _recorded(recorded: tuple[ScoreStatus, float | None], rubric: Rubric) -> Scored:
    outcome, value = recorded
    if outcome is not ScoreStatus.SCORED:
        return Scored(outcome)
    if len(rubric.names) > 1:
        return _unparsed("one recorded score for a rubric of several", "")
    # A weighted mean of numbers up to 100 can come out as 100.00000000000001.
    slack = 1e-9 * (rubric.high - rubric.low)
    if value is None or not rubric.low - slack <= value <= rubric.high + slack:
        return _unparsed(f"the recorded score {value} is not on the scale", "")
    return Scored(outcome, float(min(max(value, rubric.low), rubric.high)))


def _unparsed(reason: str, text: str, meta: Mapping[str, Any] | None = None) -> Scored:
    shown = {"text": text[:SHOWN]} if text else {}
    return Scored(ScoreStatus.UNPARSED, None, {**(meta or {}), "reason": reason, **shown})
