"""How fast answers come and how long the rest will take, in one line: counted where they pass.

    backend.sample(requests, params) -> Meter.of -> "3.1 answers/s, 142 tokens/s, 96 rows, 98 % useful, 38 s left"

Close what `of` gives: a backend then stops sampling where the loop over its answers is left, and not some time later.
"""

import time
from collections.abc import Callable, Generator, Iterator

from truing.models.base import Backend, set_callback
from truing.models.engine.requests import Throughput
from truing.types.progress import Progress, duration
from truing.types.records import Answer

LEAST = 10  # answers from which on the time left is shown
BEAT = 0.2  # seconds between two lines at least while no answer comes


class Meter:
    """Answers as they are sampled, over one or several calls of a backend. Time spent elsewhere does not count.

    Args:
        backend: gives the answers; one that generates in batches also shows its throughput between two answers.
        total: answers wanted over all calls.
        longest: most tokens of an answer, which bounds the time left while few answers are there; 0 for no bound.
        progress: called before the first answer and after every one, and with the throughput as answers are sampled.
        stage: what is sampled.
        clock: seconds.
    """

    def __init__(
        self, backend: Backend, total: int, progress: Progress, *, longest: int = 0,
        stage: str = "answers", clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._backend, self._total, self._progress = backend, total, progress
        self._stage, self._clock, self._longest = stage, clock, longest
        self.done = 0  # answers so far
        self._answered = 0  # tokens of answers that came
        self._sampled = 0  # tokens sampled in calls before the one under way
        self._work: Throughput | None = None
        self._seconds, self._since, self._shown = 0.0, None, float("-inf")

    def of(self, answers: Iterator[Answer]) -> Generator[Answer, None, None]:
        """The same answers, counted and shown as they pass; closed with this."""
        set_callback(self._backend, self._passed if self._progress.detail is not None else None)
        try:
            if self._total and not self.done:
                self._progress.step(self._stage, 0, self._total)
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
                self._progress.step(self._stage, self.done, self._total)
                self._show()
        finally:
            self._stop()
            set_callback(self._backend, None)
            if isinstance(answers, Generator):
                answers.close()

    @property
    def line(self) -> str:
        """What is known so far; empty before anything is.

        Rates are over all the time spent sampling, so the time left is too long while the first answers are sampled.
        """
        work, seconds = self._work, self._seconds + (self._clock() - self._since if self._since is not None else 0.0)
        tokens = self._sampled + _tokens(work) if work is not None else self._answered
        rates = {"answers/s": self.done, "tokens/s": tokens} if seconds > 0 else {}
        parts = [f"{n / seconds:{'.0f' if n / seconds >= 9.95 else '.2g'}} {of}" for of, n in rates.items() if n]
        if work is not None and self.done < self._total:
            parts.append(f"{work.in_flight} rows")
        if work is not None and work.row_steps:
            parts.append(f"{100 * work.useful:.0f} % useful")
        if seconds > 0 and LEAST <= self.done < self._total:
            parts.append(f"{duration((self._total - self.done) * seconds / self.done)} left")
        elif seconds > 0 and tokens and self._longest and self.done < self._total:
            # Before that it is known only how fast tokens come, and how many an answer has at most.
            most = max(0, self._total * self._longest - tokens) * seconds / tokens
            parts += [f"{tokens:,} tokens so far", f"at most about {duration(most)} left"]
        return ", ".join(parts)

    def _passed(self, work: Throughput) -> None:
        if self._work is not None and work is not self._work:
            self._sampled += _tokens(self._work)
        self._work = work
        if self._clock() - self._shown >= BEAT:
            self._show()

    def _show(self) -> None:
        self._shown = self._clock()
        if self._progress.detail is not None and (line := self.line):
            self._progress.detail(self._stage, line)

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds, self._since = self._seconds + self._clock() - self._since, None


def _tokens(work: Throughput) -> int:
    """Tokens sampled: the first of an answer comes from its prompt's pass, the others are row-steps."""
    return work.kept + work.answers + work.in_flight
