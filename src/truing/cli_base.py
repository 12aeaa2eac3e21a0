"""What all commands share: the app, how results and errors are printed, progress, interrupts."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from truing import errors
from truing.store import SCHEMA_VERSION

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find where a fine-tune goes out of true, and stop before it.",
)
models_app = typer.Typer(no_args_is_help=True, help="Models that need no hub.")
app.add_typer(models_app, name="models")

err = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Audits = Annotated[Path, typer.Argument(help="An audit folder.", metavar="AUDIT")]
Out = Annotated[Path | None, typer.Option(help="Where to write.")]


def say(line: str) -> None:
    """A line worth showing, on stderr."""
    err.print(escaped(line), soft_wrap=True)


def print_path(name: str, path: Path, json_out: bool) -> None:
    """A path as the only result."""
    if json_out:
        print_json({name: str(path)})
    else:
        print(path)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **value}, indent=1, ensure_ascii=False, allow_nan=False))


def escaped(text: str) -> str:
    """Text that rich prints as it is."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt becomes our error, which says how to go on."""
    try:
        yield
    except KeyboardInterrupt as e:
        text = "interrupted; what was measured is stored, and the same command goes on from there"
        raise errors.Interrupted(text) from e


COLUMNS = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
DETAIL = TextColumn("{task.fields[detail]}", markup=False)
WIDE = 120
"""columns of a terminal from which there is room for the detail beside its bar"""


class Stages(Progress):
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


class Bars:
    """A bar per stage: called with (stage, done, total); `detail` puts a line beside it."""

    def __init__(self, shown: Progress) -> None:
        self._shown, self._tasks = shown, dict[str, TaskID]()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._shown.update(self._task(stage, total), completed=done, total=total)

    def detail(self, stage: str, line: str) -> None:
        """What is to be said of a stage while it goes on, e.g. how fast."""
        self._shown.update(self._task(stage), detail=line)

    def _task(self, stage: str, total: int | None = None) -> TaskID:
        if stage not in self._tasks:
            self._tasks[stage] = self._shown.add_task(stage, total=total, detail="")
        return self._tasks[stage]


@contextmanager
def progress() -> Iterator[Bars]:
    """Bars on stderr, one per stage; nothing but a line per stage when stderr is no terminal."""
    with interruptible(), Stages(err) as bars:
        yield Bars(bars)
