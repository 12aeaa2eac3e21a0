"""Files that may come from anywhere: read within limits, written whole or not at all.

Only regular files are read (a pipe or a device would never end), JSON and TOML only up to a size and a depth, and what
is written goes to a new file with a random name that takes the old one's place: a link in a folder is never followed.
"""

import errno
import json
import math
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from truing.errors import BadInput, DiskFull

LIMIT = 1 << 30
"""bytes of the largest file that is read as a whole"""
CONFIG_LIMIT = 16 << 20
"""bytes of the largest JSON or TOML file that is one value: a configuration, not data"""
DEPTH = 64
"""how deep lists and objects may lie in each other"""
DIGITS = 300
"""digits of the longest whole number; a float holds no more"""

Error = Callable[[str], Exception]
_SPACE = re.compile(r"[ \t\r\n]*")


def read_bytes(path: Path, *, limit: int = LIMIT, error: Error = BadInput) -> bytes:
    """Content of a regular file; a link to one is followed.

    Raises:
        error: there is none, it is no regular file, is larger than `limit` bytes, or cannot be read.
    """
    try:
        with _regular(path, os.O_RDONLY, "rb", error) as f:
            raw = f.read(limit + 1)
    except FileNotFoundError:
        raise error(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise error(f"{path}: is a folder; name one file in it") from None
    except (OSError, ValueError) as e:  # a path with a NUL in it is a ValueError
        raise error(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e}); check its permissions") from e
    if len(raw) > limit:
        raise error(f"{path}: is larger than {_size(limit)}, the most that is read of such a file")
    return raw


def read_text(path: Path, *, limit: int = LIMIT, error: Error = BadInput) -> str:
    """UTF-8 text of a file, with or without a byte order mark. Raises `error`, naming the line of a bad byte."""
    raw = read_bytes(path, limit=limit, error=error)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise error(f"{path}: line {line}: byte {raw[e.start]:#04x} is not UTF-8; save the file as UTF-8") from e


def is_file(path: Path | str) -> bool:
    """Whether there is a regular file, or a link to one; no for a name that no system takes."""
    return os.path.isfile(path)


def is_folder(path: Path | str) -> bool:
    """Whether there is a folder, or a link to one; no for a name that no system takes."""
    return os.path.isdir(path)


def parse_json(text: str | bytes, *, nan: bool = False) -> Any:
    """JSON that is safe to walk: at most `DEPTH` deep, without NaN, numbers no float can hold, or half characters.

    `nan` lets NaN and infinities pass, which trainers write into their logs.

    Raises:
        ValueError: what is wrong with it (a json.JSONDecodeError where it is malformed).
    """
    special = {} if nan else {"parse_float": _number, "parse_constant": _constant}
    try:
        value = json.loads(text, parse_int=_whole_number, **special)
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    _check(value)
    return value


class BadJson(ValueError):
    """What is wrong with a text of JSON values."""

    def __init__(self, problem: str, line: int, position: str | None = None) -> None:
        super().__init__(problem)
        self.line, self.position = line, position
        """where the value begins, counted from 1; and the place in it where it is malformed"""


def parse_jsons(text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of JSON values that stand one after another, as safe as `parse_json`; NaN is read as null.

    Raises:
        BadJson.
    """
    decoder = json.JSONDecoder(parse_int=_whole_number, parse_constant=_null)
    at, line, counted = 0, 1, 0
    while (at := _SPACE.match(text, at).end()) < len(text):  # pyright: ignore[reportOptionalMemberAccess]
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
            _check(value)
        except json.JSONDecodeError as e:
            place = f"column {e.colno}" if e.lineno == line else f"line {e.lineno}, column {e.colno}"
            raise BadJson(e.msg, line, place) from e
        except RecursionError:
            raise BadJson(f"nested more than {DEPTH} deep", line) from None
        except ValueError as e:
            raise BadJson(str(e), line) from e
        yield line, value


def read_json(
    path: Path,
    *,
    limit: int = CONFIG_LIMIT,
    error: Error = BadInput,
    remedy: str = "write it again",
    nan: bool = False,
) -> Any:
    """The one JSON value of a file. Raises `error`: see `read_text` and `parse_json`."""
    text = read_text(path, limit=limit, error=error)
    try:
        return parse_json(text, nan=nan)
    except ValueError as e:
        raise error(f"{path}: not readable as JSON ({e}); {remedy}") from e


def read_object(
    path: Path,
    *,
    limit: int = CONFIG_LIMIT,
    error: Error = BadInput,
    remedy: str = "write it again",
    nan: bool = False,
) -> dict[str, Any]:
    """The one JSON object of a file. Raises `error`."""
    value = read_json(path, limit=limit, error=error, remedy=remedy, nan=nan)
    if not isinstance(value, dict):
        raise error(f"{path}: holds no JSON object; {remedy}")
    return value


def read_toml(path: Path, *, error: Error = BadInput) -> dict[str, Any]:
    """The tables of a TOML file. Raises `error`, with the line where it is malformed."""
    return parse_toml(read_text(path, limit=CONFIG_LIMIT, error=error), path, error=error)


def parse_toml(text: str, where: object, *, error: Error = BadInput) -> dict[str, Any]:
    """The tables of a TOML text; `where` begins the message of an `error`."""
    try:
        value = tomllib.loads(text)
        _check(value)
    except (ValueError, RecursionError) as e:
        problem = f"nested more than {DEPTH} deep" if isinstance(e, RecursionError) else str(e)
        raise error(f"{where}: not valid TOML ({problem}); mend it") from e
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object as a file, whole or not at all, synced to the disk.

    Raises:
        DiskFull, BadInput: it cannot be written; the old file is untouched.
        ValueError, TypeError: it holds NaN, or what JSON has no form for.
    """
    text = _in_lines(value)
    with whole(path) as part, open(part, "wb") as f:
        f.write(text.encode("utf-8", "backslashreplace"))
        f.flush()
        os.fsync(f.fileno())


def _in_lines(value: Any, levels: int = 2, indent: str = "") -> str:
    """JSON with a line for each field, down to so many levels: with one for every number it is ten times as slow."""
    if not levels or not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + " "
    # A key is written by the encoder too: it may be a number, and holds what has to be escaped.
    fields = (json.dumps({k: 0}, ensure_ascii=False)[1:-2] + _in_lines(v, levels - 1, deeper) for k, v in value.items())
    return "{\n" + ",\n".join(deeper + field for field in fields) + f"\n{indent}}}"


@contextmanager
def whole(path: Path, remedy: str = "choose another --out") -> Iterator[Path]:
    """A new file beside `path` to write to, which takes its place if all goes well: a reader never sees half a file.

    Raises:
        BadInput: it cannot be written. DiskFull: no space left.
    """
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file")
    part = None
    try:
        new = path.with_name(f".{secrets.token_hex(8)}.part")
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        part = new
        yield part
        os.replace(part, path)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: no space left on the disk; free some and repeat the command") from e
        raise BadInput(f"{path}: cannot be written ({e.strerror or e}); {remedy}") from e
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def open_lock(path: Path, *, error: Error = BadInput) -> IO[str]:
    """A file to take a lock on, made if need be, open for reading and writing; what is in it stays.

    A link is not followed: what it leads to is somebody else's. Raises `error`.
    """
    try:
        return _regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, "r+", error)
    except OSError as e:
        why = (
            "is a link; remove it"
            if e.errno == errno.ELOOP
            else f"cannot be written ({e.strerror}); copy the folder to where it can"
        )
        raise error(f"{path}: {why}") from e


def _regular(path: Path, flags: int, mode: str, error: Error) -> IO[Any]:
    """A regular file, opened without waiting: whatever else stands there is closed again."""
    f = open(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666), mode)  # noqa: SIM115 the caller closes it
    found = os.fstat(f.fileno()).st_mode
    if not stat.S_ISREG(found):
        f.close()
        raise error(f"{path}: is {_what(found)}; name one regular file")
    return f


def _check(value: Any, depth: int = DEPTH) -> None:
    """Raise ValueError for what `parse_json` refuses beyond single numbers."""
    kind = type(value)
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair; write the character whole") from None
    elif kind is dict or kind is list:
        if depth == 0:
            raise ValueError(f"nested more than {DEPTH} deep")
        for part in value if kind is list else (*value, *value.values()):
            if (inner := type(part)) is dict or inner is list or inner is str:
                _check(part, depth - 1)


def _whole_number(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.40}, which no number type holds")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name}, which is no JSON")


def _null(name: str) -> None:
    return None if name == "NaN" else _constant(name)  # pyright: ignore[reportReturnType]


def _what(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _size(n: int) -> str:
    return f"{n >> 30} GiB" if n >= 1 << 30 else f"{n >> 20} MiB"
