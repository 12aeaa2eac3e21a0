"""Tables that fit a terminal by leaving columns out, never by wrapping; and text that is never markup."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from truing.report.reading import MISSING, clean

Cell = str | tuple[str, str]
"""a text, or a text and its style"""


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
    short: "Column | None" = None
    """what takes its place where there is no room: the number without its interval"""


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
        every = [*columns, *(c.short for c in columns if c.short is not None)]
        cells = {c: [text(options, c.cell(row), c.style(row)) for row in self.rows] for c in every}
        widest = {c: [max(texts, key=lambda t: t.cell_len)] if texts else [] for c, texts in cells.items()}
        for column in self.drops:
            # Measured without a limit: a table measured inside a narrow terminal would claim to fit it.
            table = _table({c: widest[c] for c in columns})
            if Measurement.get(console, options.update(width=1000), table).maximum <= options.max_width:
                break
            if column in columns:
                k = columns.index(column)
                columns[k : k + 1] = [column.short] if column.short else []
                left_out = [x for x in left_out if x != f"interval of {column.name}"]
                left_out.append(f"interval of {column.name}" if column.short else column.name)
        yield _table({c: cells[c] for c in columns})
        notes = [*self.notes, *([f"not shown at this width: {', '.join(left_out)}"] if left_out else [])]
        if notes:
            yield text(options, "; ".join(notes), "dim")


def _table(cells: Mapping[Column, Sequence[Text]]) -> Table:
    """Columns of equal length as a table."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for c in cells:
        table.add_column(c.head, justify="right" if c.right else "left", vertical="bottom", no_wrap=True)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def print_table(
    console: Console, rows: Iterable[Sequence[Cell]], heads: Sequence[str] = (), *, right: Sequence[int] = ()
) -> None:
    """A table without lines, folded where there is no room; the columns of the indices `right` are set to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_header=bool(heads))
    cells = [[text(console.options, *(x if isinstance(x, tuple) else (x,))) for x in row] for row in rows]
    for k, head in enumerate(heads or [""] * max(map(len, cells), default=0)):
        table.add_column(head, justify="right" if k in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    console.print(table)


def print_facts(console: Console, facts: Iterable[Sequence[str]]) -> None:
    """Names, values and, where there are any, remarks: a line each."""
    print_table(console, ([(name, "dim"), value, *((x, "dim") for x in more if x)] for name, value, *more in facts))


def say(console: Console, line: str, style: str = "") -> None:
    """One line, never markup."""
    console.print(text(console.options, line, style), highlight=False)


def text(options: ConsoleOptions, line: str, style: str = "") -> Text:
    """Text, never markup, and cleaned; on a console that is not UTF-8, what it cannot show is escaped."""
    line = clean(line)
    if options.ascii_only:
        line = line.replace(MISSING, "-").replace("→", "->").encode("ascii", "backslashreplace").decode()
    return Text(line, style=style)


def cut(line: str, most: int = 28) -> str:
    """A name that is no longer than `most`."""
    return line if len(line) <= most else f"{line[: most - 3]}..."
