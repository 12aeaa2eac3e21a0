"""The nouns of a study: a case (model x data x recipe x seed), and whether an audit was frozen before its answers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mbt])(?![a-z0-9])", re.IGNORECASE)
_UNITS = {"m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True, slots=True)
class Case:
    """One fine-tuning run of a study."""

    model: str
    """the base that was fine-tuned"""
    data: str
    """what it was fine-tuned on"""
    recipe: str = ""
    """name or hash of all other training settings, seeds left out; empty where nobody says"""
    seed: int | None = None
    """seed of the run; None where nobody says"""
    parameters: float | None = None
    """size of the model, a count; None where nobody says"""
    order: str = ""
    """hash of the order in which the training data were seen; empty where nobody says"""
    audit: str = ""
    """folder of its audit"""

    @property
    def cell(self) -> tuple[str, str, str]:
        """Cases with the same model, data and recipe are seeds of one cell."""
        return self.model, self.data, self.recipe

    @property
    def name(self) -> str:
        """For people: model, data, recipe and seed."""
        seed = "" if self.seed is None else f"seed {self.seed}"
        return ", ".join(part for part in (self.model, self.data, self.recipe, seed) if part)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What became of a freeze in one audit."""

    lock: str
    """hash of the settings that were frozen"""
    made: str
    """when, in UTC, as the lock file says; a file's word, not a proof"""
    status: str
    """frozen, or exploratory where anything was changed after"""
    changed: tuple[str, ...] = ()
    """what was changed, a line each: name, value before, value now"""

    @classmethod
    def of(cls, lock: str, made: str, changed: Iterable[str]) -> "Frozen":
        """Exploratory if anything was changed, each line once."""
        lines = tuple(dict.fromkeys(changed))
        return cls(lock, made, "exploratory" if lines else "frozen", lines)


def parameters_in(name: str) -> float | None:
    """The size that a model's name tells (`Qwen3-30B-A3B`: 30e9, all parameters), None where it tells none or two.

    A count behind an `A` is that of active parameters and is passed over.
    """
    found = {float(n) * _UNITS[unit.lower()] for n, unit in _SIZE.findall(name.rpartition("/")[2].replace("_", "-"))}
    return found.pop() if len(found) == 1 else None
