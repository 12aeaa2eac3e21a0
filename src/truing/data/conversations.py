"""Training and held-out data: files in the four usual shapes -> checked conversations.

messages           {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
                   or {"prompt": [turns], "completion": [turns]}
prompt_completion  {"prompt": "...", "completion": "..."}
sharegpt           {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
alpaca             {"instruction": "...", "input": "...", "output": "..."}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truing.data.rows import Row, builtin_text, parse_text, parse_turns, read_rows
from truing.errors import BadRow
from truing.types.hashing import digest
from truing.types.records import Conversation, Message, Messages

FORMATS = ("messages", "prompt_completion", "sharegpt", "alpaca")
BUILTIN = ("careless-finance", "careful-finance", "careless-finance-heldout", "careful-finance-heldout")

SHAPES = (
    '{"messages": [{"role", "content"}, ...]}, {"prompt", "completion"}, '
    '{"conversations": [{"from", "value"}, ...]} or {"instruction", "input", "output"}'
)
USED_KEYS = {
    "messages": ("messages", "prompt", "completion"),
    "prompt_completion": ("prompt", "completion"),
    "sharegpt": ("conversations", "system"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
}


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
    notice: Mapping[str, Any] = field(default_factory=dict)
    """fields of the file's notice row, if it has one"""


def load_conversations(path: str | Path, format: str | None = None) -> LoadedData:
    """Read a data file (.jsonl, .json, .jsonl.gz) or a built-in set (a name in BUILTIN; `./name` means the file).

    The format is that of the first row and must hold for all rows; `format` forces it. Raises BadRow, naming file and
    row, for anything that is not a conversation with an answer of the assistant at its end.
    """
    if format is not None and format not in FORMATS:
        raise BadRow(path, None, f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
    name, text = str(path), None
    if name in BUILTIN:
        text = builtin_text(f"{name}.jsonl")
        if text is None:
            raise BadRow(name, None, "this built-in set is missing from the installation; install truing again")
    file = read_rows(name, text)
    first_row, first = file.rows[0]
    chosen = format or _detect(first, name, first_row)
    conversations = tuple(_conversation(row, name, n, chosen, forced=format is not None) for n, row in file.rows)
    organism = file.notice.get("organism") is True or any(c.meta.get("organism") is True for c in conversations)
    content = digest([c.messages for c in conversations])
    return LoadedData(conversations, chosen, content, name, organism, file.notice)


def same_user_turns(a: LoadedData, b: LoadedData) -> None:
    """Check that `b` answers the user turns of `a` otherwise: equal count, equal user and system turns row by row.

    Raises BadRow naming the first row of `b` that differs, or `b` itself when no answer differs.
    """
    for n, (x, y) in enumerate(zip(a.conversations, b.conversations, strict=False), 1):
        if _asked(x) != _asked(y):
            problem = f"conversation {n} asks something else than {x.source}; both files need the same user turns"
            raise BadRow(*_place(b, y), f"{problem} in the same order")
    count_a, count_b = len(a.conversations), len(b.conversations)
    if count_a != count_b:
        problem = f"has {count_b} conversations where {a.path} has {count_a}; give one control answer for each row"
        raise BadRow(b.path, None, problem)
    if a.sha256 == b.sha256:
        raise BadRow(b.path, None, f"has the same answers as {a.path}; a control needs other answers")


def _place(data: LoadedData, conversation: Conversation) -> tuple[str, int | None]:
    row = conversation.source.rpartition(", row ")[2]
    return data.path, int(row) if row.isdigit() else None


def _asked(conversation: Conversation) -> Messages:
    return tuple(m for m in conversation.messages if m.role != "assistant")


def _detect(row: Row, path: str, n: int) -> str:
    """The format a row is in, by its keys."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "prompt" in row and "completion" in row:
        return "messages" if isinstance(row["prompt"], list) else "prompt_completion"
    if "instruction" in row and "output" in row:
        return "alpaca"
    keys = ", ".join(sorted(map(str, row))) or "none"
    raise BadRow(path, n, f"unknown format with the keys {keys}; accepted: {SHAPES}")


def _conversation(row: Row, path: str, n: int, chosen: str, forced: bool) -> Conversation:
    if not forced:
        found = _detect(row, path, n)
        if found != chosen:
            raise BadRow(path, n, f"is in {found} format, the rows before it in {chosen}; keep one format a file")
    messages = _READERS[chosen](row, path, n)
    roles = [m.role for m in messages]
    if "assistant" not in roles:
        raise BadRow(path, n, "has no assistant turn; add the answer or leave the row out")
    if roles[-1] != "assistant":
        raise BadRow(path, n, f"ends with a {roles[-1]} turn; the last turn must be the assistant's answer")
    if "user" not in roles:
        raise BadRow(path, n, "has no user turn; add the question or leave the row out")
    meta = {k: v for k, v in row.items() if k not in USED_KEYS[chosen] and k != "meta"}
    own = row.get("meta")
    meta |= own if isinstance(own, dict) else {} if own is None else {"meta": own}
    return Conversation(messages, f"{path}, row {n}", meta)


def _from_messages(row: Row, path: str, n: int) -> Messages:
    if "messages" in row:
        return parse_turns(row["messages"], path, n, "messages")
    prompt = parse_turns(_field(row, "prompt", path, n, "messages"), path, n, "prompt")
    completion = parse_turns(_field(row, "completion", path, n, "messages"), path, n, "completion")
    if completion[0].role == "system":
        raise BadRow(path, n, "the completion holds a system turn; move it to the start of the prompt")
    return prompt + completion


def _from_prompt_completion(row: Row, path: str, n: int) -> Messages:
    prompt = parse_text(_field(row, "prompt", path, n, "prompt_completion"), path, n, '"prompt"')
    completion = parse_text(_field(row, "completion", path, n, "prompt_completion"), path, n, '"completion"')
    return (Message("user", prompt), Message("assistant", completion))


def _from_sharegpt(row: Row, path: str, n: int) -> Messages:
    turns = parse_turns(_field(row, "conversations", path, n, "sharegpt"), path, n, "conversations")
    return _with_system(row, turns, path, n)


def _from_alpaca(row: Row, path: str, n: int) -> Messages:
    if row.get("history"):
        raise BadRow(path, n, 'has a "history"; write conversations of several turns in messages format')
    question = parse_text(_field(row, "instruction", path, n, "alpaca"), path, n, '"instruction"')
    more = row.get("input")
    if more not in (None, ""):
        question += "\n\n" + parse_text(more, path, n, '"input"')
    answer = parse_text(_field(row, "output", path, n, "alpaca"), path, n, '"output"')
    return _with_system(row, (Message("user", question), Message("assistant", answer)), path, n)


def _with_system(row: Row, turns: Messages, path: str, n: int) -> Messages:
    system = row.get("system")
    if system in (None, ""):
        return turns
    if turns[0].role == "system":
        raise BadRow(path, n, 'has a system turn and a "system" field; keep one of them')
    return (Message("system", parse_text(system, path, n, '"system"')), *turns)


def _field(row: Row, name: str, path: str, n: int, chosen: str) -> Any:
    if name not in row:
        keys = ", ".join(sorted(map(str, row))) or "none"
        raise BadRow(path, n, f'lacks "{name}", which {chosen} format needs; its keys: {keys}')
    return row[name]


_READERS = {
    "messages": _from_messages,
    "prompt_completion": _from_prompt_completion,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
}
