"""Every stored answer with what each judge said of it, as exports read an audit."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from truing.errors import NotAnAudit
from truing.runs.tables import with_scores
from truing.store import Store
from truing.traits.label import label
from truing.types.judging import Score
from truing.types.records import StoredAnswer
from truing.types.traits import Label, Rule

Judged = Mapping[str, tuple[Label, list[Score]]]
"""judge key -> an answer's label and scores under it, for each judge that counts the answer"""


class JudgeUse(NamedTuple):
    """A judge that has scored answers of an audit."""

    name: str
    """its name"""
    names: tuple[str, ...]
    """of its scores"""
    kinds: frozenset[tuple[str, str]]
    """(hash of the sampling parameters, prompt variant) of answers that it has scored"""


def judges_used(store: Store) -> dict[str, JudgeUse]:
    """Judge key -> how it was used; only judges with scores."""
    about, names, kinds = store.judges(), {}, {}
    for key, judge in about.items():
        names[key] = dict.fromkeys(name for r in judge["rubrics"] for name in r["parts"] or [r["name"]])
    for s in store.scores():
        if s.judge_key not in names:
            raise NotAnAudit(f"{store.path}: damaged (a score of a judge that is not there); restore it")
        kinds.setdefault(s.judge_key, set()).add((s.key.params, s.key.variant))
        names[s.judge_key].setdefault(s.rubric)
    return {key: JudgeUse(about[key]["judge"], tuple(names[key]), frozenset(found)) for key, found in kinds.items()}


def judged_answers(store: Store, judges: Mapping[str, JudgeUse], rule: Rule) -> Iterator[tuple[StoredAnswer, Judged]]:
    """All stored answers in key order, streamed, with their stored labels, or with labels made now.

    A judge counts the answers that it has scored, and those of the same kinds that have no text to score.
    """
    # All are read in key order from one state of the database, so one pass over each is enough.
    stored = (store.labelled(key, rule) for key in judges)
    for (answer, scores), *labels in zip(with_scores(store), *stored, strict=True):
        judged = {}
        for (key, use), (_, found) in zip(judges.items(), labels, strict=True):
            own = [s for s in scores if s.judge_key == key]
            if own or (not answer.has_text and (answer.params, answer.variant) in use.kinds):
                judged[key] = (label(answer, own, rule) if found is None else found, own)
        yield answer, judged
