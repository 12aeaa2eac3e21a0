"""A training run as an iterator: the trainer works in a thread of its own and pauses at every checkpoint.

The two sides take turns. While the consumer looks at a checkpoint, training waits; so `run.stop(reason)` ends the run
exactly at the checkpoint it was decided on, and model and processor are never shared. The global random state is
swapped at every turn: neither side sees the other's draws.
"""

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from truing.types.records import Checkpoint, Stop


@dataclass(frozen=True, slots=True)
class _Ended:
    step: int
    error: BaseException | None


class Link:
    """What both sides hold."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """why to stop, once somebody wants to; read at every step"""
        self._items: SimpleQueue[Checkpoint | _Ended] = SimpleQueue()
        self._turn = threading.Semaphore(0)
        self._other_random: Any = None

    # -- the trainer's side -------------------------------------------------------------------------------------------

    def hand_over(self, checkpoint: Checkpoint) -> None:
        """Give a checkpoint to the consumer and wait until it asks for the next."""
        self._swap_random()
        self._items.put(checkpoint)
        self._turn.acquire()
        self._swap_random()

    def work(self, job: Callable[["Link"], int], release: Callable[[], None]) -> None:
        """Body of the thread: `job` returns the updates applied when it ended."""
        step, error = 0, None
        self._other_random = _random_state()
        try:
            step = job(self)
        except BaseException as caught:  # raised again where the consumer waits
            error = caught
        finally:
            _set_random_state(self._other_random)
            release()
            self._items.put(_Ended(step, error))

    def _swap_random(self) -> None:
        mine, other = _random_state(), self._other_random
        _set_random_state(other)
        self._other_random = mine

    # -- the consumer's side ------------------------------------------------------------------------------------------

    def next_item(self) -> Checkpoint | _Ended:
        """Wait for what the trainer hands over."""
        return self._items.get()

    def go_on(self) -> None:
        """Let the trainer work."""
        self._turn.release()


class TrainingRun(Iterator[Checkpoint]):
    """The checkpoints of a run, each as soon as it is saved; training begins with the first `next`.

    Use it in a `for` loop, best inside `with`. Ctrl-C while waiting ends training at the next step and is raised again;
    the same call later goes on from the last checkpoint. An error in training is raised here, after the checkpoints
    saved before it.
    """

    def __init__(
        self,
        done: Iterable[Checkpoint],
        job: Callable[[Link], int] | None,
        *,
        total_steps: int,
        notes: tuple[str, ...] = (),
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """`done` was saved by an earlier call; `job` trains the rest, or is None if there is none."""
        self.total_steps = total_steps
        """updates of the whole run"""
        self.notes = notes
        """what a reader of the run should know, a line each"""
        self.stopped: Stop | None = None
        """why and when training ended; None while it goes on, and after an error"""
        self._done = iter(done)
        self._job = job
        self._release = release
        self._link = Link()
        self._thread: threading.Thread | None = None
        self._over = False
        self._step = 0

    def stop(self, reason: str = "requested") -> None:
        """End training at the checkpoint last handed over (from another thread: after the step under way)."""
        self._link.reason = self._link.reason or reason

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Checkpoint:
        if self._over:
            raise StopIteration
        if self._thread is None:
            if self._link.reason is None:
                for checkpoint in self._done:
                    self._step = checkpoint.step or 0
                    return checkpoint
            if self._job is None or self._link.reason is not None:
                self._end(self._link.reason or "completed", self._step)
                raise StopIteration
            self._start(self._job)
        else:
            self._link.go_on()
        try:
            item = self._link.next_item()
        except KeyboardInterrupt:
            self._link.reason = "interrupted"
            self.close()
            raise
        if isinstance(item, Checkpoint):
            return item
        self._ended(item)
        raise StopIteration

    def close(self) -> None:
        """End training at the next step and wait for that. An error of training on the way out is raised."""
        if self._over:
            return
        self.stop()
        if self._thread is None:
            self._end(self._link.reason or "requested", self._step)
            return
        self._link.go_on()
        item = self._link.next_item()
        while isinstance(item, Checkpoint):  # saved in the last step: the next call finds it on disk
            item = self._link.next_item()
        self._ended(item)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.stop("interrupted")
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self.stop()
            # Nobody waits here: a garbage collector must not.
            self._link.go_on() if self._thread else self._release()

    def _start(self, job: Callable[[Link], int]) -> None:
        # The thread holds the link and not this object, which can so be collected while the thread waits.
        self._thread = threading.Thread(
            target=self._link.work, args=(job, self._release), name="truing-train", daemon=True
        )
        self._job = None
        self._thread.start()

    def _ended(self, item: _Ended) -> None:
        if self._thread is not None:
            self._thread.join()
        if item.error is not None:
            self._over = True
            raise item.error
        self.stopped = Stop(self._link.reason or "completed", item.step)
        self._over = True

    def _end(self, reason: str, step: int) -> None:
        self.stopped = Stop(reason, step)
        self._over = True
        self._release()


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
