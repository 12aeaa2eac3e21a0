"""Commands made from configs: flags, help, truing.toml, and errors that say where a value came from.

There are two files: the user's own (`own_file`), which may set any option, and the one of the current folder. That one
may have come with a folder that was cloned or unpacked, so it may set only what its fields are marked for
(`config.base.Filed`); anything else in it is an error. What is typed counts before both.
"""

import inspect
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from truing.cli_output import Result, note, put
from truing.config import BadOption, Config, NotAsked, Unit, check_filed, configured, near
from truing.errors import BadInput
from truing.files import read_toml

FILE = Path("truing.toml")
"""of the current folder"""
Run = Callable[..., Result]
Tables = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""name of a file -> its tables by command -> values by field"""


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

    def command(self, files: Tables) -> click.Command:
        """The command with all its options, which files may set too; a later file counts before an earlier one."""
        kind = self.config
        params: list[click.Parameter] = [_argument(*a) for a in self.arguments.items()]
        params += [_option(n, f, not kind.common or n in kind.common) for n, f in _ordered(kind)] if kind else []
        params.append(click.Option(["json_out", "--json"], is_flag=True, help="print one JSON object on stdout"))
        more = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": _help_all}
        more["hidden"] = not any(getattr(p, "hidden", False) for p in params)  # --help is all there is
        params.append(click.Option(["--help-all"], help="show every option and exit", **more))

        def run(json_out: bool, **given: Any) -> None:
            arguments = {name: given.pop(name) for name in self.arguments}
            config = {"config": self._read(kind, given, files)} if kind else {}
            self.run(**config, **arguments).deliver(json_out)

        return click.Command(self.name, callback=run, params=params, help=self.help)

    def _read(self, kind: type[Config], given: Mapping[str, Any], files: Tables) -> Config:
        typed = {k: v for k, v in given.items() if v not in (None, (), False)}
        filed, source = dict[str, Any](), dict[str, str]()
        for file, tables in files.items():
            filed |= (found := {k: v for k, v in self._table(kind, tables).items() if k not in typed})
            source |= dict.fromkeys(found, file)
        for file in dict.fromkeys(source.values()):
            note(f"from {file}: {', '.join(name for name, of in source.items() if of == file)}")
        sources = {"sources": source} if "sources" in kind.model_fields else {}
        return configured(
            kind, None, {**filed, **typed, **sources}, lambda n: f"{source[n]}: {n}" if n in source else flag(n)
        )

    def _table(self, kind: type[Config], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The options of this command in a file; what is frozen is an audit, so its table counts too."""
        audit = tables.get("audit", {}) if self.name == "freeze" else {}
        return {k: v for k, v in audit.items() if k in kind.model_fields and k != "out"} | dict(
            tables.get(self.name, {})
        )


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

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As in click; of a word that is no command the nearest one is said."""
        if args[0] not in self.verbs and not args[0].startswith("-"):
            raise click.UsageError(f"{args[0]}: no such command{near(args[0], self.verbs)}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which they are written."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name."""
        verb = self.verbs.get(cmd_name)
        return verb.command(_files(self.verbs)) if verb is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and first lines."""
        with formatter.section("Commands"):
            formatter.write_dl([(v.name, v.help) for v in self.verbs.values()])


def own_file() -> Path | None:
    """The user's own truing.toml, which is read in every folder; None for a user without a home."""
    try:
        home = Path(os.environ.get("XDG_CONFIG_HOME", ""))  # one that is not absolute would lie in the current folder
        return (home if home.is_absolute() else Path.home() / ".config") / "truing" / FILE.name
    except RuntimeError:
        return None


def _files(verbs: Mapping[str, Verb]) -> Tables:
    """The files that there are, every table and key of them checked."""
    own, found = own_file(), dict[str, Mapping[str, Mapping[str, Any]]]()
    if own is not None and os.path.lexists(own):
        found[str(own)] = _tables(own, verbs, None)
    if os.path.lexists(FILE) and not (found and FILE.exists() and own is not None and FILE.samefile(own)):
        found[str(FILE)] = _tables(FILE, verbs, own)
    return found


def _tables(file: Path, verbs: Mapping[str, Verb], own: Path | None) -> dict[str, dict[str, Any]]:
    """The tables of a file, one per command; `own` is the user's, where this one is another."""
    tables: dict[str, dict[str, Any]] = {}
    for name, table in read_toml(file).items():
        if name not in verbs or not isinstance(table, Mapping):
            raise BadInput(f"{file}: [{name}] is no command of truing; use a table such as [audit]{near(name, verbs)}")
        values = tables.setdefault(name, {})
        for key, value in table.items():
            field, kind = key.replace("-", "_"), verbs[name].config or Config
            if field in values:
                raise BadInput(f"{file}: {key} stands twice in [{name}]; keep one")
            try:
                check_filed(kind, field, value, Path.cwd() if file == FILE else None)
            except BadOption as e:
                more = f"; take it out, and give {flag(field)} or set it in {own}" if isinstance(e, NotAsked) else ""
                raise BadInput(f"{file}: {e} (in [{name}]){more}") from None
            values[field] = value
    return tables


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
        return click.Option([name, flag(name)], is_flag=True, **shared)
    several = get_origin(kinds[0]) in (tuple, dict)
    return click.Option([name, flag(name)], multiple=several, metavar=_metavar(kinds, field), **shared)


def _metavar(kinds: list[Any], field: FieldInfo) -> str:
    unit = next((m.name for m in field.metadata if isinstance(m, Unit)), None)
    if unit is not None:
        return unit.upper() if unit.islower() else unit
    if get_origin(kinds[0]) is Literal:
        return "|".join(get_args(kinds[0]))
    return {int: "N", float: "X"}.get(kinds[0], "TEXT")


def flag(name: str) -> str:
    """A field as it is typed."""
    return "--" + name.replace("_", "-")


def _help_all(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    for p in ctx.command.params:
        if isinstance(p, click.Option):
            p.hidden = False
    put(ctx.get_help())
    ctx.exit()
