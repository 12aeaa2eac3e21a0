"""Rows of the store -> answer tables that statistics reads."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import merge
from itertools import groupby
from typing import Any

import numpy as np

from truing import errors
from truing.runs.scope import Scope
from truing.runs.shares import random_coherence
from truing.stats.table import AnswerTable, Calibration, Labelled
from truing.store import Measurement, Store
from truing.traits.features import mentions_domain
from truing.traits.label import label
from truing.types.judging import SCORER, Score
from truing.types.records import AnswerKey, Checkpoint, StoredAnswer
from truing.types.traits import Label, Reason, Rule
from truing.types.verdicts import Onset

_SEVERAL = "several judges: choose with --judge one of"
CALIBRATION = "calibration"
"""kind of the rows that say how a judge did on reference answers"""
_POSITIVES = "misaligned"
"""kind of reference answers that a judge should call positive"""
_ROW = np.dtype("i8,i8,i8,f8,f8,?,?")
"""columns of an `AnswerTable`, in their order"""


def read_tables(
    store: Store,
    judge: str,
    scope: Scope,
    variant: str = "",
    *,
    searched: bool = False,
    places: Mapping[str, int] | None = None,
) -> dict[str, AnswerTable]:
    """The labelled answers of a scope under one judge (its hash) and variant, by weight hash: those of the fixed
    sample, or those that a search read. `places` as in `tables`."""

    def counts(r: StoredAnswer) -> bool:
        return (r.sample < scope.fixed_from) == searched

    random = asked_at_random(store, judge, [r.key for r in store.answers(scope.params) if counts(r)])
    return tables(store, judge, scope, variant=variant, random=random, counts=counts, places=places)


def asked_at_random(store: Store, judge: str, keys: Collection[AnswerKey]) -> frozenset[AnswerKey] | None:
    """The answers whose coherence a judge (its hash) was asked for at random; None where for all of them."""
    about = store.judges().get(judge, {})
    return random_coherence(keys, int(about.get("seed", 0))) if about.get("lazy", True) else None


def tables(
    store: Store,
    judge: str,
    scope: Scope,
    *,
    variant: str = "",
    random: Collection[AnswerKey] | None = None,
    counts: Callable[[StoredAnswer], bool] = lambda r: True,
    places: Mapping[str, int] | None = None,
) -> dict[str, AnswerTable]:
    """Weight hash -> answer table.

    Args:
        store: the audit.
        judge: hash of the judge whose scores count.
        scope: prompts, rule, sampling and domain words.
        variant: name of the prompt variant.
        random: answers whose coherence was asked at random; None for all of them.
        counts: which answers count.
        places: prompt hash -> index; prompts with one index are one cluster. None for the scope's prompts in order.
    """
    index = places if places is not None else {p.key: k for k, p in enumerate(scope.prompts)}
    texts = {p.key: " ".join(m.content for m in p.messages) for p in scope.prompts}
    words = frozenset(scope.words)

    def row(r: StoredAnswer, found: Label) -> tuple[Any, ...]:
        value = -1 if found.value is None else int(found.value)
        in_domain = bool(words) and mentions_domain(r.text, texts[r.prompt], words)
        is_random = random is None or r.key in random
        return index[r.prompt], value, int(found.reason), found.score, found.coherence, in_domain, is_random

    names = {c.weights: (c.label, c.step) for c in reversed(store.checkpoints())}
    out: dict[str, AnswerTable] = {}
    stored = labelled_answers(store, judge, scope.rule, scope.params)  # in key order: one checkpoint after the other
    for weights, group in groupby(stored, key=lambda pair: pair[0].weights):
        wanted = (pair for pair in group if pair[0].variant == variant and pair[0].prompt in index)
        rows = np.fromiter((row(*pair) for pair in wanted if counts(pair[0])), dtype=_ROW)
        if len(rows):
            columns = (np.ascontiguousarray(rows[name]) for name in _ROW.names or ())
            out[weights] = AnswerTable(*names.get(weights, (weights[:12], None)), *columns)
    return out


def labelled_answers(
    store: Store, judge: str, rule: Rule, params: str | None = None
) -> Iterator[tuple[StoredAnswer, Label]]:
    """Every stored answer with its label: the stored one, or made now where there is none under this rule yet."""
    for answer, found in store.labelled(judge, rule, params):
        yield answer, found if found is not None else label(answer, list(store.scores_of([answer.key], judge)), rule)


def table_of(found: Mapping[str, AnswerTable], c: Checkpoint) -> AnswerTable:
    """A checkpoint's answers under its own name and step; none are a table of no answers."""
    table = found.get(c.weights)
    if table is None:
        return AnswerTable.empty(c.label, c.step)
    return replace(table, checkpoint=c.label, step=c.step)


def labelled_of(
    store: Store, judge: str, scope: Scope, calibration: Calibration | None, search: Onset | None = None
) -> Labelled:
    """The store's labelled answers under one judge (its hash), as statistics reads them."""
    found = read_tables(store, judge, scope)
    read = read_tables(store, judge, scope, searched=True) if search is not None else {}
    about = store.judges()[judge]
    return Labelled(
        prompts=tuple(p.id for p in scope.prompts),
        categories=tuple(p.category for p in scope.prompts),
        far=np.array(scope.far, dtype=bool),
        subject=tuple(table_of(found, c) for c in scope.subject),
        control={c.step: table_of(found, c) for c in scope.control if c.step is not None},
        judge=str(about["judge"]),
        judge_key=judge,
        calibration=calibration,
        exact=[r.get("source") for r in about.get("rubrics", ())] == [SCORER],
        under_moved=scope.under_moved,
        rule=scope.rule,
        trait=scope.trait,
        findings=scope.findings,
        search=search,
        # Without answers that the search never put to the judge, e.g. those sampled for health.
        searched=tuple(_scored(table_of(read, c)) for c in scope.subject[1:]) if search is not None else (),
    )


def with_scores(
    store: Store, judge: str | None = None, params: str | None = None
) -> Iterator[tuple[StoredAnswer, list[Score]]]:
    """Every stored answer with what was said of it (by one judge, or by all), streamed in key order."""
    # Both come in key order, so one pass over each is enough; an answer sorts before its scores.
    answers: Iterator[tuple[AnswerKey, int, Any]] = ((r.key, 0, r) for r in store.answers(params))
    said: Iterator[tuple[AnswerKey, int, Any]] = ((s.key, 1, s) for s in store.scores(judge))
    for _, group in groupby(merge(answers, said, key=lambda entry: entry[:2]), key=lambda entry: entry[0]):
        entries: list[Any] = list(group)
        if entries[0][1] == 0:
            yield entries[0][2], [e[2] for e in entries[1:]]


def judges_here(store: Store) -> dict[str, dict[str, Any]]:
    """The judges that have scored at least one answer: key -> what each is."""
    return {key: about for key, about in store.judges().items() if next(store.scores(key), None) is not None}


def chosen_judge(store: Store, judge: str | None) -> str:
    """Hash of the judge whose name contains `judge`; the only one if None.

    Raises:
        BadInput: none, or several.
    """
    names = {key: str(about["judge"]) for key, about in judges_here(store).items()}
    exact = [key for key, name in names.items() if judge in (key, name, name.rstrip(":"))]
    found = exact or [key for key, name in names.items() if judge is None or judge in name]
    if len(found) == 1:
        return found[0]
    if not names:
        raise errors.BadInput(f"{store.path}: nothing is judged; `truing judge AUDIT --judge URI` does it")
    said = f"--judge {judge} is none of" if not found else f"--judge {judge} may be several of" if judge else _SEVERAL
    raise errors.BadInput(f"{store.path}: {said} {', '.join(sorted(set(names.values())))}")


def _scored(table: AnswerTable) -> AnswerTable:
    return table.only(table.reason != Reason.UNSCORED)


def keep_calibration(store: Store, judge: str, counts: Calibration) -> None:
    """Keep how a judge (its hash) did on reference answers."""
    every = {_POSITIVES: counts.positives, **counts.negatives}
    keep_rows(store, (Measurement(judge, CALIBRATION, kind, "", called, n) for kind, (called, n) in every.items()))


def stored_calibration(store: Store, judge: str) -> Calibration | None:
    """The same again; None where nothing is kept."""
    counts = {m.name: (int(m.value or 0), m.n) for m in store.measurements(CALIBRATION, judge)}
    positives = counts.pop(_POSITIVES, (0, 0))
    return Calibration(positives, counts) if counts else None


def keep_rows(store: Store, rows: Iterable[Measurement]) -> None:
    """Add rows, but for those that are there as they are."""
    for m in rows:
        there = {(k.name, k.item): k for k in store.measurements(m.kind, m.checkpoint)}
        if there.get((m.name, m.item)) != m._replace(meta=dict(m.meta)):
            store.add_measurements([m])
