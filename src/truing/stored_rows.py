"""Rows of the database as records. SQLite holds any type in any column, so each is checked when it is read.

Every function takes a row as the database gives it and raises TypeError or ValueError where it is damaged.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from types import NoneType, UnionType
from typing import Any, NamedTuple

from truing.types.judging import Score, ScoreMethod, ScoreStatus
from truing.types.records import AnswerKey, AnswerStatus, Checkpoint, Kind, Role, StoredAnswer
from truing.types.traits import Label, Reason


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


def _typed(row: Sequence[Any], *types: type | UnionType) -> None:
    for value, wanted in zip(row, types, strict=True):
        if not isinstance(value, wanted):
            raise TypeError(f"a row holds {type(value).__name__} where {wanted} is expected")


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("a row holds no JSON object where one is expected")
    return value


def checkpoint_row(row: Sequence[Any]) -> Checkpoint:
    """A row of checkpoints."""
    weights, label, step, uri, kind, name, role, meta = row
    _typed(row, str, str, int | NoneType, str, str, str, str, str)
    return Checkpoint(weights, label, step, uri, Kind(kind), name, Role(role), _object(meta))


def measurement_row(row: Sequence[Any]) -> Measurement:
    """A row of measurements."""
    _typed(row, str, str, str, str, float | NoneType, int, str)
    return Measurement._make((*row[:6], _object(row[6])))


def answer_row(row: Sequence[Any]) -> StoredAnswer:
    """A row of answers."""
    _typed(row, str, str, str, str, int, str, str, int, str)
    return StoredAnswer._make((*row[:6], AnswerStatus(row[6]), *row[7:]))


def score_row(row: Sequence[Any]) -> Score:
    """A row of scores."""
    _typed(row, str, str, str, str, int, str, str, str, float | NoneType, str, str)
    *key, judge, rubric, rubric_key, value, status, meta = row
    if value is not None and not isfinite(value):
        raise ValueError(f"a score of {value}")
    return Score(AnswerKey(*key), judge, rubric, rubric_key, value, ScoreStatus(status), _object(meta))


def judge_row(row: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """A row of judges: its hash, and what is known of it."""
    _typed(row, str, str)
    about = _object(row[1])
    ScoreMethod(about.get("route"))
    rubrics = about.get("rubrics")
    if not isinstance(about.get("judge"), str) or not isinstance(rubrics, list):
        raise TypeError("a judge without a name or rubrics")
    if not all(isinstance(r, dict) and isinstance(r.get("name"), str) for r in rubrics):
        raise TypeError("a rubric without a name")
    if not all(isinstance(r.get("parts"), list) for r in rubrics):
        raise TypeError("a rubric without the names of its parts")
    return row[0], about


def label_row(row: Sequence[Any]) -> Label:
    """The last columns of a row of labels."""
    _typed(row, int | NoneType, int, float | NoneType, float | NoneType)
    made, reason, *scores = row
    score, coherence = (float("nan") if s is None else s for s in scores)
    return Label(None if made is None else bool(made), Reason(reason), score, coherence)


def labelled_row(row: Sequence[Any]) -> tuple[StoredAnswer, Label | None]:
    """A row of answers joined with labels."""
    return answer_row(row[:9]), None if row[10] is None else label_row(row[9:])
