"""What the command line prints: results as text or JSON on stdout, progress on stderr."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from truing import errors
from truing.store import SCHEMA_VERSION
from truing.types.progress import Progress

COLUMNS = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
DETAIL = TextColumn("{task.fields[detail]}", markup=False)
WIDE = 120
"""columns of a terminal from which there is room for the detail beside its bar"""


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


class Stages(RichProgress):
    """A bar per stage; its detail beside it, or under all of them where the terminal is narrow."""

    def __init__(self, console: Console) -> None:
        self._beside = console.width >= WIDE
        super().__init__(*COLUMNS, *((DETAIL,) if self._beside else ()), console=console, transient=False)

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bars, and what is to stand under them."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if not self._beside and task.fields["detail"]:
                yield Text(f"{task.description}: {task.fields['detail']}")


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr, one per stage; nothing but a line per stage when stderr is no terminal."""
    with interruptible(), Stages(Console(stderr=True)) as bars:
        tasks = dict[str, TaskID]()

        def task(stage: str, total: int | None = None) -> TaskID:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, detail="")
            return tasks[stage]

        yield Progress(
            step=lambda stage, done, total: bars.update(task(stage, total), completed=done, total=total),
            detail=lambda stage, line: bars.update(task(stage), detail=line),
            say=lambda line: bars.console.print(Text(line), soft_wrap=True),
        )
