"""One audit is one folder: `audit.json` (what was asked, versions, hashes, status, verdict) and `evidence.db` (SQLite).

    AUDIT/
      audit.json     written whole, then renamed into place
      evidence.db    rows; one writer, many readers; committed every 100 rows or half a second
      writer.lock    host and pid of the writer; released by the kernel when it dies

Keys are primary keys, so the same command finishes the work and nothing is paid for twice.
"""

import contextlib
import fcntl
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from truing import errors, stored_rows
from truing.belonging import stranger
from truing.database import FILE, connect, reading, too_new, trouble
from truing.files import is_file, is_folder, open_lock, read_object, write_json
from truing.migrations import SCHEMA_VERSION, upgraded
from truing.stored_rows import Measurement
from truing.types.about import problem
from truing.types.judging import Judge, Score
from truing.types.records import (
    Answer,
    AnswerKey,
    AnswerStatus,
    Checkpoint,
    Request,
    SamplingParams,
    StoredAnswer,
    to_plain,
)
from truing.types.traits import Label, Reason, Rule

ABOUT, LOCK = "audit.json", "writer.lock"
LONGEST_ABOUT = 256 << 20
"""bytes of the largest audit.json, which lists the prompts"""
T = TypeVar("T")
COMMIT_ROWS = 100
COMMIT_SECONDS = 0.5
_MARKS = ("frozen", "judge_moved", "identity", "prepared")
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
        if os.path.exists(path) and not is_folder(path):
            raise errors.NotAnAudit(f"{path}: is a file, an audit is a folder; choose another --out")
        try:
            _refuse_strangers(path)
            with trouble(path):
                path.mkdir(parents=True, exist_ok=True)
                lock = _take_lock(path)
        except (OSError, ValueError) as e:  # a path with a NUL in it is a ValueError
            raise errors.NotAnAudit(
                f"{path}: cannot be written ({getattr(e, 'strerror', e)}); choose another --out"
            ) from e
        try:
            store = cls(path, connect(path), lock)
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
            NotAnAudit: no audit there, one that was written by a newer version, or the database of another audit.
        """
        if not is_file(path / ABOUT) or not is_file(path / FILE):
            raise errors.NotAnAudit(f"{path}: no audit there ({ABOUT} and {FILE} are expected)")
        store = cls(path, connect(path, read_only=True), None)
        try:
            store._refuse_strange()  # pyright: ignore[reportPrivateUsage] its own
        except BaseException:
            store.close()
            raise
        return store

    def _refuse_strange(self) -> None:
        """Raise NotAnAudit where the database is not that of audit.json."""
        with reading(self.path / FILE):
            what = stranger(self._db, self.about())
            what = what and stranger(self._db, self.about())  # a writer may have begun in between
        if what:
            remedy = "put the audit's own database back, or repeat the audit with --out NEW"
            raise errors.NotAnAudit(f"{self.path}: {FILE} is not the database of its {ABOUT} ({what}); {remedy}")

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
        """The contents of audit.json, in which everything that is read has its type, and what is held back.

        {} for a new folder.
        """
        return {**self._on_disk(), **(self._held or {})}

    def _on_disk(self) -> dict[str, Any]:
        file, remedy = self.path / ABOUT, "restore it or choose another --out"
        if not os.path.lexists(file):
            return {}
        value = read_object(file, limit=LONGEST_ABOUT, error=errors.NotAnAudit, remedy=remedy)
        version = value.get("schema_version")
        if type(version) is not int or version < 1:
            raise errors.NotAnAudit(f"{file}: has no schema_version; it is not an audit of this tool")
        if version > SCHEMA_VERSION:
            raise too_new(file, version)
        try:
            found = upgraded(value)
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise errors.NotAnAudit(f"{file}: cannot be read ({type(e).__name__}: {e}); {remedy}") from e
        if what := problem(found):
            raise errors.NotAnAudit(f"{file}: cannot be read ({what}); {remedy}")
        return found

    def describe(self, **fields: Any) -> None:
        """Set top-level fields of audit.json, atomically; in memory while it is held back."""
        with self._mutex:
            if self._held is not None:
                self._held |= fields
            else:
                write_json(self.path / ABOUT, {"schema_version": SCHEMA_VERSION, **self._on_disk(), **fields})

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
        with self._mutex, trouble(self.path):
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
        with self._mutex, trouble(self.path):
            self._db.commit()
            self._pending = 0
            self._last_commit = time.monotonic()

    def _insert(self, sql: str, rows: Sequence[tuple[Any, ...]], *, begins: bool = False) -> None:
        """Add rows, and commit: now where many wait or long, else in a moment. What was paid for `begins` the work."""
        if begins and rows:
            self._begin()
        with self._mutex, trouble(self.path):
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
        with self._mutex, contextlib.suppress(errors.BadInput, sqlite3.ProgrammingError):
            self._timer = None
            self.flush()

    # -- rows out -----------------------------------------------------------------------------------------------------

    def _rows(self, made: Callable[[Any], T], sql: str, args: Sequence[Any] = ()) -> Iterator[T]:
        """What `made` makes of each row of a query, streamed.

        Raises:
            NotAnAudit: the database is damaged, or a row holds what nothing here writes.
        """
        with reading(self.path / FILE):
            yield from map(made, self._db.execute(sql, args))

    def _found(self, made: Callable[[Any], T], sql: str, keys: Iterable[Sequence[Any]]) -> Iterator[T]:
        """The rows of a query put for each of many keys, as `_rows`; nobody is in the middle of one meanwhile."""
        with reading(self.path / FILE):
            for key in keys:
                yield from map(made, self._db.execute(sql, key).fetchall())

    def _where(self, made: Callable[[Any], T], sql: str, **given: str | None) -> Iterator[T]:
        """A query's rows with these values in these columns; None for any."""
        equal = {column: value for column, value in given.items() if value is not None}
        where = " AND ".join([f"{sql} WHERE 1", *(f"{c} = ?" for c in equal)])
        return self._rows(made, where, tuple(equal.values()))

    def checkpoints(self, run: str | None = None) -> list[Checkpoint]:
        """All checkpoints (of one run), by run, then by step, those without a step last."""
        sql = "SELECT weights, label, step, uri, kind, run, role, meta FROM checkpoints"
        found = self._rows(stored_rows.checkpoint_row, sql + " ORDER BY role DESC, run, step IS NULL, step, label")
        return [c for c in found if run is None or c.run == run]

    def measurements(self, kind: str, checkpoint: str | None = None) -> Iterator[Measurement]:
        """Numbers of one kind, streamed."""
        return self._where(stored_rows.measurement_row, "SELECT * FROM measurements", kind=kind, checkpoint=checkpoint)

    def measured(self, kind: str) -> set[tuple[str, str, str]]:
        """Keys (checkpoint, name, item) of the numbers of one kind that are already there."""
        return set(self._where(tuple, "SELECT checkpoint, name, item FROM measurements", kind=kind))

    def answers(self, params: str | None = None, prompt: str | None = None) -> Iterator[StoredAnswer]:
        """Stored answers, optionally of one parameter hash or one prompt hash, in key order."""
        return self._where(stored_rows.answer_row, "SELECT * FROM answers", params=params, prompt=prompt)

    def missing(self, requests: Iterable[Request], params: SamplingParams) -> list[Request]:
        """The requests not answered yet, in the order given. Failed ones are asked again."""
        keys = {r.key(params): r for r in requests}
        there = {r.key for r in self.answers_of(keys) if r.status is not AnswerStatus.FAILED}
        return [a for key, a in keys.items() if key not in there]

    def answers_of(self, keys: Iterable[AnswerKey]) -> Iterator[StoredAnswer]:
        """The stored answers of these keys, in their order; those not there are passed over."""
        return self._found(stored_rows.answer_row, f"SELECT * FROM answers WHERE {_KEY}", keys)

    def scores_of(self, keys: Iterable[AnswerKey], judge: str) -> Iterator[Score]:
        """What a judge has said of these answers."""
        sql = f"SELECT * FROM scores WHERE {_KEY} AND judge = ?"
        return self._found(stored_rows.score_row, sql, ((*key, judge) for key in keys))

    def judges(self) -> dict[str, dict[str, Any]]:
        """Judge key -> what it is: judge, rubrics with their texts, route."""
        return dict(self._rows(stored_rows.judge_row, "SELECT key, about FROM judges"))

    def scores(self, judge: str | None = None) -> Iterator[Score]:
        """Stored judgements (of one judge), streamed in key order."""
        return self._where(stored_rows.score_row, "SELECT * FROM scores", judge=judge)

    def labelled(
        self, judge: str, rule: Rule, params: str | None = None
    ) -> Iterator[tuple[StoredAnswer, Label | None]]:
        """Stored answers (of one sampling) with their labels under a judge (its hash) and a rule, in key order."""
        sql, args = (_LABELLED, ()) if params is None else (f"{_LABELLED} WHERE a.params = ?", (params,))
        return self._rows(stored_rows.labelled_row, sql + _IN_KEY_ORDER, (judge, rule.key, *args))

    def labels_of(self, keys: Iterable[AnswerKey], judge: str, rule: Rule) -> dict[AnswerKey, Label]:
        """The stored labels of these answers; those without one are left out."""
        sql = f"SELECT label, reason, score, coherence FROM labels WHERE judge = ? AND rule = ? AND {_KEY}"
        with reading(self.path / FILE):
            found = ((key, self._db.execute(sql, (judge, rule.key, *key)).fetchone()) for key in keys)
            return {key: stored_rows.label_row(row) for key, row in found if row is not None}

    def label_counts(
        self, judge: str, rule: Rule, params: str, variant: str = ""
    ) -> dict[tuple[str, str], dict[Reason, int]]:
        """(weights, prompt) -> how many answers have each reason; counted by the database, text never read."""
        out: dict[tuple[str, str], dict[Reason, int]] = {}
        counted = self._rows(lambda row: (*row[:2], Reason(row[2]), row[3]), _COUNT, (judge, rule.key, params, variant))
        for weights, prompt, reason, n in counted:
            out.setdefault((weights, prompt), {})[reason] = n
        return out


def _no_nan(value: float | None, what: str) -> float | None:
    if value is not None and value != value:
        raise ValueError(f"NaN for {what}: store None and a status instead")
    return value


def _refuse_strangers(path: Path) -> None:
    """Raise NotAnAudit for a folder that holds files and no audit."""
    if not is_folder(path) or os.path.lexists(path / ABOUT) or os.path.lexists(path / FILE):
        return
    for p in path.iterdir():
        if p.name != LOCK and not (p.name.startswith(".") and p.suffix == ".part"):
            raise errors.NotAnAudit(f"{path}: holds {p.name} and no {ABOUT}; choose another --out")


def _take_lock(path: Path) -> IO[str]:
    lock = open_lock(path / LOCK, error=errors.NotAnAudit)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.seek(0)
        holder = lock.read(200).strip() or "another process"
        lock.close()
        text = f"{path}: {holder} is writing to this audit; wait for it or choose another --out"
        raise errors.AuditLocked(text) from e
    lock.truncate(0)
    lock.write(f"host {socket.gethostname()}, pid {os.getpid()}")
    lock.flush()
    return lock


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
