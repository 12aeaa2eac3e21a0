"""From any iterable, through a coroutine, to any loop: bounded on all sides, and stopped at once when nobody listens.

    items --(feeder thread)--> at most `concurrency` tasks in a private event loop --(queue)--> whoever iterates

The loop runs in a thread of its own, so that it works inside a notebook, whose own loop is running already.
"""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END = object()
_PATIENCE = 5.0
"""seconds that stopping may take before a thread is left to itself (they are all daemons)"""


class _Lookups(ThreadPoolExecutor):
    """Looks up host names, which asyncio leaves to threads. An interpreter that ends starts none: then in place.

    What is sent last (unloading what a server holds for us) would otherwise fail wherever a new connection is needed.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As ThreadPoolExecutor, but never refused."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            done: Future[Any] = Future()
            try:
                done.set_result(fn(*args, **kwargs))
            except Exception as e:  # carried over to whoever waits
                done.set_exception(e)
            return done


class LoopThread:
    """An event loop in a daemon thread; closed by `close`, with its owner, or at exit."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_Lookups())
        self.thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self.thread.start()
        self.cleanups: list[Callable[[], Coroutine[Any, Any, None]]] = []
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
        """Whether this is the loop's own thread."""
        return threading.current_thread() is self.thread

    def close(self) -> None:
        """Stop the loop; nothing can run in it afterwards."""
        self._finalize()


def _shut(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, cleanups: list[Callable[[], Coroutine[Any, Any, None]]]
) -> None:
    if loop.is_closed():
        return
    if threading.current_thread() is thread:  # collected by accident of timing inside the loop
        loop.stop()
        return
    if thread.is_alive():
        try:
            asyncio.run_coroutine_threadsafe(_cancel_all(cleanups), loop).result(_PATIENCE)
        except (TimeoutError, RuntimeError):
            pass
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE)
    if not loop.is_running():
        loop.close()


async def _cancel_all(cleanups: list[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for cleanup in cleanups:  # one after the other; what cannot be closed must not keep the rest open
        await asyncio.gather(cleanup(), return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.get_running_loop().shutdown_default_executor()


class Flow(Generic[T, R]):
    """One pass of items through `work`; iterate over it once.

    Args:
        host: the loop that the work runs in.
        items: pulled in a feeder thread, never further ahead of what was consumed than `ahead`.
        work: gives a result, or None where an item is given up; may call `halt`.
        concurrency: tasks at once.

    Results come in order of completion. An error of `items` is raised after the results of all that came before it; an
    error of `work`, or one handed to `halt`, after what is in flight. Closing the iterator cancels everything at once.
    """

    def __init__(
        self,
        host: LoopThread,
        items: Iterable[T],
        work: "Callable[[T, Flow[T, R]], Awaitable[R | None]]",
        concurrency: int,
    ) -> None:
        self.halted: BaseException | None = None
        self._host, self._items, self._work, self._concurrency = host, items, work, concurrency
        self._slots = threading.Semaphore(2 * concurrency)
        self._closing = False  # tells the feeder to stop pulling
        self._out: SimpleQueue[Any] = SimpleQueue()
        self._waiting: deque[T] = deque()  # from here on touched only in the loop's thread
        self._tasks: set[asyncio.Task[None]] = set()
        self._fed = self._ended = False
        self._broken: BaseException | None = None  # what `items` raised
        self._alarm = asyncio.Event()

    def __iter__(self) -> Iterator[R]:
        feeder = threading.Thread(target=self._feed, name="truing-feeder", daemon=True)
        feeder.start()
        try:
            while (result := self._out.get()) is not _END:
                self._slots.release()
                yield result
        finally:
            self._stop(feeder)
        error = self.halted or self._broken
        if error is not None:
            raise error

    def halt(self, error: BaseException) -> None:
        """Start nothing more; requests in flight may finish, then `error` is raised. The first one counts."""
        if self.halted is None:
            self.halted = error
        self._alarm.set()
        self._waiting.clear()
        self._closing = True
        self._slots.release()

    async def sleep(self, seconds: float) -> bool:
        """Wait, but no longer than until somebody halts; True then."""
        try:
            await asyncio.wait_for(self._alarm.wait(), seconds)
        except TimeoutError:
            return False
        return True

    # -- the feeder's thread ------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        error: BaseException | None = None
        try:
            source = iter(self._items)
            while True:
                self._slots.acquire()
                if self._closing:
                    break
                try:
                    item = next(source)
                except StopIteration:
                    break
                if self._closing:
                    break
                self._post(self._submit, item)
        except BaseException as e:  # carried over to whoever iterates
            error = e
        self._post(self._feeding_ended, error)

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._host.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._closing = True

    # -- the loop's thread --------------------------------------------------------------------------------------------

    def _submit(self, item: T) -> None:
        if not self._closing:
            self._waiting.append(item)
            self._start()

    def _feeding_ended(self, error: BaseException | None) -> None:
        self._fed, self._broken = True, error
        if error is not None and not isinstance(error, Exception):  # an interruption
            self.halt(error)
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self._tasks) < self._concurrency:
            task = self._host.loop.create_task(self._one(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        idle = not self._tasks and not self._waiting
        if idle and not self._ended and (self._fed or self.halted is not None):
            self._ended = True
            self._out.put(_END)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._start()

    async def _one(self, item: T) -> None:
        try:
            result = await self._work(item, self)
        except asyncio.CancelledError:
            raise
        except BaseException as e:  # carried over to whoever iterates
            self.halt(e)
            return
        if result is not None:
            self._out.put(result)
        else:
            self._slots.release()

    async def _cancel(self) -> None:
        self._waiting.clear()
        self._ended = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- the consumer's thread ----------------------------------------------------------------------------------------

    def _stop(self, feeder: threading.Thread) -> None:
        self._closing = True
        self._slots.release()
        if not self._host.loop.is_closed() and self._host.thread.is_alive():
            future = asyncio.run_coroutine_threadsafe(self._cancel(), self._host.loop)
            if not self._host.inside:
                try:
                    future.result(_PATIENCE)
                except TimeoutError:
                    pass
        if feeder is not threading.current_thread():
            feeder.join(0.5)  # it may be deep inside `items`; it ends by itself when that returns
