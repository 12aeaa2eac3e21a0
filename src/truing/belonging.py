"""Whether evidence.db is the database of its audit.json: one that was mixed up is refused, not read.

What a finished audit says was measured must have rows, and its rows be of what it says: weights, prompts, sampling,
judge and rule are known by their hashes. An audit may hold more than its last call asked for, and one that is not
finished more than audit.json tells; so hashes are compared of finished ones alone, with all that ever was asked.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from truing.types.records import SamplingParams
from truing.types.traits import Rule

_HELD = ("checkpoints WHERE weights = ?", "answers WHERE weights = ?", "measurements WHERE checkpoint = ?")


def stranger(db: sqlite3.Connection, about: Mapping[str, Any]) -> str:
    """How a database contradicts a finished audit's audit.json, in words; empty where it does not."""
    if about.get("status") != "done" or not (about.get("reading") or about.get("sets")):  # older ones tell too little
        return ""
    return next(_contradictions(db, about), "")


def _contradictions(db: sqlite3.Connection, about: Mapping[str, Any]) -> Iterator[str]:
    verdict, sets = about.get("verdict") or {}, (about.get("identity") or {}).get("sets") or {}
    named = {c["weights"]: c["label"] for c in verdict.get("checkpoints", ())}
    named |= {s["content"]: label for label, s in sets.items() if isinstance(s, Mapping) and "content" in s}
    for weights, label in named.items():
        if not any(_any(db, f"SELECT 1 FROM {table}", weights) for table in _HELD):
            yield f"it holds nothing of {label:.80}, {weights:.12}"
    if named:
        prepared = about.get("prepared")
        known = {*named, *(prepared if isinstance(prepared, Mapping) else ())}
        for weights in _distinct(db, "answers", "weights"):
            if weights not in known and not any(_any(db, f"SELECT 1 FROM {t}", weights) for t in _HELD[::2]):
                yield f"it holds answers of {weights:.12}, which is no checkpoint of the audit"
    yield from _of_answers(db, about, list(named))
    yield from _of_judge(db, about, verdict.get("judge_key"))


def _of_answers(db: sqlite3.Connection, about: Mapping[str, Any], weights: Sequence[str]) -> Iterator[str]:
    """Answers at another sampling only, or to prompts that were never asked."""
    sampling, labels = about.get("sampling"), about.get("labels") or {}
    params = labels.get("params") or (SamplingParams(**sampling).key if sampling else None)
    answered = [w for w in weights if _any(db, "SELECT 1 FROM answers WHERE weights = ?", w)]
    if not params or not answered:
        return
    base = answered[0]
    prompts = list(_distinct(db, "answers", "prompt", "weights = ? AND params = ? AND variant = ''", base, params))
    if not prompts:
        yield f"its answers are at another sampling than {params:.12}"
        return
    items = {i["key"]: i["id"] for i in (about.get("prompts") or {}).get("items", ())}
    asked = (about.get("identity") or {}).get("prompts") or {}
    more = len(asked.keys() - items.values())  # those of earlier calls, known by their ids alone
    strange = [p for p in prompts if p not in items]
    if asked and len(strange) > more:
        yield f"it holds answers to {len(strange) - more} prompts that the audit never asked, e.g. {strange[0]:.12}"
    once = set((about.get("reading") or {}).get("answered") or ())
    there = {items.get(p) for p in prompts}
    if missing := sorted(once & set(items.values()) - there):
        yield f"it holds no answer to {missing[0]:.80}, which was asked"


def _of_judge(db: sqlite3.Connection, about: Mapping[str, Any], judge: str | None) -> Iterator[str]:
    """No such judge, or nothing labelled by the rule."""
    if judge is None:
        return
    if not _any(db, "SELECT 1 FROM judges WHERE key = ?", judge):
        yield f"the judge of the verdict, {judge:.12}, is not in it"
    rule = about.get("rule") or (about.get("labels") or {}).get("rule")
    own = "SELECT 1 FROM labels WHERE judge = ? AND rule {} ?"
    key = Rule(**rule).key if rule else ""
    if key and _any(db, own.format("!="), judge, key) and not _any(db, own.format("="), judge, key):
        yield f"no label of the verdict's judge, {judge:.12}, is by the audit's rule"
    for other in _distinct(db, "labels", "judge"):
        if not _any(db, "SELECT 1 FROM judges WHERE key = ?", other):
            yield f"it holds labels of {other:.12}, which is no judge of the audit"


def _any(db: sqlite3.Connection, sql: str, *args: str) -> bool:
    return db.execute(f"{sql} LIMIT 1", args).fetchone() is not None


def _distinct(db: sqlite3.Connection, table: str, column: str, where: str = "1", *args: str) -> Iterator[str]:
    """The values of a column by which the primary key goes on, each found in the index without reading its rows."""
    sql, last = f"SELECT MIN({column}) FROM {table} WHERE {where}", ""
    while (found := db.execute(f"{sql} AND {column} > ?", (*args, last)).fetchone()[0]) is not None:
        yield str(found)
        last = found
