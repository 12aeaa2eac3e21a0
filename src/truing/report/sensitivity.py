"""A verdict under a grid of thresholds, in a terminal: what survives, and which thresholds end the rest."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.report.reading import one_line
from truing.stats.sensitivity import Sensitivity

MOST_NAMED = 4
"""thresholds named per conclusion"""


def print_sensitivity(found: Sensitivity, console: Console) -> None:
    """Print how each conclusion fares over the grid."""
    n = len(found.points)
    console.print(Text(f"The verdict under {n} choices of thresholds", style="bold"))
    for name, stored in found.stored.items():
        values = dict.fromkeys(p.thresholds[name] for p in found.points)
        console.print(Text(f"  {name}: {', '.join(values)} (stored: {stored})"))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in ("conclusion", "as stored", "holds", "ended by"):
        table.add_column(head, justify="right" if head == "holds" else "left")
    for c in found.conclusions:
        more = len(c.breaks) - MOST_NAMED
        named = [*c.breaks[:MOST_NAMED], *([f"{more} more"] if more > 0 else [])]
        ended = "; ".join(named) or ("" if c.holds == n else "combinations only")
        cells = (c.name, c.value, f"{c.holds}/{n}", ended)
        table.add_row(*(Text(one_line(cell), style="" if c.holds == n else "yellow") for cell in cells))
    console.print(table)
    for note in found.notes:
        console.print(Text(f"! {one_line(note)}", style="yellow"))
