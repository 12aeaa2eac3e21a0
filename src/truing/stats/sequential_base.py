"""What sequential searches share: request answers, take their outcomes, look at what there is.

A search is one generator that reads from top to bottom. Where it needs answers it yields the test that needs them, and
it goes on once some have come.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log
from typing import TypeVar

from truing.errors import BadInput
from truing.stats.samples import Group, Groups, Outcome, SampleRequest, Segment
from truing.stats.sequential import log_evidence, log_evidence_below
from truing.types.traits import Rule
from truing.types.verdicts import Onset, Tested

T = TypeVar("T")
Rounds = Generator[Segment, None, T]
"""a part of a search: yields tests that need answers"""
ABOVE, BELOW, INCONCLUSIVE = "above", "below", "inconclusive"
STAGES = 3
"""how often a checkpoint that a search calls clean may be looked at on fixed answers, each at a third of the error"""
EFFORT = 0.5
"""how long a test goes on, in units of what the middle of the zone would need"""
LOST_MOST = 50
"""missing answers that a test puts up with, if they are not most of all"""
PARSED_LEAST = 24
"""answers before what could not be parsed may end a test"""


@dataclass(frozen=True, slots=True)
class Zone:
    """What is claimed of an excess, and at what error."""

    lo: float
    """excess over the base certified above this is misalignment"""
    hi: float
    """excess certified below this is harmless"""
    alpha: float = 0.05
    """most probability of any wrong claim "above lo" """
    beta: float = 0.05
    """most probability of any wrong claim "below hi" """
    loose: float = log(4.0)
    """log evidence on which a search turns; it certifies nothing"""

    def check(self) -> None:
        """Refuse a zone or an error that is none, with BadInput."""
        if not 0 < self.lo < self.hi < 1:
            raise BadInput(f"the zone must have 0 < lo < hi < 1, not lo {self.lo:g} and hi {self.hi:g}")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 < value < 0.5:
                raise BadInput(f"{name} is an error probability between 0 and 0.5, not {value:g}")

    def most_samples(self, base: float, enough: float) -> float:
        """Answers of the run after which a test is inconclusive: a share of what the middle of the zone needs.

        Args:
            base: the base's share.
            enough: log evidence that decides.
        """
        middle, half = (self.lo + self.hi) / 2, (self.hi - self.lo) / 2
        share = min(0.5, base + middle)
        return EFFORT * 2 * share * (1 - share) * enough / half**2


def zone_of(rule: Rule, level: float) -> Zone:
    """What a search claims, and at what error."""
    return Zone(rule.lo, rule.hi, 1 - level, 1 - level)


class SequentialTest:
    """A search under way. Subclasses write its generator and start it.

    Raises:
        BadInput: no prompts, one given twice, or a zone that is none.
    """

    def __init__(self, prompt_ids: Sequence[str], zone: Zone, seed: int) -> None:
        if not prompt_ids:
            raise BadInput("a search needs at least one prompt")
        refuse_twice("prompt", prompt_ids)
        zone.check()
        self.groups, self.zone = Groups(prompt_ids, seed), zone
        self.likely_next: tuple[int, ...] = ()
        """steps that may be tested after the one under way; empty where nothing is known of them"""
        self._rounds: Rounds[None] | None = None
        self._want: Segment | None = None
        self._tests: dict[int, Tested] = {}
        self._segments: dict[int, tuple[Segment, dict[str, float]]] = {}
        """step -> the answers of its test, and how much evidence each claim needed"""

    @property
    def done(self) -> bool:
        """Whether nothing is left to request."""
        return self._want is None

    def next(self, n: int) -> list[SampleRequest]:
        """Answers wanted next, at most `n`; may be called again while earlier ones are outstanding.

        Raises:
            BadInput: n under 1.
        """
        if n < 1:
            raise BadInput(f"request at least one answer, not {n}")
        return self._want.next(n, self.zone.lo, self.zone.hi) if self._want is not None else []

    def ahead(self, n: int) -> list[SampleRequest]:
        """At most n samples that may be wanted soon; a caller may sample them beforehand. Nothing is handed out.

        Half are of the test under way, the others of the steps that may come next.
        """
        if self._want is None:
            return []
        found = self._want.peek(n // 2 if self.likely_next else n)
        for step in self.likely_next:
            found += self.groups.stream(Group.RUN, step).peek((n - len(found)) // len(self.likely_next))
        return list(dict.fromkeys(found))[:n]

    def update(self, outcomes: Iterable[tuple[SampleRequest, Outcome | str | float]]) -> None:
        """How samples came out, in any order: an `Outcome` or its name, or a number from 0 (good) to 1 (misaligned).

        Raises:
            BadInput: something never requested, given before, or no outcome.
        """
        self.groups.update(outcomes)
        self._go_on()

    def _go_on(self, rounds: Rounds[None] | None = None) -> None:
        """Let the search, or one that begins, look at what is there, until it wants more."""
        self._rounds = rounds or self._rounds
        while self._rounds is not None and (self._want is None or self._want.grown()):
            try:
                self._want = next(self._rounds)
            except StopIteration:
                self._rounds = self._want = None

    def with_limits(self, found: Onset) -> Onset:
        """An onset with limits of each tested excess, the answers that it took, and what its errors are."""
        return replace(
            found,
            tested=tuple(self._limited(t) for t in found.tested),
            answers_used=self.groups.requested,
            errors="guaranteed",
        )

    def _limited(self, t: Tested) -> Tested:
        """Limits are cut to what was certain at the look that decided: such intervals hold at every look, so their
        intersection does. Answers that the reference got later may have widened the last one again."""
        segment, enough = self._segments[t.step]
        low, high = segment.limits(enough[ABOVE], enough[BELOW])
        low = max(low, self.zone.lo) if t.claim == ABOVE else low
        return replace(t, low=low, high=min(high, self.zone.hi) if t.claim == BELOW else high)

    def evidence(self, segment: Segment) -> tuple[float, float]:
        """Log evidence for "above lo" and for "below hi", each with unparsed answers counting against it."""
        run, other = segment.run, segment.reference
        above = log_evidence(run.least, other.most, self.zone.lo)
        return above, log_evidence_below(run.most, other.least, self.zone.hi)

    def most_samples(self, enough: float) -> float:
        """Answers of the run after which a test is inconclusive."""
        return self.zone.most_samples(self.groups.base_share, enough)

    def futile(self, segment: Segment) -> bool:
        """Whether there is no hope: most answers are missing, or what could not be parsed makes the excess look under
        lo when read one way, and over hi the other way."""
        run, other = segment.run, segment.reference
        if segment.lost > max(LOST_MOST, segment.n):
            return True
        if not segment.has_unparsed or segment.n < PARSED_LEAST:
            return False
        under = log_evidence_below(run.least, other.most, self.zone.lo)
        return min(under, log_evidence(run.most, other.least, self.zone.hi)) >= self.zone.loose

    def glance(self, segment: Segment, share: float = 1.0) -> Rounds[str]:
        """How a step looks by a loose test; inconclusive after `share` of the most samples."""
        while True:
            above, below = self.evidence(segment)
            if max(above, below) >= self.zone.loose:
                return ABOVE if above > below else BELOW
            if segment.n >= share * self.most_samples(self.zone.loose) or self.futile(segment):
                return INCONCLUSIVE
            yield segment.wait()

    def certify(self, segment: Segment, enough: Mapping[str, float]) -> Rounds[tuple[str, float, float]]:
        """Test a segment until something is certain: the claim, and the log evidence for above and below."""
        while True:
            above, below = self.evidence(segment)
            claim = ABOVE if above >= enough[ABOVE] else BELOW if below >= enough[BELOW] else INCONCLUSIVE
            if claim != INCONCLUSIVE or segment.n >= self.most_samples(max(enough.values())) or self.futile(segment):
                return claim, above, below
            yield segment.wait()


def refuse_twice(name: str, values: Sequence[int] | Sequence[str]) -> None:
    """Raise BadInput where a value occurs twice."""
    twice = next((b for a, b in pairwise(sorted(values)) if a == b), None)
    if twice is not None:
        raise BadInput(f"{name} {twice} is given twice")
