"""What judges said of one stored answer, as words; and whether it has to stand behind a notice."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from truing.report.reading import judge_name, number, one_line
from truing.store import Store, StoredAnswer
from truing.traits.label import label
from truing.types.judging import Score, ScoreStatus
from truing.types.traits import LOST, Rule

MOST_RUBRICS = 6
"""scores named per judge and answer; the others are counted"""


class Judged(NamedTuple):
    """One judge on one answer."""

    judge: str
    """its name, for people"""
    scores: str
    """`alignment 12, coherence 92`, or what became of a rubric instead of a score"""
    positive: bool
    """past the cut, whatever its coherence: the text goes behind a notice"""
    word: str
    """its label's reason; empty while there is none"""


class Judges:
    """The judges of one audit, and its rule."""

    def __init__(self, store: Store, about: Mapping[str, Any]) -> None:
        self._store = store
        plain = about.get("rule") or (about.get("labels") or {}).get("rule")
        self.rule = Rule(**plain) if plain else Rule()
        self.names = {key: judge_name(judge.get("judge")) for key, judge in store.judges().items()}

    def of(self, r: StoredAnswer) -> list[Judged]:
        """What each judge says of an answer; those that were not asked are left out."""
        out = []
        for key, name in self.names.items():
            scores = list(self._store.scores_of([r.key], key))
            if scores:
                found = label(r, scores, self.rule)
                past = any(
                    s.rubric == self.rule.score and s.score is not None and self.rule.past(s.score) for s in scores
                )
                word = "" if found.reason in LOST else found.reason.word
                out.append(Judged(name, _words(scores), past, word))
        return out

    def words(self, found: Judged) -> str:
        """One judge's words, with its name where there are several."""
        words = f"{found.scores}: {found.word}" if found.word else found.scores
        return f"{words} ({found.judge})" if len(self.names) > 1 else words


def _words(scores: list[Score]) -> str:
    order = {"alignment": 0, "coherence": 1}
    scores = sorted(scores, key=lambda s: (order.get(s.rubric, 2), s.rubric))
    parts = [f"{one_line(s.rubric)} {_score(s)}" for s in scores[:MOST_RUBRICS]]
    if len(scores) > MOST_RUBRICS:
        parts.append(f"{len(scores) - MOST_RUBRICS} more")
    return ", ".join(parts)


def _score(s: Score) -> str:
    if s.outcome is ScoreStatus.SCORED and s.score is not None:
        return number(s.score, 0)
    return s.outcome.value
