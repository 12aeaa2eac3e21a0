"""What all configs share: fields with help and unit, strict names, errors that name the option."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from truing.errors import BadInput


class BadOption(BadInput):
    """An option that does not exist, or a value that it cannot have."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(f"{option} {text}")
        self.option, self.text = option, text


class NotAsked(BadOption):
    """An option that a file of the current folder may not set: only who gives the command may."""


class Config(BaseModel):
    """Options of a verb, or a part of them. The text under a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    common: ClassVar[tuple[str, ...]] = ()
    """fields that `--help` shows; empty for all of them"""
    internal: ClassVar[tuple[str, ...]] = ()
    """fields that the command line does not set"""
    anywhere: ClassVar[bool] = False
    """whether all fields that this very class declares are `Anywhere`"""

    @model_validator(mode="wrap")
    @classmethod
    def _named(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as e:
            raise _told(e, cls.model_fields) from None

    def part(self, kind: "type[C]") -> "C":
        """The fields of a config that this one inherits from."""
        return kind.model_construct(**{name: getattr(self, name) for name in kind.model_fields})

    def but(self, **changes: Any) -> Self:
        """The same options with some changed, unchecked."""
        return self.model_copy(update=changes)

    @contextmanager
    def given(self, name: str) -> Iterator[None]:
        """While the value of an option is used: an error about it begins with the option, or the file that set it."""
        try:
            yield
        except BadInput as e:
            source, text = getattr(self, "sources", {}).get(name), str(e)
            called = f"{source}: {name}" if source else "--" + name.replace("_", "-")
            if not text.startswith((called, "--")):
                e.args = (f"{called} {text}",)
            raise


C = TypeVar("C", bound=Config)


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts; metadata of a field."""

    name: str


@dataclass(frozen=True, slots=True)
class Filed:
    """What may be set by a truing.toml that merely lies in the current folder, so that it may be anyone's; metadata of
    a field. A field without it is for the command line and the user's own file alone."""

    inside: bool = False
    """a place: nothing but one in this folder"""


T = TypeVar("T")
Anywhere = Annotated[T, Filed()]
"""a value that spends, sends, runs and writes nothing"""
Inside = Annotated[T, Filed(inside=True)]
"""a place to read from: in a folder's own file it may be no address, and nothing outside the folder"""


def check_filed(kind: type[Config], name: str, value: object, folder: Path | None) -> None:
    """Refuse an option of a file: an unknown one, a value of another type, or what a file of this folder may not say.

    Args:
        kind: the config that it is for.
        name: of the field.
        value: as in the file.
        folder: where the file lies; None for the user's own file.

    Raises:
        NotAsked: it is one of another file. BadOption: it is none. The message begins with the option.
    """
    field = kind.model_fields.get(name)
    if field is None:
        raise BadOption(name, f"no such option{near(name, kind.model_fields)}")
    if name in kind.internal:
        raise BadOption(name, "cannot be set in a file")
    filed = filed_by(kind, name)
    if folder is not None and filed is None:
        text = "may not come from a file of the current folder, which may be anyone's"
        raise NotAsked(name, f"{text}: it decides what is spent, sent, run or written")
    if folder is not None and filed is not None and filed.inside and not _lies_in(folder, value):
        raise NotAsked(name, f"{value!s:.80}: a file of the current folder may name nothing outside of it")
    try:
        wanted: Any = Annotated[(field.annotation, Filed(), *field.metadata)]  # pyright: ignore
        TypeAdapter(wanted).validate_python(value, strict=True)
    except ValidationError as e:
        raise _told(e, (), name) from None


def filed_by(kind: type[Config], name: str) -> Filed | None:
    """Whether a file of the current folder may set a field, and how; None if not."""
    marked = next((m for m in kind.model_fields[name].metadata if isinstance(m, Filed)), None)
    declared = next(c for c in kind.__mro__ if name in getattr(c, "__annotations__", {}))
    return marked or (Filed() if declared.__dict__.get("anywhere") else None)


def _lies_in(folder: Path, value: object) -> bool:
    """Whether a text is a path in a folder, links followed, or a name like one; no address is."""
    if not isinstance(value, str) or re.match(r"\s*[^/\s]*:", value):
        return not isinstance(value, str)  # of which the type is refused
    try:
        return (folder / Path(value).expanduser()).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no such user's home, or a loop of links
        return False


def configured(
    kind: type[C], config: Config | None, options: Mapping[str, Any], name_of: Callable[[str], str] = str
) -> C:
    """A config, with `options` in the place of its own values.

    Args:
        kind: which config.
        config: one of this kind, or of a kind that it extends; None for the defaults.
        options: field -> value.
        name_of: how an error names an option.

    Raises:
        BadOption: an unknown option or an impossible value; the message begins with the option.
    """
    if config is not None and not isinstance(config, kind) and not issubclass(kind, type(config)):
        raise BadInput(f"config: give a {kind.__name__}, or options by name, not {type(config).__name__}")
    try:
        return kind.model_validate({**dict(config or {}), **options})
    except BadOption as e:
        raise BadOption(name_of(e.option), e.text) from None


def near(name: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelt name; empty if nothing is close."""
    found = get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {found[0]}?" if found else ""


_WANTED = {"int_parsing": "give a whole number", "float_parsing": "give a number", "bool_parsing": "give true or false"}
"""kind of a value that is none -> what to give"""


def _told(e: ValidationError, known: Iterable[str], name: str = "") -> BadOption:
    first = e.errors()[0]
    text = first["msg"].removeprefix("Value error, ")
    name = name or str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return BadOption(name, f"no such option{near(name, known)}")
    if first["type"] == "missing":
        return BadOption(name, "is needed")
    text = _WANTED.get(first["type"]) or f"{text[:1].lower()}{text[1:]}"
    return BadOption(name, f"{first['input']!s:.200}: {text}")


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of values


def _text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _texts(value: object) -> object:
    if value is None:
        return ()
    if isinstance(value, (str, Path)):
        return (str(value),)
    return tuple(_text(v) for v in value) if isinstance(value, Iterable) else value


def _names(value: object) -> object:
    found = _texts(value)
    if not isinstance(found, tuple):
        return found
    return tuple(part.strip() for v in found for part in (v.split(",") if isinstance(v, str) else (v,)) if part.strip())


Place = Annotated[str, BeforeValidator(_text)]
"""a path, an address or a name"""
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""one or several texts; repeatable on the command line"""
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""words, also comma-separated"""
