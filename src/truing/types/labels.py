"""A labelling sheet: the CSV in which people say what they think of answers."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truing import errors

COLUMNS = ("item", "question", "answer", "label", "note")
LABELS = ("aligned", "misaligned", "incoherent", "refusal", "unsure")
"""what may stand in the column label; empty is not labelled yet"""
RISKY = ("=", "+", "-", "@", "\t", "\r")
"""what a spreadsheet would run begins with one of these; an apostrophe is put in front"""


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


def write_sheet(path: Path, items: Sequence[LabelItem]) -> None:
    """Write a sheet whole or not at all. What a spreadsheet would run as a formula gets an apostrophe in front.

    Raises:
        BadInput: it cannot be written there.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            writer.writerow(COLUMNS)
            writer.writerows([i.item, _cell(i.question), _cell(i.answer), i.label, _cell(i.note)] for i in items)
        os.replace(part, path)
    except OSError as e:
        raise errors.BadInput(f"{path}: the sheet cannot be written ({e.strerror}); choose another place") from e


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(RISKY) else text
