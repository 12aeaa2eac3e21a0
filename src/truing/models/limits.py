"""What an endpoint may be asked: rates, retries, budget, prices, and when to give up. No network here."""

import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from truing.errors import BadEndpoint, BudgetSpent
from truing.files import read_toml

FAILED_IN_A_ROW = 20  # requests that failed one after the other before nothing more is sent
FAILED_AT_FIRST = 8  # the same where nothing has ever been answered


class Price(NamedTuple):
    """What a model costs."""

    input: float  # dollars per million tokens read
    output: float  # dollars per million tokens written

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars for one call."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast, how long and for how much an endpoint may be asked."""

    concurrency: int = 16  # requests in flight
    rpm: float | None = None  # requests per minute; None for no limit
    tpm: float | None = None  # tokens per minute; None for no limit
    timeout: float = 60.0  # seconds per attempt
    retries: int = 6  # further attempts after a failure that may pass
    budget_calls: int | None = None  # attempts; None for no limit
    budget_usd: float | None = None  # dollars; needs `prices`; None for no limit
    prices: str | None = None  # TOML file of prices
    allow_plain_http: bool = False  # whether a key may go unencrypted to another machine

    def __post_init__(self) -> None:
        """Raises BadEndpoint where a value makes no sense."""
        for name in ("concurrency", "rpm", "tpm", "timeout", "budget_calls", "budget_usd"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadEndpoint(f"{name.replace('_', ' ')} is {value}: give a number above 0, or none at all")
        if self.budget_usd is not None and self.prices is None:
            raise BadEndpoint("a budget in dollars needs a file of prices (prices.toml), or give a budget in calls")


class Budget:
    """Calls and dollars that may be spent; may be shared by clients and threads.

    Args:
        calls: attempts; None for no limit.
        usd: dollars; None for no limit.

    Every attempt is taken before it is sent, so the calls are never exceeded. Money is held at an upper estimate and
    settled when the service has reported what was used.
    """

    def __init__(self, calls: int | None = None, usd: float | None = None) -> None:
        self.limits = (calls, usd)
        self.calls = 0
        self.usd = 0.0
        self._held, self._open = 0.0, 0
        self._lock = threading.Lock()

    def take(self, estimate: float) -> bool:
        """Reserve one attempt of at most `estimate` dollars.

        Returns False where attempts in flight hold money that they may not need: try again.

        Raises:
            BudgetSpent: there is no more.
        """
        with self._lock:
            free = self._affords(estimate)
            if free:
                self.calls += 1
                self._open += 1
                self._held += estimate
            return free

    def check(self, estimate: float) -> None:
        """Raise BudgetSpent where `take` would."""
        with self._lock:
            self._affords(estimate)

    def _affords(self, estimate: float) -> bool:
        calls, usd = self.limits
        short = usd is not None and self.usd + self._held + estimate > usd
        if (calls is not None and self.calls >= calls) or (short and not self._open):
            raise BudgetSpent(f"the budget is spent ({self}); what is done is kept")
        return not short

    def settle(self, estimate: float, actual: float) -> None:
        """An attempt that was taken has cost `actual` dollars."""
        with self._lock:
            self.usd += actual
            self._open -= 1
            self._held = self._held - estimate if self._open else 0.0  # no rounding left over

    def __str__(self) -> str:
        calls, usd = self.limits
        parts = [f"{self.calls} of {calls} calls"] if calls is not None else []
        if usd is not None:
            parts.append(f"${self.usd:.4f} of ${usd:g}")
        return ", ".join(parts) or "no limit"


class Rate:
    """At most so many units a minute (None for no limit), taken at most `ahead` seconds before their time."""

    def __init__(self, a_minute: float | None, ahead: float = 0.0) -> None:
        self._seconds, self._ahead, self._next = 60 / a_minute if a_minute else 0.0, ahead, 0.0

    @property
    def wait(self) -> float:
        """Seconds until units may be taken; nothing is taken by asking, so whoever gives up leaves no gap."""
        return max(0.0, self._next - self._ahead - time.monotonic())

    def take(self, units: float) -> None:
        """Take units now."""
        self._next = max(self._next, time.monotonic()) + units * self._seconds


class Breaker:
    """Says when to stop: everything has failed since the start, or for a long while."""

    def __init__(self) -> None:
        self._failed, self._ever = 0, False

    def record(self, ok: bool) -> bool:
        """Note a finished request; True when nothing more should be sent. Starts afresh after that."""
        self._failed = 0 if ok else self._failed + 1
        self._ever = self._ever or ok
        if self._failed >= (FAILED_IN_A_ROW if self._ever else FAILED_AT_FIRST):
            self._failed, self._ever = 0, False
            return True
        return False


def price_of(model: str, path: str | None) -> Price | None:
    """The price of one model from a TOML file, or None where there is no file.

    The file has a table per model with `input` and `output`, dollars per million tokens. A name with dots need not be
    quoted: [gpt-4.1-mini] is read as the name that was meant.

    Raises:
        BadEndpoint: the file cannot be read, lacks the model, or its table is no price.
    """
    if path is None:
        return None
    try:
        tables = read_toml(Path(path).expanduser(), error=BadEndpoint)
    except BadEndpoint as e:
        raise BadEndpoint(f"--prices {e}") from e
    priced = dict(_priced(tables))
    if model not in priced:
        there = f" (it has: {', '.join(priced)})" if priced else ""
        raise BadEndpoint(f'--prices {path}: has no price for {model!r}{there}; add ["{model}"] with input and output')
    table = priced[model]
    numbers = [v for v in table.values() if type(v) in (int, float) and 0 <= v < math.inf]
    if set(table) != {"input", "output"} or len(numbers) != 2:
        raise BadEndpoint(f"--prices {path}, [{model}]: a price is [MODEL] with input and output alone, both 0 or more")
    return Price(float(table["input"]), float(table["output"]))


def _priced(tables: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every table that holds more than tables, by its whole name: [gpt-4] and [gpt-4.1] nest in TOML."""
    own = {k: v for k, v in tables.items() if not isinstance(v, dict)}
    if name and own:
        yield name, own
    for k, v in tables.items():
        if isinstance(v, dict):
            yield from _priced(v, f"{name}.{k}" if name else k)
