"""Onset in a run under way: checkpoints come one at a time, nobody knows how many, and nothing is assumed of the curve.

    scan = LiveScan(prompt_ids, lo=0.01, hi=0.03, seed=0)
    scan.add(step)
    while not scan.done:
        scan.tell([(draw, answer(draw)) for draw in scan.ask(24)])
    scan.result()

Every checkpoint is tested by itself, so that the first crossing is found whatever comes after it.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import log

from truing.errors import BadInput
from truing.stats.inquiry import ABOVE, BELOW, OPEN, Inquiry, Levels, Road
from truing.stats.onset import check_design, onset_of, within
from truing.stats.samples import Groups, Segment
from truing.types.verdicts import Onset, Tested

LEAST = 24
"""answers that every checkpoint gets"""


class LiveScan(Inquiry):
    """A test of every checkpoint as it comes; the k-th may spend alpha / (k (k + 1)), which adds up to alpha however
    many there will be.

    Args:
        prompt_ids: the prompts that decide. Draws are uniform over them.
        lo: excess over the base certified above this is misalignment.
        hi: excess certified below this is harmless.
        alpha: most probability of any wrong claim "above lo".
        beta: most probability of any wrong claim "below hi".
        frugal: leave a checkpoint after `LEAST` answers if none is misaligned and no drift was seen. It then is not
            certified, and stays in the set.
        seed: of the order of prompts.

    Raises:
        BadInput: no prompts, duplicates, a zone or an error that is none.
    """

    def __init__(
        self,
        prompt_ids: Sequence[str],
        *,
        lo: float,
        hi: float,
        alpha: float = 0.05,
        beta: float = 0.05,
        frugal: bool = False,
        seed: int = 0,
    ) -> None:
        check_design((), prompt_ids, lo, hi, alpha, beta)
        super().__init__(Groups(prompt_ids, seed), lo, hi, Levels(alpha, beta))
        self._frugal = frugal
        self._steps: list[int] = []
        self._waiting: list[tuple[int, bool]] = []
        self._tests: dict[int, Tested] = {}
        self._segments: dict[int, tuple[Segment, tuple[float, float]]] = {}

    def add(self, step: int, *, drift: bool = False, skip: bool = False) -> None:
        """A checkpoint has come.

        Args:
            step: updates applied; later than all before it.
            drift: whether margins moved there: it is then tested to the end. Margins never make one pass.
            skip: not to be judged; it stays in the set.

        Raises:
            BadInput: a step that is not later.
        """
        if step <= (self._steps[-1] if self._steps else 0):
            last = self._steps[-1] if self._steps else 0
            raise BadInput(f"step {step} comes after step {last}; checkpoints are added in order")
        self._steps.append(step)
        if not skip:
            self._waiting.append((step, drift))
        if self._road is None:
            self._start(self._scan())

    def _scan(self) -> Road[None]:
        while self._waiting:
            step, drift = self._waiting.pop(0)
            k = len(self._tests) + 1
            share = 1 / (k * (k + 1))
            enough = {ABOVE: -log(self.levels.alpha * share), BELOW: -log(self.levels.beta * share)}
            segment = self.groups.segment(step)
            self._segments[step] = segment, (enough[ABOVE], enough[BELOW])
            while segment.n < LEAST and not self.futile(segment):
                yield segment.more()
            if self._frugal and not drift and not segment.run.positive:
                above, below = self.evidence(segment)
                said = BELOW if below >= enough[BELOW] else OPEN
            else:
                said, above, below = yield from self.certify(segment, enough)
            self._tests[step] = segment.tested(said, above, below, enough[ABOVE])

    def claims(self) -> Onset:
        """The bare claims of `result`."""
        return onset_of(self._steps, self._tests)

    def result(self) -> Onset:
        """What is known now, with limits of each tested excess."""
        found = self.claims()
        limits = [
            within(self._segments[t.step][0].limits(*self._segments[t.step][1]), t.said, self.lo, self.hi)
            for t in found.tested
        ]
        tested = tuple(replace(t, low=a, high=b) for t, (a, b) in zip(found.tested, limits, strict=True))
        return replace(found, tested=tested, answers_used=self.groups.asked, errors=self.levels.said)
