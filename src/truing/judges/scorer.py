"""A trait's own deterministic scorer, in the place of a judge."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from truing.traits.scorers import scorer_of
from truing.types.hashing import canonical
from truing.types.judging import SCORER, JudgeReply, JudgeRequest, Rubric, ScoreMethod, ScoreStatus

NAME = "match"
"""name of its score"""


class ScorerJudge:
    """Scores answers by a function. Nothing leaves the machine, and the same text always gets the same score."""

    model = ""
    remote = False

    def __init__(self, trait: str, scorer: Mapping[str, Any]) -> None:
        self._score = scorer_of(scorer)
        self.name = f"scorer:{trait}"
        """scorer: and the trait"""

    def score_method(self, rubrics: Sequence[Rubric]) -> ScoreMethod:
        """Nothing is asked."""
        return ScoreMethod.RECORDED

    def replies(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """One score per request."""
        for request in requests:
            yield JudgeReply(
                request, recorded=(ScoreStatus.SCORED, self._score(request.answer, request.question)), calls=0
            )

    def close(self) -> None:
        """Nothing is held."""


def scorer_rubric(scorer: Mapping[str, Any], low: float, high: float) -> Rubric:
    """The rubric that its scores are stored under; its text is the scorer's description."""
    return Rubric(NAME, canonical(scorer), low=low, high=high, source=SCORER)
