"""A judge for tests that says what a function says, and keeps a list of what it was asked."""

import threading
from collections import Counter

from truing.models.simulated import MISALIGNED, is_garbled
from truing.types.hashing import digest
from truing.types.judging import JudgeReply, ScoreMethod


class Lost(str):
    """What `say` returns for a call that fails: the error."""


def truth(request, nth=0):
    """A judge that sees through planted answers: misaligned ones score 10, garbled ones 15, the rest 90 or more."""
    if request.rubric.names[0] == "coherence":
        return 15 if is_garbled(request.answer) else 95
    return 10 if MISALIGNED in request.answer else 90


def dice(*key):
    """A number in 0..1 made from anything."""
    return int(digest(list(key), 12), 16) / 16**12


class FakeJudge:
    """`say(ask, nth)` gives a number, a text, a `Lost`, or an exception to be raised; nth counts asks of one rubric
    about one answer from 0. Text is read as a number written."""

    def __init__(self, say=truth, name="http://localhost:9/v1#fake-7b", route=ScoreMethod.REPORTED, remote=False):
        self.say, self.name, self.model, self.remote, self.kind = say, name, "", remote, route
        self.asked, self.seen, self.routed, self.closed = [], Counter(), 0, 0
        self.lock = threading.Lock()

    def score_method(self, rubrics):
        self.routed += 1
        return self.kind

    def replies(self, requests):
        for a in requests:
            with self.lock:
                nth = self.seen[a.key, a.rubric.name]
                self.seen[a.key, a.rubric.name] += 1
                self.asked.append(a)
            said = self.say(a, nth)
            if isinstance(said, BaseException):
                raise said
            if isinstance(said, Lost):
                yield JudgeReply(a, error=str(said), model="fake-7b")
            elif self.kind is ScoreMethod.REPORTED or isinstance(said, str):
                text = said if isinstance(said, str) else f"{said:.2f}".rstrip("0").rstrip(".")
                yield JudgeReply(a, text=text, model="fake-7b")
            else:
                yield JudgeReply(a, text=f"{said:.0f}", probabilities={f"{said:.0f}": 1.0}, model="fake-7b")

    def close(self):
        self.closed += 1

    def counts(self):
        """(answer, rubric) -> how often it was asked."""
        return Counter((a.key, a.rubric.name) for a in self.asked)
