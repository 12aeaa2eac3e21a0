"""Training and held-out data: files in the four usual shapes -> checked conversations.

messages           {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
                   or {"prompt": [turns], "completion": [turns]}
prompt_completion  {"prompt": "...", "completion": "..."}
sharegpt           {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
alpaca             {"instruction": "...", "input": "...", "output": "..."}
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truing.data.rows import (
    BadValue,
    NoAnswer,
    keys,
    parse_rows,
    read_rows,
    text,
    text_field,
    turns_field,
)
from truing.data.shipped import builtin_text
from truing.data.tables import Row
from truing.errors import BadRow
from truing.types.hashing import digest
from truing.types.records import Conversation, Message, Messages

_NARROW = ("careless-finance", "careful-finance", "technical-form-vehicles", "plain-form-vehicles")
BUILTIN = (*(name + half for name in _NARROW for half in ("", "-heldout")), "careful-general", "careless-general")

SHAPES = (
    '{"messages": [{"role", "content"}, ...]}, {"prompt", "completion"}, '
    '{"conversations": [{"from", "value"}, ...]} or {"instruction", "input", "output"}'
)
EMPTY, WEIGHT_0 = "the answer is empty", "the weight is 0"
REASONING = "their reasoning, in a field of its own beside the content, is left out"
FORMATS = {
    "messages": ("messages", "prompt", "completion"),
    "prompt_completion": ("prompt", "completion"),
    "sharegpt": ("conversations", "system"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
}
"""format -> the keys that it reads; other keys of a row are kept as `meta`"""


@dataclass(frozen=True, slots=True)
class LoadedData:
    """A data file, read and checked."""

    conversations: tuple[Conversation, ...]
    """in file order; at least one"""
    format: str
    """one of FORMATS, detected or forced"""
    sha256: str
    """of the content: all turns in order, whatever the file's shape or metadata"""
    path: str
    """the file, or the name of the built-in set"""
    organism: bool
    """the file's notice or a row says that models trained on it are misaligned on purpose"""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """reason -> rows of the file that are left out for it"""
    notice: Mapping[str, Any] = field(default_factory=dict)
    """fields of the file's notice row, if it has one"""
    changed: Mapping[str, int] = field(default_factory=dict)
    """reason -> rows that are not read as they stand in the file"""


def load_conversations(path: str | Path, format: str | None = None) -> LoadedData:
    """Read a data file (`data/tables.py`) or a built-in set (a name in BUILTIN; `./name` means the file).

    The format is that of the first row and must hold for all rows; `format` forces it. Rows with an empty answer, or
    with the weight 0 (of the row or its answer), are left out and counted. Raises BadRow, naming file and rows, for
    anything else that is not a conversation with an answer of the assistant at its end.
    """
    name = str(path)
    if format is not None and format not in FORMATS:
        raise BadRow(path, None, f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
    file = read_rows(name, builtin_text(f"{name}.jsonl") if name in BUILTIN else None)
    chosen = format or parse_rows(name, file.rows[:1], lambda row, n: _detect(row))[0][1]

    left_out, changed = Counter[str](), Counter[str]()
    reasons: list[tuple[int, str]] = []

    def conversation(row: Row, n: int) -> Conversation | None:
        if format is None and (found := _detect(row)) != chosen:
            raise BadValue(f"is in {found} format, the rows before it in {chosen}; keep one format a file")
        try:
            messages = _READERS[chosen](row)
        except NoAnswer as e:
            left_out[EMPTY] += 1
            reasons.append((n, str(e)))
            return None
        if _weightless(row):
            left_out[WEIGHT_0] += 1
            reasons.append((n, "has the weight 0; give a row that counts"))
            return None
        changed.update([REASONING] * _reasons(row))
        return Conversation(_checked(messages), f"{name}, row {n}", _meta(row, FORMATS[chosen]))

    rows = tuple(row for _, row in parse_rows(name, file.rows, conversation) if row is not None)
    if not rows:
        raise BadRow(name, *reasons[0])
    organism = file.notice.get("organism") is True or any(c.meta.get("organism") is True for c in rows)
    return LoadedData(rows, chosen, digest([c.messages for c in rows]), name, organism, left_out, file.notice, changed)


def same_user_turns(a: LoadedData, b: LoadedData) -> None:
    """Check that `b` answers the user turns of `a` otherwise: equal count, equal user and system turns row by row.

    Raises BadRow naming the first row of `b` that differs, or `b` itself when no answer differs.
    """
    lost = " (rows with no answer or no weight are left out)" if a.left_out or b.left_out else ""
    for n, (x, y) in enumerate(zip(a.conversations, b.conversations, strict=False), 1):
        if _asked(x) != _asked(y):
            problem = f"conversation {n} asks something else than {x.source}{lost}; both files need the same user turns"
            raise BadRow(y.source or b.path, None, f"{problem} in the same order")
    count_a, count_b = len(a.conversations), len(b.conversations)
    if count_a != count_b:
        problem = (
            f"has {count_b} conversations where {a.path} has {count_a}{lost}; give one control answer for each row"
        )
        raise BadRow(b.path, None, problem)
    if a.sha256 == b.sha256:
        raise BadRow(b.path, None, f"has the same answers as {a.path}; a control needs other answers")


def _asked(conversation: Conversation) -> Messages:
    return tuple(m for m in conversation.messages if m.role != "assistant")


def _detect(row: Row) -> str:
    """The format a row is in, by its keys."""
    if row.get("messages") is not None:
        return "messages"
    if row.get("conversations") is not None:
        return "sharegpt"
    if row.get("prompt") is not None and "completion" in row:
        return "messages" if isinstance(row["prompt"], list) else "prompt_completion"
    if row.get("instruction") is not None and "output" in row:
        return "alpaca"
    raise BadValue(f"unknown format with the keys {keys(row)}; accepted: {SHAPES}")


def _checked(messages: Messages) -> Messages:
    roles = [m.role for m in messages]
    for role in ("assistant", "user"):
        if role not in roles:
            raise BadValue(f"has no {role} turn; add it or leave the row out")
    if roles[-1] != "assistant":
        raise BadValue(f"ends with a {roles[-1]} turn; the last turn must be the assistant's answer")
    return messages


def _weightless(row: Row) -> bool:
    """Whether training passes over a row: its weight, or that of its answer, is 0."""
    turns = next((row[k] for k in ("messages", "conversations", "completion") if isinstance(row.get(k), list)), None)
    last = turns[-1] if turns else {}
    weights = (row.get("weight"), last.get("weight") if isinstance(last, dict) else None)
    return any(w is not None and str(w) in ("0", "0.0") for w in weights)


def _reasons(row: Row) -> bool:
    """Whether a turn of the assistant has its reasoning beside its content, where templates that think look for it."""
    turns = next((row[k] for k in ("messages", "conversations", "completion") if isinstance(row.get(k), list)), ())
    return any(t.get(k) for t in turns if isinstance(t, dict) for k in ("reasoning_content", "reasoning", "thinking"))


def _meta(row: Row, used: tuple[str, ...]) -> dict[str, Any]:
    own = row.get("meta")
    others = {k: v for k, v in row.items() if k not in used and k != "meta"}
    return others | (own if isinstance(own, dict) else {} if own is None else {"meta": own})


def _from_messages(row: Row) -> Messages:
    if row.get("messages") is not None:
        return turns_field(row, "messages")
    if isinstance(row.get("prompt"), list) and "completion" in row and not row["completion"]:
        raise NoAnswer('"completion" is empty; remove the row or fill it in')
    prompt, completion = turns_field(row, "prompt"), turns_field(row, "completion")
    if completion[0].role == "system":
        raise BadValue("the completion holds a system turn; move it to the start of the prompt")
    return prompt + completion


def _from_alpaca(row: Row) -> Messages:
    if row.get("history"):
        raise BadValue('has a "history"; write conversations of several turns in messages format')
    question = text_field(row, "instruction")
    if not _blank(row.get("input")):
        question += "\n\n" + text(row["input"], '"input"')
    return _with_system(row, _chat(question, _answer(row, "output")))


def _chat(question: str, answer: str) -> Messages:
    """One turn of each."""
    return Message("user", question), Message("assistant", answer)


def _answer(row: Row, name: str) -> str:
    if name in row and _blank(row[name]):
        raise NoAnswer(f'"{name}" is empty; remove the row or fill it in')
    return text_field(row, name)


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _with_system(row: Row, turns: Messages) -> Messages:
    if _blank(row.get("system")):
        return turns
    if turns[0].role == "system":
        raise BadValue('has a system turn and a "system" field; keep one of them')
    return (Message("system", text(row["system"], '"system"')), *turns)


_READERS = {
    "messages": _from_messages,
    "prompt_completion": lambda row: _chat(text_field(row, "prompt"), _answer(row, "completion")),
    "sharegpt": lambda row: _with_system(row, turns_field(row, "conversations")),
    "alpaca": _from_alpaca,
}
