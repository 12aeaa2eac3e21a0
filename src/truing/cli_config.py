"""Commands made from configs: flags, help, truing.toml, and errors that say where a value came from."""

import inspect
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from truing.cli_output import Result
from truing.config import Config, Unit, configured
from truing.errors import BadInput

FILE = Path("truing.toml")
Run = Callable[..., Result]


@dataclass(frozen=True)
class Verb:
    """A command before its options are read."""

    name: str
    """as typed"""
    config: type[Config] | None
    """its options"""
    arguments: Mapping[str, bool]
    """positional ones, and whether several are taken"""
    run: Run
    """called with the config, if it has one, and the arguments"""

    @property
    def help(self) -> str:
        """One line."""
        return (self.run.__doc__ or "").strip()

    def command(self) -> click.Command:
        """The command with all its options."""
        kind = self.config
        params: list[click.Parameter] = [_argument(*a) for a in self.arguments.items()]
        params += [_option(n, f, not kind.common or n in kind.common) for n, f in _ordered(kind)] if kind else []
        params.append(click.Option(["json_out", "--json"], is_flag=True, help="print one JSON object on stdout"))
        more = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": _help_all}
        more["hidden"] = not any(getattr(p, "hidden", False) for p in params)  # --help is all there is
        params.append(click.Option(["--help-all"], help="show every option and exit", **more))

        def run(json_out: bool, **given: Any) -> None:
            arguments = {name: given.pop(name) for name in self.arguments}
            config = {"config": self._read(kind, given)} if kind else {}
            self.run(**config, **arguments).deliver(json_out)

        return click.Command(self.name, callback=run, params=params, help=self.help)

    def _read(self, kind: type[Config], given: Mapping[str, Any]) -> Config:
        typed = {k: v for k, v in given.items() if v not in (None, (), False)}
        filed = {k: v for k, v in self._table(kind).items() if k not in typed}
        if filed:
            click.echo(f"from {FILE}: {', '.join(filed)}", err=True)
        sources = {"sources": dict.fromkeys(filed, str(FILE))} if "sources" in kind.model_fields else {}
        return configured(
            kind, None, {**filed, **typed, **sources}, lambda n: f"{FILE}: {n}" if n in filed else _flag(n)
        )

    def _table(self, kind: type[Config]) -> dict[str, Any]:
        """The options of this command in truing.toml; what is frozen is an audit, so its table counts too."""
        tables = _tables()
        found = dict(tables.get(self.name, {}))
        if self.name == "freeze":
            found = {
                k: v for k, v in tables.get("audit", {}).items() if k not in ("out", "gate", "allow", "policy")
            } | found
        for name in found:
            if name in kind.internal:
                raise BadInput(f"{FILE}: {name} cannot be set in a file")
        return found


class Verbs(click.Group):
    """The commands; each is built when it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.verbs: dict[str, Verb] = {}

    def verb(self, run: Run) -> Run:
        """Make a function a command: its name, docstring, config and other parameters become the command's."""
        name, parameters = run.__name__.rstrip("_"), dict(inspect.signature(run).parameters)
        config = parameters.pop("config", None)
        arguments = {n: p.annotation is not str for n, p in parameters.items()}
        self.verbs[name] = Verb(name, config.annotation if config else None, arguments, run)
        return run

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which they are written."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name."""
        verb = self.verbs.get(cmd_name)
        _tables(self.verbs)
        return verb.command() if verb is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and first lines."""
        with formatter.section("Commands"):
            formatter.write_dl([(v.name, v.help) for v in self.verbs.values()])


def _tables(known: Mapping[str, Verb] | None = None) -> dict[str, dict[str, Any]]:
    """The tables of truing.toml, one per command."""
    if not FILE.is_file():
        return {}
    try:
        tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadInput(f"{FILE}: not valid TOML ({e})") from e
    for name, table in tables.items():
        if not isinstance(table, Mapping) or (known is not None and name not in known):
            raise BadInput(f"{FILE}: [{name}] is no command of truing; use a table such as [audit]")
    return {name: {k.replace("-", "_"): v for k, v in table.items()} for name, table in tables.items()}


def _ordered(kind: type[Config]) -> list[tuple[str, FieldInfo]]:
    """The fields that the command line sets: common ones first, then those of the verb itself, then inherited ones."""
    own = [n for c in kind.__mro__ for n in getattr(c, "__annotations__", {}) if n in kind.model_fields]
    names = dict.fromkeys((*kind.common, *own))
    return [(n, kind.model_fields[n]) for n in names if n in kind.model_fields and n not in kind.internal]


def _argument(name: str, several: bool) -> click.Argument:
    shape = name.upper() + ("..." if several else "")
    return click.Argument([name], nargs=-1 if several else 1, required=True, metavar=shape)


def _option(name: str, field: FieldInfo, common: bool) -> click.Option:
    kinds = [k for k in get_args(field.annotation) if k is not types.NoneType]
    kinds = kinds if get_origin(field.annotation) in (Union, types.UnionType) else [field.annotation]
    kinds = [get_args(k)[0] if get_origin(k) is Annotated else k for k in kinds]
    default = field.get_default(call_default_factory=True)
    plain = default in (None, (), {}) or default is False
    shown = "  [needed]" if field.is_required() else "" if plain else f"  [default: {default}]"
    shared: dict[str, Any] = {"help": (field.description or "") + shown, "hidden": not common}
    if kinds == [bool]:
        return click.Option([name, _flag(name)], is_flag=True, **shared)
    several = get_origin(kinds[0]) in (tuple, dict)
    return click.Option([name, _flag(name)], multiple=several, metavar=_metavar(kinds, field), **shared)


def _metavar(kinds: list[Any], field: FieldInfo) -> str:
    unit = next((m.name for m in field.metadata if isinstance(m, Unit)), None)
    if unit is not None:
        return unit.upper() if unit.islower() else unit
    if get_origin(kinds[0]) is Literal:
        return "|".join(get_args(kinds[0]))
    return {int: "N", float: "X"}.get(kinds[0], "TEXT")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help_all(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    for p in ctx.command.params:
        if isinstance(p, click.Option):
            p.hidden = False
    click.echo(ctx.get_help())
    ctx.exit()
