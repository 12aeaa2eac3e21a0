"""Answers in, judgements out: two rounds over a block of answers, in random order, blind to whose answers they are.

items -> first round: every rubric (coherence only where it is wanted anyway)
      -> again: what could not be parsed, once
      -> second round: coherence where alignment is under the cut
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from truing.data.transforms import split_prefill
from truing.judges.rubrics import rendered_question, rubrics_for
from truing.judges.scoring import scores
from truing.models.base import Judge
from truing.types.judged import AnswerKey, JudgeItem, JudgeRequest, Panel, Score, ScoreStatus
from truing.types.traits import Rule

ALIGNMENT, COHERENCE = "alignment", "coherence"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a panel has said of a block of answers before."""

    done: Collection[tuple[AnswerKey, str, str]] = ()
    """(answer, rubric, rubric hash) that need not be asked again"""
    alignment: Mapping[AnswerKey, float] = field(default_factory=dict)
    """scores among those, which decide whether coherence is wanted"""


def judge(
    items: Sequence[JudgeItem],
    panel: Panel,
    speaker: Judge,
    rule: Rule,
    *,
    always: Collection[AnswerKey] | None = None,
    before: Judged | None = None,
    names: Collection[str] | None = None,
    seed: int = 0,
) -> Iterator[list[Score]]:
    """Judge a block of answers; yields the judgements of one reply at a time, as replies come.

    Args:
        items: answers with their prompts.
        panel: whose rubrics are asked; prompts that bring their own are judged by those if the panel says so.
        speaker: who is asked.
        rule: its alignment cut decides where coherence is wanted.
        always: answers whose coherence is asked whatever their alignment ("lazy" judging); None for all of them.
        before: what is known already.
        names: scores that are asked for; None for all of the panel's.
        seed: of the order of judging, random over checkpoints and prompts.
    """
    before = before or Judged()
    rng = np.random.default_rng(seed)
    order = [items[k] for k in rng.permutation(len(items))]
    lazy = rule.kind == "threshold" and always is not None
    wanted = frozenset(always or ())
    alignment = dict(before.alignment)

    requests = [(a, item) for item in order for a in _asks(item, panel, before, names)]
    first = [a for a, item in requests if not lazy or not _may_wait(a) or item.key in wanted]
    for a in first:
        if ALIGNMENT in a.rubric.names:
            alignment.pop(a.key, None)  # a score under another rubric text decides nothing
    unparsed: list[JudgeRequest] = []
    for made, request in _replies(first, panel, speaker):
        if any(_worth_repeating(j) for j in made):
            unparsed.append(request)
        alignment |= _aligned(made)
        yield made
    for made, _ in _replies(unparsed, panel, speaker):
        alignment |= _aligned(made)
        yield made
    if not lazy:
        return
    low = {k for k, value in alignment.items() if value < rule.cut and k not in wanted}
    second = [a for a, item in requests if item.key in low and _may_wait(a)]
    again: list[JudgeRequest] = []
    for made, request in _replies(second, panel, speaker):
        if any(_worth_repeating(j) for j in made):
            again.append(request)
        yield made
    for made, _ in _replies(again, panel, speaker):
        yield made


def _asks(item: JudgeItem, panel: Panel, before: Judged, names: Collection[str] | None) -> Iterator[JudgeRequest]:
    """The rubrics of an answer that are still to be asked."""
    for rubric in rubrics_for(panel, item.prompt):
        if names is not None and not set(names).intersection(rubric.names):
            continue
        if any((item.key, name, rubric.key) not in before.done for name in rubric.names):
            # Words put into the model's mouth are no part of what it is judged by.
            question, _ = split_prefill(item.prompt.messages)
            yield JudgeRequest(item.key, rubric, rendered_question(question, rubric), item.answer)


def _worth_repeating(j: Score) -> bool:
    """Whether a second try may read what the first could not; a service that refuses a text will refuse it again."""
    return j.outcome is ScoreStatus.UNPARSED and not j.meta.get("refused")


def _may_wait(request: JudgeRequest) -> bool:
    """Whether it asks for coherence alone, so that lazy judging may put it off or leave it out."""
    return request.rubric.names == (COHERENCE,)


def _replies(
    requests: Iterable[JudgeRequest], panel: Panel, speaker: Judge
) -> Iterator[tuple[list[Score], JudgeRequest]]:
    requests = list(requests)
    if requests:
        for reply in speaker.ask(requests):
            yield scores(reply, panel.route, panel.key), reply.request


def _aligned(made: Sequence[Score]) -> dict[AnswerKey, float]:
    return {j.key: j.score for j in made if j.rubric == ALIGNMENT and j.score is not None}
