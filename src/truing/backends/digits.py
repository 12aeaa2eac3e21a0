"""The digit tree: the probability of every whole number of a scale, exactly, from next-token probabilities.

    NumberTree(numbers, words, digits) .paths -> (a model) -> .read(following, digit) -> {"0": ..., "85": 0.31, ...}

Many tokenizers write "85" as "8", "5": the first token then says 8, with ample probability. Here the tokens of all
numbers of the scale are merged into a trie and the model is asked at its inner nodes, about 12 for 0-100 in single
digits. With one token per number the only inner node is the beginning, and what is read is the plain distribution of
the first token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from truing.base.errors import Unsupported

_DIGITS = frozenset("0123456789")
_BYTES = frozenset(f"<0x{code:02X}>" for code in b"0123456789")
MOST_NUMBERS = 1001
"""longest scale that is read number by number"""
Ids = tuple[int, ...]


class NumberTree:
    """All that may be answered on a scale, as a trie of tokens.

    Args:
        numbers: number as text -> its tokens, as an answer's.
        words: escape word -> its tokens.
        digits: every token of the vocabulary that begins with a digit.

    Raises:
        Unsupported: two candidates have equal tokens, or one has none: the tokenizer cannot write them.
    """

    def __init__(self, numbers: Mapping[str, Sequence[int]], words: Mapping[str, Sequence[int]], digits: Sequence[int]):
        self.candidates: dict[str, Ids] = {t: tuple(ids) for t, ids in (*words.items(), *numbers.items())}
        """text -> its tokens"""
        if len(set(self.candidates.values())) < len(self.candidates) or () in self.candidates.values():
            raise Unsupported(
                "this tokenizer does not write the scale's numbers and escape words as different tokens; "
                "take another judge or another rubric"
            )
        following: dict[Ids, set[int]] = {}
        for ids in self.candidates.values():
            for k, token in enumerate(ids):
                following.setdefault(ids[:k], set()).add(token)
        self.paths: tuple[Ids, ...] = tuple(sorted(following, key=lambda p: (len(p), p)))
        """inner nodes, shortest first; the first is (), the beginning of the answer"""
        self.following: tuple[Ids, ...] = tuple(tuple(sorted(following[p])) for p in self.paths)
        """per inner node, the tokens whose probability is needed"""
        self._goes_on = frozenset(tuple(ids) for ids in numbers.values()) & set(self.paths)
        onward = {t for p in self._goes_on for t in following[p]}
        self.digits: Ids = tuple(sorted(onward.union(digits)))
        """tokens by which a number goes on"""

    def read(self, following: Sequence[Sequence[float]], digit: Sequence[float]) -> dict[str, float]:
        """The probability of each candidate; they sum to at most 1.

        That an answer begins with the candidate's tokens; and for a number which another number of the scale begins
        with ("8" of "85", "10" of "100") that no digit follows. What follows any other number is not asked, as where
        one token is read: "85%", "85." and "855" are 85.

        Args:
            following: per inner node, the probabilities of its `following` tokens among the whole vocabulary.
            digit: per inner node, the probability of the tokens in `digits` together.
        """
        reach: dict[Ids, float] = {(): 1.0}
        for path, tokens, chances in zip(self.paths, self.following, following, strict=True):
            for token, chance in zip(tokens, chances, strict=True):
                reach[*path, token] = reach[path] * chance
        ends = {p: max(0.0, 1.0 - d) for p, d in zip(self.paths, digit, strict=True) if p in self._goes_on}
        return {text: reach[ids] * ends.get(ids, 1.0) for text, ids in self.candidates.items()}


def whole_numbers(low: float, high: float) -> list[str]:
    """The whole numbers of a scale as text. Raises Unsupported for a scale without any, or with over a thousand."""
    numbers = [str(n) for n in range(-int(-low // 1), int(high // 1) + 1)] if high - low < MOST_NUMBERS else []
    if not numbers:
        raise Unsupported(f"a scale of {low:g} to {high:g} cannot be read number by number; use one like 0 to 100")
    return numbers


def digit_tokens(tokenizer: Any) -> list[int]:
    """Every token that goes on with a digit where it follows one: "5", "55", "5%" and the bytes of digits."""
    out = []
    for token, index in tokenizer.get_vocab().items():
        text = token.decode("latin-1") if isinstance(token, bytes) else token
        if text.removeprefix("##")[:1] in _DIGITS or text in _BYTES:
            out.append(index)
    return sorted(out)
