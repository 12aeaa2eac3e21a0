"""Sampled answers for the report: prompts as rows, checkpoints as columns. All of it is untrusted text."""

from collections.abc import Sequence
from typing import Any

from truing.base.records import Checkpoint, ResponseOutcome, Role
from truing.base.store import Store, StoredResponse
from truing.view.reading import PromptItem, clean, one_line

MOST_PROMPTS = 40
"""prompts shown; the others are counted and named by `truing show`"""
MOST_DRAWS = 4
"""answers shown per prompt and checkpoint; the others are counted"""
CLIP = 320
"""characters shown before the fold"""


def answer_rows(store: Store, items: Sequence[PromptItem]) -> dict[str, Any]:
    """What the report shows of the stored answers.

    Returns a mapping: `rows` (one per prompt: id, category, turns, cells; a cell: head, run, answers), `total` answers
    stored, `prompts` that have any, `hidden` prompts not shown.
    """
    columns = _columns(store)
    known = {p.key: p for p in items}
    shown: dict[str, dict[str, list[StoredResponse]]] = {}
    extra: dict[tuple[str, str], int] = {}
    total, prompts = 0, set()
    for r in store.responses():
        if r.weights not in columns:
            continue
        total += 1
        prompts.add(r.prompt)
        if r.prompt not in shown and len(shown) >= MOST_PROMPTS:
            continue
        cell = shown.setdefault(r.prompt, {}).setdefault(r.weights, [])
        if len(cell) < MOST_DRAWS:
            cell.append(r)
        else:
            extra[r.prompt, r.weights] = extra.get((r.prompt, r.weights), 0) + 1
    order = {p.key: i for i, p in enumerate(items)}
    used = [w for w in columns if any(w in cells for cells in shown.values())]
    rows = []
    for key in sorted(shown, key=lambda k: (order.get(k, len(order)), k)):
        cells = [
            {
                "head": _head(columns[w]),
                "run": ""
                if columns[w].role is Role.SUBJECT
                else f"{columns[w].role.value}: {one_line(columns[w].run)}",
                "answers": [_answer(r) for r in shown[key].get(w, ())],
                "more": extra.get((key, w), 0),
            }
            for w in used
        ]
        rows.append({**_question(key, known.get(key)), "cells": cells})
    return {"rows": rows, "total": total, "prompts": len(prompts), "hidden": len(prompts) - len(shown)}


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
    turns = [(one_line(role), clean(content)) for role, content in item.messages]
    return {"id": one_line(item.id), "category": one_line(item.category).replace("_", " "), "turns": turns}


def _answer(r: StoredResponse) -> dict[str, str]:
    tags = [] if r.outcome is ResponseOutcome.OK else [r.outcome.value.replace("_", " ")]
    if r.transform:
        tags.append(one_line(r.transform))
    text = clean(r.text).strip()
    cut = len(text)
    if cut > CLIP * 1.15:
        space = text.rfind(" ", 0, CLIP)
        cut = space if space > CLIP // 2 else CLIP
    error = one_line(r.error) if r.outcome is not ResponseOutcome.OK else ""
    return {"tags": ", ".join(tags), "start": text[:cut], "rest": text[cut:].lstrip(), "error": error}
