"""Many coroutines at once for a caller without an event loop: a loop in a thread, and a bounded stream of results.

The loop has a thread of its own, so that it works inside a notebook, whose loop is running already.
"""

import asyncio
import socket
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_Cleanup = Callable[[], Coroutine[Any, Any, None]]
_STOP_SECONDS = 5.0  # that stopping may take before the thread, a daemon, is left to itself


class _Loop(asyncio.SelectorEventLoop):
    """Looks up host names in place: an interpreter that ends starts no threads, and may still have to unload."""

    async def getaddrinfo(self, host: Any, port: Any, **kinds: Any) -> Any:
        """As in asyncio."""
        return socket.getaddrinfo(host, port, **kinds)


class LoopThread:
    """An event loop in a daemon thread; closed by `close`, with its owner, or at exit."""

    def __init__(self) -> None:
        self.loop = _Loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="truing-endpoint", daemon=True)
        self.thread.start()
        self.cleanups: list[_Cleanup] = []
        """run in the loop before it stops; must not refer to the owner of this object"""
        self._finalize = weakref.finalize(self, _shut, self.loop, self.thread, self.cleanups)

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine to its end; an interruption cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def inside(self) -> bool:
        """Whether this is the loop's own thread, where nothing may wait for the loop."""
        return threading.current_thread() is self.thread

    def close(self) -> None:
        """Stop the loop; nothing can run in it afterwards."""
        self._finalize()


def _shut(loop: asyncio.AbstractEventLoop, thread: threading.Thread, cleanups: list[_Cleanup]) -> None:
    if threading.current_thread() is thread:  # collected by accident of timing inside the loop
        loop.stop()
        return
    with suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(_finish(cleanups), loop).result(_STOP_SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_STOP_SECONDS)
    if not loop.is_running():
        loop.close()


async def _finish(cleanups: list[_Cleanup]) -> None:
    await _cancel(asyncio.all_tasks() - {asyncio.current_task()})
    for cleanup in cleanups:  # what cannot be closed must not keep the rest open
        await asyncio.gather(cleanup(), return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.get_running_loop().shutdown_default_executor()


async def _cancel(tasks: Iterable["asyncio.Task[Any] | None"]) -> None:
    found = [t for t in tasks if t is not None and t.cancel()]
    await asyncio.gather(*found, return_exceptions=True)


class Stream(Generic[T, R]):
    """One pass of items through `work`, many at a time; iterate over it once.

    At most `n` items are worked on at once; they are pulled in the caller's thread, at most 2 n ahead of what was
    consumed. `work` gives a result, or None where an item is given up; it may call `halt`.

    Results come in order of completion. An error of `items` is raised after the results of all that came before it; an
    error of `work`, or one handed to `halt`, after what is on the wire. Closing the iterator cancels everything.
    """

    def __init__(
        self, host: LoopThread, items: Iterable[T], work: "Callable[[T, Stream[T, R]], Awaitable[R | None]]", n: int
    ) -> None:
        self.halted: Exception | None = None  # why nothing more is started
        self.sending: set[asyncio.Task[Any] | None] = set()
        """tasks with a request on the wire, which `halt` waits for; kept by `work`"""
        self.closed = False  # nobody listens any more
        self._host, self._items, self._work, self._ahead = host, items, work, 2 * n
        self._slots = asyncio.Semaphore(n)
        self._tasks: set[asyncio.Task[R | None]] = set()
        self._out: SimpleQueue[R | None] = SimpleQueue()

    def __iter__(self) -> Iterator[R]:
        source: Iterator[T] | None = iter(self._items)
        broken: Exception | None = None
        waiting = 0  # items pulled whose results were not consumed
        try:
            while True:
                if source is not None and self.halted is None and waiting < self._ahead:
                    try:
                        item = next(source)
                    except StopIteration:
                        source = None
                    except Exception as e:  # raised below, after the results of what came before
                        source, broken = None, e
                    else:
                        self._host.loop.call_soon_threadsafe(self._start, item)
                        waiting += 1
                    if self._out.empty():
                        continue
                elif not waiting:
                    break
                result = self._out.get()
                waiting -= 1
                if result is not None:
                    yield result
        finally:
            self._stop()
        if error := self.halted or broken:
            raise error

    def halt(self, error: Exception) -> None:
        """Start nothing more, let what is on the wire arrive, then raise `error`; the first one counts. In the loop."""
        self.halted = self.halted or error
        for task in self._tasks - self.sending - {asyncio.current_task()}:
            task.cancel()

    def _start(self, item: T) -> None:
        task = self._host.loop.create_task(self._one(item))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def _one(self, item: T) -> R | None:
        async with self._slots:
            return None if self.halted else await self._work(item, self)

    def _finished(self, task: "asyncio.Task[R | None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.halt(error)
        self._out.put(None if task.cancelled() or error else task.result())

    def _stop(self) -> None:
        self.closed = True
        if self._host.loop.is_closed():
            return
        future = asyncio.run_coroutine_threadsafe(_cancel(self._tasks), self._host.loop)
        if not self._host.inside:
            with suppress(TimeoutError):
                future.result(_STOP_SECONDS)
