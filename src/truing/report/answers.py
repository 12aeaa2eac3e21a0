"""Sampled answers for the report: prompts as rows, checkpoints as columns. All of it is untrusted text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from truing.report.reading import PromptItem, clean, one_line
from truing.report.scores import Judges
from truing.store import Store, StoredAnswer
from truing.types.records import AnswerStatus, Checkpoint, Role

MOST_PROMPTS = 40
"""prompts shown; the others are counted and named by `truing show`"""
MOST_DRAWS = 4
"""answers shown per prompt and checkpoint; the others are counted"""
CLIP = 320
"""characters shown before the fold"""


def answer_rows(store: Store, items: Sequence[PromptItem], judges: Judges, first: Sequence[str] = ()) -> dict[str, Any]:
    """What the report shows of the stored answers.

    Args:
        store: the audit.
        items: its prompts.
        judges: what was said of the answers.
        first: ids of the prompts that come first, e.g. those with most positive answers.

    Returns a mapping: `rows` (one per prompt: id, category, turns, cells; a cell: head, run, answers), `total` answers
    stored, `prompts` that have any, `hidden` prompts not shown, `transformed` answers to changed prompts (not shown),
    `judged` whether any shown answer has a score, `positive` how many shown ones score past the cut.
    """
    columns = _columns(store)
    known = {p.key: p for p in items}
    shown, counted = _collected(store, columns, _order(items, first))
    used = [w for w in columns if any(w in cells for cells in shown.values())]
    rows = []
    said: list[dict[str, Any]] = []
    for key, cells in shown.items():
        made = []
        for w in used:
            answers = [_answer(r, judges) for r in cells[w].answers] if w in cells else []
            said += answers
            run = "" if columns[w].role is not Role.CONTROL else f"control: {one_line(columns[w].run)}"
            more = cells[w].more if w in cells else 0
            made.append({"head": _head(columns[w]), "run": run, "answers": answers, "more": more})
        rows.append({**_question(key, known.get(key)), "cells": made})
    return {
        "rows": rows,
        "total": counted.total,
        "prompts": counted.prompts,
        "hidden": counted.prompts - len(shown),
        "transformed": counted.transformed,
        "judged": any(a["scores"] for a in said),
        "positive": sum(a["positive"] for a in said),
    }


@dataclass(slots=True)
class _Cell:
    """The answers of one checkpoint to one prompt."""

    answers: list[StoredAnswer] = field(default_factory=list)
    more: int = 0
    """answers not shown"""


class _Counted(NamedTuple):
    total: int
    prompts: int
    transformed: int


def _order(items: Sequence[PromptItem], first: Sequence[str]) -> dict[str, int]:
    """Prompt hash -> place: those of `first`, then as in the set."""
    front = {p: k for k, p in enumerate(first)}
    ordered = sorted(enumerate(items), key=lambda pair: (front.get(pair[1].id, len(front)), pair[0]))
    return {item.key: k for k, (_, item) in enumerate(ordered)}


def _collected(
    store: Store, columns: Mapping[str, Checkpoint], order: Mapping[str, int]
) -> tuple[dict[str, dict[str, _Cell]], _Counted]:
    """The answers of the prompts that come first, by prompt and checkpoint, and how many there are in all."""
    answered = {r.prompt for r in store.answers() if r.weights in columns}
    # Answers to transformed prompts have hashes that the list does not know; plain prompts come first either way.
    chosen = sorted(answered, key=lambda k: (order.get(k, len(order)), k))[:MOST_PROMPTS]
    shown: dict[str, dict[str, _Cell]] = {key: {} for key in chosen}
    prompts: set[str] = set()
    total = transformed = 0
    for r in store.answers():
        if r.weights not in columns:
            continue
        if r.transform:
            transformed += 1
            continue
        total += 1
        prompts.add(r.prompt)
        if r.prompt in shown:
            cell = shown[r.prompt].setdefault(r.weights, _Cell())
            if len(cell.answers) < MOST_DRAWS:
                cell.answers.append(r)
            else:
                cell.more += 1
    return {k: cells for k, cells in shown.items() if cells}, _Counted(total, len(prompts), transformed)


def _columns(store: Store) -> dict[str, Checkpoint]:
    """Weights -> checkpoint, the subject's by step first; weights that several runs share (the base) once."""
    out: dict[str, Checkpoint] = {}
    for c in sorted(store.checkpoints(), key=lambda c: c.role is not Role.SUBJECT):
        out.setdefault(c.weights, c)
    return out


def _head(c: Checkpoint) -> str:
    label = one_line(c.label)
    if c.step is None:
        return label
    return f"step {c.step}" + ("" if label == f"checkpoint-{c.step}" else f" · {label}")


def _question(key: str, item: PromptItem | None) -> dict[str, Any]:
    if item is None:
        return {"id": key[:12], "category": "not in the prompt list of this audit", "turns": []}
    return {"id": one_line(item.id), "category": one_line(item.category).replace("_", " "), "turns": item.turns}


def _answer(r: StoredAnswer, judges: Judges) -> dict[str, Any]:
    tags = [] if r.outcome is AnswerStatus.OK else [r.outcome.value.replace("_", " ")]
    text = clean(r.text).strip()
    cut = len(text)
    if cut > CLIP * 1.15:
        space = text.rfind(" ", 0, CLIP)
        cut = space if space > CLIP // 2 else CLIP
    said = judges.of(r)
    return {
        "tags": ", ".join(tags),
        "start": text[:cut],
        "rest": text[cut:].lstrip(),
        "error": one_line(r.error) if r.outcome is not AnswerStatus.OK else "",
        "scores": "; ".join(judges.words(s) for s in said),
        "positive": any(s.positive for s in said),
    }
