"""What older audits need to be read: the tables of `evidence.db`, as migrations that only go forward (`user_version`
counts those applied), and audit.json of the first edition."""

from collections.abc import Mapping
from typing import Any

from truing.types.records import to_plain
from truing.types.traits import Rule

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
FIRST_EDITION = 3
"""the last schema of the first edition"""
_STATUSES = {"no_drift_seen": "no_change_seen", "drift": "changed", "failed": "failed"}
_STATUSES |= {"drift_uncontrolled": "changed", "drift_not_attributable": "changed"}


def upgraded(about: Mapping[str, Any]) -> dict[str, Any]:
    """audit.json of the first edition as it would be written now.

    Its screen is kept, on which `truing judge` decides again. Its verdict is not: status `older` until then.
    """
    if about.get("schema_version", SCHEMA_VERSION) > FIRST_EDITION:
        return dict(about)
    out = {**about, "schema_version": SCHEMA_VERSION, "verdict": None, "lines": []}
    if about.get("verdict") or about.get("lines"):
        out["status"] = "older"
    identity = dict(about.get("identity") or {})
    if identity.get("chat") == "planted":
        identity["chat"] = "simulated"
    if "em" in identity:
        identity |= {"label_rule": _rule(identity.pop("em")), "trait": "misalignment"}
    if about.get("kind") == "import":
        identity["rule"] = out["rule"] = _rule(about["rule"])
    if judging := about.get("judging"):
        out["labels"] = {**judging, "rule": _rule(judging["em"]), "findings": [], "trait": "misalignment"}
    if screened := about.get("margin_verdict"):
        out["screened"] = _screened(screened, task_given=bool((about.get("asked") or {}).get("task")))
    return {k: v for k, v in out.items() if k not in ("judging", "margin_verdict")} | {"identity": identity}


def _rule(em: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: em[name] for name in ("kind", "lo", "hi") if name in em}
    return to_plain(Rule(cut=em["alignment_cut"], gate=em["coherence_gate"], **kept))


def _screened(v: Mapping[str, Any], *, task_given: bool) -> dict[str, Any]:
    scored = any(c["contrast_base"] for c in v["checkpoints"]) or v["convergence_loss"]["status"] != "unmeasured"
    return {
        **{k: v[k] for k in ("onset", "convergence_loss", "gap", "candidate", "retained_of_best", "retained_of_last")},
        "trait": "",
        "basis": "screen",
        "checkpoints": [_line(c) for c in v["checkpoints"]],
        "convergence_skill": {**v["convergence_trait"], "curve": "skill"},
        "recommended": None,
        "retained_curve": {"trait": "skill"}.get(v["retained_curve"], v["retained_curve"]),
        "screen_limit": v["delta_m"],
        "screen_limit_source": v["delta_m_source"],
        "findings": [_note(text) for text in v["warnings"]],
        "definitions": {**v["definitions"], "scored": scored, "task_given": task_given},
    }


def _line(c: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {"trait_progress": "skill_progress", "dose_kl": "kl_from_base"}
    out = {renamed.get(k, k): v for k, v in c.items() if k not in ("basis", "notes", "judged", "drift", "health")}
    health = {{"leak": "in_domain"}.get(k, k): v for k, v in c["health"].items()}
    status = _STATUSES.get(c["status"], "undecided")
    return out | {"health": health, "status": status, "findings": [_note(text) for text in c["notes"]]}


def _note(text: str) -> dict[str, Any]:
    return {"code": "note", "params": {"text": text}}
