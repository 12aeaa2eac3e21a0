"""What sequential searches share: ask which answers are wanted, tell how they came out, look at what there is.

A search is written as one road from top to bottom. Where it wants answers it yields the test that wants them, and it
goes on once some have come.
"""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from math import log
from typing import TypeVar

from truing.errors import BadInput
from truing.stats.samples import Groups, Outcome, SampleRequest, Segment
from truing.stats.sequential import log_evidence, log_evidence_below

T = TypeVar("T")
Road = Generator[Segment, None, T]
"""a part of a search"""
ABOVE, BELOW, OPEN = "above", "below", "open"
EFFORT = 0.5
"""how long a test goes on, in units of what the middle of the zone would need"""
LOST_MOST = 50
"""missing answers that a test puts up with, if they are not most of all"""
PARSED_LEAST = 24
"""answers before what could not be parsed may end a test"""


@dataclass(frozen=True, slots=True)
class Levels:
    """How much evidence decides."""

    alpha: float = 0.05
    """error of all claims "above lo" together"""
    beta: float = 0.05
    """error of all claims "below hi" together"""
    loose: float = log(4.0)
    """log evidence on which a search turns; it certifies nothing"""
    said: str = "guaranteed"
    """what the errors are"""


class Inquiry:
    """A search under way. Subclasses give its road."""

    def __init__(self, groups: Groups, lo: float, hi: float, levels: Levels) -> None:
        self.groups, self.lo, self.hi, self.levels = groups, lo, hi, levels
        self._road: Road[None] | None = None
        self._want: Segment | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask."""
        return self._want is None

    def ask(self, n: int) -> list[SampleRequest]:
        """Answers wanted next, at most `n`; may be called again while earlier ones are outstanding.

        Raises:
            BadInput: n under 1.
        """
        if n < 1:
            raise BadInput(f"ask for at least one answer, not {n}")
        return self.groups.sample(self._want, n, self.lo, self.hi) if self._want is not None else []

    def tell(self, outcomes: Iterable[tuple[SampleRequest, Outcome | str | float]]) -> None:
        """How draws came out, in any order: an `Outcome` or its name, or a number from 0 (good) to 1 (misaligned).

        Raises:
            BadInput: something never asked, told twice, or no outcome.
        """
        self.groups.tell(outcomes)
        self._go_on()

    def _start(self, road: Road[None]) -> None:
        self._road = road
        self._go_on()

    def _go_on(self) -> None:
        """Let the search look at what is there, until it wants more."""
        while self._road is not None and (self._want is None or self._want.grown()):
            try:
                self._want = next(self._road)
            except StopIteration:
                self._road = self._want = None

    def evidence(self, segment: Segment) -> tuple[float, float]:
        """Log evidence for "above lo" and for "below hi", each with unparsed answers counting against it."""
        run, other = segment.run, segment.reference
        above = log_evidence(run.least, other.most, self.lo)
        return above, log_evidence_below(run.most, other.least, self.hi)

    def patience(self, enough: float) -> float:
        """Answers of the run after which a test is left open: a share of what the middle of the zone needs."""
        middle, half = (self.lo + self.hi) / 2, (self.hi - self.lo) / 2
        share = min(0.5, self.groups.base_share + middle)
        return EFFORT * 2 * share * (1 - share) * enough / half**2

    def futile(self, segment: Segment) -> bool:
        """Whether there is no hope: most answers are missing, or what could not be parsed makes the excess look under
        lo when read one way, and over hi the other way."""
        run, other = segment.run, segment.reference
        if segment.lost > max(LOST_MOST, segment.n):
            return True
        if not segment.has_unparsed or segment.n < PARSED_LEAST:
            return False
        under = log_evidence_below(run.least, other.most, self.lo)
        return min(under, log_evidence(run.most, other.least, self.hi)) >= self.levels.loose

    def looks(self, segment: Segment, share: float = 1.0) -> Road[str]:
        """How a step looks by a loose test; open after `share` of the patience."""
        while True:
            above, below = self.evidence(segment)
            if max(above, below) >= self.levels.loose:
                return ABOVE if above > below else BELOW
            if segment.n >= share * self.patience(self.levels.loose) or self.futile(segment):
                return OPEN
            yield segment.more()

    def certify(
        self, segment: Segment, enough: Mapping[str, float], *, least: int = 0
    ) -> Road[tuple[str, float, float]]:
        """Test a segment until something is certain: what, and the log evidence for above and below."""
        while True:
            above, below = self.evidence(segment)
            said = ABOVE if above >= enough[ABOVE] else BELOW if below >= enough[BELOW] else OPEN
            ended = said != OPEN or segment.n >= self.patience(max(enough.values())) or self.futile(segment)
            if ended and (segment.n >= least or self.futile(segment)):
                return said, above, below
            yield segment.more()
