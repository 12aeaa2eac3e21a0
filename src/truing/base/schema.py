"""The tables of `evidence.db`, as migrations that only go forward; `user_version` counts those applied."""

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
)
SCHEMA_VERSION = len(MIGRATIONS)
STAND_INS = MIGRATIONS[1].replace("DROP TABLE judgements;", "").replace("CREATE TABLE", "CREATE TEMP TABLE")
"""empty tables that a reader of a folder of schema 1 puts in the place of those it lacks; nothing was judged there"""
