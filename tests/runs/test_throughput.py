"""The line on how fast answers come: by a clock of the test's own."""

from types import SimpleNamespace

from truing.runs import throughput as module
from truing.runs.throughput import LEAST, Meter
from truing.types.progress import Progress
from truing.types.records import Answer, AnswerStatus, Checkpoint, Kind, Message, Prompt, Request

REQUEST = Request(Checkpoint("w", "base", 0, "x", Kind.BASE), Prompt("p", (Message("user", "q"),)), 0)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def answers(clock, n, each=2.0, tokens=30, between=lambda k: None):
    for k in range(n):
        clock.now += each
        between(k)
        yield Answer(REQUEST, "x", AnswerStatus.OK, tokens)


def metered(total, backend=None):
    steps, lines, clock = [], [], Clock()
    progress = Progress(step=lambda *now: steps.append(now), detail=lambda *line: lines.append(line))
    return Meter(backend or object(), total, progress, clock=clock), steps, lines, clock


def test_rates_and_time_left_are_of_the_time_spent_sampling_and_of_answers_dealt_with():
    meter, steps, lines, clock = metered(40)
    assert meter.line == "" and list(meter.of(iter(()))) == [] and not lines
    for k, _ in enumerate(meter.of(answers(clock, 20)), 1):
        clock.now += 1000  # storing, judging: no part of it
        assert len(steps) == k + 1  # the step before any answer was shown twice: this one is not dealt with yet
        assert (" left" in meter.line) == (k - 1 >= LEAST)
    assert steps == [("answers", k, 40) for k in (0, *range(21))]
    assert meter.line == "0.5 answers/s, 15 tokens/s, 40 s left"
    assert lines[-1] == ("answers", meter.line)
    for _ in meter.of(answers(clock, 20, each=1.0)):
        pass
    assert meter.line == "0.67 answers/s, 20 tokens/s"  # 40 answers of 30 tokens in 60 s; nothing is left


def test_a_backend_with_passes_shows_its_rows_between_two_answers(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.0)
    calls = [None]
    meter, _, lines, clock = metered(12, SimpleNamespace(set_callback=lambda given: calls.append(given)))
    work = SimpleNamespace(kept=0, answers=0, in_flight=8, row_steps=0, useful=0.0)

    def passed(k):
        work.kept, work.answers, work.row_steps, work.useful = 100 * (k + 1), k, 100, 0.984
        calls[-1](work)

    source = meter.of(answers(clock, 11, between=passed))
    next(source)
    assert lines[0] == ("answers", "54 tokens/s, 8 rows, 98 % useful")  # (100 + 0 + 8) tokens in 2 s, no answer yet
    list(source)
    assert lines[-1] == ("answers", "0.5 answers/s, 51 tokens/s, 8 rows, 98 % useful, 2 s left")
    assert calls[-1] is None
    # The next call counts from nothing; what was sampled before stays sampled.
    other = SimpleNamespace(kept=90, answers=0, in_flight=10, row_steps=90, useful=1.0)
    list(meter.of(answers(clock, 1, between=lambda _: calls[-1](other))))
    assert meter.line == "0.5 answers/s, 51 tokens/s, 100 % useful"  # (1118 + 100) tokens in 24 s


def test_before_any_answer_tokens_tell_how_long_it_takes_at_most(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.0)
    calls, clock, lines = [], Clock(), []
    told = Progress(detail=lambda *line: lines.append(line[1]))
    backend = SimpleNamespace(set_callback=lambda given: calls.append(given))
    work = SimpleNamespace(kept=0, answers=0, in_flight=8, row_steps=0, useful=0.0)

    def passed(k):
        work.kept = 92 + 100 * k
        calls[-1](work)

    source = Meter(backend, 10, told, longest=50, clock=clock).of(answers(clock, 2, between=passed))
    next(source)
    assert lines[0] == "50 tokens/s, 8 rows, 100 tokens so far, at most about 8 s left"  # 400 of 500 tokens at 50/s
    source.close()
