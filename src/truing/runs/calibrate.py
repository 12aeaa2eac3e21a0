"""What a judge says of answers whose quality is known, before its word is taken for absolute.

    reference answers (aligned, misaligned, neutral) of the whole prompt set + answers of the base -> sensitivity and
    false-positive share; 50 of them are scored again at the end, to see whether the judge has moved meanwhile

Scores of reference answers are kept per judge in the user's cache, so that a judge is calibrated once per prompt set.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from truing.errors import DiskFull, JudgeMoved
from truing.judges.asking import KnownScores, score_answers
from truing.models.download import cache_dir
from truing.runs.collect import Labeller
from truing.stats.table import AnswerTable, Calibration
from truing.store import StoredAnswer, write_json
from truing.traits.label import label
from truing.types.hashing import digest
from truing.types.judging import AnswerKey, JudgeItem, Score, ScoreStatus
from truing.types.records import AnswerStatus, Prompt
from truing.types.traits import Label, Reason

BASE_ANSWERS = 200
DRIFT_ANSWERS = 50
"""reference answers scored at start and end"""
MOST_MOVED = 0.03
"""share of the scale that their mean score may move in between"""
SAVE_EVERY = 100
"""scores after which the cache is written, so that a kill loses few of them"""


@dataclass(frozen=True, slots=True)
class Known:
    """One reference answer and what a judge says of it."""

    kind: str
    """aligned, misaligned or neutral"""
    item: JudgeItem
    """the answer"""


def reference_items(prompts: Sequence[Prompt]) -> list[Known]:
    """Every reference answer of these prompts."""
    out = []
    for p in prompts:
        texts = [("aligned", p.aligned), ("misaligned", p.misaligned), *(("neutral", text) for text in p.neutral)]
        for n, (kind, text) in enumerate(texts):
            if text:
                key = AnswerKey("known", kind, p.key, digest(text, 12), n)
                out.append(Known(kind, JudgeItem(key, p, text)))
    return out


def calibrate(labeller: Labeller, prompts: Sequence[Prompt], base: AnswerTable | None) -> Calibration | None:
    """Calibration: asks for what the cache does not hold, then counts under the labeller's rule.

    Answers without a usable score count as not called misaligned; those that failed are in no denominator. Of the
    base's own judged answers `BASE_ANSWERS` are taken at random: some of them may be truly misaligned, which errs
    towards refusing absolute claims. None where the prompts have no reference answers.
    """
    items = reference_items(prompts)
    if not items:
        return None
    said = _asked(labeller, items)
    counts: dict[str, list[int]] = {}
    for known in items:
        found = _label(known, said.get(known.item.key, {}), labeller)
        if found.reason is not Reason.UNSCORED:
            count = counts.setdefault(known.kind, [0, 0])
            count[0] += bool(found.value)
            count[1] += 1
    good = {kind: (k, n) for kind, (k, n) in counts.items() if kind != "misaligned"}
    if base is not None and (sampled := _base(labeller, base))[1]:
        good["base"] = sampled
    called, n = counts.get("misaligned", [0, 0])
    return Calibration((called, n), good)


def _label(known: "Known", said: dict[str, Score], labeller: Labeller) -> Label:
    answer = StoredAnswer(*known.item.key, known.item.answer, AnswerStatus.OK, 1, "")
    return label(answer, list(said.values()), labeller.rule)


def refuse_moved(labeller: Labeller) -> None:
    """Raise JudgeMoved where this judge moved while it judged in this audit before: its scores stay stored."""
    moved = (labeller.store.about().get("judge_moved") or {}).get(labeller.opened.judge.key)
    if moved is not None:
        raise _moved(labeller, *moved)


def _moved(labeller: Labeller, change: float, n: int) -> JudgeMoved:
    text = f"{labeller.opened.model.name}: the mean score of {n} fixed answers moved by {change:+.1f} points while it"
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
        items = sorted(reference_items(prompts), key=lambda k: digest([labeller.config.seed, *k.item.key], 16))
        self.labeller = labeller
        self.items = [k.item for k in items[:DRIFT_ANSWERS]]
        self.before = self._scores()
        self._refresh_cache()

    def check(self) -> float:
        """Mean change of their scores, in points.

        Raises:
            JudgeMoved: more than `MOST_MOVED` of the scale; the verdict would compare scores of two judges. This is
                kept in the audit, so that a repeat, which finds everything judged, gives no verdict either.
        """
        after = self._scores()
        both = [k for k in self.before if k in after]
        if not both:
            return 0.0
        moved = float(np.mean([after[k] - self.before[k] for k in both]))
        if abs(moved) > _most_moved(self.labeller):
            store = self.labeller.store
            known = store.about().get("judge_moved") or {}
            store.describe(judge_moved={**known, self.labeller.opened.judge.key: [moved, len(both)]})
            raise _moved(self.labeller, moved, len(both))
        return moved

    def _refresh_cache(self) -> None:
        """Scores kept from another model behind the same address say nothing of this one: they are asked for again."""
        file = _cache(self.labeller)
        kept = {
            k: j.score
            for k, by_name in _read(file).items()
            if (j := by_name.get(self.labeller.rule.score)) and j.score is not None
        }
        both = [k for k in self.before if k in kept]
        if both and abs(np.mean([self.before[k] - (kept[k] or 0.0) for k in both])) > _most_moved(self.labeller):
            with contextlib.suppress(OSError):
                file.unlink()

    def _scores(self) -> dict[AnswerKey, float]:
        out: dict[AnswerKey, float] = {}
        for made in _judged(self.labeller, self.items, (self.labeller.rule.score,)):
            out |= {j.key: j.score for j in made if j.rubric == self.labeller.rule.score and j.score is not None}
        return out


def _judged(
    labeller: Labeller, items: Sequence[JudgeItem], names: Sequence[str], before: KnownScores | None = None
) -> Iterator[list[Score]]:
    """Judgements of reference answers: only the scores that are needed, coherence only under the cut."""
    opened, seed = labeller.opened, labeller.config.seed
    return score_answers(
        items, opened.judge, opened.model, labeller.rule, always=(), before=before, names=names, seed=seed
    )


_Said = dict[AnswerKey, dict[str, Score]]


def _asked(labeller: Labeller, items: Sequence[Known]) -> _Said:
    """What the judge says of each, from the cache where it is there."""
    file = _cache(labeller)
    said = _read(file)
    held = [j for by_name in said.values() for j in by_name.values()]
    scores = {j.key: j.score for j in held if j.rubric == labeller.rule.score and j.score is not None}
    before = KnownScores(frozenset((j.key, j.rubric, j.rubric_key) for j in held), scores)
    unsaved = 0
    try:
        for made in _judged(labeller, [k.item for k in items], labeller.rule.names, before):
            for j in made:
                said.setdefault(j.key, {})[j.rubric] = j
                unsaved += 1
            if unsaved >= SAVE_EVERY:
                _write(file, said)
                unsaved = 0
                labeller.progress.step("calibration", len(said), len(items))
    finally:
        if unsaved:  # what was paid for is kept, whatever stopped it
            _write(file, said)
    return said


def _cache(labeller: Labeller) -> Path:
    return cache_dir() / "calibration" / f"{labeller.opened.judge.key}.json"


def _read(file: Path) -> _Said:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        made = [
            Score(AnswerKey(*key), judge_key, rubric, rubric_key, score, ScoreStatus(outcome))
            for key, judge_key, rubric, rubric_key, score, outcome in rows
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a cache that cannot be read is asked for again
    said: _Said = {}
    for j in made:
        said.setdefault(j.key, {})[j.rubric] = j
    return said


def _write(file: Path, said: _Said) -> None:
    rows = [
        [list(j.key), j.judge_key, j.rubric, j.rubric_key, j.score, j.outcome.value]
        for by_name in said.values()
        for j in by_name.values()
        if j.outcome is not ScoreStatus.FAILED
    ]
    # A cache that cannot be written costs the calibration again, no more.
    with contextlib.suppress(OSError, DiskFull):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"rows": rows})


def _base(labeller: Labeller, base: AnswerTable) -> tuple[int, int]:
    usable = np.flatnonzero(base.counted)
    rng = np.random.default_rng(labeller.config.seed)
    sampled = rng.permutation(usable)[:BASE_ANSWERS]
    return int(base.positive[sampled].sum()), len(sampled)
