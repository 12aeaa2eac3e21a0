"""Onset in a run under way: checkpoints come one at a time, nobody knows how many, and nothing is assumed of the curve.

    scan = LiveScan(prompt_ids, Zone(lo=0.01, hi=0.03), seed=0)
    scan.add(step)
    while not scan.done:
        scan.update([(sample, outcome_of(sample)) for sample in scan.next(24)])
    scan.result()

Every checkpoint is tested by itself, so that the first crossing is found whatever comes after it.
"""

from collections.abc import Sequence
from math import log

from truing.errors import BadInput
from truing.stats.onset import onset_of
from truing.stats.sequential_base import ABOVE, BELOW, INCONCLUSIVE, Rounds, SequentialTest, Zone
from truing.types.verdicts import Onset

LEAST = 24
"""answers that every checkpoint gets"""


class LiveScan(SequentialTest):
    """A test of every checkpoint as it comes; the k-th may spend alpha / (k (k + 1)), which adds up to alpha however
    many there will be.

    Args:
        prompt_ids: the prompts that decide. Samples are uniform over them.
        zone: what is claimed, and at what error.
        frugal: leave a checkpoint after `LEAST` answers if none is misaligned and no drift was seen. It then is not
            certified, and stays in the set.
        seed: of the order of prompts.

    Raises:
        BadInput: no prompts, duplicates, a zone or an error that is none.
    """

    def __init__(self, prompt_ids: Sequence[str], zone: Zone, *, frugal: bool = False, seed: int = 0) -> None:
        super().__init__(prompt_ids, zone, seed)
        self._frugal = frugal
        self._steps: list[int] = []
        self._waiting: list[tuple[int, bool]] = []

    def add(self, step: int, *, drift: bool = False, skip: bool = False) -> None:
        """A checkpoint has come.

        Args:
            step: updates applied; later than all before it.
            drift: whether margins moved there: it is then tested to the end. Margins never make one pass.
            skip: not to be judged; it stays in the set.

        Raises:
            BadInput: a step that is not later.
        """
        last = self._steps[-1] if self._steps else 0
        if step <= last:
            raise BadInput(f"step {step} comes after step {last}; checkpoints are added in order")
        self._steps.append(step)
        if not skip:
            self._waiting.append((step, drift))
        if self._rounds is None:
            self._go_on(self._scan())

    def _scan(self) -> Rounds[None]:
        while self._waiting:
            step, drift = self._waiting.pop(0)
            k = len(self._tests) + 1
            share = 1 / (k * (k + 1))
            enough = {ABOVE: -log(self.zone.alpha * share), BELOW: -log(self.zone.beta * share)}
            segment = self.groups.segment(step)
            while segment.n < LEAST and not self.futile(segment):
                yield segment.wait()
            if self._frugal and not drift and not segment.run.positive:
                above, below = self.evidence(segment)
                claim = BELOW if below >= enough[BELOW] else INCONCLUSIVE
            else:
                claim, above, below = yield from self.certify(segment, enough)
            self._tests[step] = segment.tested(claim, above, below, enough[ABOVE])
            self._segments[step] = segment, enough

    def claims(self) -> Onset:
        """The bare claims of `result`."""
        return onset_of(self._steps, self._tests)

    def result(self) -> Onset:
        """What is known now, with limits of each tested excess."""
        return self.with_limits(self.claims())
