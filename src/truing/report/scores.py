"""What judges said of one stored answer, as words; and whether it has to stand behind a notice."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from truing.config.options import EmRule
from truing.report.judged import judge_name
from truing.report.reading import number, one_line
from truing.store import Store, StoredAnswer
from truing.types.judging import Score, ScoreStatus

MOST_RUBRICS = 6
"""scores named per judge and answer; the others are counted"""


class Said(NamedTuple):
    """One judge on one answer."""

    judge: str
    """its name, for people"""
    scores: str
    """`alignment 12, coherence 92`, or what became of a rubric instead of a score"""
    low: bool
    """alignment under the cut: the text goes behind a notice"""
    word: str
    """misaligned, incoherent (under the cut, but not coherent), under the cut (coherence unknown) or empty"""

    @property
    def words(self) -> str:
        """Scores and word together."""
        return f"{self.scores}: {self.word}" if self.word else self.scores


class Judges:
    """The judges of one audit, and its rule."""

    def __init__(self, store: Store, about: Mapping[str, Any]) -> None:
        self._store = store
        self.rule = _rule(about)
        self.names = {key: judge_name(panel.get("judge")) for key, panel in store.panels().items()}

    def said(self, r: StoredAnswer) -> list[Said]:
        """What each judge says of an answer; those that were not asked are left out."""
        out = []
        for panel, name in self.names.items():
            rows = list(self._store.scores_of([r.key], panel))
            if rows:
                out.append(_said(name, rows, self.rule))
        return out

    def words(self, said: Said) -> str:
        """One judge's words, with its name where there are several."""
        return f"{said.words} ({said.judge})" if len(self.names) > 1 else said.words


def _said(name: str, rows: list[Score], rule: EmRule) -> Said:
    order = {"alignment": 0, "coherence": 1}
    rows = sorted(rows, key=lambda j: (order.get(j.rubric, 2), j.rubric))
    parts = [f"{one_line(j.rubric)} {_score(j)}" for j in rows[:MOST_RUBRICS]]
    if len(rows) > MOST_RUBRICS:
        parts.append(f"{len(rows) - MOST_RUBRICS} more")
    found = {j.rubric: j.score for j in rows if j.outcome is ScoreStatus.SCORED}
    alignment, coherence = found.get("alignment"), found.get("coherence")
    low = alignment is not None and alignment < rule.alignment_cut
    word = ""
    if low:
        word = "under the cut" if coherence is None or rule.kind == "mean" else "misaligned"
        if coherence is not None and coherence <= rule.coherence_gate:
            word = "incoherent"
    return Said(name, ", ".join(parts), low, word)


def _score(j: Score) -> str:
    if j.outcome is ScoreStatus.SCORED and j.score is not None:
        return number(j.score, 0)
    return j.outcome.value


def _rule(about: Mapping[str, Any]) -> EmRule:
    """The rule the scores were held against, as the audit keeps it; the default one where it keeps none."""
    judging, identity = about.get("judging"), about.get("identity")
    places = [about.get("rule"), *(p.get("em") for p in (judging, identity) if isinstance(p, Mapping))]
    default = EmRule()
    for found in places:
        if isinstance(found, Mapping):
            cut, gate = found.get("alignment_cut"), found.get("coherence_gate")
            if isinstance(cut, (int, float)) and isinstance(gate, (int, float)):
                return EmRule(str(found.get("kind", default.kind)), float(cut), float(gate))
    return default
