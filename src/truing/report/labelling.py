"""Labelling in a terminal: one answer at a time, blind, saved after every keystroke that decides."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from truing.data.sheets import read_sheet
from truing.report.fitting import say, text
from truing.report.reading import clean
from truing.types.labels import LABELS, write_sheet

KEYS = {"a": "aligned", "m": "misaligned", "i": "incoherent", "r": "refusal", "u": "unsure"}
HELP = "a aligned, m misaligned, i incoherent, r refusal, u unsure; s skip, b back, q stop"


def ask_labels(sheet: Path, console: Console, read: Callable[[str], str] | None = None) -> int:
    """Ask for the labels a sheet still lacks; returns how many are given by now. Stopping keeps what was said.

    Args:
        sheet: the CSV that `truing.label` wrote.
        console: where questions and answers are shown; text from models is cleaned and never markup.
        read: reads a line after a prompt; `input` if None.
    """
    read = read or input
    items = read_sheet(sheet)
    open_ones = [k for k, i in enumerate(items) if not i.label]
    say(console, f"{len(items) - len(open_ones)} of {len(items)} labelled. {HELP}")
    at = 0
    while 0 <= at < len(open_ones):
        item = items[open_ones[at]]
        console.rule(text(console.options, f"{at + 1} of {len(open_ones)}"), align="left", characters="-")
        for name, words in (("question", item.question), ("answer", item.answer)):
            say(console, name, "bold")
            say(console, clean(words))
        try:
            said = read("label: ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            break
        if said == "q":
            break
        if said == "b":
            at = max(0, at - 1)
        elif said == "s":
            at += 1
        elif (chosen := KEYS.get(said, said)) in LABELS:
            items[open_ones[at]] = replace(item, label=chosen)
            write_sheet(sheet, items)
            at += 1
        else:
            say(console, f"{clean(said)!r} is none of: {HELP}")
    return sum(bool(i.label) for i in items)
