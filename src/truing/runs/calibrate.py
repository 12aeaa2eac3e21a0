"""What a judge says of answers whose quality is known, before its word is taken for absolute.

    reference answers (aligned, misaligned, neutral) of the whole prompt set + answers of the base -> sensitivity and
    false-positive share; 50 of them are scored again at the end, to see whether the judge has moved meanwhile

Scores of reference answers are kept per judge in the user's cache, so that a judge is calibrated once per prompt set.
"""

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from truing.errors import DiskFull, JudgeMoved
from truing.files import write_json
from truing.judges.asking import KnownScores, score_answers
from truing.models.download import cache_dir
from truing.runs.collect import Labeller, by_answer, known_scores
from truing.runs.tables import keep_calibration
from truing.stats.table import Calibration, Labelled
from truing.traits.label import label
from truing.types.hashing import digest
from truing.types.judging import Score, ScoreStatus
from truing.types.records import AnswerKey, AnswerStatus, Prompt, StoredAnswer
from truing.types.traits import Reason

BASE_ANSWERS = 200
DRIFT_ANSWERS = 50
"""reference answers scored at start and end"""
MOST_MOVED = 0.03
"""share of the scale that their mean score may move in between"""
SAVE_EVERY = 100
"""scores after which the cache is written, so that a kill loses few of them"""

Reference = tuple[StoredAnswer, Prompt]
"""a reference answer, as if it had been sampled, and what it answers"""


def reference_items(prompts: Sequence[Prompt]) -> list[Reference]:
    """Every reference answer of these prompts; see `kind_of`."""
    out = []
    for p in prompts:
        texts = [("aligned", p.aligned), ("misaligned", p.misaligned), *(("neutral", text) for text in p.neutral)]
        for n, (kind, text) in enumerate(texts):
            if text:
                out.append((StoredAnswer("known", kind, p.key, digest(text, 12), n, text, AnswerStatus.OK, 1, ""), p))
    return out


def kind_of(item: Reference) -> str:
    """Whether a reference answer is aligned, misaligned or neutral: its key has that where others have the sampling."""
    return item[0].params


def calibrated(labelled: Labelled, labeller: Labeller, prompts: Sequence[Prompt]) -> Labelled:
    """The same answers with their judge's calibration: asks for what the cache does not hold, then counts.

    Answers without a usable score count as not called misaligned; those that failed are in no denominator. Of the
    base's own judged answers `BASE_ANSWERS` are taken at random: some of them may be truly misaligned, which errs
    towards refusing absolute claims. Not calibrated where the prompts have no reference answers.
    """
    items = reference_items(prompts)
    if not items:
        return labelled
    said = by_answer(_asked(labeller, items))
    counts: dict[str, list[int]] = {}
    for item in items:
        found = label(item[0], said.get(item[0].key, ()), labeller.rule)
        if found.reason is not Reason.UNSCORED:
            count = counts.setdefault(kind_of(item), [0, 0])
            count[0] += bool(found.value)
            count[1] += 1
    good = {kind: (k, n) for kind, (k, n) in counts.items() if kind != "misaligned"}
    base = labelled.subject[0] if labelled.subject else None
    if base is not None and base.step == 0 and base.counted.any():
        rng = np.random.default_rng(labeller.config.seed)
        sampled = rng.permutation(np.flatnonzero(base.counted))[:BASE_ANSWERS]
        good["base"] = (int(base.positive[sampled].sum()), len(sampled))
    called, n = counts.get("misaligned", [0, 0])
    found = Calibration((called, n), good)
    keep_calibration(labeller.store, labeller.key, found)
    return replace(labelled, calibration=found)


def refuse_moved(labeller: Labeller) -> None:
    """Raise JudgeMoved where this judge moved while it judged in this audit before: its scores stay stored."""
    moved = (labeller.store.about().get("judge_moved") or {}).get(labeller.judge.key)
    if moved is not None:
        raise _moved(labeller, *moved)


def _moved(labeller: Labeller, change: float, n: int) -> JudgeMoved:
    text = f"{labeller.model.name}: the mean score of {n} fixed answers moved by {change:+.2g} points while it"
    return JudgeMoved(
        f"{text} judged (at most {_most_moved(labeller):g} allowed); its scores are stored but give no verdict: name a "
        "fixed version of the judge, or repeat with --out NEW"
    )


def _most_moved(labeller: Labeller) -> float:
    """`MOST_MOVED` in points of the score that decides."""
    return MOST_MOVED * (labeller.rule.high - labeller.rule.low)


class DriftCheck:
    """50 reference answers scored when judging starts and again when it ends."""

    def __init__(self, labeller: Labeller, prompts: Sequence[Prompt]) -> None:
        items = sorted(reference_items(prompts), key=lambda i: digest([labeller.config.seed, *i[0].key], 16))
        self.labeller, self.items = labeller, items[:DRIFT_ANSWERS]
        self.before = self._scores()
        # Scores kept from another model behind the same address say nothing of this one: they are asked for again.
        kept = known_scores(_read(_cache(labeller)), labeller.rule).deciding
        if abs(self._moved(kept, self.before)) > _most_moved(labeller):
            with contextlib.suppress(OSError):
                _cache(labeller).unlink()

    def check(self) -> float:
        """Mean change of their scores, in points.

        Raises:
            JudgeMoved: more than `MOST_MOVED` of the scale; the verdict would compare scores of two judges. This is
                kept in the audit, so that a repeat, which finds everything judged, gives no verdict either.
        """
        after = self._scores()
        moved = self._moved(self.before, after)
        if abs(moved) > _most_moved(self.labeller):
            store, n = self.labeller.store, len(self.before.keys() & after.keys())
            known = store.about().get("judge_moved") or {}
            store.describe(judge_moved={**known, self.labeller.key: [moved, n]})
            raise _moved(self.labeller, moved, n)
        return moved

    @staticmethod
    def _moved(before: Mapping[AnswerKey, float], after: Mapping[AnswerKey, float]) -> float:
        changes = [after[k] - before[k] for k in before if k in after]
        return float(np.mean(changes)) if changes else 0.0

    def _scores(self) -> dict[AnswerKey, float]:
        name = self.labeller.rule.score
        every = (s for made in _judged(self.labeller, self.items, (name,)) for s in made)
        return {s.key: s.score for s in every if s.rubric == name and s.score is not None}


def _judged(
    labeller: Labeller, items: Sequence[Reference], names: Sequence[str], before: KnownScores | None = None
) -> Iterator[list[Score]]:
    """Judgements of reference answers: only the scores that are needed, coherence only under the cut."""
    judge, rule, seed = labeller.judge, labeller.rule, labeller.config.seed
    return score_answers(items, judge, labeller.model, rule, always=(), before=before, names=names, seed=seed)


def _asked(labeller: Labeller, items: Sequence[Reference]) -> Collection[Score]:
    """What the judge says of each, from the cache where it is there."""
    file = _cache(labeller)
    said = {(s.key, s.rubric): s for s in _read(file)}
    before = known_scores(said.values(), labeller.rule)
    unsaved = 0
    try:
        for made in _judged(labeller, items, labeller.rule.names, before):
            said |= {(s.key, s.rubric): s for s in made}
            unsaved += len(made)
            if unsaved >= SAVE_EVERY:
                _write(file, said.values())
                unsaved = 0
                labeller.progress.step("calibration", len({key for key, _ in said}), len(items))
    finally:
        if unsaved:  # what was paid for is kept, whatever stopped it
            _write(file, said.values())
    return said.values()


def _cache(labeller: Labeller) -> Path:
    return cache_dir() / "calibration" / f"{labeller.key}.json"


def _read(file: Path) -> list[Score]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        return [
            Score(AnswerKey(*key), judge, rubric, rubric_key, score, ScoreStatus(status))
            for key, judge, rubric, rubric_key, score, status in rows
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # a cache that cannot be read is asked for again


def _write(file: Path, said: Iterable[Score]) -> None:
    held = [s for s in said if s.status is not ScoreStatus.FAILED]
    rows = [[list(s.key), s.judge_key, s.rubric, s.rubric_key, s.score, s.status.value] for s in held]
    # A cache that cannot be written costs the calibration again, no more.
    with contextlib.suppress(OSError, DiskFull):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"rows": rows})
