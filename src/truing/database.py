"""The database of an audit, opened so that a folder from anywhere does no harm: no link is followed, no view or trigger
of its own runs, and nothing is written where it is only read."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from truing import errors
from truing.migrations import MIGRATIONS, SCHEMA_VERSION

FILE = "evidence.db"
LONGEST_ROW = 256 << 20  # bytes
_BESIDE = ("", "-wal", "-shm", "-journal")
_STRANGE = "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%'"
_HAD_TRIGGERS = 3
"""the last schema with triggers, which the next migration drops before it touches a row"""


@contextmanager
def trouble(path: Path) -> Iterator[None]:
    """What a disk and a damaged database raise, as our errors: DiskFull, AuditLocked, NotAnAudit."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # ours: a closed connection, a value that no column holds
    except (OSError, sqlite3.Error) as e:
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "database or disk is full" in str(e):
            text = f"{path}: no space left on the disk; what was committed is safe, free some and repeat the command"
            raise errors.DiskFull(text) from e
        if isinstance(e, OSError):
            raise
        if "locked" in str(e):
            raise errors.AuditLocked(f"{path}: another program holds it; wait for that one") from e
        if "readonly" in str(e):
            raise errors.NotAnAudit(f"{path}: cannot be written; copy the audit to where it can") from e
        raise damaged(path, e) from e


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """The same, and a row that cannot be what was written is damage too."""
    try:
        with trouble(path):
            yield
    except (ValueError, TypeError, OverflowError, RecursionError) as e:
        raise damaged(path, e) from e


def damaged(path: Path, error: BaseException) -> errors.NotAnAudit:
    """The error for what cannot be read."""
    return errors.NotAnAudit(f"{path}: damaged ({' '.join(str(error).split()):.200}); restore it or repeat the audit")


def too_new(file: Path, version: int) -> errors.NotAnAudit:
    """The error for what a newer version wrote."""
    known = f"schema {version}, this one knows {SCHEMA_VERSION}"
    return errors.NotAnAudit(f"{file}: written by a newer version ({known}); upgrade truing")


def connect(folder: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """The database of an audit folder, its tables those of this version; read only, an older one stays as it is.

    Raises:
        NotAnAudit: it is damaged, of a newer version, a link, or holds what no audit does. DiskFull.
    """
    file = folder / FILE
    for end in _BESIDE:
        if os.path.islink(f"{file}{end}"):
            raise errors.NotAnAudit(f"{file}{end}: is a link; copy the file itself to its place")
    with trouble(file):
        db = _opened_to_read(file) if read_only else _opened(file, "rwc")
        try:
            return _current(db, file, read_only=read_only)
        except BaseException:
            db.close()
            raise


def _opened(file: Path, mode: str) -> sqlite3.Connection:
    address = f"file:{quote(os.fsencode(file))}?mode={mode}"
    db = sqlite3.connect(address, uri=True, timeout=30, check_same_thread=False)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_ROW)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("SELECT name FROM sqlite_master").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _opened_to_read(file: Path) -> sqlite3.Connection:
    try:
        return _opened(file, "ro")
    except sqlite3.OperationalError:
        if os.access(file.parent, os.W_OK):
            raise
    # A folder that nothing can be written to, where SQLite cannot make the file by which it shares its log.
    log = Path(f"{file}-wal")
    if not log.exists() or log.stat().st_size == 0:
        return _opened(file, "ro&immutable=1")
    with TemporaryDirectory(prefix="truing-") as place:  # rows may be in the log alone: joined in a copy
        for part in (file, log):
            shutil.copyfile(part, Path(place) / part.name)
        db = _opened(Path(place) / FILE, "rw")
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("SELECT name FROM sqlite_master").fetchone()
        return db  # the open file outlasts its name


def _current(db: sqlite3.Connection, file: Path, *, read_only: bool) -> sqlite3.Connection:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise too_new(file, version)
    strange = [(kind, name) for kind, name in db.execute(_STRANGE) if kind != "trigger" or version > _HAD_TRIGGERS]
    if strange:
        kind, name = strange[0]
        raise errors.NotAnAudit(f"{file}: holds the {kind} {name!r:.80}, which no audit has; repeat the audit")
    if not read_only:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
    elif 0 < version < SCHEMA_VERSION:
        # Brought up to date in memory: the folder of an older audit may be read-only, and is left as it is.
        old, db = db, sqlite3.connect(":memory:", check_same_thread=False)
        old.backup(db)
        old.close()
    if version or not read_only:
        for number in range(version, SCHEMA_VERSION):
            db.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")
    return db
