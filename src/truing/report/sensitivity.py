"""A verdict under a grid of thresholds, in a terminal: what survives, and which thresholds end the rest."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.report.reading import one_line
from truing.stats.sensitivity import Sensitivity, Survival
from truing.types.verdicts import Basis

MOST_NAMED = 6
"""thresholds named per conclusion"""


def print_sensitivity(found: Sensitivity, console: Console) -> None:
    """Print how each conclusion fares over the grid."""
    what = "judged verdict" if found.basis is Basis.JUDGED else "margin verdict"
    _say(console, f"The {what} under {len(found.points)} choices of thresholds", "bold")
    for name, values in found.axes.items():
        text = Text(f"  {name:<15} ")
        for value in values:
            text.append(value, style="bold" if value == found.stored[name] else "dim").append("  ")
        console.print(text, highlight=False)
    _say(console, "  (bold: as stored)", "dim")
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name, right in (("conclusion", False), ("as stored", False), ("holds", True), ("open", True), ("other", True)):
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    for c in found.conclusions:
        style = "" if c.holds == c.points else "yellow"
        cells = (c.name, one_line(c.value), f"{c.holds}/{c.points}", str(c.open), str(c.other))
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console.print(table)
    console.print()
    for line in sensitivity_words(found):
        _say(console, line)
    for note in found.notes:
        _say(console, f"! {one_line(note)}", "yellow")


def sensitivity_words(found: Sensitivity) -> Iterator[str]:
    """A sentence for each conclusion that does not hold everywhere, and one for all that do."""
    firm = [c.name for c in found.conclusions if c.holds == c.points]
    if firm:
        yield f"Holds everywhere: {', '.join(firm)}."
    for c in found.conclusions:
        if c.holds < c.points:
            yield f"{c.name} ({one_line(c.value)}) {_ended(c)}"


def _ended(c: Survival) -> str:
    named = [one_line(b) for b in c.breaks[:MOST_NAMED]]
    more = f"; and {len(c.breaks) - MOST_NAMED} more" if len(c.breaks) > MOST_NAMED else ""
    if not named:
        return f"holds against any single change; ended by {c.together} combinations."
    rest = f"; also by {c.together} combinations of others" if c.together else ""
    return f"is ended by {'; '.join(named)}{more}{rest}."


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), highlight=False)
