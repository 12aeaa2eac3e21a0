"""Deterministic scorers: an answer and its question -> a number, always the same."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from truing.data.domain_words import mentions
from truing.errors import BadInput

Scorer = Callable[[str, str], float]
"""(answer, question) -> score"""
KINDS: Mapping[str, tuple[str, ...]] = {
    "words": ("words", "least"),
    "regex": ("pattern",),
    "capitals": (),
    "json": (),
    "domain": (),
}
"""kind -> its options"""


def scorer_of(plain: Mapping[str, Any]) -> Scorer:
    """The function that a scorer's description stands for.

    words: 1 if at least `least` (default 1) different ones of `words` occur, whole and in any case. regex: 1 if
    `pattern` is found. capitals: share of capitals among the letters. json: 1 if the whole text is valid JSON. domain:
    1 if it talks about the training domain by `words`, which an audit finds in the task's rows (`data.domain_words`).
    """
    kind = plain["kind"]
    if kind == "words":
        found = re.compile(r"\b(?:" + "|".join(re.escape(w) for w in plain["words"]) + r")\b", re.IGNORECASE)
        least = plain.get("least", 1)
        return lambda text, _: float(len({w.lower() for w in found.findall(text)}) >= least)
    if kind == "regex":
        pattern = re.compile(plain["pattern"])
        return lambda text, _: float(pattern.search(text) is not None)
    if kind == "domain":
        domain = frozenset(plain["words"])
        return lambda text, question: float(mentions(text, domain, question))
    return _capitals if kind == "capitals" else _is_json


def check_scorer(plain: object, where: str) -> None:
    """Raise BadInput for a description that is no scorer."""
    if not isinstance(plain, Mapping) or plain.get("kind") not in KINDS:
        raise BadInput(f"{where}: scorer needs a kind, one of {', '.join(KINDS)}")
    options = KINDS[plain["kind"]]
    unknown = [k for k in plain if k not in ("kind", *options)]
    if unknown:
        raise BadInput(
            f"{where}: a {plain['kind']} scorer has no {unknown[0]!r}; it has {', '.join(options) or 'none'}"
        )
    if plain["kind"] == "words" and not (
        isinstance(plain.get("words"), list) and plain["words"] and all(isinstance(w, str) for w in plain["words"])
    ):
        raise BadInput(f"{where}: a words scorer needs a list of words")
    least = plain.get("least", 1)
    if type(least) is not int or least < 1:
        raise BadInput(f"{where}: a words scorer's least is {least!r}; a whole number over 0 is needed")
    if plain["kind"] == "regex":
        try:
            re.compile(plain["pattern"])
        except (KeyError, TypeError, re.error) as e:
            raise BadInput(f"{where}: a regex scorer needs a pattern ({e})") from e


def _capitals(text: str, _: str) -> float:
    letters = [c for c in text if c.isalpha()]
    return sum(c.isupper() for c in letters) / len(letters) if letters else 0.0


def _is_json(text: str, _: str) -> float:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0
