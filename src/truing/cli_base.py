"""What all commands share: the app, how results and errors are printed, progress, interrupts."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from truing.base import errors
from truing.base.store import SCHEMA_VERSION

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


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr, one per stage; nothing but a line per stage when stderr is no terminal."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with interruptible(), Progress(*columns, console=err, transient=False) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell
