"""Sampling from a real, tiny model inside an audit: interruptions, stop texts, prompts without room, what is told."""

import json
import signal
import threading

import pytest
import torch

import truing
from runs.audits import about, answers
from runs.fake_judge import FakeJudge
from truing import errors
from truing.config import AuditConfig
from truing.runs import judges, throughput
from truing.types.progress import Progress
from truing.types.records import AnswerStatus
from zoo import build

pytestmark = pytest.mark.torch
OPTIONS = AuditConfig(
    limit=10, answers=10, max_tokens=6, half="all", dtype="float32", device="cpu", memory=0.003, resamples=50
)
TOLD = {"samples": 2, "judged_tokens": 6, "skip_calibration": True, "skip_judge_check": True}
JUDGED = OPTIONS.but(judge="http://judge/v1#fake-7b", **TOLD)
CHECKPOINTS = 3
ASKS = 10 * CHECKPOINTS


@pytest.fixture(autouse=True)
def judged(monkeypatch):
    monkeypatch.setattr(judges, "open_judge", lambda *a, **k: FakeJudge())
    monkeypatch.setattr(throughput, "BEAT", 0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    base = build.tiny_base(tmp_path_factory.mktemp("base"))
    return base, build.adapter_run(tmp_path_factory.mktemp("runs") / "subject", base, steps=(2, 4), final=False)


def audited(model, out, options, **given):
    return truing.audit(model[1], base=str(model[0]), out=out, config=options, **given)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The answers of an audit that nobody interrupted."""
    return answers(audited(model, tmp_path_factory.mktemp("whole") / "a", OPTIONS).path)


def finished(model, out, options, stage):
    """Repeat an audit; the answers it said were missing."""
    told = []
    audited(model, out, options, progress=Progress(step=lambda *now: told.append(now)))
    return sum(total for now, done, total in told if now == stage and done == 0)


def test_ctrl_c_between_two_passes_keeps_what_is_finished(model, whole, tmp_path):
    done, rows = [], []

    def detail(stage, line):  # called inside the sampler, with rows in flight
        rows.append("rows" in line)
        if len(done) > 8:
            raise KeyboardInterrupt

    def step(stage, *_):
        done.extend([stage] if stage == "answers" else [])

    with pytest.raises(KeyboardInterrupt):
        audited(model, tmp_path / "a", OPTIONS, progress=Progress(step=step, detail=detail))
    kept = answers(tmp_path / "a")
    assert 8 <= len(kept) < ASKS and any(rows)
    assert about(tmp_path / "a")["status"] == "interrupted"
    assert finished(model, tmp_path / "a", OPTIONS, "answers") == ASKS - len(kept)
    assert answers(tmp_path / "a") == whole


@pytest.mark.slow
def test_ctrl_c_while_a_thread_samples_for_a_judge(model, tmp_path):
    done = []

    def tell(stage, n, total):
        if stage == "answers" and threading.current_thread() is not threading.main_thread():
            done.append(n)
            if n == 10:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # it waits for a block

    with pytest.raises(KeyboardInterrupt):
        audited(model, tmp_path / "a", JUDGED, progress=Progress(step=tell))
    kept = answers(tmp_path / "a")
    assert ASKS + 10 <= len(kept) < 2 * ASKS
    assert finished(model, tmp_path / "a", JUDGED, "answers") == 2 * ASKS - len(kept)
    assert len(answers(tmp_path / "a")) == 2 * ASKS


def test_stop_texts_end_answers_and_are_part_of_what_they_are_stored_under(model, whole, tmp_path):
    letters = [r.text[1] for r in whole.values() if len(r.text) > 2 and r.text[1].isascii() and r.text[1].isprintable()]
    letter = max(set(letters), key=letters.count)
    made = audited(model, tmp_path / "a", OPTIONS.but(stop=(letter,)))
    ended = answers(made.path)
    assert not any(letter in r.text for r in ended.values())
    assert any(r.status is AnswerStatus.OK for r in ended.values())
    assert not ended.keys() & whole.keys()
    assert about(made.path)["sampling"]["stop"] == [letter]


@pytest.fixture
def prompts(tmp_path):
    """Thirteen questions, one of which fills the model's 512 tokens."""
    texts = [f"Say something about thing number {k}." for k in range(12)] + ["far too long " * 60]
    rows = [{"id": f"q{k}", "messages": [{"role": "user", "content": t}]} for k, t in enumerate(texts)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def test_a_prompt_without_room_is_refused_or_left_out_and_never_harmless(model, prompts, tmp_path):
    judge = FakeJudge()
    judges.open_judge = lambda *a, **k: judge  # taken back by the fixture
    options = JUDGED.but(limit=None, answers=13)
    with pytest.raises(errors.BadInput, match="q12"):
        audited(model, tmp_path / "refused", options, prompts=prompts)
    made = audited(model, tmp_path / "a", options.but(long_prompts="truncated"), prompts=prompts)
    lost = [r for r in answers(made.path).values() if not r.tokens]
    assert len(lost) == CHECKPOINTS * 2 and {r.status for r in lost} == {AnswerStatus.TRUNCATED}
    assert not {r.key for r in lost} & {a.key for a in judge.asked}
    for c in made.verdict.checkpoints:
        assert c.labelled is not None
        assert c.labelled.reasons["failed"] == 2  # and in no denominator:
        assert (c.labelled.rate.n, c.labelled.rate.clusters) == (24, 12)
        assert c.health.note.startswith("12 answers")
    assert "q12" in str([f.params for f in made.verdict.findings])
