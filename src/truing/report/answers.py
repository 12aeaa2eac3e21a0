"""Sampled answers, with what judges said of them: prompts by checkpoints for the report, one prompt for a terminal.

All of it is untrusted text.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from truing.errors import BadInput
from truing.report.fitting import say, text
from truing.report.reading import MISSING, PromptItem, clean, judge_name, number, one_line, prompt_items
from truing.store import Store
from truing.traits.label import label
from truing.types.judging import Score
from truing.types.records import FIXED_FROM, AnswerStatus, Checkpoint, Role, StoredAnswer
from truing.types.traits import LOST, Rule

MOST_PROMPTS = 40
"""prompts shown; the others are counted and named by `truing show`"""
MOST_DRAWS = 4
"""answers shown per prompt and checkpoint; the others are counted"""
MOST_RUBRICS = 6
"""scores named per judge and answer; the others are counted"""
CLIP = 320
"""characters shown before the fold"""


def answer_rows(
    store: Store, about: Mapping[str, Any], items: Sequence[PromptItem], first: Sequence[str] = ()
) -> dict[str, Any]:
    """What the report shows of the stored answers.

    Args:
        store: the audit.
        about: its audit.json.
        items: its prompts.
        first: ids of the prompts that come first, e.g. those with most positive answers.

    Returns a mapping: `rows` (one per prompt: id, category, turns, cells; a cell: head, run, answers), `total` answers
    stored, `prompts` that have any, `hidden` prompts not shown, `transformed` answers to changed prompts (not shown),
    `judged` whether any shown answer has a score, `positive` how many shown ones score past the cut.
    """
    columns: dict[str, Checkpoint] = {}
    for c in sorted(store.checkpoints(), key=lambda c: c.role is not Role.SUBJECT):
        columns.setdefault(c.weights, c)  # weights that several runs share (the base) once
    counts, transformed = Counter[tuple[str, str]](), 0
    for r in store.answers():
        if r.weights in columns and r.variant:
            transformed += 1
        elif r.weights in columns:
            counts[r.prompt, r.weights] += 1
    front = {one_line(p): k for k, p in enumerate(first)}
    known = {p.key: p for p in sorted(items, key=lambda p: front.get(p.id, len(front)))}
    place = {key: k for k, key in enumerate(known)}
    answered = sorted({key for key, _ in counts}, key=lambda k: (place.get(k, len(place)), k))
    shown = answered[:MOST_PROMPTS]
    used = [c for w, c in columns.items() if any((key, w) in counts for key in shown)]
    first_few: dict[tuple[str, str], list[StoredAnswer]] = {(key, c.weights): [] for key in shown for c in used}
    for r in store.answers():
        own = first_few.get((r.prompt, r.weights))
        if own is not None and not r.variant and len(own) < MOST_DRAWS:
            own.append(r)
    judges = Judges(store, about)
    rows = []
    for key in shown:
        item = known.get(key) or PromptItem(key, key[:12], "not in the prompt list of this audit", [])
        cells = [_cell(judges, c, first_few[key, c.weights], counts[key, c.weights]) for c in used]
        rows.append({"id": item.id, "category": item.category.replace("_", " "), "turns": item.turns, "cells": cells})
    told = [a for row in rows for cell in row["cells"] for a in cell["answers"]]
    return {
        "rows": rows,
        "total": counts.total(),
        "prompts": len(answered),
        "hidden": len(answered) - len(shown),
        "transformed": transformed,
        "judged": any(a["scores"] for a in told),
        "positive": sum(a["positive"] for a in told),
    }


def print_answers(about: Mapping[str, Any], store: Store, prompt_id: str, console: Console) -> None:
    """One prompt's stored answers at every checkpoint, by run and step, in a terminal.

    Raises:
        BadInput: no prompt of that id in the audit (near ids are named), or no answer to it is stored.
    """
    items = {p.id: p for p in prompt_items(about)}
    asked = one_line(prompt_id)
    item = items.get(asked)
    if item is None:
        near = difflib.get_close_matches(asked, items, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {len(items)} prompts"
        raise BadInput(f"prompt {asked!r}: not in this audit; {hint}")
    answers: dict[str, list[StoredAnswer]] = {}
    for r in store.answers(prompt=item.key):
        answers.setdefault(r.weights, []).append(r)
    if not answers:
        why = "health is sampled on a few prompts only, which the report lists"
        raise BadInput(f"prompt {asked!r}: no answers stored; {why}")
    say(console, f"{item.id}  {item.category}", "bold")
    for role, content in item.turns:
        say(console, f"{role}: {content}")
    judges = Judges(store, about)
    for c in store.checkpoints():
        own = answers.pop(c.weights, ())  # weights that several runs share come once
        if own:
            step = "no step" if c.step is None else f"step {c.step}"
            run = "" if c.role is Role.SUBJECT else f", {c.role.value} run {one_line(c.run)}"
            console.print()
            console.rule(text(console.options, f"{step}, {one_line(c.label)}{run}"), align="left", characters="-")
        for r in own:
            tag = "" if r.status is AnswerStatus.OK else f"[{r.status.value}] "
            name = f" ({one_line(r.variant)})" if r.variant else ""
            fixed = r.sample >= FIXED_FROM  # beside a search, whose answers do not count among these
            place = f"fixed {r.sample - FIXED_FROM + 1}" if fixed else str(r.sample + 1)
            say(console, f"{place}{name}. {tag}{clean(r.text or r.error) or MISSING}")
            told = list(judges.of(r))
            for words, positive in told or ([("not judged", False)] if judges.names else []):
                say(console, f"   {words}", "red" if positive else "dim")


class Judges:
    """The judges of one audit, and its rule."""

    def __init__(self, store: Store, about: Mapping[str, Any]) -> None:
        self._store = store
        counts = about.get("rule") or (about.get("labels") or {}).get("rule")
        self.rule = Rule(**counts) if counts else Rule()
        self.names = {key: judge_name(judge.get("judge")) for key, judge in store.judges().items()}

    def of(self, r: StoredAnswer) -> Iterator[tuple[str, bool]]:
        """What each judge that was asked says of an answer, and whether its score is past the cut, whatever the
        coherence: then the text goes behind a notice."""
        for key, name in self.names.items():
            scores = list(self._store.scores_of([r.key], key))
            if scores:
                reason = label(r, scores, self.rule).reason
                words = _scores(scores) + ("" if reason in LOST else f": {reason.word}")
                own = (s.score for s in scores if s.rubric == self.rule.score and s.score is not None)
                yield words + (f" ({name})" if len(self.names) > 1 else ""), any(map(self.rule.past, own))


def _scores(scores: list[Score]) -> str:
    """`alignment 12, coherence 92`, or what became of a rubric instead of a score."""
    order = {"alignment": 0, "coherence": 1}
    scores = sorted(scores, key=lambda s: (order.get(s.rubric, 2), s.rubric))
    parts = [f"{one_line(s.rubric)} {s.status.value if s.score is None else number(s.score, 0)}" for s in scores]
    more = len(parts) - MOST_RUBRICS
    return ", ".join([*parts[:MOST_RUBRICS], *([f"{more} more"] if more > 0 else [])])


def _cell(judges: Judges, c: Checkpoint, answers: Sequence[StoredAnswer], n: int) -> dict[str, Any]:
    """The first answers of one checkpoint to one prompt, of `n`."""
    run = f"control: {one_line(c.run)}" if c.role is Role.CONTROL else ""
    shown = [_answer(r, judges) for r in answers]
    return {"head": _head(c), "run": run, "answers": shown, "more": n - len(shown)}


def _head(c: Checkpoint) -> str:
    name = one_line(c.label)
    if c.step is None:
        return name
    return f"step {c.step}" + ("" if name == f"checkpoint-{c.step}" else f" · {name}")


def _answer(r: StoredAnswer, judges: Judges) -> dict[str, Any]:
    body, told = clean(r.text).strip(), list(judges.of(r))
    cut = len(body)
    if cut > CLIP * 1.15:
        space = body.rfind(" ", 0, CLIP)
        cut = space if space > CLIP // 2 else CLIP
    fine = r.status is AnswerStatus.OK
    return {
        "tags": "" if fine else r.status.value.replace("_", " "),
        "start": body[:cut],
        "rest": body[cut:].lstrip(),
        "error": "" if fine else one_line(r.error),
        "scores": "; ".join(words for words, _ in told),
        "positive": any(positive for _, positive in told),
    }
