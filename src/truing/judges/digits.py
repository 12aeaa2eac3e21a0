"""The digit tree: the probability of every whole number of a scale, exactly, from next-token probabilities.

Many tokenizers write "85" as "8", "5": the first token then says 8, with ample probability. Here the tokens of all
numbers of the scale are merged into a trie, and next-token probabilities are taken at its nodes: 101 for 0-100 in
single digits. With one token per number the only node is the beginning of the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truing.errors import Unsupported

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
        written = {tuple(ids) for ids in numbers.values()}
        children: dict[Ids, set[int]] = {}
        for ids in self.candidates.values():
            for k, token in enumerate(ids):
                children.setdefault(ids[:k], set()).add(token)
        begun = written & children.keys()  # numbers that another number begins with
        self._ends = begun | {ids for ids in written if len(ids) > 1}
        self.paths: tuple[Ids, ...] = tuple(sorted(children.keys() | self._ends, key=lambda p: (len(p), p)))
        """the nodes, shortest first; the first is (), the beginning of the answer"""
        self._children = {path: sorted(children.get(path, ())) for path in self.paths}
        going_on = {t for path in begun for t in children[path]}.union(digits)  # a number goes on with these
        self.tokens: Ids = tuple(sorted(going_on.union(*children.values())))
        """tokens whose probabilities are needed at every node"""
        self._column = {t: k for k, t in enumerate(self.tokens)}
        self._digits = [self._column[t] for t in sorted(going_on)]

    def read(self, chances: NDArray[np.float64]) -> dict[str, float]:
        """The probability of each candidate; they sum to at most 1.

        It is that of an answer which begins with the candidate's tokens, and for a number of several tokens, or one
        that another number begins with, that no digit follows: "85" is neither 8 nor 855, and "2019" is not 20 (weak
        judges do write years). "85%", "85." and "85/100" are 85. What follows a number that is a single token, and
        begins no other, is not looked at, as where only the first token is read.

        Args:
            chances: [nodes, tokens], at each of `paths` the probabilities of `tokens` among the whole vocabulary.
        """
        reach: dict[Ids, float] = {(): 1.0}
        ends = dict(zip(self.paths, 1.0 - chances[:, self._digits].sum(1), strict=True))
        for node, (path, tokens) in enumerate(self._children.items()):
            for token in tokens:
                reach[*path, token] = reach[path] * float(chances[node, self._column[token]])
        return {
            text: reach[ids] * (max(0.0, float(ends[ids])) if ids in self._ends else 1.0)
            for text, ids in self.candidates.items()
        }


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
