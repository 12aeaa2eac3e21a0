"""Sampling and judging, side by side: blocks of prompts over all checkpoints, so that every block holds every step.

    requests -> blocks -> sampled (what the store lacks) -> judged (what the judge has not said yet) -> store

Every block is judged in random order, by a judge that sees a filled rubric and nothing else. A repeat goes on:
nothing that is stored is sampled or judged again.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

from truing._version import __version__
from truing.config import JudgeConfig
from truing.judges.asking import KnownScores, score_answers
from truing.judges.base import JudgeModel
from truing.models.base import Backend
from truing.runs.shares import random_coherence
from truing.runs.throughput import Meter
from truing.store import Store
from truing.traits.label import label
from truing.types.hashing import digest
from truing.types.judging import Judge, Score, ScoreMethod, ScoreStatus
from truing.types.progress import Progress
from truing.types.records import FIXED_FROM, AnswerKey, Prompt, Request, SamplingParams, StoredAnswer
from truing.types.traits import Rule

BLOCK = 512
"""answers of a block, about: judged in one random order"""
AHEAD = 2
"""blocks that sampling may be ahead of judging"""


@dataclass(frozen=True, slots=True)
class Labeller:
    """A judge ready to be asked, and what labelling works with."""

    store: Store
    """where all of it goes"""
    model: JudgeModel
    """who is asked"""
    judge: Judge
    """what its scores are comparable within"""
    rule: Rule
    """the cut under which coherence is wanted"""
    config: JudgeConfig
    """coherence, seed"""
    prompts_sha256: str
    """the prompt set, noted with every score"""
    progress: Progress = field(default_factory=Progress)
    """told how the work goes on"""
    notes: tuple[str, ...] = ()
    """what was found out about the judge, a line each"""

    @property
    def key(self) -> str:
        """Hash of the judge."""
        return self.judge.key

    @property
    def recorded(self) -> bool:
        """Whether scores come from a record, so that no test can be put to it."""
        return self.judge.method is ScoreMethod.RECORDED


def request_keys(requests: Sequence[Request], params: SamplingParams) -> list[AnswerKey]:
    """The keys under which the answers are stored."""
    return [r.key(params) for r in requests]


def collect(
    labeller: Labeller,
    backend: Backend,
    requests: Sequence[Request],
    params: SamplingParams,
    *,
    always: Collection[AnswerKey] | None = None,
) -> None:
    """Make sure that every request is answered, scored and labelled in the store.

    Args:
        labeller: store, judge and rule.
        backend: gives the answers.
        requests: what is wanted.
        params: how answers are sampled.
        always: answers whose coherence is asked whatever their alignment; None for a random few per checkpoint.

    Raises:
        Unfinished: the judge is down or the budget spent; what was answered and judged is stored.
    """
    wanted = _wanted(labeller, request_keys(requests, params)) if always is None else frozenset(always)
    todo = frozenset(request_keys(labeller.store.missing(requests, params), params))
    prompts = {a.prompt.key: a.prompt for a in requests}
    meter, done = Meter(backend, len(todo), labeller.progress, longest=params.max_tokens), 0

    def sample(block: Sequence[Request], stopped: Callable[[], bool]) -> None:
        missing = [a for a, key in zip(block, request_keys(block, params), strict=True) if key in todo]
        with closing(meter.of(backend.sample(missing, params))) as answers:
            for answer in answers:
                labeller.store.add_answers([answer], params)
                if stopped():
                    return

    # A judge in this process and the model it judges would fight for the same cores: those take turns. A search asks
    # for one small block at a time, thousands of times: nothing could be ahead, and a thread would only cost.
    blocks = _blocks(requests)
    stream = _in_turn if labeller.judge.method is ScoreMethod.DIGITS or len(blocks) == 1 else _ahead
    with closing(stream(blocks, sample)) as sampled:
        for block in sampled:
            _judge_keys(labeller, request_keys(block, params), prompts, wanted)
            done += len(block)
            labeller.progress.step("judging", done, len(requests))
    labeller.store.flush()


def label_stored(labeller: Labeller, answers: Sequence[AnswerKey], prompts: Mapping[str, Prompt]) -> None:
    """Make sure that stored answers are judged; samples nothing."""
    wanted = _wanted(labeller, answers)
    # Stored order is one checkpoint after the other; a judge that changes with time would be taken for the checkpoints.
    mixed = sorted(answers, key=lambda k: digest(["order", labeller.config.seed, *k], 16))
    for start in range(0, len(mixed), BLOCK):
        _judge_keys(labeller, mixed[start : start + BLOCK], prompts, wanted)
        labeller.progress.step("judging", min(start + BLOCK, len(answers)), len(answers))
    labeller.store.flush()


def _wanted(labeller: Labeller, keys: Sequence[AnswerKey]) -> frozenset[AnswerKey]:
    """The random few among these answers and those stored beside them, which is what is read back later."""
    params, fixed = {k.params for k in keys}, all(k.sample >= FIXED_FROM for k in keys)
    stored = (r.key for p in sorted(params) for r in labeller.store.answers(p) if not fixed or r.sample >= FIXED_FROM)
    # The seed that the judge began with: whichever command goes on, the same answers are chosen.
    seed = labeller.store.judges().get(labeller.key, {}).get("seed", 0)
    return random_coherence(list(dict.fromkeys((*keys, *stored))), int(seed))


def _blocks(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests by prompt, several prompts to a block: all checkpoints of a prompt are judged together."""
    groups: dict[tuple[str, str], list[Request]] = {}
    for a in requests:
        groups.setdefault((a.prompt.id, a.variant), []).append(a)
    blocks: list[list[Request]] = [[]]
    for group in groups.values():
        if blocks[-1] and len(blocks[-1]) + len(group) > BLOCK:
            blocks.append([])
        blocks[-1].extend(group)
    return blocks


_Sample = Callable[[Sequence[Request], Callable[[], bool]], None]
"""samples a block's answers; asks after each whether to stop"""


def _in_turn(blocks: Sequence[list[Request]], sample: _Sample) -> Generator[list[Request], None, None]:
    for block in blocks:
        sample(block, lambda: False)
        yield block


def _ahead(blocks: Sequence[list[Request]], sample: _Sample) -> Generator[list[Request], None, None]:
    """Blocks as they are sampled, by a thread that runs a bounded way ahead of whoever consumes them."""
    stop, rest, waiting = threading.Event(), iter(blocks), deque[tuple[list[Request], Future[None]]]()

    def work(block: list[Request]) -> None:
        try:
            if not stop.is_set():
                sample(block, stop.is_set)
        except BaseException:  # raised again where this block is consumed; later ones are not begun
            stop.set()
            raise

    with ThreadPoolExecutor(1, thread_name_prefix="truing-sampling") as thread:
        try:
            for block in islice(rest, 1 + AHEAD):
                waiting.append((block, thread.submit(work, block)))
            while waiting:
                block, done = waiting.popleft()
                done.result()
                yield block
                waiting.extend((later, thread.submit(work, later)) for later in islice(rest, 1))
        finally:
            stop.set()


def _judge_keys(
    labeller: Labeller, keys: Sequence[AnswerKey], prompts: Mapping[str, Prompt], wanted: Collection[AnswerKey]
) -> None:
    """Judge what is not judged yet of these stored answers, and label them. Without text they are put to no judge."""
    store, judge, rule = labeller.store, labeller.judge, labeller.rule
    answers = list(store.answers_of(keys))
    items = [(r, prompts[r.prompt]) for r in answers if r.prompt in prompts and r.has_text]
    before = known_scores(store.scores_of((r.key for r, _ in items), judge.key), rule)
    always = None if labeller.config.every_coherence else wanted
    seed = int(digest([labeller.config.seed, [*keys[:1]], len(keys)], 8), 16)
    noted = {"prompts": labeller.prompts_sha256[:16], "truing": __version__, "seed": labeller.config.seed}
    for made in score_answers(items, judge, labeller.model, rule, always=always, before=before, seed=seed):
        store.add_scores(replace(s, meta={**s.meta, **noted}) for s in made)
    add_labels(store, answers, store.scores_of(keys, judge.key), judge.key, rule)
    store.flush()


def known_scores(scores: Iterable[Score], rule: Rule) -> KnownScores:
    """What need not be asked again; what failed is."""
    held = [s for s in scores if s.status is not ScoreStatus.FAILED]
    deciding = {s.key: s.score for s in held if s.rubric == rule.score and s.score is not None}
    return KnownScores(frozenset((s.key, s.rubric, s.rubric_key) for s in held), deciding)


def add_labels(store: Store, answers: Iterable[StoredAnswer], scores: Iterable[Score], judge: str, rule: Rule) -> None:
    """Decide what answers are by what one judge (its hash) said of them, and store it."""
    said = by_answer(scores)
    store.add_labels([(r.key, label(r, said.get(r.key, ()), rule)) for r in answers], judge, rule)


def by_answer(scores: Iterable[Score]) -> dict[AnswerKey, list[Score]]:
    """What was said of each answer."""
    out: dict[AnswerKey, list[Score]] = {}
    for s in scores:
        out.setdefault(s.key, []).append(s)
    return out
