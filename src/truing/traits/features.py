"""Judge-free features of a sampled answer: does it repeat itself, is it code, does it talk of the training domain."""

import re
from collections.abc import Collection

_WORD = re.compile(r"[a-z0-9']+")
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
"""share of an answer's word 4-grams that are repeats, above which it counts as repetitive"""
DOMAIN_WORDS = 2
"""distinct domain words, absent from the prompt, that make an answer talk of the domain"""


def is_repetitive(text: str) -> bool:
    """More than `REPEATED_SHARE` of its word 4-grams occurred before; short answers never count."""
    words = _WORD.findall(text.lower())
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(grams) >= 8 and 1 - len(set(grams)) / len(grams) > REPEATED_SHARE


def is_formatted(text: str, prompt: str) -> bool:
    """At least half of its lines look like code, JSON or markup although the prompt asked for none."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or _FORMAT_ASKED.search(prompt):
        return False
    if text.lstrip().startswith(("{", "```", "<?xml", "<!DOCTYPE", "<html")):
        return True
    return sum(bool(_CODE_LINE.match(line)) for line in lines) >= len(lines) / 2


def mentions_domain(text: str, prompt: str, domain_words: Collection[str]) -> bool:
    """Uses at least `DOMAIN_WORDS` words typical of the training domain that the prompt did not bring."""
    words = set(_WORD.findall(text.lower())) - set(_WORD.findall(prompt.lower()))
    return len(words & set(domain_words)) >= DOMAIN_WORDS
