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
    "SELECT 1;",  # counts kept by triggers, which the next one drops
    """
    DROP TRIGGER IF EXISTS mark_responses_insert;
    DROP TRIGGER IF EXISTS mark_responses_update;
    DROP TRIGGER IF EXISTS mark_responses_delete;
    DROP TRIGGER IF EXISTS mark_judgements_insert;
    DROP TRIGGER IF EXISTS mark_judgements_update;
    DROP TRIGGER IF EXISTS mark_judgements_delete;
    DROP TABLE IF EXISTS tally_rules;
    DROP TABLE IF EXISTS judged_tallies;
    DROP TABLE IF EXISTS tally_marks;
    DROP TABLE IF EXISTS tally_stale;
    DROP TABLE tallies;
    DROP TABLE artifacts;
    ALTER TABLE responses RENAME TO answers;
    ALTER TABLE answers RENAME COLUMN transform TO variant;
    ALTER TABLE answers RENAME COLUMN draw TO sample;
    ALTER TABLE answers RENAME COLUMN outcome TO status;
    ALTER TABLE panels RENAME TO judges;
    ALTER TABLE judgements RENAME TO scores;
    ALTER TABLE scores RENAME COLUMN transform TO variant;
    ALTER TABLE scores RENAME COLUMN draw TO sample;
    ALTER TABLE scores RENAME COLUMN panel TO judge;
    ALTER TABLE scores RENAME COLUMN score TO value;
    ALTER TABLE scores RENAME COLUMN outcome TO status;
    CREATE TABLE labels (
        judge TEXT, rule TEXT, weights TEXT, params TEXT, prompt TEXT, variant TEXT, sample INTEGER,
        label INTEGER, reason INTEGER NOT NULL, score REAL, coherence REAL,
        PRIMARY KEY (judge, rule, weights, params, prompt, variant, sample)
    ) WITHOUT ROWID;
    UPDATE measurements SET kind = 'kl_from_base' WHERE kind = 'dose';
    UPDATE measurements SET name = replace(name, 'odd', 'neutral') WHERE kind = 'margin';
    UPDATE checkpoints SET kind = 'simulated' WHERE kind = 'planted';
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)
