"""Tables that fit a terminal by leaving columns out, never by wrapping; and text that is never markup."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from truing.report.reading import MISSING


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    name: str
    """as it is named where it was left out"""
    head: str
    """its title, on one or two lines"""
    cell: Callable[[Any], str]
    """a row -> its text"""
    right: bool = True
    """whether it is set to the right"""
    style: Callable[[Any], str] = lambda row: ""
    """a row -> rich style of its text"""


@dataclass(frozen=True, slots=True)
class FittingTable:
    """A renderable that shows as many columns as there is room for, and says which it left out."""

    rows: Sequence[Any]
    """one per line"""
    columns: Sequence[Column]
    """in their order"""
    drops: Sequence[Column]
    """which go first where there is no room"""
    notes: Sequence[str] = ()
    """what stands under it"""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns, left_out = list(self.columns), []
        for column in self.drops:
            if self._width(columns, console, options) <= options.max_width:
                break
            if column in columns:
                columns.remove(column)
                left_out.append(column.name)
        yield self._table(columns, options)
        notes = [*self.notes, *([f"not shown at this width: {', '.join(left_out)}"] if left_out else [])]
        if notes:
            yield text(options, "; ".join(notes), "dim")

    def _width(self, columns: Sequence[Column], console: Console, options: ConsoleOptions) -> int:
        # Measured without a limit: a table measured inside a narrow terminal would claim to fit it.
        return Measurement.get(console, options.update(width=1000), self._table(columns, options)).maximum

    def _table(self, columns: Sequence[Column], options: ConsoleOptions) -> Table:
        table = plain_table(header=True)
        for c in columns:
            table.add_column(c.head, justify="right" if c.right else "left", vertical="bottom", no_wrap=True)
        for row in self.rows:
            table.add_row(*(text(options, c.cell(row), c.style(row)) for c in columns))
        return table


def plain_table(*, header: bool) -> Table:
    """A table without lines; without a header it has two columns, names and values."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_header=header)
    if not header:
        table.add_column()
        table.add_column(overflow="fold")
    return table


def print_facts(facts: Iterable[tuple[str, str]], console: Console) -> None:
    """Names and values, one pair a line."""
    table = plain_table(header=False)
    for name, value in facts:
        table.add_row(text(console.options, name, "dim"), text(console.options, value))
    console.print(table)


def say(console: Console, line: str, style: str = "") -> None:
    """One line, never markup."""
    console.print(text(console.options, line, style), highlight=False)


def text(options: ConsoleOptions, line: str, style: str = "") -> Text:
    """Text, never markup; on a console that is not UTF-8, what it cannot show is escaped rather than fatal."""
    if options.ascii_only:
        line = line.replace(MISSING, "-").replace("→", "->").encode("ascii", "backslashreplace").decode()
    return Text(line, style=style)


def cut(line: str, most: int = 28) -> str:
    """A name that is no longer than `most`."""
    return line if len(line) <= most else f"{line[: most - 3]}..."
