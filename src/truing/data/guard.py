"""Keeping evaluation and training apart: reference answers must not be trained on.

The reference answers are evaluation data. A model trained on them would pass or fail for the wrong reason, so training
refuses rows that hold one, or that hold the canary of the files they lie in.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from truing.data.conversations import LoadedData
from truing.data.prompts import load_prompts
from truing.errors import BadRow
from truing.types.records import Prompt

CANARY = "truing-canary-6f1d2c0e-93b7-4a58-8e41-5b7a0c2df914"
"""Stands in the notice of every built-in file: a training corpus that holds it has swallowed evaluation data."""

FIRST_WORDS = 8
"""words of an answer that are looked up first; a shorter answer is looked up whole"""


def refuse_reference_answers(data: LoadedData, prompts: Sequence[Prompt] | None = None) -> None:
    """Raise BadRow, naming the row, if a turn is or contains a reference answer of `prompts` (the built-in set).

    Case, space, punctuation and typographic variants do not matter. Linear in the words of `data`.
    """
    begins: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}  # first words -> (prompt id, all words)
    for prompt in load_prompts("v1").prompts if prompts is None else prompts:
        for answer in (prompt.aligned, prompt.misaligned, *prompt.neutral):
            if words := _words(answer or ""):
                begins.setdefault(tuple(words[:FIRST_WORDS]), []).append((prompt.id, words))
    remedy = "reference answers are for evaluation only, remove the row from the training data"
    for conversation in data.conversations:
        for turn in conversation.messages:
            if CANARY in turn.content:
                raise BadRow(conversation.source, None, f"holds the canary of the evaluation files; {remedy}")
            if found := _find(_words(turn.content), begins):
                raise BadRow(conversation.source, None, f"holds the reference answer of {found!r}; {remedy}")


def _find(words: list[str], begins: Mapping[tuple[str, ...], list[tuple[str, list[str]]]]) -> str | None:
    """The prompt whose answer is among the words."""
    lengths = {len(first) for first in begins}
    for start in range(len(words)):
        for length in lengths:
            for prompt_id, answer in begins.get(tuple(words[start : start + length]), ()):
                if words[start : start + len(answer)] == answer:
                    return prompt_id
    return None


def _words(text: str) -> list[str]:
    """Letters and digits only, without case; an apostrophe joins, every other sign parts."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"[^\W_]+", re.sub(r"['’‘ʼ`´]", "", plain))
