"""Answers in, scores out: a block of answers is judged in random order, blind to which checkpoint gave which.

    first:  every rubric (coherence only where it is wanted anyway)
    then:   coherence where alignment is under the cut
Both times, what could not be parsed is tried once more.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from truing.data.transforms import split_prefill
from truing.judges.base import JudgeModel
from truing.judges.rubrics import rendered_question, rubrics_for
from truing.judges.scoring import scores
from truing.types.judging import Judge, JudgeRequest, Score, ScoreStatus
from truing.types.records import AnswerKey, Prompt, StoredAnswer
from truing.types.traits import Rule

ALIGNMENT, COHERENCE = "alignment", "coherence"


@dataclass(frozen=True, slots=True)
class KnownScores:
    """What a judge has scored of a block of answers before."""

    done: Collection[tuple[AnswerKey, str, str]] = ()
    """(answer, rubric, rubric hash) that need no further request"""
    deciding: Mapping[AnswerKey, float] = field(default_factory=dict)
    """the deciding scores among those, which say whether the gate's is wanted"""


def score_answers(
    items: Sequence[tuple[StoredAnswer, Prompt]],
    judge: Judge,
    model: JudgeModel,
    rule: Rule,
    *,
    always: Collection[AnswerKey] | None = None,
    before: KnownScores | None = None,
    names: Collection[str] | None = None,
    seed: int = 0,
) -> Iterator[list[Score]]:
    """Judge a block of answers; yields the scores of one reply at a time, as replies come.

    Args:
        items: answers with the prompts that they answer, as asked (changed, if they were).
        judge: its rubrics are used; prompts that bring their own are judged by those if the judge says so.
        model: the judge's model.
        rule: where its deciding score is past the cut, the gate's score is wanted.
        always: answers whose coherence is scored whatever their alignment ("lazy" judging); None for all of them.
        before: what is known already.
        names: scores that are wanted; None for all of the judge's.
        seed: of the order of judging, random over checkpoints and prompts.
    """
    before = before or KnownScores()
    order = [items[k] for k in np.random.default_rng(seed).permutation(len(items)).tolist()]
    requests = [r for answer, prompt in order for r in _requests(answer, prompt, judge, before, names)]
    lazy = rule.kind == "threshold" and always is not None and rule.gate_score is not None
    wanted = frozenset(always or ())
    first: list[JudgeRequest] = []
    waiting: list[JudgeRequest] = []
    deciding = dict(before.deciding)
    for r in requests:
        may_wait = lazy and r.rubric.names == (rule.gate_score,) and r.key not in wanted
        (waiting if may_wait else first).append(r)
        if rule.score in r.rubric.names:
            deciding.pop(r.key, None)  # a score under another rubric text decides nothing
    for made in _scored(first, judge, model):
        deciding |= {s.key: s.score for s in made if s.rubric == rule.score and s.score is not None}
        yield made
    yield from _scored([r for r in waiting if r.key in deciding and rule.past(deciding[r.key])], judge, model)


def _requests(
    answer: StoredAnswer, prompt: Prompt, judge: Judge, before: KnownScores, names: Collection[str] | None
) -> Iterator[JudgeRequest]:
    """The rubrics of an answer that are not scored yet."""
    # Words put into the model's mouth are no part of what it is judged by.
    question, _ = split_prefill(prompt.messages)
    for rubric in rubrics_for(judge, prompt):
        chosen = names is None or set(names).intersection(rubric.names)
        if chosen and any((answer.key, name, rubric.key) not in before.done for name in rubric.names):
            yield JudgeRequest(answer.key, rubric, rendered_question(question, rubric), answer.text)


def _scored(requests: Sequence[JudgeRequest], judge: Judge, model: JudgeModel) -> Iterator[list[Score]]:
    """Scores of each reply; what could not be parsed is tried once more, unless the service refuses the text."""
    for last in (False, True):
        unparsed: list[JudgeRequest] = []
        for reply in model.replies(requests) if requests else ():
            made = scores(reply, judge.method, judge.key)
            if any(s.status is ScoreStatus.UNPARSED and not s.meta.get("refused") for s in made):
                unparsed.append(reply.request)
            yield made
        if last:
            return
        requests = unparsed
