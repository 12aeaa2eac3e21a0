"""The user's cache folder, and what is known there of large files: their hash, as long as they are untouched.

A file counts as untouched while its number on the disk, size, and times of writing and of change (which no program can
set back) stay. What was written in the last moments before it was read is not remembered: the clock of a file system
may be too coarse to tell a later write.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from truing.errors import BadInput, DiskFull
from truing.files import read_object, write_json
from truing.types.hashing import digest

WORTH = 16 << 20
"""bytes under which files are read again rather than remembered"""
SETTLED = 2.0
"""seconds that must lie between the last write of a file and its reading"""
MOST = 4096
"""hashes that are kept, the latest ones"""


def cache_dir() -> Path:
    """The folder of fetched models' parent: $TRUING_CACHE, else the platform's cache folder for this user."""
    if own := os.environ.get("TRUING_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "truing"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "truing"


def remembered(files: Sequence[Path], of: str, make: Callable[[], str]) -> str:
    """What `make` says of these files, or what it said when they were last read, if they are untouched and large.

    Args:
        files: all that the result depends on.
        of: what is asked of them; another question has another answer.
        make: reads them.
    """
    began, before = time.time(), _state(files)
    if sum(size for _, size, *_ in before) < WORTH:
        return make()
    place, key = cache_dir() / "hashes.json", digest([of, before], 32)
    known = _known(place)
    if key in known:
        return known[key]
    value = make()
    settled = max(when for *_, written, changed in before for when in (written, changed)) < (began - SETTLED) * 1e9
    if settled and _state(files) == before:
        # Whoever cannot write there, or comes second, reads the files once more.
        with suppress(OSError, BadInput, DiskFull):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, dict(list({**_known(place), key: value}.items())[-MOST:]))
    return value


def _known(place: Path) -> dict[str, str]:
    try:
        found = read_object(place)
    except BadInput:
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _state(files: Sequence[Path]) -> list[tuple[list[int | str], int, int, int]]:
    """Per file: (device, number, path), bytes, ns of the last write, ns of the last change of anything."""
    found = [(file, file.stat()) for file in files]
    return [([s.st_dev, s.st_ino, str(f.resolve())], s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f, s in found]
