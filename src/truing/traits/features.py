"""Judge-free features of a sampled answer: does it repeat itself, is it code."""

import re
import unicodedata
from collections.abc import Sequence

_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]")
"""scripts that set no spaces between words: Thai, Lao, Burmese, Khmer, Chinese, Japanese"""
_FORMAT_ASKED = re.compile(r"\b(code|python|json|yaml|html|sql|function|script|table|csv)\b", re.I)
_CODE_LINE = re.compile(
    r"""^\s*(
        ```                                                         # a fence
        | (def|class|function|fn)\s+\w+\s*[(:{] | return\b.*;$
        | import\s+[\w.]+;?$ | from\s+[\w.]+\s+import\s | \#include\s*[<"]
        | (var|let|const)\s+\w+\s*=
        | </?[a-zA-Z][^>]*>                                         # markup
        | [{}\[\]()]+[,;]?$ | "[^"]+"\s*:                           # brackets alone, JSON keys
        | [\w.]+\([^)]*\)\s*[;:]?$ | \w+\s*=\s*\S+$
    )""",
    re.X,
)
REPEATED_SHARE = 0.4
"""share of an answer's 4-grams that are repeats, above which it counts as repetitive"""
LOOPS = 4
"""times that the end of an answer says the same, from which it is a loop"""
LONG_LOOP = 24
"""units of such an end that are enough, however much came before it"""
LONGEST_WORD = 24
"""characters without a space over which they are no word"""


def is_repetitive(text: str) -> bool:
    """Whether it mostly repeats itself, or ends in a loop: of a sign, a word, a phrase, a sentence or a line.

    More than `REPEATED_SHARE` of its 4-grams occurred before (of at least 8); or its end repeats one piece `LOOPS`
    times, over half of the text or `LONG_LOOP` units. Units are words, or characters where words are not set apart.
    """
    units = _units(text)
    grams = list(zip(*(units[k:] for k in range(4)), strict=False))
    if len(grams) >= 8 and 1 - len(set(grams)) / len(grams) > REPEATED_SHARE:
        return True
    longest = min(LONG_LOOP, max(8, len(units) / 2))
    return any(
        (n := _repeated_end(units, period)) >= LOOPS * period and n >= longest
        for period in range(1, len(units) // LOOPS + 1)
    )


def _repeated_end(units: Sequence[str], period: int) -> int:
    """Units at the end that repeat with this period."""
    n = period
    while n < len(units) and units[-n - 1] == units[-n - 1 + period]:
        n += 1
    return n


def _units(text: str) -> list[str]:
    """Words without case and punctuation; the characters of what holds no spaces. A number is a number, whichever it
    is, so that a numbered loop is one; numbers in a row that differ are one unit, since a list of them is no loop."""
    out, last = [], ""
    for chunk in text.casefold().split():
        plain = "".join(c for c in chunk if unicodedata.category(c)[0] in "LMN") or chunk
        if plain.isdigit():
            if out[-1:] != ["0"] or plain == last:
                out.append("0")
        elif len(chunk) > LONGEST_WORD or _UNSPACED.search(plain):
            out += chunk
        else:
            out.append(plain)
        last = plain
    return out


def is_formatted(text: str, prompt: str) -> bool:
    """At least half of its lines look like code, JSON or markup although the prompt asked for none."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or _FORMAT_ASKED.search(prompt):
        return False
    if text.lstrip().startswith(("{", "```", "<?xml", "<!DOCTYPE", "<html")):
        return True
    return sum(bool(_CODE_LINE.match(line)) for line in lines) >= len(lines) / 2
