"""How fast answers come and how long the rest will take, in one line: counted where they pass, told while they do.

    backend.sample(requests, params) -> Meter.of -> "3.1 answers/s, 142 tokens/s, 96 rows, 98 % useful, 38 s left"

Close what `of` gives: a backend then stops drawing where the loop over its answers is left, and not some time later.
"""

import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from truing.models.base import Backend, set_callback
from truing.types.progress import Progress
from truing.types.records import Answer

if TYPE_CHECKING:
    from truing.models.engine.requests import Throughput

LEAST = 10
"""answers from which the time left is said"""
BEAT = 0.2
"""seconds between two lines at least while no answer comes"""


class Meter:
    """Answers as they are drawn, over one or several calls of a backend. Time spent elsewhere does not count.

    Args:
        backend: gives the answers; one that draws side by side also tells how between two answers.
        total: answers wanted over all calls.
        progress: told before the first answer and after every one, and the throughput as answers are sampled.
        stage: what is sampled.
        clock: seconds.
    """

    def __init__(
        self,
        backend: Backend,
        total: int,
        progress: Progress,
        *,
        stage: str = "answers",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend, self._total, self._stage = backend, total, stage
        self._tell, self._detail, self._clock = progress.step, progress.detail, clock
        self.done = 0
        """answers so far"""
        self._answered = 0  # tokens of answers that came
        self._sampled = 0  # tokens drawn in sessions before the one under way
        self._work: Throughput | None = None
        self._seconds, self._since, self._said = 0.0, None, float("-inf")

    def of(self, answers: Iterator[Answer]) -> Generator[Answer, None, None]:
        """The same responses, counted and told as they pass; closed with this."""
        set_callback(self._backend, self._passed if self._detail is not None else None)
        try:
            if self._total and not self.done:
                self._tell(self._stage, 0, self._total)
            while True:
                self._since = self._clock()
                answer = next(answers, None)
                self._stop()
                if answer is None:
                    return
                yield answer
                # Only now is it stored: whoever interrupts from here on loses nothing.
                self.done += 1
                self._answered += answer.tokens
                self._tell(self._stage, self.done, self._total)
                self._say()
        finally:
            self._stop()
            set_callback(self._backend, None)
            if isinstance(answers, Generator):
                answers.close()

    @property
    def line(self) -> str:
        """What is known of the pace; empty before anything is.

        Rates are over all the time spent drawing, so the time left is too long while the first answers are drawn.
        """
        seconds = self._seconds + (self._clock() - self._since if self._since is not None else 0.0)
        tokens = self._sampled + _tokens(self._work) if self._work is not None else self._answered
        parts = []
        if seconds > 0 and self.done:
            parts.append(f"{_brief(self.done / seconds)} answers/s")
        if seconds > 0 and tokens:
            parts.append(f"{_brief(tokens / seconds)} tokens/s")
        if self._work is not None and self.done < self._total:
            parts.append(f"{self._work.in_flight} rows")
        if self._work is not None and self._work.row_steps:
            parts.append(f"{self._work.useful:.0%}".replace("%", " % useful"))
        if seconds > 0 and LEAST <= self.done < self._total:
            parts.append(f"{_duration((self._total - self.done) * seconds / self.done)} left")
        return ", ".join(parts)

    def _passed(self, work: "Throughput") -> None:
        if self._work is not None and work is not self._work:
            self._sampled += _tokens(self._work)
        self._work = work
        if self._clock() - self._said >= BEAT:
            self._say()

    def _say(self) -> None:
        self._said = self._clock()
        if self._detail is not None and (line := self.line):
            self._detail(self._stage, line)

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds, self._since = self._seconds + self._clock() - self._since, None


def _tokens(work: "Throughput") -> int:
    """Tokens drawn: the first of an answer comes from its prompt's pass, the others are row-steps."""
    return work.kept + work.answers + work.in_flight


def _brief(x: float) -> str:
    return f"{x:.0f}" if x >= 9.95 else f"{x:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
