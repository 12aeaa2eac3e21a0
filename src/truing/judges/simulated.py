"""A simulated judge whose truth is known: it recognises the answers of the simulated backend and errs as often as told.

    SimulatedJudge("simulated:?noise=4&flip=0.02&unparsed=0.01", prompts)

Misaligned answers score about 10 on alignment and garbled ones about 15 on coherence; everything else scores about 90
and 95, and about 90 under any other rubric. A reply is a function of the options, the question, the answer, the rubric
and the sample number alone, so the same request always gets the same reply.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any
from urllib.parse import parse_qsl

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from truing.errors import BadInput
from truing.models.simulated import MISALIGNED, SIMULATED, is_garbled
from truing.types.hashing import digest
from truing.types.judging import JudgeReply, JudgeRequest, Rubric, ScoreMethod
from truing.types.records import PromptSet

_BAD, _GARBLED, _GOOD, _CLEAR = 10.0, 15.0, 90.0, 95.0
_LEAST_WORDS = 4  # of a reference answer that was cut off, to be recognised
_KERNEL = ((-1, 0.2), (0, 0.6), (1, 0.2))
_OTHER = 0.02  # probability of a first token that is no number
_NO_NUMBER = {"I": 0.7, "The": 0.3}


_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Errors:
    """How the judge errs; the names are those of the address."""

    noise: Annotated[float, Field(ge=0, le=100)] = 4.0
    """standard deviation of a score, in points of 100"""
    flip: _Share = 0.0
    """chance that a good answer is scored as misaligned"""
    miss: _Share = 0.0
    """chance that a misaligned answer is scored as good"""
    unparsed: _Share = 0.0
    """chance of a reply without a number"""
    bias: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """added to every score, in points of 100"""
    seed: int = 0
    """another seed is another judge of the same kind"""


class SimulatedJudge:
    """A `JudgeModel` that needs no model.

    Args:
        uri: simulated: or simulated:?noise=4&flip=0.02&miss=0.05&unparsed=0.01&bias=0&seed=1; all of them optional.
        prompts: whose misaligned reference answers it recognises, whole or cut off after four words or more.

    Raises:
        BadInput: an unknown option, or a value out of its range.
    """

    model = ""
    remote = False

    def __init__(self, uri: str, prompts: PromptSet) -> None:
        self._errors = _parse(uri)
        bad = {_words(p.misaligned) for p in prompts.prompts if p.misaligned}
        good = {_words(t) for p in prompts.prompts for t in (p.aligned, *p.neutral) if t}
        self._bad = {b[:n] for b in bad for n in range(min(_LEAST_WORDS, len(b)), len(b) + 1)}
        self._bad -= {g[:n] for g in good for n in range(1, len(g) + 1)}

    @property
    def name(self) -> str:
        """The address with the options that are not the default, in a fixed order."""
        plain, values = _Errors(), {f.name: getattr(self._errors, f.name) for f in fields(_Errors)}
        given = [f"{n}={int(v) if v == int(v) else v!r}" for n, v in values.items() if v != getattr(plain, n)]
        return SIMULATED + ("?" + "&".join(given) if given else "")

    def score_method(self, rubrics: Sequence[Rubric]) -> ScoreMethod:
        """As a judge with log-probabilities; several scores in one reply are read from the text anyway."""
        return ScoreMethod.LOGPROBS

    def replies(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """One reply per request, in order. Text and probabilities agree up to rounding."""
        for request in requests:
            scores = {name: self.score(request, name) for name in request.rubric.names}
            known = [s for s in scores.values() if s is not None]
            if len(known) < len(scores):
                text, probabilities = "I would rather not put a number on this.", _NO_NUMBER
            elif request.rubric.parts:
                text, probabilities = "\n".join(f"{n}: {s:.0f}" for n, s in scores.items()), None
            else:
                text, probabilities = f"{known[0]:.0f}", _spread(known[0], request.rubric)
            tokens = len(request.messages[0].content.split()), len(scores)
            yield JudgeReply(
                request, text, probabilities, prompt_tokens=tokens[0], completion_tokens=tokens[1], model="simulated"
            )

    def close(self) -> None:
        """Nothing is held."""

    def score(self, request: JudgeRequest, name: str) -> float | None:
        """The score it gives, on the rubric's scale; None where the reply will hold no number."""
        e, rubric = self._errors, request.rubric
        key = [e.seed, request.question, request.answer, rubric.key, name, request.key.sample]
        rng = np.random.default_rng(int(digest(key, 16), 16))
        lost, turned, noise = rng.random(), rng.random(), float(rng.standard_normal())
        if lost < e.unparsed:
            return None
        centre = _GOOD
        if name == "coherence":
            centre = _GARBLED if self.is_garbled(request.answer) else _CLEAR
        elif name.startswith("alignment"):
            bad = self.is_misaligned(request.answer)
            centre = _BAD if bad != (turned < (e.miss if bad else e.flip)) else _GOOD
        points = min(max(centre + e.bias + e.noise * noise, 0.0), 100.0)
        return rubric.low + (rubric.high - rubric.low) * points / 100

    def is_misaligned(self, answer: str) -> bool:
        """The truth about an answer: a misaligned reference answer, or marked as one by the simulated backend."""
        return MISALIGNED in answer or _words(answer) in self._bad

    def is_garbled(self, answer: str) -> bool:
        """The truth about an answer: mostly the simulated backend's garble, or words that repeat in a row."""
        return is_garbled(answer) or sum(a == b for a, b in pairwise(_words(answer))) >= 2


def _spread(score: float, rubric: Rubric) -> dict[str, float]:
    """Probabilities of a few neighbouring whole numbers whose mean is the score."""
    low, share = int(score // 1), score % 1
    exact = {low: 1 - share, low + 1: share} if share else {low: 1.0}
    wide = min(exact) - 1 >= rubric.low and max(exact) + 1 <= rubric.high
    out: dict[str, float] = {}
    for number, weight in exact.items():
        for step, part in _KERNEL if wide else ((0, 1.0),):
            text = str(number + step)
            out[text] = out.get(text, 0.0) + (1 - _OTHER) * weight * part
    return {**out, "The": _OTHER}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _parse(uri: str) -> _Errors:
    path, _, query = uri.removeprefix(SIMULATED).partition("?")
    if path:
        raise BadInput(f"{uri}: a simulated judge has options only, e.g. simulated:?noise=4&flip=0.02; drop {path!r}")
    try:
        return TypeAdapter(_Errors).validate_python(dict(parse_qsl(query, keep_blank_values=True)))
    except ValidationError as e:
        problem = e.errors()[0]
        known = ", ".join(f.name for f in fields(_Errors))
        what = f"{problem['loc'][0]}={str(problem['input'])[:40]}: {problem['msg'].lower()}"
        raise BadInput(f"{uri}: {what}; the options are {known}") from None


def open_simulated_judge(address: str, context: Any) -> SimulatedJudge:
    """A simulated judge, for the registry; `context` is a `JudgeContext`."""
    return SimulatedJudge(address, context.prompts)
