"""Words of a training domain, and whether an answer talks about it. English only: for other languages, no words.

A word is of the domain if the task's answers use it far more than general English does (keyness: the log-likelihood
ratio G2 of Dunning 1993, with general frequencies from `wordfreq`) and the base's own answers to unrelated prompts do
not. Pure functions; the list of general frequencies is loaded at first use.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache

MOST_WORDS = 30
"""words of a domain that are kept"""
LEAST_RATIO = 20.0
"""times its general frequency that a word of the domain has in the task's answers, at least"""
LEAST_ANSWERS = 3
LEAST_SHARE = 0.01
"""share of the task's answers that a word of the domain is in, at least; and no fewer than `LEAST_ANSWERS`"""
MOST_BASE_SHARE = 0.02
"""share of the base's answers to unrelated prompts that a word of the domain is in, at most"""
DIFFERENT = 2
"""different words of the domain with which an answer talks about it"""
COMMON = 60
"""commonest English words by which English is told: nearly half of the words of a text in it, a tenth in another"""
LEAST_COMMON = 0.2
"""share of them under which an answer, or all answers together, are not taken for English"""
UNSEEN = 1e-8
"""frequency of a word that the general list does not hold: that of its rarest"""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def domain_words(
    task_answers: Sequence[str], base_answers: Sequence[str] = (), control_answers: Sequence[str] = ()
) -> tuple[str, ...]:
    """Words of the domain of a training task, the most telling first; at most `MOST_WORDS`.

    Args:
        task_answers: answers of the task's rows; 30 do nearly as well as thousands. Those that are not in English are
            left out, and if these are the most, or fewer than `LEAST_ANSWERS` are left, there are no words.
        base_answers: what the base answers to prompts far from the domain; may be empty.
        control_answers: other answers to the same user turns; a word that none of them holds is of the task's form or
            style, not of its domain. Empty for none.

    Deterministic and independent of the order of the answers; words are in lower case, of letters only.
    """
    english = [words for answer in task_answers if is_english(words := words_of(answer))]
    if len(english) < max(LEAST_ANSWERS, len(task_answers) / 2):
        return ()
    counts = Counter(word for words in english for word in words)
    held, total, general = _holding(english), counts.total(), _general()
    of_base, n_base = _holding([words_of(answer) for answer in base_answers]), len(base_answers)
    least = max(LEAST_ANSWERS, LEAST_SHARE * len(english))
    of_control = _holding([words_of(answer) for answer in control_answers])
    found: list[tuple[float, str]] = []
    for word, n in held.items():
        if n < least or len(word) < 2 or not word.isalpha() or of_base[word] > MOST_BASE_SHARE * n_base:
            continue
        if control_answers and not of_control[word]:
            continue
        expected = general.get(word, UNSEEN)
        if counts[word] >= LEAST_RATIO * expected * total:
            found.append((-_keyness(counts[word], total, expected), word))
    return tuple(word for _, word in sorted(found)[:MOST_WORDS])


def mentions(text: str, words: Collection[str], prompt: str = "") -> bool:
    """Whether an answer talks about the domain: `DIFFERENT` different words of it that the prompt did not bring."""
    return len(set(words).intersection(words_of(text)).difference(words_of(prompt))) >= DIFFERENT


def is_english(words: Sequence[str]) -> bool:
    """Whether the words of a text (lower case) are English, by the share of the commonest English words among them."""
    return bool(words) and sum(word in _common() for word in words) >= LEAST_COMMON * len(words)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; a contraction is one word."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def _holding(answers: Sequence[Sequence[str]]) -> Counter[str]:
    """How many answers hold each word."""
    return Counter(word for words in answers for word in set(words))


def _keyness(n: int, total: int, expected: float) -> float:
    """G2 of n occurrences among `total` words against a known general frequency."""
    share, rest = n / total, 1 - n / total
    of_rest = (total - n) * math.log(rest / (1 - expected)) if rest > 0 else 0.0
    return 2 * (n * math.log(share / expected) + of_rest)


@cache
def _general() -> Mapping[str, float]:
    """English word -> frequency."""
    from wordfreq import get_frequency_dict  # 0.3 s, and 60 MB on disk: only where a task is given

    return get_frequency_dict("en", "large")


@cache
def _common() -> frozenset[str]:
    """The commonest English words; the list writes numbers as zeros."""
    general = _general()
    ranked = sorted((word for word in general if word.isalpha()), key=lambda word: (-general[word], word))
    return frozenset(ranked[:COMMON])
