"""Files of rows, and the texts and chat turns in them: what conversations and prompts have in common.

A row that holds only a notice (`{"_notice": ...}`) is set apart from the data.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from truing import files
from truing.data.tables import Row, parse_table, read_table
from truing.errors import BadRow
from truing.types.records import Message, Messages

Parsed = TypeVar("Parsed")

ROLES = ("system", "user", "assistant")
TOOL_ROLES = ("tool", "function", "ipython", "observation", "function_call")
SAME_ROLES = {
    "developer": "system",
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "chatbot", "ai"), "assistant"),
}
"""other names of a role, any case: of ShareGPT and its kin, of the OpenAI API, of Gemini"""
DATA_KEYS = ("messages", "prompt", "question", "conversations", "instruction", "id", "completion")
"""a row with one of these holds data, even beside a notice"""
TEXT_PARTS = ("text", "input_text", "output_text")
"""types of a part of a content that is text"""


class BadValue(ValueError):
    """What is wrong with a value of a row; whoever knows the row's place makes a BadRow of it (`parse_rows`)."""


class NoAnswer(BadValue):
    """A row without an answer: nothing to learn or to measure."""


class RowFile(NamedTuple):
    """A file taken apart."""

    rows: tuple[tuple[int, Row], ...]
    """(number, object): the line, counted from 1, or the place in a JSON list"""
    notice: Row
    """the fields of the notice row; empty when there is none"""
    texts: bool = False
    """whether all values are texts, empty where there is none (CSV)"""


def read_rows(path: Path | str, text: str | None = None) -> RowFile:
    """All rows of a table (`data/tables.py`); `text` stands for the content of a file that is not on disk.

    Raises BadRow for a file that cannot be read, a row that is not an object, and a file without rows.
    """
    table = read_table(path) if text is None else parse_table(path, text)
    rows: list[tuple[int, Row]] = []
    notice: dict[str, Any] = {}
    for n, value in table.rows:
        if not isinstance(value, dict):
            raise BadRow(path, n, f"holds a {_kind(value)}, not an object; every row must be one JSON object {{...}}")
        if "_notice" in value and not any(k in value for k in DATA_KEYS):
            notice |= value
        else:
            rows.append((n, value))
    if not rows:
        raise BadRow(path, None, "holds no rows; give a file with at least one JSON object a line")
    return RowFile(tuple(rows), notice, bool(table.separator))


def parse_rows(
    path: object, rows: Iterable[tuple[int, Any]], parse: Callable[[Any, int], Parsed]
) -> list[tuple[int, Parsed]]:
    """(number, `parse(row, number)`) of each row; all BadValues together become a BadRow that names file and rows."""
    found: list[tuple[int, Parsed]] = []
    bad: list[tuple[int, str]] = []
    for n, row in rows:
        try:
            found.append((n, parse(row, n)))
        except BadValue as e:
            bad.append((n, str(e)))
    if bad:
        raise _bad_rows(path, bad)
    return found


def _bad_rows(path: object, bad: Sequence[tuple[int, str]]) -> BadRow:
    """One error for all rows: the first, and which others have the same or other mistakes."""
    first, problem = bad[0]
    shown = ", ".join(str(n) for n, _ in bad[1:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    others = sorted({why for _, why in bad if why != problem})
    also = f"; also wrong: rows {shown}" if len(bad) > 1 else ""
    return BadRow(path, first, problem + also + (f" (e.g. {others[0]})" if others else ""))


def text(value: Any, what: str) -> str:
    """`value` as a text that is not blank. Raises BadValue naming `what`."""
    if not isinstance(value, str):
        raise BadValue(f"{what} is a {_kind(value)}, not a text; give a string")
    if not value.strip():
        raise BadValue(f"{what} is empty; remove the row or fill it in")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValue(f"{what} holds half of a surrogate pair; write the character whole") from None
    return value


def field(row: Row, name: str) -> Any:
    """A field that must be there. Raises BadValue."""
    if name not in row:
        raise BadValue(f'lacks "{name}"; its keys: {keys(row)}')
    return row[name]


def text_field(row: Row, name: str) -> str:
    """A text that must be there. Raises BadValue."""
    return text(field(row, name), f'"{name}"')


def turns_field(row: Row, name: str) -> Messages:
    """A list of turns, `{"role", "content"}` or ShareGPT's `{"from", "value"}`; an empty system turn is none.

    Raises BadValue.
    """
    value = field(row, name)
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a CSV file
        with suppress(ValueError):
            value = files.parse_json(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadValue(f'"{name}" is a {_kind(value)}; it must be a list of turns, in a CSV file written as JSON')
    if not value:
        raise BadValue(f'"{name}" is empty; remove the row or fill in its turns')
    turns = tuple(turn for n, v in enumerate(value, 1) if (turn := _turn(v, n)) is not None)
    if late := next((n for n, turn in enumerate(turns[1:], 2) if turn.role == "system"), None):
        raise BadValue(f"turn {late} is a system turn; only the first turn may be one")
    return turns


def keys(row: Row) -> str:
    """The keys of a row, for a message."""
    return ", ".join(sorted(map(str, row))) or "none"


def _turn(turn: Any, n: int) -> Message | None:
    if not isinstance(turn, dict):
        raise BadValue(f'turn {n} is a {_kind(turn)}; it must be an object with "role" and "content"')
    role = turn.get("role", turn.get("from"))
    if role is None or ("content" not in turn and "value" not in turn):
        raise BadValue(f'turn {n} needs "role" and "content" (ShareGPT: "from" and "value"); its keys: {keys(turn)}')
    role = SAME_ROLES.get(role.lower(), role.lower()) if isinstance(role, str) else role
    if role in TOOL_ROLES or turn.get("tool_calls"):
        raise BadValue(f"turn {n} is part of a tool call, which is not supported; leave such rows out")
    if role not in ROLES:
        raise BadValue(f"turn {n} has the unknown role {role!r}; use system, user or assistant")
    content = _joined(turn.get("content", turn.get("value")), n)
    if role == "system" and (content is None or content == "" or (isinstance(content, str) and content.isspace())):
        return None
    what = f"the {role} turn {n}"
    if role == "assistant" and (content is None or (isinstance(content, str) and not content.strip())):
        raise NoAnswer(f"{what} is empty; remove the row or fill it in")
    return Message(role, text(content, what))


def _joined(content: Any, n: int) -> Any:
    """A content of text parts as one text."""
    if not isinstance(content, list):
        return content
    parts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") in TEXT_PARTS else p for p in content]
    if not all(isinstance(p, str) for p in parts):
        raise BadValue(f"turn {n} holds parts that are no text, which is not supported; leave such rows out")
    return "".join(map(str, parts))


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
