"""Files of JSON rows, and the texts and chat turns in them: what conversations and prompts have in common.

A file is JSONL, gzipped JSONL or one JSON list; its content tells which. A row that holds only a notice
(`{"_notice": ...}`) is set apart from the data.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from truing.errors import BadRow
from truing.files import parse_json
from truing.types.records import Message, Messages

Row = Mapping[str, Any]
Parsed = TypeVar("Parsed")

ROLES = ("system", "user", "assistant")
TOOL_ROLES = ("tool", "function", "ipython", "observation", "function_call")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
DATA_KEYS = ("messages", "prompt", "question", "conversations", "instruction", "id", "completion")
"""a row with one of these holds data, even beside a notice"""


class BadValue(ValueError):
    """What is wrong with a value of a row; whoever knows the row's place makes a BadRow of it (`parse_rows`)."""


class RowFile(NamedTuple):
    """A file taken apart."""

    rows: tuple[tuple[int, Row], ...]
    """(number, object): the line, counted from 1, or the place in a JSON list"""
    notice: Row
    """the fields of the notice row; empty when there is none"""


def builtin_text(filename: str) -> str:
    """Text of a file shipped with the package."""
    return resources.files("truing.data").joinpath("builtin", filename).read_text(encoding="utf-8")


def read_bytes(path: Path) -> bytes:
    """Content of a file. Raises BadRow."""
    if path.is_dir():
        raise BadRow(path, None, "is a folder; name one file in it")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadRow(path, None, "there is no such file; check the path") from None
    except OSError as e:
        raise BadRow(path, None, f"cannot be read ({e.strerror}); check the path and its permissions") from e


def decode(path: Path, raw: bytes) -> str:
    """UTF-8 text, with or without a byte order mark. Raises BadRow, naming the line."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise BadRow(path, None, f"line {line}: byte {raw[e.start]:#04x} is not UTF-8; save the file as UTF-8") from e


def read_text(path: Path) -> str:
    """Text of a file, unzipped where it is gzip. Raises BadRow."""
    raw = read_bytes(path)
    if raw[:2] == b"\x1f\x8b" or path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as e:
            raise BadRow(path, None, f"is not a whole gzip file ({e}); compress or download it again") from e
    return decode(path, raw)


def read_rows(path: Path | str, text: str | None = None) -> RowFile:
    """All rows of a JSONL file or of a JSON list; `text` stands for the content of a file that is not on disk.

    Raises BadRow for malformed JSON, a row that is not an object, and a file without rows.
    """
    text = read_text(Path(path)) if text is None else text
    if text.lstrip().startswith("["):
        numbered = list(enumerate(_json(text, path, None), 1))
    else:
        numbered = [(n, _json(line, path, n)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows: list[tuple[int, Row]] = []
    notice: dict[str, Any] = {}
    for n, value in numbered:
        if not isinstance(value, dict):
            raise BadRow(path, n, f"holds a {_kind(value)}, not an object; every row must be one JSON object {{...}}")
        if "_notice" in value and not any(k in value for k in DATA_KEYS):
            notice |= value
        else:
            rows.append((n, value))
    if not rows:
        raise BadRow(path, None, "holds no rows; give a file with at least one JSON object a line")
    return RowFile(tuple(rows), notice)


def _json(text: str, path: object, row: int | None) -> Any:
    try:
        return parse_json(text, nan=True)
    except json.JSONDecodeError as e:
        problem = f"malformed JSON: {e.msg} at column {e.colno}; every row must be one JSON object on one line"
        raise BadRow(path, row or e.lineno, problem) from e
    except ValueError as e:
        raise BadRow(path, row, f"JSON that cannot be read ({e}); simplify the row") from e


def parse_rows(
    path: object, rows: Iterable[tuple[int, Any]], parse: Callable[[Any, int], Parsed]
) -> list[tuple[int, Parsed]]:
    """(number, `parse(row, number)`) of each row; a BadValue becomes a BadRow that names file and row."""
    found = []
    for n, row in rows:
        try:
            found.append((n, parse(row, n)))
        except BadValue as e:
            raise BadRow(path, n, str(e)) from None
    return found


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
    """A list of turns, `{"role", "content"}` or ShareGPT's `{"from", "value"}`. Raises BadValue."""
    value = field(row, name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadValue(f'"{name}" is a {_kind(value)}; it must be a list of turns')
    if not value:
        raise BadValue(f'"{name}" is empty; remove the row or fill in its turns')
    turns = tuple(_turn(turn, n) for n, turn in enumerate(value, 1))
    if late := next((n for n, turn in enumerate(turns[1:], 2) if turn.role == "system"), None):
        raise BadValue(f"turn {late} is a system turn; only the first turn may be one")
    return turns


def keys(row: Row) -> str:
    """The keys of a row, for a message."""
    return ", ".join(sorted(map(str, row))) or "none"


def _turn(turn: Any, n: int) -> Message:
    if not isinstance(turn, dict):
        raise BadValue(f'turn {n} is a {_kind(turn)}; it must be an object with "role" and "content"')
    role = turn.get("role", turn.get("from"))
    if role is None or ("content" not in turn and "value" not in turn):
        raise BadValue(f'turn {n} needs "role" and "content" (ShareGPT: "from" and "value"); its keys: {keys(turn)}')
    role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role in TOOL_ROLES or turn.get("tool_calls"):
        raise BadValue(f"turn {n} is part of a tool call, which is not supported; leave such rows out")
    if role not in ROLES:
        raise BadValue(f"turn {n} has the unknown role {role!r}; use system, user or assistant")
    return Message(role, text(turn.get("content", turn.get("value")), f"the {role} turn {n}"))


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
