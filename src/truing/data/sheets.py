"""Reading a labelling sheet back, as a spreadsheet saves it: with commas or semicolons, as UTF-8 or UTF-16."""

from pathlib import Path

from truing.data.tables import read_table
from truing.errors import BadRow
from truing.types.cells import unguarded
from truing.types.labels import LABELS, LabelItem


def read_sheet(path: Path) -> list[LabelItem]:
    """The rows of a sheet.

    Raises:
        BadRow: a missing column, an unknown label, an item twice.
    """
    table = read_table(path)
    named = {name.casefold(): name for name in table.names}
    if not {"item", "label"} <= named.keys():
        there = ", ".join(table.names) or "none"
        raise BadRow(path, 1, f'needs the columns "item" and "label"; it has {there}')
    out, seen = [], set()
    for n, row in table.rows:
        cells = {low: str(row.get(name) or "") for low, name in named.items()}
        item, label = cells["item"], cells["label"].strip().lower()
        if label and label not in LABELS:
            raise BadRow(path, n, f"unknown label {label!r}; use {', '.join(LABELS)}, or leave it empty")
        if item in seen:
            raise BadRow(path, n, f"item {item} stands twice; keep one")
        seen.add(item)
        question, answer, note = (unguarded(cells.get(name, "")) for name in ("question", "answer", "note"))
        out.append(LabelItem(item, question, answer, label, note))
    return out
