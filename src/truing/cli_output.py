"""What the command line prints: results as text or JSON on stdout, progress on stderr."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from truing import errors
from truing.store import SCHEMA_VERSION
from truing.types.progress import Progress, duration

COLUMNS = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
DETAIL = TextColumn("{task.fields[detail]}", markup=False)
WIDE = 120
"""columns of a terminal from which there is room for the detail beside its bar"""
QUIET = 4.0
"""seconds without a sign of life, at most"""
RATE_OVER = 600.0
"""seconds over which a stage's rate is measured"""


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **value}, indent=1, ensure_ascii=False, allow_nan=False))


@dataclass(frozen=True, slots=True)
class Result:
    """What a command found: for programs, and for people."""

    found: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    """as one JSON object, or what makes it"""
    show: Callable[[Console], object]
    """prints it"""
    end: Callable[[], object] = lambda: None
    """what is decided once it is printed, e.g. by a gate"""

    def deliver(self, json_out: bool) -> None:
        """Print it, and end."""
        if json_out:
            print_json(self.found() if callable(self.found) else self.found)
        else:
            self.show(Console())
        self.end()


def path_result(name: str, path: object) -> Result:
    """A path as the only result."""
    return Result({name: str(path)}, lambda console: print(path))


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt becomes our error, which says how to go on."""
    try:
        yield
    except KeyboardInterrupt as e:
        text = "interrupted; what was measured is stored, and the same command goes on from there"
        raise errors.Interrupted(text) from e


class Left(ProgressColumn):
    """The time that is left at the rate measured so far."""

    def render(self, task: Task) -> Text:
        """Empty until a rate is known."""
        left = None if task.finished else task.time_remaining
        return Text("" if left is None else f"{duration(left)} left")


class Stages(RichProgress):
    """A bar per stage; its detail beside it, or under all of them where the terminal is narrow.

    Work for which there is no stage is shown as such. Where there is no terminal a line says every `QUIET` seconds how
    the work goes on, and the bars come at the end.
    """

    def __init__(self, console: Console) -> None:
        self._beside, self._terminal = console.width >= WIDE, console.is_terminal
        self._said, self._end = time.monotonic(), threading.Event()
        columns = (*COLUMNS, Left(), *((DETAIL,) if self._beside else ()))
        super().__init__(*columns, console=console, transient=False, speed_estimate_period=RATE_OVER)

    def told(self) -> None:
        """Something was just said of a stage."""
        self._said = time.monotonic()

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bars, and what is to stand under them."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if not self._beside and task.fields["detail"]:
                yield Text(f"{task.description}: {task.fields['detail']}")
        quiet = time.monotonic() - self._said
        if self._terminal and quiet > QUIET / 2 and not self._end.is_set() and self._now() is None:
            yield Text(f"working, {duration(quiet)}")

    def start(self) -> None:
        """As in rich."""
        super().start()
        if not self._terminal:
            threading.Thread(target=self._speak, name="truing-progress", daemon=True).start()

    def stop(self) -> None:
        """As in rich."""
        self._end.set()
        super().stop()

    def line(self) -> str:
        """How the work goes on, in a line."""
        task = self._now()
        if task is None:
            return f"working, {duration(time.monotonic() - self._said)}"
        left = "" if task.time_remaining is None else f"{duration(task.time_remaining)} left"
        count = f"{task.completed:.0f}/{task.total:.0f}" if task.total else ""
        parts = (f"{task.description} {count}".strip(), duration(task.elapsed or 0), task.fields["detail"] or left)
        return ", ".join(part for part in parts if part)

    def _now(self) -> Task | None:
        """The stage under way that was begun last."""
        return next((task for task in reversed(self.tasks) if not task.finished), None)

    def _speak(self) -> None:
        while not self._end.wait(QUIET):
            self.console.print(Text(self.line()), soft_wrap=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr, one per stage, with the time left; lines instead while stderr is no terminal."""
    with interruptible(), Stages(Console(stderr=True)) as bars:
        tasks = dict[str, TaskID]()

        def update(stage: str, total: int | None = None, **what: Any) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, detail="")
            bars.update(tasks[stage], total=total, **what)
            bars.told()

        yield Progress(
            step=lambda stage, done, total: update(stage, total, completed=done),
            detail=lambda stage, line: update(stage, detail=line),
            say=lambda line: bars.console.print(Text(line), soft_wrap=True),
        )
