"""A search's own work grows with the answers it reads, not with the checkpoints that it could read them from."""

import sys

from truing.stats.onset import OnsetSearch
from truing.stats.sequential_base import Zone


def work(steps):
    """Calls of Python functions per answer read, where only the first and the last steps' answers can be parsed."""
    calls, read = 0, 0
    search = OnsetSearch(range(1, steps + 1), [str(k) for k in range(20)], Zone(0.01, 0.03), assume_monotone=True)

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    def outcome(sample):
        middle = steps / 20 < sample.step < steps * 19 / 20
        return "unparsed" if middle else "positive" if sample.step > steps / 2 else "negative"

    while not search.done:
        samples = search.next(24)
        read += len(samples)
        sys.setprofile(count)
        search.update([(s, outcome(s)) for s in samples])
        sys.setprofile(None)
    return calls / read, read


def test_a_search_over_many_checkpoints_does_no_more_per_answer():
    (few, read_few), (many, read_many) = work(20), work(120)
    assert read_many > 3 * read_few
    assert many < 1.2 * few
