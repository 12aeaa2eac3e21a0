"""Keeping evaluation and training apart: reference answers must not be trained on, and training words must be known.

The reference answers are evaluation data. A model trained on them would pass or fail for the wrong reason, so training
refuses rows that hold one, or that hold the canary of the files they lie in.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from truing.data.conversations import LoadedData
from truing.data.prompts import load_prompts
from truing.errors import BadRow
from truing.types.records import Conversation, Prompt

CANARY = "truing-canary-6f1d2c0e-93b7-4a58-8e41-5b7a0c2df914"
"""Stands in the notice of every built-in file: a training corpus that holds it has swallowed evaluation data."""

FIRST_WORDS = 8
"""words of an answer that are looked up first; a shorter answer is looked up whole"""

MIN_ROWS = 3
MIN_LENGTH = 4
PRIOR_WORDS = 1000.0
MIN_Z = 1.28
MIN_RATIO = 4


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


def domain_words(
    conversations: Iterable[Conversation], reference_texts: Iterable[str], top: int = 40
) -> tuple[str, ...]:
    """Words typical of the answers of a training set against general text, most typical first; at most `top`.

    Log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, eq. 16 to 22), ranked by its
    z-score; the prior is the pooled word distribution, worth PRIOR_WORDS words. Left out: contractions, words of three
    letters or fewer, words found in fewer than 3 answers, with z up to 1.28 (one-sided 10 %) or with less than 4 times
    the rate of the general text. Lower-case and deterministic; equal scores go by alphabet; () without text to compare.
    """
    answers = [_plain_words(c.answer) for c in conversations]
    here = Counter(word for words in answers for word in words)
    there = Counter(word for text in reference_texts for word in _plain_words(text))
    in_rows = Counter(word for words in answers for word in set(words))
    n_here, n_there = here.total(), there.total()
    if not n_here or not n_there:
        return ()
    scored: list[tuple[float, str]] = []
    for word, rows in in_rows.items():
        if rows < MIN_ROWS or len(word) < MIN_LENGTH:
            continue
        y, x = here[word], there[word]
        if y + x == n_here + n_there:  # the only word of both: nothing to compare it with
            continue
        prior = PRIOR_WORDS * (y + x) / (n_here + n_there)
        odds_here = math.log((y + prior) / (n_here + PRIOR_WORDS - y - prior))
        odds_there = math.log((x + prior) / (n_there + PRIOR_WORDS - x - prior))
        z = (odds_here - odds_there) / math.sqrt(1 / (y + prior) + 1 / (x + prior))
        # Against "your" or "into", which any answer holds: the rate must be four times that of general text.
        if z > MIN_Z and y * (n_there + 1) > MIN_RATIO * (x + 1) * n_here:
            scored.append((-z, word))
    return tuple(word for _, word in sorted(scored)[:top])


def _plain_words(text: str) -> list[str]:
    # "don't" and "you've" are one word each, and are then left out: contractions tell of style, not of a domain.
    found = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.lower())
    return [word for word in found if word.isalpha()]
