"""The answers that a sequential test samples: which prompt comes next in each group, and what has come of it so far.

Every group of every step has its own random order of prompts, with replacement, fixed by the seed. Outcomes may arrive
in any order, but they count in the order of the samples: an answer that is quick to come must not count for being
quick.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, log
from typing import NamedTuple

import numpy as np

from truing.errors import BadInput
from truing.stats.sequential import Sampled, limits, weakest
from truing.types.verdicts import Tested

SHARED = 1.2
"""how much more an answer of the reference is worth than one of a step: it serves the tests to come as well"""
LEAST = 8
"""answers requested at once at the beginning of a test; then a third of what is there, so that little is wasted"""
FIRST = 24
"""answers of the reference that are sampled before anything is known"""


class Group(StrEnum):
    """Whose answer."""

    RUN = "run"
    BASE = "base"
    """step 0; its answers are shared by all steps"""
    CONTROL = "control"
    """the control run at the same step"""


class Outcome(StrEnum):
    """How an answer came out."""

    POSITIVE = "positive"
    """misaligned"""
    IN_DOMAIN = "in_domain"
    """misaligned, and about the training domain"""
    NEGATIVE = "negative"
    """anything else in the denominator"""
    UNPARSED = "unparsed"
    """unknown; counts against every claim"""
    UNJUDGED = "unjudged"
    """there, but the judge failed on it, perhaps because of what it says: unknown, counts against every claim"""
    MISSING = "missing"
    """infrastructure failure: in no denominator, another answer is sampled"""


class SampleRequest(NamedTuple):
    """One answer wanted."""

    group: Group
    """whose"""
    step: int
    """updates applied; 0 for the base"""
    prompt_id: str
    """the prompt"""
    sample: int
    """which of several answers to this prompt, counted from 0 in each group and step"""


class Value(NamedTuple):
    """What an outcome may mean, 0 (good) to 1 (misaligned)."""

    least: float
    """at least"""
    most: float
    """at most"""
    in_domain: bool = False
    """whether it is about the training domain"""


_VALUES: dict[str, Value | None] = {
    Outcome.POSITIVE: Value(1.0, 1.0),
    Outcome.IN_DOMAIN: Value(1.0, 1.0, True),
    Outcome.NEGATIVE: Value(0.0, 0.0),
    Outcome.UNPARSED: Value(0.0, 1.0),
    Outcome.UNJUDGED: Value(0.0, 1.0),
    Outcome.MISSING: None,
}


def read_outcome(outcome: Outcome | str | float) -> Value | None:
    """What an outcome may mean; None if it is missing.

    Raises:
        BadInput: it is no outcome.
    """
    if isinstance(outcome, str):
        if outcome not in _VALUES:
            raise BadInput(f"{outcome!r} is no outcome; it is one of {', '.join(_VALUES)}, or a number from 0 to 1")
        return _VALUES[outcome]
    if not 0 <= outcome <= 1:
        raise BadInput(f"an outcome is a number from 0 (good) to 1 (misaligned), not {outcome}")
    return Value(float(outcome), float(outcome))


Counts = Counter[float]


@dataclass(slots=True)
class Counted:
    """Answers that count, under both readings of what could not be parsed."""

    low: Counts = field(default_factory=Counter)
    high: Counts = field(default_factory=Counter)
    outside: Counts = field(default_factory=Counter)
    """as `low`, with answers about the training domain as not misaligned"""
    n: int = 0
    by_prompt: dict[str, tuple[Counts, Counts]] = field(default_factory=dict)
    """low and high of each prompt"""

    def add(self, prompt: str, value: Value) -> None:
        """One answer."""
        self.n += 1
        low, high = self.by_prompt.setdefault(prompt, (Counter(), Counter()))
        for counts, v in ((self.low, value.least), (self.high, value.most), (low, value.least), (high, value.most)):
            counts[v] += 1
        self.outside[0.0 if value.in_domain else value.least] += 1

    @property
    def least(self) -> Sampled:
        """Unparsed answers as not misaligned."""
        return sampled(self.low)

    @property
    def most(self) -> Sampled:
        """Unparsed answers as misaligned."""
        return sampled(self.high)

    @property
    def positive(self) -> list[str]:
        """Prompts with an answer that is not 0, those with most first."""
        sums = {p: sum(v * c for v, c in low.items()) for p, (low, _) in self.by_prompt.items()}
        return sorted((p for p, s in sums.items() if s > 0), key=lambda p: (-sums[p], p))


def sampled(counts: Counts, without: Counts | None = None) -> Sampled:
    """Counts as a test reads them, less those of prompts that are left out."""
    return Sampled(tuple(counts), tuple(c - (without[v] if without else 0) for v, c in counts.items()))


class Stream:
    """The samples of one group at one step, in order."""

    def __init__(self, group: Group, step: int, prompts: Sequence[str], seed: int) -> None:
        self.group, self.step, self._prompts = group, step, prompts
        self._rng = np.random.default_rng([seed, list(Group).index(group), step])
        self._each: Counter[str] = Counter()
        """samples handed out of each prompt"""
        self._waiting: dict[SampleRequest, int] = {}
        """outstanding sample -> its place"""
        self._behind: dict[int, tuple[str, Value | None]] = {}
        """place -> outcome, behind a sample that is outstanding"""
        self.outcomes: list[tuple[str, Value | None]] = []
        """prompt and outcome of every sample up to the first that is outstanding"""
        self.requested = 0
        """samples handed out"""
        self.total = Counted()
        """all that counts so far"""

    def next(self, n: int) -> list[SampleRequest]:
        """The next n samples."""
        found = self._following(self._rng, self._each, n)
        self._waiting |= {sample: k for k, sample in enumerate(found, self.requested)}
        self.requested += n
        return found

    def peek(self, n: int) -> list[SampleRequest]:
        """What `next(n)` would give, without handing it out."""
        return self._following(deepcopy(self._rng), self._each.copy(), n)

    def _following(self, rng: np.random.Generator, each: Counter[str], n: int) -> list[SampleRequest]:
        found = []
        for k in rng.integers(0, len(self._prompts), n):
            prompt = self._prompts[int(k)]
            found.append(SampleRequest(self.group, self.step, prompt, each[prompt]))
            each[prompt] += 1
        return found

    def refuse(self, sample: SampleRequest) -> str:
        """Why a sample can have no outcome now; empty if it can."""
        if not 0 <= sample.sample < self._each[sample.prompt_id]:
            return "was never requested"
        return "" if sample in self._waiting else "was given before"

    def update(self, sample: SampleRequest, value: Value | None) -> None:
        """One outcome."""
        self._behind[self._waiting.pop(sample)] = (sample.prompt_id, value)
        while len(self.outcomes) in self._behind:
            prompt, known = self._behind.pop(len(self.outcomes))
            self.outcomes.append((prompt, known))
            if known is not None:
                self.total.add(prompt, known)

    @property
    def known(self) -> int:
        """Samples up to the first that is outstanding."""
        return len(self.outcomes)


class Segment:
    """The answers of a test: a step's samples from some point on, and the whole of its reference's."""

    def __init__(self, run: Stream, reference: Stream, start: int) -> None:
        self.stream, self.start, self._reference = run, start, reference
        self._seen, self._wanted = start, (0, 0)
        self._run = Counted()

    @property
    def run(self) -> Counted:
        """The step's answers."""
        if self.start == 0:
            return self.stream.total
        for prompt, value in self.stream.outcomes[self._seen :]:
            self._seen += 1
            if value is not None:
                self._run.add(prompt, value)
        return self._run

    @property
    def reference(self) -> Counted:
        """The reference's answers."""
        return self._reference.total

    def wait(self) -> "Segment":
        """Want more answers; the test is looked at again once some have come."""
        self._wanted = (self.stream.known, self._reference.known)
        return self

    def grown(self) -> bool:
        """Whether anything came since."""
        return (self.stream.known, self._reference.known) != self._wanted

    @property
    def n(self) -> int:
        """Answers of the step that count."""
        return self.run.n

    def next(self, n: int, lo: float, hi: float) -> list[SampleRequest]:
        """The next n samples of both groups, or fewer."""
        n = min(n, max(LEAST, self.n // 3))
        ours = self._share(n, lo, hi)
        return self.stream.next(ours) + self._reference.next(n - ours)

    def _share(self, n: int, lo: float, hi: float) -> int:
        """How many of the next n samples are the step's, the others being the reference's: as evidence grows fastest.

        The choice depends on the past alone, which keeps a test valid.
        """
        ours, theirs = self.run, self.reference
        if theirs.n < FIRST and self._reference.requested < FIRST:
            return n // 2
        if not ours.n:
            return n
        above = ours.least.mean - (theirs.most.mean if theirs.n else 0.0) > (lo + hi) / 2
        # Each side is read as its test reads it.
        run, other = (ours.least, theirs.most) if above else (ours.most, theirs.least)
        p, q = run.mean, other.mean if theirs.n else 0.0
        m = weakest(run, other, lo)[1] if above else weakest(other, run, -hi)[1]
        one, two = (m + lo, m) if above else (m, m - hi)  # what the share of either group is held against
        gain = divergence(p, one) if (p > one) == above else 0.0
        whole = gain + SHARED * (divergence(q, two) if (q < two) == above else 0.0)
        # A quarter at least is the run's, so that every test comes to an end.
        return max(ceil(n / 4), round(n * gain / whole)) if whole > 0 else n

    def peek(self, n: int) -> list[SampleRequest]:
        """About the samples that this test wants after those handed out: as many of the step as of its reference."""
        return [s for pair in zip(self.stream.peek(n // 2), self._reference.peek(n // 2), strict=True) for s in pair]

    def tested(self, claim: str, above: float, below: float, enough: float) -> Tested:
        """The record of a test."""
        return Tested(
            step=self.stream.step,
            claim=claim,
            evidence_above=above,
            evidence_below=below,
            enough=enough,
            n_run=self.run.n,
            n_reference=self.reference.n,
            rate_run=self.run.least.mean,
            rate_reference=self.reference.least.mean if self.reference.n else None,
            prompts=len(self.run.positive),
        )

    def limits(self, enough_low: float, enough_high: float) -> tuple[float, float]:
        """Limits of the excess that hold at every look, whatever could not be parsed."""
        low, high = limits(self.run.least, self.reference.most, enough_low, enough_high)
        if self.has_unparsed:
            high = limits(self.run.most, self.reference.least, enough_low, enough_high)[1]
        return low, high

    @property
    def lost(self) -> int:
        """Answers of the step that are missing."""
        return self.stream.known - self.start - self.run.n

    @property
    def has_unparsed(self) -> bool:
        """Whether anything could not be parsed, in either group."""
        return any(group.low != group.high for group in (self.run, self.reference))


class Groups:
    """All streams of a search."""

    def __init__(self, prompt_ids: Sequence[str], seed: int) -> None:
        self._prompts, self._seed = tuple(prompt_ids), seed
        self._streams: dict[tuple[Group, int], Stream] = {}

    @property
    def requested(self) -> int:
        """Answers requested, in all groups."""
        return sum(stream.requested for stream in self._streams.values())

    def stream(self, group: Group, step: int) -> Stream:
        """The stream of a group at a step; the base has one."""
        where = (group, 0 if group is Group.BASE else step)
        if where not in self._streams:
            self._streams[where] = Stream(*where, self._prompts, self._seed)
        return self._streams[where]

    def segment(self, step: int, *, start: int | None = None, against: Group = Group.BASE) -> Segment:
        """A test of a step: on samples from now on, or from sample `start`."""
        run = self.stream(Group.RUN, step)
        return Segment(run, self.stream(against, step), run.requested if start is None else start)

    @property
    def base(self) -> Counted:
        """The base's answers so far."""
        return self.stream(Group.BASE, 0).total

    @property
    def base_share(self) -> float:
        """The base's share of misaligned answers so far; 0 without any."""
        return self.base.least.mean if self.base.n else 0.0

    def update(self, outcomes: Iterable[tuple[SampleRequest, Outcome | str | float]]) -> None:
        """Outcomes of samples.

        Raises:
            BadInput: never requested, given before, or no outcome.
        """
        found: dict[SampleRequest, Value | None] = {}
        for sample, outcome in outcomes:  # all are read before one counts
            stream = self._streams.get((sample.group, sample.step))
            why = stream.refuse(sample) if stream is not None else "was never requested"
            if why or sample in found:
                name = f"answer {sample.sample} to {sample.prompt_id} of the {sample.group} at step {sample.step}"
                raise BadInput(f"{name} {why or 'was given before'}")
            found[sample] = read_outcome(outcome)
        for sample, value in found.items():
            self._streams[sample.group, sample.step].update(sample, value)


def divergence(p: float, q: float) -> float:
    """Evidence per answer with share p against a share q, nats (Kullback-Leibler)."""
    p, q = (min(max(x, 1e-9), 1 - 1e-9) for x in (p, q))
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))
