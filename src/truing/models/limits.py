"""Settings and arithmetic of spending at an endpoint: rate limits, budget, prices, circuit breaker.

Nothing here reads a clock or waits: times are handed in, waiting times are handed back.
"""

import math
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from truing.errors import BadEndpoint
from truing.types.judging import JudgeOptions

FAILED_IN_A_ROW = 20
"""asks that failed one after the other before nothing more is sent"""
FAILED_AT_FIRST = 8
"""the same where nothing has ever been answered"""


class Price(NamedTuple):
    """What a model costs."""

    input: float
    """dollars per million tokens read"""
    output: float
    """dollars per million tokens written"""

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars for one call."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast, how long and for how much an endpoint may be asked."""

    concurrency: int = 16
    """requests in flight"""
    rpm: float | None = None
    """requests per minute; None for no limit"""
    tpm: float | None = None
    """tokens per minute; None for no limit"""
    timeout: float = 60.0
    """seconds per request"""
    retries: int = 6
    """further attempts after a failure that may pass"""
    budget_calls: int | None = None
    """requests, retries included; None for no limit"""
    budget_usd: float | None = None
    """dollars; needs `prices`; None for no limit"""
    prices: str | None = None
    """TOML file of prices"""
    seed: int = 0
    """of the jitter in waiting times"""

    def __post_init__(self) -> None:
        """Raises BadEndpoint where a value makes no sense."""
        if self.concurrency < 1 or self.retries < 0:
            raise BadEndpoint(f"concurrency {self.concurrency}, retries {self.retries}: give at least 1 and 0")
        for name in ("rpm", "tpm", "timeout", "budget_calls", "budget_usd"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadEndpoint(f"{name.replace('_', ' ')} is {value}: give a number above 0, or none at all")
        if self.budget_usd is not None and self.prices is None:
            raise BadEndpoint("a budget in dollars needs a file of prices (prices.toml), or give a budget in calls")

    @classmethod
    def of(cls, options: JudgeOptions) -> "Limits":
        """The part of a judge's settings that is about spending."""
        names = ("concurrency", "rpm", "tpm", "timeout", "retries", "budget_calls", "budget_usd", "prices", "seed")
        return cls(**{name: getattr(options, name) for name in names})


class Bucket:
    """A smooth rate: what is reserved gets its time one after the other, without bursts.

    In any minute at most `per_minute` plus the size of one reservation is let through (the generic cell rate algorithm
    of ATM Forum TM 4.0 with no tolerance).
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._free = -math.inf

    def reserve(self, amount: float, now: float) -> float:
        """Take `amount`; returns the seconds to wait from `now` before it may be used."""
        if not self._seconds:
            return 0.0
        start = max(self._free, now)
        self._free = start + amount * self._seconds
        return start - now

    def refund(self, amount: float) -> None:
        """Give back what was reserved and not needed; a negative amount takes more."""
        self._free -= amount * self._seconds


class Taken(Enum):
    """What a budget says to one more request."""

    YES = "yes"
    WAIT = "wait"
    """requests in flight hold money that they may not need"""
    NO = "no"


class Budget:
    """Calls and dollars that may be spent; shared by as many clients and threads as one likes.

    Args:
        calls: requests; None for no limit.
        usd: dollars; None for no limit.

    A request is taken before it is sent, so that the calls are never exceeded, not by one. Money is held at an upper
    estimate and settled when the service has reported what was used.
    """

    def __init__(self, calls: int | None = None, usd: float | None = None) -> None:
        self.limits = (calls, usd)
        self.calls = 0
        self.usd = 0.0
        self._held, self._open = 0.0, 0
        self._lock = threading.Lock()

    def take(self, estimate: float) -> Taken:
        """Reserve one request of at most `estimate` dollars."""
        calls, usd = self.limits
        with self._lock:
            if calls is not None and self.calls >= calls:
                return Taken.NO
            if usd is not None and self.usd + self._held + estimate > usd:
                return Taken.WAIT if self._open else Taken.NO
            self.calls += 1
            self._hold(estimate, 1)
            return Taken.YES

    def give_back(self, estimate: float) -> None:
        """A request that was taken is not sent after all."""
        with self._lock:
            self.calls -= 1
            self._hold(-estimate, -1)

    def settle(self, estimate: float, actual: float) -> None:
        """A request that was taken has cost `actual` dollars."""
        with self._lock:
            self.usd += actual
            self._hold(-estimate, -1)

    def _hold(self, amount: float, count: int) -> None:
        self._open += count
        self._held = self._held + amount if self._open else 0.0  # no rounding left over

    def __str__(self) -> str:
        calls, usd = self.limits
        parts = [f"{self.calls} of {calls} calls"] if calls is not None else []
        if usd is not None:
            parts.append(f"${self.usd:.4f} of ${usd:g}")
        return ", ".join(parts) or "no limit"


class Breaker:
    """Says when to stop: everything has failed since the start, or for a long while."""

    def __init__(self) -> None:
        self._failed, self._ever = 0, False

    def record(self, ok: bool) -> bool:
        """Note a finished ask; True when nothing more should be sent. Starts afresh after that."""
        self._failed = 0 if ok else self._failed + 1
        self._ever = self._ever or ok
        if self._failed >= (FAILED_IN_A_ROW if self._ever else FAILED_AT_FIRST):
            self._failed, self._ever = 0, False
            return True
        return False


def load_prices(path: str) -> dict[str, Price]:
    """Prices by model from a TOML file: a table per model with `input` and `output`, dollars per million tokens.

    A name with dots may be quoted or not: [gpt-4.1-mini] is read as the name that was meant.

    Raises:
        BadEndpoint: the file cannot be read, or a table is no price; the message names it.
    """
    try:
        with open(Path(path).expanduser(), "rb") as f:
            tables = tomllib.load(f)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise BadEndpoint(f"{path}: cannot be read as a TOML file of prices: {e}") from None
    found: dict[str, Price] = {}
    _collect(path, "", tables, found)
    return found


def _collect(path: str, name: str, table: Mapping[str, Any], found: dict[str, Price]) -> None:
    inner = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    own = {k: v for k, v in table.items() if k not in inner}
    if own:
        values = [own.get("input"), own.get("output")]
        numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        fine = set(own) == {"input", "output"} and len(numbers) == 2 and all(0 <= v < math.inf for v in numbers)
        if not name or not fine:
            raise BadEndpoint(
                f"{path}, [{name}]: a price is a table named for a model with input = and output =, "
                "dollars per million tokens, 0 or more, and nothing else"
            )
        found[name] = Price(*numbers)
    for key, value in inner.items():
        _collect(path, f"{name}.{key}" if name else key, value, found)


def price_of(model: str, path: str | None) -> Price | None:
    """The price of one model, or None where there is no file of prices.

    Raises:
        BadEndpoint: the file lacks the model.
    """
    if path is None:
        return None
    prices = load_prices(path)
    if model not in prices:
        known = ", ".join(sorted(prices)[:12]) or "none"
        raise BadEndpoint(f'{path} has no price for {model!r}; add ["{model}"] with input and output (it has: {known})')
    return prices[model]
