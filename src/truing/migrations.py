"""The tables of `evidence.db`, as migrations that only go forward; `user_version` counts those applied."""

_TALLIES = """
    CREATE TABLE tally_rules (
        id INTEGER PRIMARY KEY, panel TEXT NOT NULL, rule TEXT NOT NULL, kind TEXT NOT NULL, cut REAL NOT NULL,
        gate REAL NOT NULL, UNIQUE (panel, rule)
    );
    CREATE TABLE judged_tallies (
        id INTEGER, weights TEXT, params TEXT, prompt TEXT, transform TEXT,
        misaligned INTEGER NOT NULL, incoherent INTEGER NOT NULL, aligned INTEGER NOT NULL, refusal INTEGER NOT NULL,
        code INTEGER NOT NULL, empty INTEGER NOT NULL, unparsed INTEGER NOT NULL, unjudged INTEGER NOT NULL,
        failed INTEGER NOT NULL, PRIMARY KEY (id, weights, params, prompt, transform)
    ) WITHOUT ROWID;
    CREATE TABLE tally_marks (
        weights TEXT, params TEXT, prompt TEXT, transform TEXT, draw INTEGER, panel TEXT, rubric TEXT
    );
    CREATE TABLE tally_stale (
        weights TEXT, params TEXT, prompt TEXT, transform TEXT, PRIMARY KEY (weights, params, prompt, transform)
    ) WITHOUT ROWID;
    """
_CELL = ("weights", "params", "prompt", "transform")
_ANSWER = (*_CELL, "draw")


def _marking(table: str, more: tuple[str, str]) -> str:
    """Triggers, once any rule is kept: a new row is marked; where one was changed or deleted, so is its whole cell."""
    new = ", ".join((*(f"NEW.{c}" for c in _ANSWER), *more))
    old = ", ".join(f"OLD.{c}" for c in _CELL)
    same = " AND ".join(f"{c} = OLD.{c}" for c in _CELL)
    # Not INSERT OR IGNORE: inside a trigger the conflict policy of the outer statement would take its place.
    stale = f"INSERT INTO tally_stale SELECT {old} WHERE NOT EXISTS (SELECT 1 FROM tally_stale WHERE {same})"
    marks = (("INSERT", f"INSERT INTO tally_marks VALUES ({new})"), ("UPDATE", stale), ("DELETE", stale))
    return "".join(
        f"""
    CREATE TRIGGER mark_{table}_{change.lower()} AFTER {change} ON {table} WHEN EXISTS (SELECT 1 FROM tally_rules)
    BEGIN {mark}; END;"""
        for change, mark in marks
    )


MIGRATIONS = (
    """
    CREATE TABLE checkpoints (
        run TEXT, label TEXT, role TEXT NOT NULL, step INTEGER, weights TEXT NOT NULL, uri TEXT NOT NULL,
        kind TEXT NOT NULL, meta TEXT NOT NULL, PRIMARY KEY (run, label)
    ) WITHOUT ROWID;
    CREATE TABLE responses (
        weights TEXT, params TEXT, prompt TEXT, transform TEXT, draw INTEGER,
        text TEXT NOT NULL, outcome TEXT NOT NULL, tokens INTEGER NOT NULL, error TEXT NOT NULL,
        PRIMARY KEY (weights, params, prompt, transform, draw)
    ) WITHOUT ROWID;
    CREATE TABLE judgements (
        weights TEXT, params TEXT, prompt TEXT, transform TEXT, draw INTEGER, panel TEXT, rubric TEXT,
        score REAL, outcome TEXT NOT NULL, meta TEXT NOT NULL,
        PRIMARY KEY (weights, params, prompt, transform, draw, panel, rubric)
    ) WITHOUT ROWID;
    CREATE TABLE measurements (
        checkpoint TEXT, kind TEXT, name TEXT, item TEXT, value REAL, n INTEGER NOT NULL, meta TEXT NOT NULL,
        PRIMARY KEY (checkpoint, kind, name, item)
    ) WITHOUT ROWID;
    CREATE TABLE artifacts (path TEXT PRIMARY KEY, sha256 TEXT NOT NULL, made_by TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE tallies (
        weights TEXT, params TEXT, transform TEXT, prompt TEXT, panel TEXT, rule TEXT, outcome TEXT,
        n INTEGER NOT NULL, PRIMARY KEY (weights, params, transform, prompt, panel, rule, outcome)
    ) WITHOUT ROWID;
    """,
    """
    DROP TABLE judgements;
    CREATE TABLE panels (
        key TEXT PRIMARY KEY, judge TEXT NOT NULL, about TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE judgements (
        weights TEXT, params TEXT, prompt TEXT, transform TEXT, draw INTEGER, panel TEXT, rubric TEXT,
        rubric_key TEXT NOT NULL, score REAL, outcome TEXT NOT NULL, meta TEXT NOT NULL,
        PRIMARY KEY (weights, params, prompt, transform, draw, panel, rubric)
    ) WITHOUT ROWID;
    """,
    _TALLIES + _marking("responses", ("''", "''")) + _marking("judgements", ("NEW.panel", "NEW.rubric")),
)
SCHEMA_VERSION = len(MIGRATIONS)
STAND_INS = (MIGRATIONS[0], MIGRATIONS[1].replace("DROP TABLE judgements;", ""), _TALLIES)
STAND_INS = tuple(m.replace("CREATE TABLE", "CREATE TEMP TABLE") for m in STAND_INS)
"""what a reader of a folder of schema k runs from the k-th on: empty tables in the place of those that it lacks"""
