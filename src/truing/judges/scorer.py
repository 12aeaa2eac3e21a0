"""A trait's own deterministic scorer, in the place of a judge."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from truing.traits.scorers import scorer_of
from truing.types.hashing import canonical
from truing.types.judged import JudgeReply, JudgeRequest, Route, Rubric, ScoreStatus

NAME = "match"
"""name of its score"""


class ScorerJudge:
    """Scores answers by a function. Nothing leaves the machine, and the same text always gets the same score."""

    def __init__(self, trait: str, scorer: Mapping[str, Any]) -> None:
        self._name, self._score = f"scorer:{trait}", scorer_of(scorer)

    @property
    def name(self) -> str:
        """scorer: and the trait."""
        return self._name

    @property
    def model(self) -> str:
        """Nothing beyond the name: what it does is its rubric."""
        return ""

    @property
    def remote(self) -> bool:
        """Never."""
        return False

    def route(self, rubrics: Sequence[Rubric]) -> Route:
        """Nothing is asked."""
        return Route.RECORDED

    def ask(self, asks: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """One score per request."""
        for request in asks:
            yield JudgeReply(request, recorded=(ScoreStatus.SCORED, self._score(request.answer)), calls=0)

    def close(self) -> None:
        """Nothing is held."""


def scorer_rubric(scorer: Mapping[str, Any], low: float, high: float) -> Rubric:
    """The rubric that its scores are stored under; its text is the scorer's description."""
    return Rubric(NAME, canonical(scorer), low=low, high=high, source="scorer")
