"""Reading rows of JSON from disk, and the turns in them: what conversations and prompts have in common.

A file is JSONL, gzipped JSONL, or one JSON list; which one is told from its content. A row that holds only a notice
(`{"_notice": ...}`) is not data: it is set apart as the file's notice.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from truing.errors import BadRow
from truing.types.records import Message, Messages

Row = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
TOOL_ROLES = ("tool", "function", "ipython", "observation", "function_call")


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file taken apart."""

    rows: tuple[tuple[int, Row], ...]
    """row number, counted from 1 as an editor does (position in the list for a JSON list), and its object"""
    notice: Row
    """the fields of the notice row; empty when there is none"""


def builtin_text(filename: str) -> str | None:
    """Text of a file shipped with the package; None where this installation lacks it."""
    found = resources.files("truing.data").joinpath("builtin", filename)
    return found.read_text(encoding="utf-8") if found.is_file() else None


def read_text(path: Path) -> str:
    """Text of a file, unzipped where it is gzip. Raises BadRow naming the file, and the line where it is not UTF-8."""
    if path.is_dir():
        raise BadRow(path, None, "is a folder; name one JSONL file in it")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadRow(path, None, "there is no such file; check the path") from None
    except OSError as e:
        raise BadRow(path, None, f"cannot be read ({e.strerror}); check the path and its permissions") from e
    if raw[:2] == b"\x1f\x8b" or path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as e:
            raise BadRow(path, None, f"is not a whole gzip file ({e}); compress or download it again") from e
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        row = raw.count(b"\n", 0, e.start) + 1
        raise BadRow(path, row, f"byte {e.object[e.start]:#04x} is not UTF-8; save the file as UTF-8 text") from e


def read_rows(path: Path | str, text: str | None = None) -> RowFile:
    """All rows of a JSONL file or of a JSON list; `text` stands for the content of a file that is not on disk.

    Raises BadRow for malformed JSON, a row that is not an object, and a file without rows.
    """
    text = read_text(Path(path)) if text is None else text
    if text.lstrip().startswith("["):
        whole = _parse(text, path, None)
        numbered = [(n, value) for n, value in enumerate(whole, 1)]
    else:
        lines = text.split("\n")
        numbered = [(n, _parse(line, path, n)) for n, line in enumerate(lines, 1) if line.strip()]
    rows: list[tuple[int, Row]] = []
    notice: dict[str, Any] = {}
    for n, value in numbered:
        if not isinstance(value, dict):
            raise BadRow(path, n, f"holds a {_kind(value)}, not an object; every row must be one JSON object {{...}}")
        if "_notice" in value and not _carries_data(value):
            notice |= value
        else:
            rows.append((n, value))
    if not rows:
        raise BadRow(path, None, "holds no rows; give a file with at least one JSON object a line")
    return RowFile(tuple(rows), notice)


def parse_turns(value: Any, path: object, row: int, field: str) -> Messages:
    """Turns `[{"role": ..., "content": ...}]` (or ShareGPT's from/value), checked; raises BadRow."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow(path, row, f'"{field}" is a {_kind(value)}; it must be a list of turns')
    if not value:
        raise BadRow(path, row, f'"{field}" is empty; remove the row or fill in its turns')
    turns = tuple(_turn(turn, path, row, n) for n, turn in enumerate(value, 1))
    for n, turn in enumerate(turns[1:], 2):
        if turn.role == "system":
            raise BadRow(path, row, f"turn {n} is a system turn; only the first turn may be one")
    return turns


def parse_text(value: Any, path: object, row: int, what: str) -> str:
    """`value` as a text that says something; raises BadRow naming `what`."""
    if not isinstance(value, str):
        raise BadRow(path, row, f"{what} is a {_kind(value)}, not a text; give a string")
    if not value.strip():
        raise BadRow(path, row, f"{what} is empty; remove the row or fill it in")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(path, row, f"{what} holds half of a surrogate pair; write the character whole") from None
    return value


def _turn(turn: Any, path: object, row: int, n: int) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(path, row, f'turn {n} is a {_kind(turn)}; it must be an object with "role" and "content"')
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role is None or ("content" not in turn and "value" not in turn):
        keys = ", ".join(map(str, turn)) or "none"
        raise BadRow(path, row, f'turn {n} needs "role" and "content" (ShareGPT: "from" and "value"); its keys: {keys}')
    known = {"human": "user", "gpt": "assistant"}.get(role, role) if isinstance(role, str) else role
    if known in TOOL_ROLES or turn.get("tool_calls"):
        raise BadRow(path, row, f"turn {n} is part of a tool call, which is not supported; leave such rows out")
    if known not in ROLES:
        raise BadRow(path, row, f"turn {n} has the unknown role {role!r}; use system, user or assistant")
    return Message(known, parse_text(content, path, row, f"the {known} turn {n}"))


def _parse(text: str, path: object, row: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        where, line = (row, "") if row is not None else (e.lineno, " of the list")
        remedy = f"{e.msg} at column {e.colno}{line}; every row must be one JSON object on one line"
        raise BadRow(path, where, f"malformed JSON: {remedy}") from e
    except (ValueError, RecursionError) as e:
        raise BadRow(path, row, f"JSON that cannot be read ({e}); simplify the row") from e


def _carries_data(row: Row) -> bool:
    return any(k in row for k in ("messages", "prompt", "question", "conversations", "instruction", "id", "completion"))


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
