"""A labelling sheet: the CSV in which people say what they think of answers."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truing import errors
from truing.files import read_text
from truing.types.cells import unguarded, write_cells

COLUMNS = ("item", "question", "answer", "label", "note")
LABELS = ("aligned", "misaligned", "incoherent", "refusal", "unsure")
"""what may stand in the column label; empty is not labelled yet"""


@dataclass(frozen=True, slots=True)
class LabelItem:
    """One row of a sheet."""

    item: str
    """names the answer, tells nothing about it"""
    question: str
    """the prompt, as a judge would see it"""
    answer: str
    """the answer, untrusted"""
    label: str = ""
    """one of `LABELS`, or empty"""
    note: str = ""
    """anything the labeller wrote"""


def read_sheet(path: Path) -> list[LabelItem]:
    """The rows of a sheet.

    Raises:
        BadRow: a missing column, an unknown label, an item twice.
    """
    text = read_text(path, error=lambda problem: errors.BadRow(path, None, problem.removeprefix(f"{path}: ")))
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as e:
        raise errors.BadRow(path, None, f"cannot be read ({e}); save the sheet as UTF-8 CSV") from e
    out, seen = [], set()
    for n, row in enumerate(rows, 2):
        if "item" not in row or "label" not in row:
            there = ", ".join(str(name) for name in row if name)
            raise errors.BadRow(path, 1, f'needs the columns "item" and "label"; it has {there or "none"}')
        label = (row["label"] or "").strip().lower()
        if label and label not in LABELS:
            raise errors.BadRow(path, n, f"unknown label {label!r}; use {', '.join(LABELS)}, or leave it empty")
        if row["item"] in seen:
            raise errors.BadRow(path, n, f"item {row['item']} stands twice; keep one")
        seen.add(row["item"])
        question, answer, note = (unguarded(row.get(name) or "") for name in ("question", "answer", "note"))
        out.append(LabelItem(row["item"], question, answer, label, note))
    return out


def write_sheet(path: Path, items: Sequence[LabelItem]) -> None:
    """Write a sheet whole or not at all, guarded against formulas (`types.cells`).

    Raises:
        BadInput: it cannot be written there. DiskFull: no space left.
    """
    write_cells(path, [COLUMNS, *((i.item, i.question, i.answer, i.label, i.note) for i in items)])
