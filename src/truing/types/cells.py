"""CSV files that people open in a spreadsheet: texts in them are untrusted, and none may run there.

A spreadsheet runs what begins with = + - @ (full-width ones too), a tab or a line break. Not every program that opens
CSV heeds quotes, so a text is also guarded where it would begin a cell after a line break or a separator of its own.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from truing.files import whole

_BLANK = "[ \u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff]*"
_RUN = f"(?='*{_BLANK}(?:{{}}))"
"""before what would run, with or without blanks and guards before it; consumes no separator, so guards never meet"""
_BREAKS, _SURELY, _SIGN = "\r\n\v\f\x85\u2028\u2029", "[=@\uff1d\uff20]", "[+\\-\uff0b\uff0d]"
_PLACES = (
    "\\A{0}" + _RUN.format(f"{_SURELY}|{_SIGN}|[\t{_BREAKS}]"),
    # Further down a sign and a blank are an item of a list.
    f"(?<=[{_BREAKS}]){{0}}" + _RUN.format(f"{_SURELY}|{_SIGN}(?!\\s)"),
    "(?<=[,;|\t]){0}" + _RUN.format(_SURELY),
)
_BEFORE, _AFTER = (re.compile("|".join(_PLACES).format(guard)) for guard in ("", "'"))


def guarded(text: str) -> str:
    """`text` with an apostrophe before what a spreadsheet would run; `unguarded` takes it off again."""
    return _BEFORE.sub("'", text)


def unguarded(text: str) -> str:
    """`text` without the apostrophes that `guarded` put in."""
    return _AFTER.sub("", text)


def write_cells(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows as CSV, whole or not at all: every cell in quotes, every text guarded.

    Raises:
        BadInput: it cannot be written there. DiskFull: no space left.
    """
    with whole(path) as part, open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as f:
        writer = csv.writer(f, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([guarded(v) if isinstance(v, str) else v for v in row] for row in rows)
