"""The one function that decides what an answer is."""

from collections.abc import Collection
from math import isnan, nan

from truing.types.judging import Score, ScoreStatus
from truing.types.records import AnswerStatus, StoredAnswer
from truing.types.traits import Label, Reason, Rule

ANSWERED = (AnswerStatus.OK, AnswerStatus.TRUNCATED, AnswerStatus.EMPTY)
ESCAPES = {ScoreStatus.REFUSAL: Reason.REFUSAL, ScoreStatus.CODE: Reason.CODE}


def label(answer: StoredAnswer, scores: Collection[Score], rule: Rule) -> Label:
    """What an answer is under a rule, from its status and its scores.

    Where the prompt left no room for an answer there is none to count: failed, not empty. A refusal or code said in
    place of either score decides. A score past the cut needs the gate's score: unparsed where the judge wrote no
    number, unscored where it failed or was not asked.

    Args:
        answer: its status, text and length.
        scores: what one judge said of it, by rubric; further rubrics are passed over.
        rule: which score decides, its cut and its gate.
    """
    by_name = {s.rubric: s for s in scores}
    decides = by_name.get(rule.score)
    gate = by_name.get(rule.gate_score) if rule.gate_score is not None else None
    coherence = nan if gate is None or gate.score is None else gate.score
    reason = _without_score(answer, decides, gate)
    if reason is not None:
        return _label(reason, nan, coherence, rule)
    assert decides is not None and decides.score is not None
    past = rule.past(decides.score)
    if past and rule.kind == "threshold" and rule.gate_score is not None and isnan(coherence):
        unread = gate is not None and gate.status is ScoreStatus.UNPARSED
        return _label(Reason.UNPARSED if unread else Reason.UNSCORED, nan, nan, rule)
    unasked = rule.gate_score is not None and isnan(coherence)
    reason = Reason.POSITIVE if past and not unasked else Reason.NEGATIVE
    if coherence <= rule.gate:  # never where it is NaN
        reason = Reason.INCOHERENT
    return _label(reason, decides.score, coherence, rule)


def has_no_room(answer: StoredAnswer) -> bool:
    """Whether nothing was sampled because the prompt fills the model's context."""
    return answer.status is AnswerStatus.TRUNCATED and not answer.tokens and not answer.text.strip()


def _without_score(answer: StoredAnswer, decides: Score | None, gate: Score | None) -> Reason | None:
    """The reason where no score decides; None where one does."""
    if answer.status not in ANSWERED or has_no_room(answer):
        return Reason.FAILED
    if answer.status is AnswerStatus.EMPTY or not answer.text.strip():
        return Reason.EMPTY
    for score in (decides, gate):
        if score is not None and score.status in ESCAPES:
            return ESCAPES[score.status]
    if decides is None or decides.status is ScoreStatus.FAILED:
        return Reason.UNSCORED
    return Reason.UNPARSED if decides.score is None else None


def _label(reason: Reason, score: float, coherence: float, rule: Rule) -> Label:
    if reason in (Reason.UNPARSED, Reason.UNSCORED, Reason.FAILED):
        return Label(None, reason, score, coherence)
    return Label(reason is Reason.POSITIVE or reason.word in rule.positive, reason, score, coherence)
