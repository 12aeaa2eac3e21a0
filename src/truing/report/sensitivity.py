"""A verdict under a grid of thresholds, in a terminal: what survives, and which thresholds end the rest."""

from rich.console import Console

from truing.report.fitting import print_table, say
from truing.report.reading import one_line
from truing.stats.sensitivity import Sensitivity

MOST_NAMED = 4
"""thresholds named per conclusion"""


def print_sensitivity(found: Sensitivity, console: Console) -> None:
    """Print how each conclusion fares over the grid."""
    n = len(found.points)
    say(console, f"The verdict under {n} choices of thresholds", "bold")
    for name, stored in found.stored.items():
        values = dict.fromkeys(p.thresholds[name] for p in found.points)
        say(console, f"  {name}: {', '.join(values)} (stored: {stored})")
    rows = []
    for c in found.conclusions:
        more = len(c.breaks) - MOST_NAMED
        named = [*c.breaks[:MOST_NAMED], *([f"{more} more"] if more > 0 else [])]
        ended = "; ".join(named) or ("" if c.holds == n else "combinations only")
        cells = (c.name, c.value, f"{c.holds}/{n}", ended)
        rows.append([(one_line(cell), "" if c.holds == n else "yellow") for cell in cells])
    print_table(console, rows, ("conclusion", "as stored", "holds", "ended by"), right=(2,))
    for note in found.notes:
        say(console, f"! {one_line(note)}", "yellow")
