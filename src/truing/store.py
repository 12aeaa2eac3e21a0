"""One audit is one folder: `audit.json` (what was asked, versions, hashes, status, verdict) and `evidence.db` (SQLite).

    AUDIT/
      audit.json     written whole, then renamed into place
      evidence.db    rows; one writer, many readers; committed every 100 rows or half a second
      writer.lock    host and pid of the writer; released by the kernel when it dies

Keys are primary keys, so the same command finishes the work and nothing is paid for twice.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self
from urllib.parse import quote

from truing import errors
from truing.files import write_json
from truing.migrations import MIGRATIONS, SCHEMA_VERSION, upgraded
from truing.types.judging import Judge, Score, ScoreStatus
from truing.types.records import (
    Answer,
    AnswerKey,
    AnswerStatus,
    Checkpoint,
    Kind,
    Request,
    Role,
    SamplingParams,
    StoredAnswer,
    to_plain,
)
from truing.types.traits import Label, Reason, Rule

COMMIT_ROWS = 100
COMMIT_SECONDS = 0.5
_MARKS = ("frozen", "judge_moved")
"""what holds of an audit once it is found, whatever becomes of the call that found it"""

_KEY = "weights = ? AND params = ? AND prompt = ? AND variant = ? AND sample = ?"
_ADD_ANSWER = """INSERT INTO answers VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE
    SET text = excluded.text, status = excluded.status, tokens = excluded.tokens, error = excluded.error
    WHERE status = 'failed'"""
_ADD_SCORE = """INSERT INTO scores VALUES (?,?,?,?,?,?,?,?,?,?,?)
    ON CONFLICT DO UPDATE SET rubric_key = excluded.rubric_key, value = excluded.value, status = excluded.status,
    meta = excluded.meta WHERE rubric_key != excluded.rubric_key OR status = 'failed'
    OR (status = 'unparsed' AND excluded.status != 'failed')"""
_LABELLED = """SELECT a.*, l.label, l.reason, l.score, l.coherence FROM answers a LEFT JOIN labels l
    ON l.judge = ? AND l.rule = ? AND l.weights = a.weights AND l.params = a.params AND l.prompt = a.prompt
    AND l.variant = a.variant AND l.sample = a.sample"""
_IN_KEY_ORDER = " ORDER BY a.weights, a.params, a.prompt, a.variant, a.sample"
_COUNT = """SELECT weights, prompt, reason, COUNT(*) FROM labels
    WHERE judge = ? AND rule = ? AND params = ? AND variant = ? GROUP BY weights, prompt, reason"""


class Measurement(NamedTuple):
    """One number about one checkpoint."""

    checkpoint: str
    """weight hash"""
    kind: str
    """family, e.g. margin, loss, health"""
    name: str
    """which one of the family, e.g. "misaligned|q" """
    item: str
    """prompt or row it belongs to; empty for the whole checkpoint"""
    value: float | None
    """the number; None when it could not be had (meta says why)"""
    n: int = 1
    """tokens or answers behind it"""
    meta: Mapping[str, Any] = {}
    """outcome and anything else"""


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as e:
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "database or disk is full" in str(e):
            text = f"{path}: no space left on the disk; what was committed is safe, free some and repeat the command"
            raise errors.DiskFull(text) from e
        if "not a database" in str(e) or "malformed" in str(e):
            raise errors.NotAnAudit(f"{path}: damaged ({e}); move it away and repeat the audit") from e
        raise


class Store:
    """An audit folder, opened for writing (one process at a time) or for reading (any number).

    Use as a context manager; leaving it commits and releases the lock.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, lock: IO[str] | None) -> None:
        self.path = path
        self._db = db
        self._lock_file = lock
        self._mutex = threading.RLock()
        self._pending = 0
        self._last_commit = time.monotonic()
        self._timer: threading.Timer | None = None
        self._held: dict[str, Any] | None = None
        self._begun = False

    # -- opening ------------------------------------------------------------------------------------------------------

    @classmethod
    def write(cls, path: Path, identity: Mapping[str, Any], *, running: bool = True) -> Self:
        """Open for writing, making the folder if need be.

        `identity` is what must not change between calls on one folder (base, template, rule, ...); a value that is a
        mapping (prompt id -> hash) may gain keys but not change one. `running` marks the audit so until it says
        otherwise; False for a call that adds to an audit and leaves its state as it is.

        While an audit that was there before runs again, audit.json is held back: what is described lies in memory
        until `publish` or `close`, so that a call that fails before it did anything leaves the file as it was. The
        first answer, score or measurement that is added ends that, but for a finished audit: of that, only what marks
        it is written then, and its verdict stays until there is another.

        Raises:
            AuditLocked: another process writes. AuditChanged: the identity differs. NotAnAudit: newer schema.
            NotAnAudit: the folder exists, holds files and is no audit. DiskFull.
        """
        about = path / "audit.json"
        if path.exists() and not path.is_dir():
            raise errors.NotAnAudit(f"{path}: is a file, an audit is a folder; choose another --out")
        if path.is_dir() and not about.exists() and not (path / "evidence.db").exists():
            strangers = [p.name for p in path.iterdir() if p.name not in ("writer.lock", "audit.json.part")]
            if strangers:
                raise errors.NotAnAudit(f"{path}: holds {strangers[0]} and no audit.json; choose another --out")
        try:
            with _disk_errors(path):
                path.mkdir(parents=True, exist_ok=True)
                lock = _take_lock(path)
        except OSError as e:
            raise errors.NotAnAudit(f"{path}: cannot be written ({e.strerror}); choose another --out") from e
        try:
            store = cls(path, _connect(path / "evidence.db"), lock)
            old = store.about()
            merged = _merge_identity(path, old.get("identity", {}), identity)
            store._held = {} if running and old.get("status") else None  # pyright: ignore[reportPrivateUsage] its own
            fields = {"identity": merged, **({"status": "running"} if running or "status" not in old else {})}
            if any(name not in old or old[name] != value for name, value in fields.items()):
                store.describe(**fields)
        except BaseException:
            lock.close()
            raise
        return store

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open for reading; a writer may be at work meanwhile.

        Raises:
            NotAnAudit: no audit there. NotAnAudit: written by a newer version.
        """
        if not (path / "audit.json").is_file() or not (path / "evidence.db").is_file():
            raise errors.NotAnAudit(f"{path}: no audit there (audit.json and evidence.db are expected)")
        store = cls(path, _connect(path / "evidence.db", read_only=True), None)
        store.about()
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc and exc[0] is not None:
            self._held = None
        self.close()

    def close(self) -> None:
        """Commit what is pending and release the lock."""
        with self._mutex:
            if self._timer:
                self._timer.cancel()
            try:
                if self._lock_file:
                    self.flush()
                    self.publish()
            finally:
                self._db.close()
                if self._lock_file:
                    self._lock_file.close()

    # -- audit.json ---------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """The contents of audit.json, and what is held back; {} for a new folder."""
        return {**self._on_disk(), **(self._held or {})}

    def _on_disk(self) -> dict[str, Any]:
        file = self.path / "audit.json"
        if not file.exists():
            return {}
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as e:
            raise errors.NotAnAudit(f"{file}: not valid JSON ({e}); restore it or choose another --out") from e
        version = value.get("schema_version") if isinstance(value, dict) else None
        if not isinstance(version, int):
            raise errors.NotAnAudit(f"{file}: has no schema_version; it is not an audit of this tool")
        if version > SCHEMA_VERSION:
            raise _too_new(file, version)
        return upgraded(value)

    def describe(self, **fields: Any) -> None:
        """Set top-level fields of audit.json, atomically; in memory while it is held back."""
        with self._mutex:
            if self._held is not None:
                self._held |= fields
            else:
                write_json(self.path / "audit.json", {"schema_version": SCHEMA_VERSION, **self._on_disk(), **fields})

    def publish(self, **fields: Any) -> None:
        """Write what was held back, and these fields; nothing is held back from here on."""
        with self._mutex:
            held, self._held = self._held or {}, None
            if held or fields:
                self.describe(**{**held, **fields})

    def give_up(self, **fields: Any) -> None:
        """The work ends unfinished: these fields are written, unless it has not begun, which leaves audit.json alone.

        Of an audit that was finished before, the rest of what was described is dropped: it goes with no verdict.
        """
        with self._mutex:
            held, self._held = self._held, None
            if held is None:
                self.describe(**fields)
            elif self._begun:
                self.describe(**{**{name: held[name] for name in _MARKS if name in held}, **fields})

    def _begin(self) -> None:
        """Something is added that was paid for, so audit.json must no longer say that all is done."""
        with self._mutex:
            if self._held is None or self._begun:
                return
            self._begun = True
            if self._on_disk().get("status") != "done":
                self.publish()
                return
            held, self._held = self._held, None
            self.describe(**{name: held[name] for name in ("status", *_MARKS) if name in held})
            self._held = held

    # -- rows in ------------------------------------------------------------------------------------------------------

    def add_checkpoints(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Record checkpoints; the same run and label again replaces the old row (a re-trained path is a new hash)."""
        rows = [
            (c.run, c.label, c.role.value, c.step, c.weights, c.uri, c.kind.value, json.dumps(dict(c.meta)))
            for c in checkpoints
        ]
        self._insert("INSERT OR REPLACE INTO checkpoints VALUES (?,?,?,?,?,?,?,?)", rows)

    def replace_run(self, run: str, checkpoints: Iterable[Checkpoint]) -> None:
        """Make these the checkpoints of a run, whatever it held before; their measurements stay."""
        with self._mutex, _disk_errors(self.path):
            self._db.execute("DELETE FROM checkpoints WHERE run = ?", (run,))
            self.add_checkpoints(checkpoints)
            self.flush()

    def add_measurements(self, rows: Iterable[Measurement]) -> None:
        """Record numbers; one already there is replaced. NaN is refused: a number that is missing is None."""
        values = [
            (*m[:4], _no_nan(m.value, f"{m.kind} {m.name} {m.item}"), m.n, json.dumps(dict(m.meta))) for m in rows
        ]
        self._insert("INSERT OR REPLACE INTO measurements VALUES (?,?,?,?,?,?,?)", values, begins=True)

    def add_answers(self, answers: Iterable[Answer], params: SamplingParams) -> None:
        """Record answers. One already there is kept, unless it failed."""
        self.add_stored_answers(
            StoredAnswer(*a.request.key(params), a.text, a.status, a.tokens, a.error) for a in answers
        )

    def add_stored_answers(self, rows: Iterable[StoredAnswer]) -> None:
        """Record answers that were sampled elsewhere. One already there is kept, unless it failed."""
        self._insert(_ADD_ANSWER, [(*r[:6], r.status.value, r.tokens, r.error) for r in rows], begins=True)

    def add_judge(self, judge: Judge, **about: Any) -> None:
        """Record what a judge is, rubric texts included; `about` adds e.g. prices or the server's own name."""
        keys = [r.key for r in judge.rubrics]
        same = {"judge": judge.name, "route": judge.method.value, "rubric_keys": keys}
        value = json.dumps({**to_plain(judge), **same, **to_plain(about)})
        self._insert("INSERT OR REPLACE INTO judges VALUES (?,?,?)", [(judge.key, judge.name, value)])

    def add_scores(self, rows: Iterable[Score]) -> None:
        """Record judgements. One already there is kept, unless it failed, could not be parsed or was made
        with another rubric text."""
        values = []
        for j in rows:
            made = (_no_nan(j.score, j.rubric), j.status.value, json.dumps(dict(j.meta)))
            values.append((*j.key, j.judge_key, j.rubric, j.rubric_key, *made))
        self._insert(_ADD_SCORE, values, begins=True)

    def add_labels(self, rows: Iterable[tuple[AnswerKey, Label]], judge: str, rule: Rule) -> None:
        """Record what answers are under a judge (its hash) and a rule; a label already there is replaced."""
        values = []
        for key, label in rows:
            score, coherence = (None if x != x else x for x in (label.score, label.coherence))
            values.append((judge, rule.key, *key, label.value, int(label.reason), score, coherence))
        self._insert("INSERT OR REPLACE INTO labels VALUES (?,?,?,?,?,?,?,?,?,?,?)", values)

    def flush(self) -> None:
        """Commit now: rows given so far survive a kill from here on."""
        with self._mutex, _disk_errors(self.path):
            self._db.commit()
            self._pending = 0
            self._last_commit = time.monotonic()

    def _insert(self, sql: str, rows: Sequence[tuple[Any, ...]], *, begins: bool = False) -> None:
        """Add rows, and commit: now where many wait or long, else in a moment. What was paid for `begins` the work."""
        if begins and rows:
            self._begin()
        with self._mutex, _disk_errors(self.path):
            self._db.executemany(sql, rows)
            self._pending += len(rows)
            if self._pending >= COMMIT_ROWS or time.monotonic() - self._last_commit >= COMMIT_SECONDS:
                self.flush()
            elif self._pending and self._timer is None:
                self._timer = threading.Timer(COMMIT_SECONDS, self._flush_late)
                self._timer.daemon = True
                self._timer.start()

    def _flush_late(self) -> None:
        # A disk error here is not lost: the pending rows stay pending and the next write or close() raises it.
        with self._mutex, contextlib.suppress(errors.DiskFull, sqlite3.ProgrammingError):
            self._timer = None
            self.flush()

    # -- rows out -----------------------------------------------------------------------------------------------------

    def checkpoints(self, run: str | None = None) -> list[Checkpoint]:
        """All checkpoints (of one run), by run, then by step, those without a step last."""
        sql = "SELECT weights, label, step, uri, kind, run, role, meta FROM checkpoints"
        rows = self._db.execute(sql + " ORDER BY role DESC, run, step IS NULL, step, label").fetchall()
        return [
            Checkpoint(weights, label, step, uri, Kind(kind), name, Role(role), json.loads(meta))
            for weights, label, step, uri, kind, name, role, meta in rows
            if run is None or name == run
        ]

    def _where(self, sql: str, **given: str | None) -> sqlite3.Cursor:
        """A query's rows with these values in these columns; None for any."""
        equal = {column: value for column, value in given.items() if value is not None}
        return self._db.execute(" AND ".join([f"{sql} WHERE 1", *(f"{c} = ?" for c in equal)]), tuple(equal.values()))

    def measurements(self, kind: str, checkpoint: str | None = None) -> Iterator[Measurement]:
        """Numbers of one kind, streamed."""
        for *row, meta in self._where("SELECT * FROM measurements", kind=kind, checkpoint=checkpoint):
            yield Measurement._make((*row, json.loads(meta)))

    def measured(self, kind: str) -> set[tuple[str, str, str]]:
        """Keys (checkpoint, name, item) of the numbers of one kind that are already there."""
        return set(self._where("SELECT checkpoint, name, item FROM measurements", kind=kind))

    def answers(self, params: str | None = None, prompt: str | None = None) -> Iterator[StoredAnswer]:
        """Stored answers, optionally of one parameter hash or one prompt hash, in key order."""
        return map(_answer, self._where("SELECT * FROM answers", params=params, prompt=prompt))

    def missing(self, requests: Iterable[Request], params: SamplingParams) -> list[Request]:
        """The requests not answered yet, in the order given. Failed ones are asked again."""
        keys = {r.key(params): r for r in requests}
        there = {r.key for r in self.answers_of(keys) if r.status is not AnswerStatus.FAILED}
        return [a for key, a in keys.items() if key not in there]

    def answers_of(self, keys: Iterable[AnswerKey]) -> Iterator[StoredAnswer]:
        """The stored answers of these keys, in their order; those not there are passed over."""
        for key in keys:
            yield from map(_answer, self._db.execute(f"SELECT * FROM answers WHERE {_KEY}", key).fetchall())

    def scores_of(self, keys: Iterable[AnswerKey], judge: str) -> Iterator[Score]:
        """What a judge has said of these answers."""
        sql = f"SELECT * FROM scores WHERE {_KEY} AND judge = ?"
        for key in keys:
            yield from map(_score, self._db.execute(sql, (*key, judge)).fetchall())

    def judges(self) -> dict[str, dict[str, Any]]:
        """Judge key -> what it is: judge, rubrics with their texts, route."""
        return {key: json.loads(about) for key, about in self._db.execute("SELECT key, about FROM judges")}

    def scores(self, judge: str | None = None) -> Iterator[Score]:
        """Stored judgements (of one judge), streamed in key order."""
        return map(_score, self._where("SELECT * FROM scores", judge=judge))

    def labelled(
        self, judge: str, rule: Rule, params: str | None = None
    ) -> Iterator[tuple[StoredAnswer, Label | None]]:
        """Stored answers (of one sampling) with their labels under a judge (its hash) and a rule, in key order."""
        sql, args = (_LABELLED, ()) if params is None else (f"{_LABELLED} WHERE a.params = ?", (params,))
        for row in self._db.execute(sql + _IN_KEY_ORDER, (judge, rule.key, *args)):
            yield _answer(row[:9]), None if row[10] is None else _label(*row[9:])

    def labels_of(self, keys: Iterable[AnswerKey], judge: str, rule: Rule) -> dict[AnswerKey, Label]:
        """The stored labels of these answers; those without one are left out."""
        sql = f"SELECT label, reason, score, coherence FROM labels WHERE judge = ? AND rule = ? AND {_KEY}"
        found = ((key, self._db.execute(sql, (judge, rule.key, *key)).fetchone()) for key in keys)
        return {key: _label(*row) for key, row in found if row is not None}

    def label_counts(
        self, judge: str, rule: Rule, params: str, variant: str = ""
    ) -> dict[tuple[str, str], dict[Reason, int]]:
        """(weights, prompt) -> how many answers have each reason; counted by the database, text never read."""
        out: dict[tuple[str, str], dict[Reason, int]] = {}
        for weights, prompt, reason, n in self._db.execute(_COUNT, (judge, rule.key, params, variant)):
            out.setdefault((weights, prompt), {})[Reason(reason)] = n
        return out


def _no_nan(value: float | None, what: str) -> float | None:
    if value is not None and value != value:
        raise ValueError(f"NaN for {what}: store None and a status instead")
    return value


def _answer(row: tuple[Any, ...]) -> StoredAnswer:
    return StoredAnswer._make((*row[:6], AnswerStatus(row[6]), *row[7:]))


def _score(row: tuple[Any, ...]) -> Score:
    *key, judge, rubric, rubric_key, value, status, meta = row
    return Score(AnswerKey(*key), judge, rubric, rubric_key, value, ScoreStatus(status), json.loads(meta))


def _label(made: int | None, reason: int, score: float | None, coherence: float | None) -> Label:
    nan = float("nan")
    value = None if made is None else bool(made)
    return Label(value, Reason(reason), nan if score is None else score, nan if coherence is None else coherence)


def _take_lock(path: Path) -> IO[str]:
    lock = open(path / "writer.lock", "a+", encoding="utf-8")  # noqa: SIM115 held until close()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        text = f"{path}: {holder} is writing to this audit; wait for it or choose another --out"
        raise errors.AuditLocked(text) from e
    lock.truncate(0)
    lock.write(f"host {socket.gethostname()}, pid {os.getpid()}")
    lock.flush()
    return lock


def _too_new(file: Path, version: int) -> errors.NotAnAudit:
    known = f"schema {version}, this one knows {SCHEMA_VERSION}"
    return errors.NotAnAudit(f"{file}: written by a newer version ({known}); upgrade truing")


def _connect(file: Path, read_only: bool = False) -> sqlite3.Connection:
    with _disk_errors(file):
        if read_only:
            db = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, check_same_thread=False)
        else:
            db = sqlite3.connect(file, timeout=30, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            db.close()
            raise _too_new(file, version)
        if read_only and 0 < version < SCHEMA_VERSION:
            # Brought up to date in memory: the folder of an older audit may be read-only, and is left as it is.
            old, db = db, sqlite3.connect(":memory:", check_same_thread=False)
            old.backup(db)
            old.close()
        if version or not read_only:
            for number in range(version, SCHEMA_VERSION):
                db.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")
    return db


def _merge_identity(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        before = old.get(key, value)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            changed = [f"{k} changed" for k in value if before.get(k, value[k]) != value[k]]
            value = {**before, **value}
        else:
            changed = [f"{before!s:.40} before, {value!s:.40} now"] if before != value else []
        if changed:
            raise errors.AuditChanged(f"{path}: made with another {key} ({changed[0]}); choose another --out")
        merged[key] = value
    return merged
