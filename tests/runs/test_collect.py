"""Sampling and judging side by side: everything once, in random order, with every failure kept as what it is."""

import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from runs.fake_judge import FakeJudge, Lost, dice, truth
from truing.config import JudgeConfig
from truing.errors import BudgetSpent
from truing.judges.rubrics import builtin
from truing.models.simulated import SimulatedBackend
from truing.runs import collect as collecting
from truing.runs.collect import AHEAD, Labeller, collect, label_stored, request_keys
from truing.runs.shares import RANDOM_COHERENCE, random_coherence, random_share
from truing.store import Store
from truing.types.judging import Judge, ScoreMethod, ScoreStatus
from truing.types.records import AnswerStatus, Message, Prompt, PromptSet, Request, Role, SamplingParams
from truing.types.traits import Reason, Rule

PROMPTS = tuple(Prompt(f"q{k}", (Message("user", f"What about thing {k}?"),)) for k in range(12))
BOTH = (builtin("alignment"), builtin("coherence"))
RULE = Rule()
SAMPLES = 4
BACKEND = SimulatedBackend("early", PromptSet("set", "1", "0", PROMPTS), steps=(10, 20, 30, 40))
PARAMS = BACKEND.resolve(SamplingParams(max_tokens=64))
CHECKPOINTS = (BACKEND.base_checkpoint(), *BACKEND.run(Role.SUBJECT))
STEP = {c.weights: c.step for c in CHECKPOINTS}
ASKS = [Request(c, p, d) for p in PROMPTS for c in CHECKPOINTS for d in range(SAMPLES)]


class Sampler:
    """The simulated backend, counted; `trouble(n)` is called before the n-th answer is drawn."""

    def __init__(self, trouble=lambda n: None):
        self.asked, self.trouble = [], trouble

    def sample(self, requests, params):
        for answer in BACKEND.sample(requests, params):
            self.trouble(len(self.asked))
            self.asked.append(answer.request)
            yield answer


@pytest.fixture
def store(tmp_path):
    with Store.write(tmp_path / "a", {}) as made:
        made.add_checkpoints(CHECKPOINTS)
        yield made


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(collecting, "BLOCK", 60)
    return 60


def labeller(store, judge, rubrics=BOTH, rule=RULE, **options):
    made = Judge(judge.name, rubrics, judge.kind)
    store.add_judge(made, seed=options.get("seed", 0))
    return Labeller(store, judge, made, rule, JudgeConfig(**options), "0" * 64)


def run(store, judge, requests=None, sampler=None, **options):
    """Collect, and what the labeller was."""
    made = labeller(store, judge, **options)
    collect(made, sampler or Sampler(), ASKS if requests is None else requests, PARAMS)
    return made


def rows(store, judge=None, rubric=None):
    return {(j.key, j.rubric): j for j in store.scores() if rubric in (None, j.rubric)}


def labels_of(made):
    return made.store.labels_of(request_keys(ASKS, PARAMS), made.key, made.rule)


# -- everything once -------------------------------------------------------------------------------


def test_every_request_is_sampled_and_scored_once_and_a_repeat_asks_nothing(store, small_blocks):
    sampler, judge = Sampler(), FakeJudge()
    made = run(store, judge, sampler=sampler, every_coherence=True)
    assert Counter(request_keys(sampler.asked, PARAMS)) == Counter(request_keys(ASKS, PARAMS))
    assert judge.counts() == {(k, r): 1 for k in request_keys(ASKS, PARAMS) for r in ("alignment", "coherence")}
    asked = {(a.key, a.rubric.name): a for a in judge.asked}
    for (key, rubric), j in rows(store).items():
        (answer,) = store.answers_of([key])
        assert (j.score, j.status) == (truth(asked[key, rubric]), ScoreStatus.SCORED)
        assert asked[key, rubric].answer == answer.text
    for key, label in labels_of(made).items():
        assert label.value is (rows(store)[key, "alignment"].score < 30)
    collect(made, sampler, ASKS, PARAMS)
    label_stored(made, request_keys(ASKS, PARAMS), {p.key: p for p in PROMPTS})
    assert (len(sampler.asked), len(judge.asked)) == (len(ASKS), 2 * len(ASKS))
    other = FakeJudge(name="http://localhost:9/v1#other")
    run(store, other, sampler=sampler, every_coherence=True)
    assert (len(sampler.asked), len(other.asked)) == (len(ASKS), 2 * len(ASKS)), "another judge samples nothing"


def test_answers_without_text_are_put_to_no_judge(store):
    broken = SimulatedBackend("early", PromptSet("s", "1", "0", PROMPTS), steps=(10, 20, 30, 40), broken_steps={20})
    judge = FakeJudge()
    made = run(store, judge, sampler=broken)
    empty = {r.key for r in store.answers() if r.status is AnswerStatus.EMPTY}
    assert len(empty) == len(ASKS) // len(CHECKPOINTS)
    assert not empty & {a.key for a in judge.asked}
    assert {k for k, label in labels_of(made).items() if label.reason is Reason.EMPTY} == empty


def test_two_scores_in_one_call_are_asked_once_each_also_under_the_cut_and_in_a_running_loop(store):
    judge = FakeJudge(lambda a, nth: f"alignment: {10 if dice(a.key) < 0.5 else 90}\ncoherence: 80")

    async def notebook():
        run(store, judge, rubrics=(builtin("both"),))

    asyncio.run(notebook())
    assert set(judge.counts().values()) == {1} and len(judge.asked) == len(ASKS)
    assert len(rows(store)) == 2 * len(ASKS)


# -- lazy coherence --------------------------------------------------------------------------------


def wild(request, nth):
    """Scores of all kinds, with escapes and unreadable replies, whatever the answer is."""
    u = dice(request.key, request.rubric.name)
    if u < 0.05:
        return "I would rather not."
    if u < 0.1 and request.rubric.escapes:
        return "REFUSAL"
    return round(100 * dice(request.key, request.rubric.name, "score"), 2)


def test_lazy_coherence_is_exact_for_the_share_of_positive_answers(store, tmp_path):
    lazy, whole = FakeJudge(wild), FakeJudge(wild)
    few = labels_of(run(store, lazy))
    with Store.write(tmp_path / "full", {}) as other:
        other.add_checkpoints(CHECKPOINTS)
        every = labels_of(run(other, whole, every_coherence=True))
    assert {k: x.value for k, x in few.items()} == {k: x.value for k, x in every.items()}
    assert any(x.value for x in few.values()) and len(lazy.asked) < len(whole.asked) - 60
    mean = FakeJudge(name="http://localhost:9/v1#mean")
    run(store, mean, rule=Rule(kind="mean"))
    assert len(mean.asked) == 2 * len(ASKS), "where scores are averaged every coherence is asked"


def test_a_random_24_per_checkpoint_have_their_coherence_whatever_their_alignment(store):
    chosen = random_coherence(request_keys(ASKS, PARAMS), 0)  # nothing is sampled yet
    judge = FakeJudge(wild)
    run(store, judge)
    assert Counter(k.weights for k in chosen) == {c.weights: RANDOM_COHERENCE for c in CHECKPOINTS}
    low = {j.key for j in rows(store, rubric="alignment").values() if j.score is not None and j.score < 30}
    assert {a.key for a in judge.asked if a.rubric.name == "coherence"} == low | chosen
    assert low - chosen and chosen - low


def test_the_random_answers_depend_on_seed_and_keys_alone(store):
    keys = request_keys(ASKS, PARAMS)
    assert random_coherence(keys[::-1], 3) == random_coherence(keys, 3) != random_coherence(keys, 4)
    # Fewer answers, e.g. those with a text: whoever was chosen among all is chosen among them.
    some = [k for k in keys if dice(k) < 0.6]
    assert random_coherence(keys, 3) & set(some) <= random_coherence(some, 3)


def test_random_shares_lie_within_each_other_and_look_at_no_answer():
    keys = request_keys([Request(c, p, d) for p in PROMPTS for c in CHECKPOINTS for d in range(60)], PARAMS)
    small, large = set(random_share(keys, 0.1, 1)), set(random_share(keys, 0.4, 1))
    assert small < large
    assert random_share(keys, 1.0, 1) == keys
    assert set(random_share(keys[::-1], 0.4, 1)) == large
    for share, found in ((0.1, small), (0.4, large)):
        assert abs(len(found) - share * len(keys)) < 4 * np.sqrt(share * (1 - share) * len(keys))
    assert len(set(random_share(keys, 0.4, 2)) & large) < 0.25 * len(keys)


# -- order and blindness ---------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
def test_the_order_of_judging_is_random_over_steps(store, small_blocks, stored):
    judge = FakeJudge()
    if stored:
        store.add_answers(BACKEND.sample(ASKS, PARAMS), PARAMS)
        keys = [r.key for r in store.answers()]  # as the store gives them: one checkpoint after the other
        label_stored(labeller(store, judge, every_coherence=True, seed=1), keys, {p.key: p for p in PROMPTS})
    else:
        run(store, judge, every_coherence=True, seed=1)
    steps = [STEP[a.key.weights] for a in judge.asked]
    assert len(steps) == 2 * len(ASKS)
    assert abs(np.corrcoef(np.arange(len(steps)), steps)[0, 1]) < 0.2  # 3 sd: 240 answers in pairs
    place = np.arange(len(steps)) / len(steps)
    for step in STEP.values():
        assert abs(place[np.array(steps) == step].mean() - 0.5) < 0.12, "no checkpoint comes early or late"
    for k in range(0, len(steps), 2 * small_blocks):
        assert set(steps[k : k + 2 * small_blocks]) == set(STEP.values()), "every block holds every step"
    by_prompt = {}
    for a, step in zip(judge.asked, steps, strict=True):
        by_prompt.setdefault(a.key.prompt, []).append(step)
    within = [np.corrcoef(np.arange(len(of)), of)[0, 1] for of in by_prompt.values()]
    assert abs(np.mean(within)) < 0.25, "nor does one come first among the answers to a prompt"  # sd 0.065
    assert len({of[0] for of in by_prompt.values()}) > 2


def test_what_the_judge_sees_tells_neither_step_nor_checkpoint(store):
    judge = FakeJudge()
    run(store, judge, every_coherence=True)
    seen = {}
    for a in judge.asked:
        text = "".join(m.content for m in a.messages)
        for c in CHECKPOINTS[1:]:
            assert c.weights not in text
            assert c.label not in text
        assert a.key.params not in text
        seen.setdefault((a.rubric.name, a.question, a.answer), set()).add(a.messages)
    assert all(len(messages) == 1 for messages in seen.values()), "equal answers are shown alike, whoever gave them"


# -- what goes wrong -------------------------------------------------------------------------------


def test_what_cannot_be_read_is_asked_once_more_and_then_kept(store):
    def say(request, nth):
        kind = dice(request.key, "kind")
        if request.rubric.name == "coherence" or kind > 0.4:
            return truth(request)
        return "no number" if kind < 0.2 or nth == 0 else 77

    judge = FakeJudge(say)
    made = run(store, judge)
    scores = rows(store, rubric="alignment")
    twice = {k for (k, rubric), n in judge.counts().items() if n == 2}
    assert twice == {k for k, _ in scores if dice(k, "kind") <= 0.4}
    assert max(judge.counts().values()) == 2
    for (key, _), j in scores.items():
        if dice(key, "kind") < 0.2:
            assert (j.status, j.score) == (ScoreStatus.UNPARSED, None)
        elif dice(key, "kind") <= 0.4:
            assert (j.status, j.score) == (ScoreStatus.SCORED, 77)
    before = len(judge.asked)
    collect(made, Sampler(), ASKS, PARAMS)
    assert len(judge.asked) == before


@pytest.mark.parametrize(
    ("say", "coherence", "reason"),
    [
        (lambda a, nth: "no number" if nth == 0 else Lost("server error"), None, Reason.UNPARSED),
        (lambda a, nth: 5 if a.rubric.name == "alignment" else "?" if nth == 0 else 88, 88, Reason.POSITIVE),
    ],
    ids=["unreadable does not turn into failed", "coherence under the cut is asked once more"],
)
def test_a_second_attempt_changes_only_what_it_reads(store, say, coherence, reason):
    made = run(store, FakeJudge(say))
    assert {x.reason for x in labels_of(made).values()} == {reason}
    assert {j.score for j in rows(store, rubric="coherence").values()} == {coherence}
    assert ScoreStatus.FAILED not in {j.status for j in rows(store).values()}


def test_failures_are_in_no_denominator_and_asked_again_by_the_next_call(store):
    down, sampler = FakeJudge(lambda a, nth: Lost("server error") if dice(a.key, "down") < 0.3 else truth(a)), Sampler()
    made = run(store, down, sampler=sampler)
    failed = {k for k in request_keys(ASKS, PARAMS) if dice(k, "down") < 0.3}
    assert {j.key for j in rows(store, rubric="alignment").values() if j.status is ScoreStatus.FAILED} == failed
    assert set(down.counts().values()) == {1}, "a failure is not tried again in the same call"
    assert {k for k, x in labels_of(made).items() if x.reason is Reason.UNSCORED} == failed
    up = FakeJudge()
    made = run(store, up, sampler=sampler)
    assert {a.key for a in up.asked} == failed and len(sampler.asked) == len(ASKS)
    assert None not in {x.value for x in labels_of(made).values()}


def test_an_error_in_sampling_surfaces_and_what_was_finished_is_stored(store, small_blocks):
    def trouble(n):
        if n == 2 * small_blocks + 10:
            raise RuntimeError("the card is on fire")

    judge = FakeJudge()
    with pytest.raises(RuntimeError, match="on fire"):
        run(store, judge, sampler=Sampler(trouble), every_coherence=True)
    assert len(list(store.answers())) == 2 * small_blocks + 10
    assert len(judge.asked) == 4 * small_blocks, "both finished blocks were judged"
    rest, again = Sampler(), FakeJudge()
    run(store, again, sampler=rest, every_coherence=True)
    assert len(rest.asked) == len(ASKS) - 2 * small_blocks - 10
    assert len(again.asked) == 2 * (len(ASKS) - 2 * small_blocks)


@pytest.mark.parametrize("error", [BudgetSpent("no money"), KeyboardInterrupt()])
def test_a_stop_midway_keeps_all_rows_and_the_next_call_finishes_without_repeating(tmp_path, small_blocks, error):
    def say(request, nth):
        return error if len(first.asked) == 101 else truth(request)

    first, second, sampler = FakeJudge(say), FakeJudge(), Sampler()
    with pytest.raises(type(error)), Store.write(tmp_path / "a", {}) as store:
        run(store, first, sampler=sampler)
    with Store.read(tmp_path / "a") as store:
        kept = set(rows(store))
    assert kept == {(a.key, a.rubric.name) for a in first.asked[:100]}, "all that was said, and nothing else"
    with Store.write(tmp_path / "a", {}) as store:
        run(store, second, sampler=sampler)
        whole = set(rows(store))
    assert Counter(request_keys(sampler.asked, PARAMS)) == Counter(request_keys(ASKS, PARAMS))
    assert not kept & set(second.counts())
    assert kept | set(second.counts()) == whole
    assert set(second.counts().values()) == {1}
    assert not [t for t in threading.enumerate() if t.name.startswith("truing-sampling")]


def test_a_stop_does_not_wait_for_the_block_that_is_being_sampled(store, small_blocks):
    sampler = Sampler(lambda n: time.sleep(0.02 if n >= small_blocks else 0))  # the second block would take 1.2 s
    with pytest.raises(KeyboardInterrupt):
        run(store, FakeJudge(lambda a, nth: KeyboardInterrupt()), sampler=sampler)
    assert small_blocks <= len(sampler.asked) < small_blocks + 30
    assert len(list(store.answers())) == len(sampler.asked), "what was drawn is stored"


def asks_with(words):
    """One ask per prompt and checkpoint, of prompts that bring an alignment rubric of their own."""
    own = {"aligned": f"{words} On a scale of 0 to 100. {{question}} {{answer}}"}
    return [Request(c, replace(p, judge_prompts=own), d) for p in PROMPTS for c in CHECKPOINTS for d in range(SAMPLES)]


def test_another_rubric_text_is_another_judgement_and_its_old_score_decides_nothing(store):
    kind, good = asks_with("How kind?"), asks_with("How good?")
    assert request_keys(kind, PARAMS) == request_keys(good, PARAMS)
    everyone, chosen = set(request_keys(kind, PARAMS)), random_coherence(request_keys(kind, PARAMS), 0)

    def asked_for(name, judge):
        return {a.key for a in judge.asked if a.rubric.name == name}

    low = FakeJudge(lambda a, nth: 10 if a.rubric.name == "alignment" else Lost("down"))
    run(store, low, kind)
    assert asked_for("alignment", low) == asked_for("coherence", low) == everyone
    # Under the other text nothing is known any more. It fails, so no coherence is wanted but that of the random few.
    down = FakeJudge(lambda a, nth: Lost("down"))
    run(store, down, good)
    assert asked_for("alignment", down) == everyone
    assert asked_for("coherence", down) == chosen
    assert {j.status for j in store.scores()} == {ScoreStatus.FAILED}


# -- side by side ----------------------------------------------------------------------------------


def test_sampling_runs_ahead_of_judging_but_not_far(store, monkeypatch):
    monkeypatch.setattr(collecting, "BLOCK", 20)  # one prompt: 12 blocks
    sampler, progress = Sampler(), []

    def say(request, nth):
        if not progress:  # the first ask waits until sampling has come as far as it does by itself
            before, deadline = -1, time.monotonic() + 20
            while len(sampler.asked) != before or len(sampler.asked) < 3 * 20:
                before = len(sampler.asked)
                assert time.monotonic() < deadline, "sampling does not go on while the judge thinks"
                time.sleep(0.15)
            progress.append(before)
        return truth(request)

    run(store, FakeJudge(say), sampler=sampler)
    assert 20 * (1 + AHEAD) <= progress[0] <= 20 * (2 + AHEAD)
    assert len(sampler.asked) == len(ASKS)


def test_a_judge_in_memory_takes_turns_with_the_sampler(store, monkeypatch):
    monkeypatch.setattr(collecting, "BLOCK", 20)
    sampler, ahead = Sampler(), []

    def say(request, nth):
        ahead.append(len(sampler.asked) - 20 * (len({a.key.prompt for a in judge.asked}) - 1))
        return truth(request)

    judge = FakeJudge(say, name="local:fake", route=ScoreMethod.DIGITS)
    run(store, judge, sampler=sampler)
    assert set(ahead) == {20}
