"""What a gate asks for, and the file that says so."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truing.config.base import near
from truing.config.verbs import GateConfig
from truing.errors import BadInput
from truing.files import read_toml
from truing.types.gating import ALWAYS, EXCEPTIONS

_KEYS = {"which": str, "allow": list, "max_rate": (int, float)}
"""keys of a policy's [gate] and what each is"""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a gate asks for."""

    which: str | None = None
    """recommended, last or a step; None for recommended"""
    allow: tuple[str, ...] = ()
    """reasons that are excepted"""
    max_rate: float | None = None
    """most that the share of positive answers may be, at the upper end of its interval; None for no limit"""

    def check(self, which: str = "--gate", allow: str = "--allow") -> None:
        """Raise BadInput for a gate that could not be applied, so that it is known before hours of measuring.

        `which` and `allow` are what these were called where they were given.
        """
        known, number = (None, "recommended", "last"), self.which or ""
        if self.which not in known and not (number.isascii() and number.isdigit()):
            raise BadInput(f"{which} {self.which!r}: use recommended, last or a step number")
        for word in self.allow:
            if word in ALWAYS:
                raise BadInput(f"{allow} {word}: nothing excepts that; see what `truing gate` says of it")
            if word not in EXCEPTIONS:
                told = f"{near(word, EXCEPTIONS)}; use any of {', '.join(EXCEPTIONS)}"
                raise BadInput(f"{allow} {word}: no such word{told}")


def policy_of(config: GateConfig) -> Policy:
    """What a gate asks for: the policy file, then the options.

    Raises:
        BadInput: a file that cannot be read, an unknown key or word, or an impossible value.
    """
    given = Policy()
    if config.policy is not None:
        given = Policy(**_table(Path(config.policy)))
        given.check(f"{config.policy}: [gate] which", f"{config.policy}: [gate] allow")
    which = config.gate if config.gate is not None else given.which
    policy = replace(given, which=which, allow=(*given.allow, *config.allow))
    policy.check()
    return policy


def _table(path: Path) -> dict[str, Any]:
    """The [gate] of a policy file: which, allow, max_rate."""
    tables = read_toml(path)
    if unknown := [name for name in tables if name != "gate"]:
        raise BadInput(f"{path}: {unknown[0]}: a policy has one table, [gate]{near(unknown[0], ['gate'])}")
    table = tables.get("gate")
    if not isinstance(table, dict):
        raise BadInput(f"{path}: has no table [gate]; write one with any of {', '.join(_KEYS)}")
    for key, value in table.items():
        if key not in _KEYS:
            raise BadInput(f"{path}: [gate] {key}: no such key{near(key, _KEYS)}; use any of {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            kinds = {"which": "a text", "allow": "a list of words", "max_rate": "a share from 0 to 1"}
            raise BadInput(f"{path}: [gate] {key} = {value!r}: give {kinds[key]}")
    allow = tuple(table.get("allow", ()))
    if not all(isinstance(word, str) for word in allow):
        raise BadInput(f"{path}: [gate] allow: give a list of words")
    if not 0 <= table.get("max_rate", 0) <= 1:
        raise BadInput(f"{path}: [gate] max_rate = {table['max_rate']}: give a share from 0 to 1")
    return {**table, "allow": allow}
