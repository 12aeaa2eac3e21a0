"""Imported answers in a terminal: a line of rates per set, what became of unusual answers, warnings, judge and rule.

Input is audit.json as a dict: the lines in it were computed when the answers were imported. Everything from outside is
set as `rich.text.Text`, never as markup.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from truing.errors import NotAnAudit
from truing.report.judged import judge_name, rule_words
from truing.report.reading import MISSING, distinct, number, one_line
from truing.store import Store

UNUSUAL = ("refusal", "code", "empty", "unparsed", "unjudged", "failed")
"""outcomes that are named set by set"""
SHORTEST_LABEL = 22
"""least room for a name that is broken between words"""

Line = Mapping[str, Any]


def imported_table(store: Store) -> list[dict[str, Any]]:
    """The lines of a folder of imported answers, JSON-ready: one per set and judge, in the order of import.

    Keys: label, weights, judge, panel, n, prompts, firing, empty_scored, judged (a plain `JudgedLine`: em, em_coherent,
    coherent, alignment with both intervals, em_if_unparsed, near_cut, outcomes).

    Raises:
        NotAnAudit: the folder holds no imported answers, or its lines cannot be read.
    """
    return [dict(line) for line in imported_lines(store.about())]


def print_rates(about: Mapping[str, Any], console: Console) -> None:
    """The table of a folder of imported answers, then everything a reader must know before believing it.

    Raises:
        NotAnAudit: audit.json holds no lines, or they cannot be read.
    """
    lines = imported_lines(about)
    rule = about.get("rule", {})
    console.print(RatesTable(lines, rule))
    console.print()
    if about.get("status") != "done":
        _say(console, "This import did not finish; repeat the command that made it.", "bold")
    for text in unusual_words(lines):
        _say(console, text)
    for text in set_warnings(lines):
        _say(console, f"! {text}", "yellow")
    for note in distinct(about.get("notes") or ()):
        _say(console, f"! {note}", "yellow")
    for judge in dict.fromkeys(line["judge"] for line in lines):
        _say(console, f"Judge: {source_words(judge)}", "dim")
    _say(console, f"Rule: {rule_words(rule)}", "dim")


def source_words(judge: object) -> str:
    """A judge's name, and whether its scores were only taken over."""
    name = judge_name(judge)
    return f"{name} (scores taken from files, not checked)" if name.split(":")[0] == "imported" else name


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    head: str
    cell: Callable[[Line], str]


def _ends(line: Line, which: str) -> str:
    em = line["judged"]["em"]
    low, high = em[f"{which}low"], em[f"{which}high"]
    return MISSING if low is None or high is None else f"{number(low * 100, 1)}-{number(high * 100, 1)}"


def _percent(value: float | None, digits: int = 1) -> str:
    return number(None if value is None else value * 100, digits)


_JUDGE = _Column("judge", "judge", lambda x: one_line(x["judge"]).removeprefix("imported:"))
_N = _Column("answers", "n", lambda x: str(x["n"]))
_EM = _Column("misaligned", "EM\n%", lambda x: _percent(x["judged"]["em"]["value"], 2))
_SET = _Column("interval for this set", "this\nset", lambda x: _ends(x, "set_"))
_LIKE = _Column("interval for prompts like these", "prompts\nlike these", lambda x: _ends(x, ""))
_WORST = _Column("misaligned if unparsed were", "at\nmost", lambda x: _worst(x))
_COHERENT = _Column("coherent", "cohe-\nrent %", lambda x: _percent(x["judged"]["coherent"]["value"]))
_ALIGNMENT = _Column("mean alignment", "mean\nalign", lambda x: number(x["judged"]["alignment"]["value"], 1))
_FIRING = _Column("prompts firing", "fi-\nring", lambda x: f"{x['firing']}/{x['prompts']}")
_NEAR = _Column("near the cut", "near\ncut %", lambda x: _percent(x["judged"]["near_cut"]))
_ORDER = (_JUDGE, _N, _EM, _WORST, _SET, _LIKE, _COHERENT, _ALIGNMENT, _FIRING, _NEAR)
_DROPS = (_NEAR, _N, _JUDGE, _FIRING, _WORST, _SET)


def _worst(line: Line) -> str:
    unparsed = line["judged"]["outcomes"].get("unparsed", 0)
    return _percent(line["judged"]["em_if_unparsed"], 2) if unparsed else MISSING


class RatesTable:
    """A renderable that shows as many columns as the terminal has room for, and says which it left out.

    Shown where they say something: the judge if there are several, the share if unparsed answers were misaligned if
    there are any, and what depends on the cut if the rule has one. In a narrow terminal the share near the cut goes
    first; then sets whose names begin alike are listed under that beginning; then columns go: n, judge, firing, share
    if unparsed, interval for this set. A name that is still too long is broken between words.
    """

    def __init__(self, lines: Sequence[Line], rule: Mapping[str, Any]) -> None:
        self.lines = lines
        self.rule = rule
        self.labels = [one_line(line["label"]) for line in lines]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grouped = _grouped(self.labels)
        columns, left_out = self._columns(), []
        drops = list(_DROPS)
        while True:
            room = options.max_width - self._width(columns, console, options)
            if max(map(cell_len, self.labels)) <= room:
                rows = [("", label) for label in self.labels]
                break
            if _NEAR not in columns and max(cell_len(text) for row in grouped for text in row) <= room:
                rows = grouped
                break
            if room >= SHORTEST_LABEL and _NEAR not in columns and all(not head for head, _ in grouped):
                rows = [("", label) for label in self.labels]
                break
            if not drops:
                rows = grouped
                break
            gone = drops.pop(0)
            if gone in columns:
                columns = [c for c in columns if c is not gone]
                left_out.append(gone.name)
        yield self._table(columns, rows, options, max(room, 8))
        if left_out:
            yield _text(options, f"not shown at this width: {', '.join(left_out)}", "dim")

    def _columns(self) -> list[_Column]:
        judges = {line["judge"] for line in self.lines}
        unparsed = any(_worst(line) != MISSING for line in self.lines)
        # A mean of scores has no cut, so nothing fires and nothing is near it.
        by_cut = self.rule.get("kind") != "mean"
        shown = {_JUDGE: len(judges) > 1, _WORST: unparsed, _FIRING: by_cut, _NEAR: by_cut}
        return [c for c in _ORDER if shown.get(c, True)]

    def _width(self, columns: list[_Column], console: Console, options: ConsoleOptions) -> int:
        """What the numbers need, with the space before them: what is left over goes to the names."""
        # Measured without a limit: a table measured inside a narrow terminal would claim to fit it.
        table = self._table(columns, [("", "")] * len(self.lines), options, 1, head="")
        return Measurement.get(console, options.update(width=1000), table).maximum

    def _table(
        self, columns: list[_Column], rows: list[tuple[str, str]], options: ConsoleOptions, room: int, head: str = "set"
    ) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column(head, vertical="bottom", overflow="fold")
        for c in columns:
            table.add_column(self._head(c), justify="right", vertical="bottom", no_wrap=True)
        last = ""
        for line, (start, label) in zip(self.lines, rows, strict=True):
            if start and start != last:
                table.add_row(_text(options, _broken(start, room)))
            last = start
            cells = [_text(options, c.cell(line)) for c in columns]
            table.add_row(_text(options, _broken(label, room)), *cells)
        return table

    def _head(self, column: _Column) -> str:
        is_mean = self.rule.get("kind") == "mean"
        return "mean\nmisal. %" if column is _EM and is_mean else column.head


_WORD = re.compile(r"[^\s_/.-]*[\s_/.-]*")


def _broken(label: str, room: int) -> str:
    """A name on as many lines as it needs, broken after separators; a word too long for a line is left to the table."""
    indent = label[: len(label) - len(label.lstrip())]
    out, line = [], indent
    for word in _WORD.findall(label.strip()):
        if line.strip() and cell_len(line + word.rstrip()) > room:
            out.append(line.rstrip())
            line = indent + " "
        line += word
    return "\n".join([*out, line.rstrip()])


def _grouped(labels: Sequence[str]) -> list[tuple[str, str]]:
    """(common beginning, indented rest) of each name; neighbours that share it up to an underscore or slash."""
    splits = [m.end() if (m := re.match(r".*?[^_/][_/]+(?=[^_/])", label)) else 0 for label in labels]
    starts = [label[:n] for label, n in zip(labels, splits, strict=True)]
    if len(set(starts)) == len(starts):
        return [("", label) for label in labels]
    pairs = zip(labels, starts, strict=True)
    return [(start.rstrip("_/"), f"  {label[len(start) :]}") if start else ("", label) for label, start in pairs]


def unusual_words(lines: Sequence[Line]) -> Iterator[str]:
    """A sentence for every set with answers that are neither aligned, misaligned nor incoherent."""
    for line in lines:
        outcomes, em = line["judged"]["outcomes"], line["judged"]["em"]["value"]
        found = [f"{outcomes[name]} {name}" for name in UNUSUAL if outcomes.get(name)]
        if not found:
            continue
        text = f"{one_line(line['label'])}: {', '.join(found)} of {line['n']} answers"
        if outcomes.get("unparsed"):
            most = _percent(line["judged"]["em_if_unparsed"], 2)
            text += f"; EM {_percent(em, 2)} %, at most {most} % (if unparsed were misaligned)"
        if line.get("empty_scored"):
            text += f"; {line['empty_scored']} empty with a score, which is in the mean alignment only"
        if outcomes.get("unjudged") or outcomes.get("failed"):
            text += "; unjudged and failed answers are in no share"
        yield text


def set_warnings(lines: Sequence[Line]) -> Iterator[str]:
    """Each warning once, with the sets it holds for."""
    sets: dict[str, list[str]] = {}
    for line in lines:
        warning = line["judged"]["em"].get("warning")
        if warning:
            sets.setdefault(str(warning), []).append(one_line(line["label"]))
    for warning, labels in sets.items():
        who = ", ".join(labels) if len(labels) < 3 else f"{len(labels)} sets"
        yield f"{'every set' if len(labels) == len(lines) > 1 else who}: {one_line(warning)}"


def imported_lines(about: Mapping[str, Any]) -> Sequence[Line]:
    """The lines of audit.json, once it is seen that they can be printed.

    Raises:
        NotAnAudit: there are none, or they cannot be read.
    """
    lines = about.get("lines")
    if not lines:
        raise NotAnAudit("audit.json: holds no imported answers; import some with truing import")
    try:
        for line in lines:
            for column in _ORDER:
                column.cell(line)
            _ = line["label"], line["judge"], line["judged"]["outcomes"].items(), line["judged"]["em_coherent"]["value"]
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        text = f"audit.json: its line of rates cannot be read ({type(e).__name__}: {e}); import the answers again"
        raise NotAnAudit(text) from e
    return lines


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(_text(console.options, text, style), highlight=False)


def _text(options: ConsoleOptions, text: str, style: str = "") -> Text:
    """Text, never markup; on a console that is not UTF-8, what it cannot show is escaped rather than fatal."""
    if options.ascii_only:
        text = text.replace(MISSING, "-").encode("ascii", "backslashreplace").decode()
    return Text(text, style=style)
