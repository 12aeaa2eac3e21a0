"""Many requests at once for a caller without an event loop: a bounded stream of results.

The loop runs in a thread of its own for as long as the stream, so that it works inside a notebook, whose loop is busy.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_STOP_SECONDS = 5.0  # that stopping may take before the thread, a daemon, is left to itself


class Stream(Generic[T, R]):
    """One pass of items through `work`, at most `n` at once; iterate over it once.

    Items are pulled in the caller's thread, at most 2 n ahead of what was consumed. `work` gives a result, or None
    where an item is given up; it may call `halt`. Results come in order of completion. An error of `items` is raised
    after the results of all that came before it, one handed to `halt` after what is on the wire. Closing the iterator
    cancels everything. `opening` is entered in the loop meanwhile, and gives `opened`.
    """

    def __init__(
        self,
        opening: AbstractAsyncContextManager[Any],
        items: Iterable[T],
        work: "Callable[[T, Stream[T, R]], Awaitable[R | None]]",
        n: int,
    ) -> None:
        self.opened: Any = None
        self.halted: Exception | None = None  # why nothing more is started
        self.sending: set[asyncio.Task[Any] | None] = set()
        """tasks with a request on the wire, which `halt` waits for; kept by `work`"""
        self._opening, self._items, self._work, self._n = opening, items, work, n
        self._slots = asyncio.Semaphore(n)
        self._tasks: set[asyncio.Task[Any] | None] = set()

    def __iter__(self) -> Iterator[R]:
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        loop, end = runner.get_loop(), asyncio.Event()

        def serve() -> None:
            with runner:
                runner.run(self._until(end))

        thread = threading.Thread(target=serve, name="truing-endpoint", daemon=True)
        thread.start()
        try:
            yield from self._results(loop)
        finally:
            with suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(end.set)
            if threading.current_thread() is not thread:  # else collected by accident of timing inside the loop
                thread.join(_STOP_SECONDS)
        if self.halted:
            raise self.halted

    def halt(self, error: Exception) -> None:
        """Start nothing more, let what is on the wire arrive, then raise `error`; the first one counts. In the loop."""
        self.halted = self.halted or error
        for task in self._tasks - self.sending - {asyncio.current_task()}:
            if task is not None:
                task.cancel()

    def _results(self, loop: asyncio.AbstractEventLoop) -> Iterator[R]:
        source: Iterator[T] | None = iter(self._items)
        broken: Exception | None = None
        waiting = 0  # items pulled whose results were not consumed
        done: SimpleQueue[Future[R | None]] = SimpleQueue()
        while source is not None or waiting:
            if source is not None and self.halted is None and waiting < 2 * self._n:
                try:
                    item = next(source)
                    asyncio.run_coroutine_threadsafe(self._one(item), loop).add_done_callback(done.put)
                    waiting += 1
                except StopIteration:
                    source = None
                except Exception as e:  # raised below, after the results of what came before
                    source, broken = None, e
                if done.empty():
                    continue
            elif not waiting:
                break
            future = done.get()
            waiting -= 1
            result = None if future.cancelled() else future.result()
            if result is not None:
                yield result
        if broken and not self.halted:
            raise broken

    async def _one(self, item: T) -> R | None:
        self._tasks.add(asyncio.current_task())
        try:
            async with self._slots:
                return None if self.halted else await self._work(item, self)
        finally:
            self._tasks.discard(asyncio.current_task())

    async def _until(self, end: asyncio.Event) -> None:
        async with self._opening as self.opened:
            await end.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
