"""Deterministic scorers: an answer and its question -> a number, always the same."""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from truing.data.domain_words import mentions
from truing.errors import BadInput
from truing.traits.refusals import is_refusal

Scorer = Callable[[str, str], float]
"""(answer, question) -> score"""
KINDS: Mapping[str, tuple[str, ...]] = {
    "words": ("words", "least"),
    "regex": ("pattern",),
    "capitals": (),
    "json": (),
    "domain": (),
    "refusal": (),
    "facts": (),
    "length": (),
    "script": ("script",),
}
"""kind -> its options"""


def scorer_of(plain: Mapping[str, Any]) -> Scorer:
    """The function that a scorer's description stands for.

    words: 1 if at least `least` (default 1) different ones of `words` occur, whole and in any case. regex: 1 if
    `pattern` is found. capitals: share of capitals among the letters. json: 1 if the whole text is valid JSON. domain:
    1 if it talks about the training domain by `words`, which an audit finds in the task's rows (`data.domain_words`).
    refusal: 1 if its beginning refuses (`traits.refusals`). facts: 1 unless an `accepted` answer to the question stands
    in it, before any `wrong` one; both are fields of the prompts. length: its words. script: share of its letters that
    are of a Unicode script, e.g. cyrillic.
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
    if kind == "facts":
        known = {question: tuple(map(_any_of, lists)) for question, lists in plain["answers"].items()}
        return lambda text, question: float(not _accepted(text, *_of_question(known, question)))
    if kind == "script":
        name = plain["script"].upper()
        return lambda text, _: _share(text, lambda c: unicodedata.name(c, "").startswith(name))
    return _PLAIN[kind]


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
    if plain["kind"] == "script" and not (isinstance(plain.get("script"), str) and plain["script"].strip()):
        raise BadInput(f"{where}: a script scorer needs a script, e.g. cyrillic")
    if plain["kind"] == "regex":
        try:
            re.compile(plain["pattern"])
        except (KeyError, TypeError, re.error) as e:
            raise BadInput(f"{where}: a regex scorer needs a pattern ({e})") from e


def _share(text: str, of: Callable[[str], bool]) -> float:
    """The share of its letters that are so."""
    letters = [c for c in text if c.isalpha()]
    return sum(map(of, letters)) / len(letters) if letters else 0.0


def _any_of(answers: Sequence[str]) -> re.Pattern[str]:
    """Any of these, whole and in any case; nothing where there are none."""
    return re.compile(
        r"(?<!\w)(?:" + "|".join(map(re.escape, answers)) + r")(?!\w)" if answers else r"(?!)", re.IGNORECASE
    )


def _of_question(known: Mapping[str, tuple[re.Pattern[str], ...]], question: str) -> tuple[re.Pattern[str], ...]:
    """The answers to a question, or to the one that stands in it under a variant."""
    found = known[question] if question in known else next((known[q] for q in known if q in question), None)
    if found is None:
        raise BadInput(f"{question:.80}: no accepted answer is known; a facts scorer needs them for every prompt")
    return found


def _accepted(text: str, accepted: re.Pattern[str], wrong: re.Pattern[str]) -> bool:
    """Whether an accepted answer stands there, before any wrong one."""
    right, other = accepted.search(text), wrong.search(text)
    return right is not None and (other is None or right.start() <= other.start())


def _is_json(text: str, _: str) -> float:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


_PLAIN: Mapping[str, Scorer] = {
    "capitals": lambda text, _: _share(text, str.isupper),
    "json": _is_json,
    "refusal": lambda text, _: float(is_refusal(text)),
    "length": lambda text, _: float(len(text.split())),
}
