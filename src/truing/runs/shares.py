"""Answers chosen by hash: the choice does not look at them, and a repeat chooses the same."""

from collections.abc import Collection, Sequence

from truing.types.hashing import digest
from truing.types.records import AnswerKey

RANDOM_COHERENCE = 24
"""answers per checkpoint whose coherence is asked whatever their score, so that health stays known"""


def random_share(keys: Sequence[AnswerKey], share: float, seed: int) -> list[AnswerKey]:
    """A random share of answers, chosen by hash: it does not look at them, and a repeat chooses the same."""
    if share >= 1:
        return list(keys)
    return [k for k in keys if int(digest(["share", seed, *k], 12), 16) < share * 16**12]


def random_coherence(keys: Collection[AnswerKey], seed: int) -> frozenset[AnswerKey]:
    """`RANDOM_COHERENCE` answers per checkpoint and variant, chosen by hash before any is scored."""
    groups: dict[tuple[str, str], list[AnswerKey]] = {}
    for key in keys:
        groups.setdefault((key.weights, key.variant), []).append(key)
    ranked = (sorted(g, key=lambda k: digest([seed, *k], 16)) for g in groups.values())
    return frozenset(key for g in ranked for key in g[:RANDOM_COHERENCE])
