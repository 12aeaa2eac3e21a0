"""The line on how fast answers come: by a clock of the test's own."""

from types import SimpleNamespace

from truing.runs import throughput as module
from truing.runs.throughput import LEAST, Meter
from truing.types.progress import Progress
from truing.types.records import Answer, AnswerStatus, Checkpoint, Kind, Message, Prompt, Request

ASK = Request(Checkpoint("w", "base", 0, "x", Kind.BASE), Prompt("p", (Message("user", "q"),)), 0)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def answers(clock, n, each=2.0, tokens=30, between=lambda k: None):
    for k in range(n):
        clock.now += each
        between(k)
        yield Answer(ASK, "x", AnswerStatus.OK, tokens)


def paced(total, backend=None, **given):
    told, said, clock = [], [], Clock()
    given.setdefault("detail", lambda *line: said.append(line))
    made = Meter(
        backend or object(), total, Progress(step=lambda *now: told.append(now), **given), stage="answers", clock=clock
    )
    return made, told, said, clock


def test_rates_and_time_left_are_of_the_time_spent_drawing():
    made, told, said, clock = paced(40)
    for k, _ in enumerate(made.of(answers(clock, 20)), 1):
        clock.now += 1000  # storing, judging: no part of it
        assert (" left" in made.line) == (k - 1 >= LEAST)
    assert told == [("answers", k, 40) for k in range(21)]
    assert made.line == "0.5 answers/s, 15 tokens/s, 40 s left"
    assert said[-1] == ("answers", made.line)
    for _ in made.of(answers(clock, 20, each=1.0)):
        pass
    assert made.line == "0.67 answers/s, 20 tokens/s"  # 40 answers of 30 tokens in 60 s; nothing is left


def test_nothing_is_said_before_anything_is_known():
    made, told, said, _ = paced(0)
    assert made.line == ""
    assert list(made.of(iter(()))) == [] and not told and not said


def test_a_backend_with_passes_tells_of_its_rows_between_two_answers(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.0)
    calls = [None]
    made, _, said, clock = paced(12, SimpleNamespace(set_callback=lambda given: calls.append(given)))
    work = SimpleNamespace(kept=0, answers=0, in_flight=8, row_steps=0, useful=0.0)

    def passed(k):
        work.kept, work.answers, work.row_steps, work.useful = 100 * (k + 1), k, 100, 0.984
        calls[-1](work)

    source = made.of(answers(clock, 11, between=passed))
    next(source)
    assert said[0] == ("answers", "54 tokens/s, 8 rows, 98 % useful")  # (100 + 0 + 8) tokens in 2 s, no answer yet
    list(source)
    assert said[-1] == ("answers", "0.5 answers/s, 51 tokens/s, 8 rows, 98 % useful, 2 s left")
    assert calls[-1] is None
    # The next session counts from nothing; what was drawn before stays drawn.
    other = SimpleNamespace(kept=90, answers=0, in_flight=10, row_steps=90, useful=1.0)
    list(made.of(answers(clock, 1, between=lambda _: calls[-1](other))))
    assert made.line == "0.5 answers/s, 51 tokens/s, 100 % useful"  # (1118 + 100) tokens in 24 s


def test_an_answer_is_counted_only_once_it_has_been_dealt_with():
    made, told, _, clock = paced(3)
    kept = []
    for r in made.of(answers(clock, 3)):
        assert len(told) == len(kept) + 1
        kept.append(r)
    assert len(told) == 4
