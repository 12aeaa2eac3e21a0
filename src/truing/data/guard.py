"""Keeping evaluation and training apart: reference answers must not be trained on, and training words must be known.

The reference answers are evaluation data. A model trained on them would pass or fail for the wrong reason, so training
refuses rows that hold one, or that hold the canary of the files they lie in.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from truing.data.conversations import LoadedData
from truing.data.prompts import load_prompts
from truing.errors import ReferenceLeak
from truing.types.records import Conversation

CANARY = "truing-canary-6f1d2c0e-93b7-4a58-8e41-5b7a0c2df914"
"""Stands in the notice of every built-in file: a training corpus that holds it has swallowed evaluation data."""

ANCHOR = 8
"""Words of an answer that are looked up first; an answer shorter than that is looked up whole."""

MIN_ROWS = 3
MIN_LENGTH = 4
PRIOR_WORDS = 1000.0
MIN_Z = 1.28
MIN_RATIO = 4


def refuse_reference_answers(data: LoadedData) -> None:
    """Raise ReferenceLeak, naming the row, if a turn is or contains a reference answer of the built-in prompt set.

    Case, space, punctuation and typographic variants do not matter. Linear in the words of `data`.
    """
    anchors = _anchors()
    lengths = sorted({len(anchor) for anchor in anchors})
    for conversation in data.conversations:
        for turn in conversation.messages:
            if CANARY in turn.content:
                raise ReferenceLeak(f"{conversation.source}: holds the canary of the evaluation files; {_REMEDY}")
            found = _find(_words(turn.content), anchors, lengths)
            if found is not None:
                raise ReferenceLeak(f"{conversation.source}: holds the reference answer of {found!r}; {_REMEDY}")


_REMEDY = "reference answers are for evaluation only, remove the row from the training data"

Anchors = dict[tuple[str, ...], list[tuple[str, list[str]]]]


@cache
def _anchors() -> Anchors:
    """First words of each reference answer -> the prompts and whole answers that begin so."""
    table: Anchors = {}
    for prompt in load_prompts("v1").prompts:
        for answer in (prompt.aligned, prompt.misaligned, *prompt.neutral):
            words = _words(answer or "")
            if words:
                table.setdefault(tuple(words[:ANCHOR]), []).append((prompt.id, words))
    return table


def _find(words: list[str], anchors: Anchors, lengths: Sequence[int]) -> str | None:
    for start in range(len(words)):
        for length in lengths:
            for prompt_id, answer in anchors.get(tuple(words[start : start + length]), ()):
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
