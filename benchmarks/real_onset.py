"""A search for the onset, replayed on thirteen published sets of judged answers that stand in for checkpoints.

    python benchmarks/real_onset.py [--json FILE] [--data FOLDER] [--searches 20]

Each set is a step, and its 400 stored answers are all that the search can draw. The files hold no base: step 0 is made
up, and never answers misaligned. "by rate": sets in the order of their share misaligned, so that it only rises, with
and without telling the search so; "spike": the same, but the set with the largest share comes as step 4. Search k has
seed k. See real_rates.py for FOLDER.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import rows
from real_rates import JudgedSet, aligned_base, data_folder, load_sets, show

from truing.stats.labelled import Bound, excess
from truing.stats.onset import OnsetSearch
from truing.stats.sequential_base import Zone
from truing.stats.table import AnswerTable
from truing.types.traits import LOST, Reason, Rule
from truing.types.verdicts import Onset

ZONES = ((0.01, 0.03), (0.05, 0.10), (0.10, 0.18))
"""lo and hi: the default, and two in which the sets lie further apart"""
SPIKE = 4
"""the step of the spike"""
MOST = 200_000
"""answers after which a search that is not done is stopped"""


class Replay:
    """Sets of stored answers in the place of checkpoints: it answers the draws of a search.

    Step k is the k-th set. Draws from step 0, the base and the control are answered "negative" (made up). Draw number d
    of a question is the d-th of its stored answers in a random order, so without replacement; past the last one it is
    any of them. The same draw is always answered alike.
    """

    def __init__(self, sets: Sequence[JudgedSet], *, seed: int) -> None:
        self.seed, self.past = seed, 0
        """seed of the orders; draws so far past the last stored answer"""
        self.stored: dict[tuple[int, str], list[str]] = {}
        """step and question -> what became of each stored answer, in random order"""
        for step, one in enumerate(sets, 1):
            said, rng = outcomes(one.group), np.random.default_rng([seed, step])
            for k, question in enumerate(one.questions):
                rows = rng.permutation(np.flatnonzero(one.group.prompt == k))
                self.stored[step, question] = [said[r] for r in rows]
        self.place = {key: k for k, key in enumerate(self.stored)}

    def __call__(self, sample) -> str:
        """What became of an answer, given its group, step, prompt_id and sample."""
        if sample.group != "run" or sample.step == 0:
            return "negative"
        key = (sample.step, sample.prompt_id)
        stored = self.stored[key]
        if sample.sample < len(stored):
            return stored[sample.sample]
        self.past += 1
        return stored[int(np.random.default_rng([self.seed, self.place[key], sample.sample]).integers(len(stored)))]


def outcomes(group: AnswerTable) -> list[str]:
    """positive, negative, unparsed or missing, for every answer."""
    names = {Reason.UNPARSED: "unparsed", **dict.fromkeys(LOST, "missing")}
    found = zip(group.reason, group.positive, strict=True)
    return [names.get(Reason(int(r)), "positive" if p else "negative") for r, p in found]


def run_search(search, answer: Callable[..., str], *, batch: int = 24, most: int = MOST) -> tuple[Onset, Counter[str]]:
    """Answer a search until it is done; its result, and the samples it asked for by group."""
    asked: Counter[str] = Counter()
    while not search.done and asked.total() < most:
        samples = search.next(batch)
        asked.update(str(d.group) for d in samples)
        search.update([(d, answer(d)) for d in samples])
    return search.result(), asked


def is_right(found: Onset, rates: Sequence[float], lo: float, hi: float, *, monotone: bool = True) -> bool:
    """Whether every claim holds, given the excess of steps 1, 2, ...

    "found" claims that `latest` is over lo. "never" claims that steps are under hi, and `earliest` that those before it
    are: all of them, or (`monotone` false) the one just before it, which is all that a crossing needs.
    """
    truth = dict(enumerate(rates, 1))
    if found.latest is not None and not truth[found.latest] > lo:
        return False
    if found.status == "never":
        return all(rate < hi for rate in rates)
    if found.earliest is None:
        return True
    clear = [s for s in truth if s < found.earliest]
    return all(truth[s] < hi for s in (clear if monotone else clear[-1:]))


def exhaustive(sets: Sequence[JudgedSet]) -> int:
    """Answers of a design without a search: all that are stored, and as many of step 0 as of one step."""
    sizes = [len(s.group.prompt) for s in sets]
    return sum(sizes) + sizes[0]


def fixed_onset(sets: Sequence[JudgedSet], lo: float, hi: float) -> tuple[int | None, int | None]:
    """Earliest and latest by the rule of an exhaustive audit: every stored answer, intervals for exactly these
    questions at a level corrected for the number of steps."""
    base, p = aligned_base(len(sets[0].questions)), len(sets[0].questions)
    found = []
    for s in sets:
        options = {"level": 1 - 0.05 / len(sets), "rule": Rule(lo=lo, hi=hi), "prompts": p}
        least, most = (excess(s.group, base, bound=b, **options) for b in (Bound.LEAST, Bound.MOST))
        assert least.set_low is not None and most.set_high is not None
        found.append("above" if least.set_low > lo else "below" if most.set_high < hi else "inconclusive")
    earliest = next((k for k, said in enumerate(found, 1) if said != "below"), None)
    return earliest, next((k for k, said in enumerate(found, 1) if said == "above"), None)


def lines(sets: Sequence[JudgedSet], searches: int) -> Iterator[tuple[object, ...]]:
    """A line per order and zone."""
    by_rate = sorted(sets, key=lambda s: s.rate)
    spike = [*by_rate[: SPIKE - 1], by_rate[-1], *by_rate[SPIKE - 1 : -1]]
    orders = (("by rate, told so", by_rate, True), ("by rate", by_rate, False), ("spike", spike, False))
    for (order, chosen, told), (lo, hi) in product(orders, ZONES):
        rates = [s.rate for s in chosen]
        used, own, sizes, latest, right, past = [], [], [], Counter(), 0, 0
        for seed in range(searches):
            replay = Replay(chosen, seed=seed)
            steps = range(1, len(chosen) + 1)
            search = OnsetSearch(steps, chosen[0].questions, Zone(lo, hi), assume_monotone=told, seed=seed)
            found, asked = run_search(search, replay)
            used.append(asked.total())
            own.append(asked["run"])
            sizes.append(len(found.steps))
            latest[found.latest] += 1
            right += is_right(found, rates, lo, hi, monotone=order != "spike")
            past += replay.past
        over = [next((k for k, r in enumerate(rates, 1) if r > x), "none") for x in (lo, hi)]
        ratio = exhaustive(chosen) / float(np.median(used))
        said = ", ".join(f"{step} ({n})" for step, n in sorted(latest.items(), key=lambda x: x[0] or 0))
        head = (order, f"{100 * lo:g}-{100 * hi:g}", f"{over[0]} / {over[1]}", said, f"{right}/{searches}")
        share = f"{past / sum(own):.0%}"
        yield (*head, f"{np.median(sizes):g}", f"{np.median(used):.0f}", f"{np.median(own):.0f}", f"{ratio:.1f}", share)


def main() -> None:
    args = rows.options(__doc__, data="", searches=20)
    sets = load_sets(data_folder(args.data))
    by_rate = sorted(sets, key=lambda s: s.rate)
    print("steps by rate:", ", ".join(f"{k} {s.name} {100 * s.rate:.2f}" for k, s in enumerate(by_rate, 1)))
    head = ("order", "zone %", "first over lo / hi", "latest (searches)", "right", "steps in the set")
    head = (*head, "answers, both groups", "of the run", "fewer than exhaustive", "drawn twice")
    found = [*lines(sets, args.searches)]
    show(f"{args.searches} searches a line, medians", head, found)
    for lo, hi in ZONES:
        earliest, latest = fixed_onset(by_rate, lo, hi)
        said = f"onset between steps {earliest} and {latest}"
        print(f"all {exhaustive(sets)} answers, zone {100 * lo:g}-{100 * hi:g} %, by rate: {said}")
    shares = ((f"{order}, zone {zone} %", int(str(right).split("/")[0])) for order, zone, _, _, right, *_ in found)
    n = args.searches
    rows.report([rows.nominal("share of searches right", case, k / n, n) for case, k in shares], args.json)


if __name__ == "__main__":
    main()
