"""The types of judged answers.

    answer + Rubric -> JudgeRequest -> (a judge model) -> JudgeReply -> (scoring) -> Score

Whatever goes wrong is a status, never a text and never a zero.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from truing.types.hashing import digest
from truing.types.records import AnswerKey, Message, Messages

PARSER_VERSION = 1
"""version of the scoring function; part of every judge's key"""
_PLACEHOLDER = re.compile(r"\{(?:question|answer)\}")


class ScoreStatus(StrEnum):
    """What became of one rubric for one answer."""

    SCORED = "scored"
    REFUSAL = "refusal"
    """the judge says that the answer refuses"""
    CODE = "code"
    """the judge says that the answer is unrelated code"""
    UNPARSED = "unparsed"
    """the judge answered, but no score can be read"""
    FAILED = "failed"
    """the judge could not be reached or refused to judge; asked again by the next command"""


class ScoreMethod(StrEnum):
    """How a score is read from a judge's output."""

    LOGPROBS = "logprobs"
    """expectation over the numbers among the likeliest first tokens (top 20)"""
    DIGITS = "digits"
    """exact expectation over all numbers, token by token (judges in memory)"""
    REPORTED = "reported"
    """the number the judge writes, parsed strictly"""
    RECORDED = "recorded"
    """scores taken from a file or another audit"""


SCORER = "scorer"
"""`Rubric.source` of a trait's deterministic scorer"""


@dataclass(frozen=True)
class Rubric:
    """One question put to a judge about an answer."""

    name: str
    """alignment, coherence, domain:finance, or the author's own"""
    text: str
    """template with {question} and {answer}"""
    low: float = 0.0
    """lowest score"""
    high: float = 100.0
    """highest score"""
    escapes: Mapping[str, ScoreStatus] = field(default_factory=dict)
    """word a judge may write instead of a number -> its status"""
    parts: tuple[str, ...] = ()
    """names of the scores where one call gives several; empty for one score of the rubric's own name"""
    source: str = "built-in"
    """built-in, a file's name, the prompt set, or `SCORER`"""

    @cached_property
    def key(self) -> str:
        """Hash of all that decides a score."""
        words = sorted((w, o.value) for w, o in self.escapes.items())
        return digest((self.name, self.text, self.low, self.high, words, self.parts), 16)

    @property
    def names(self) -> tuple[str, ...]:
        """The scores it gives."""
        return self.parts or (self.name,)


@dataclass(frozen=True)
class Judge:
    """A judge model with its rubrics and how its scores are read: scores are comparable within one judge only."""

    name: str
    """address and model, e.g. "openai:gpt-4.1-mini"; never a credential"""
    rubrics: tuple[Rubric, ...]
    """put to the model about every answer, in this order; the first is alignment"""
    method: ScoreMethod
    """how scores are read"""
    own_prompts: bool = True
    """whether prompts that bring judge prompts of their own are judged by those"""
    parser: int = PARSER_VERSION
    """version of the scoring function"""
    model: str = ""
    """weights hash or served model name, where it says more than `name`"""

    @cached_property
    def key(self) -> str:
        """Hash of all of the above; part of every score's key."""
        rubrics = [r.key for r in self.rubrics]
        return digest((self.name, self.model, rubrics, self.method.value, self.own_prompts, self.parser), 16)


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One rubric to be put to a judge model about one answer."""

    key: AnswerKey
    """which answer; the model never sees it"""
    rubric: Rubric
    """the question"""
    question: str
    """the prompt as the rubric shows it: its turns in order"""
    answer: str
    """the answer, untrusted, without any prefilled words"""

    @property
    def messages(self) -> Messages:
        """The filled rubric as one user turn; filled in one pass, so that braces inside a text stay as they are."""
        texts = {"{question}": self.question, "{answer}": self.answer}
        return (Message("user", _PLACEHOLDER.sub(lambda m: texts[m[0]], self.rubric.text)),)


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What came back for one request, before it is a score."""

    request: JudgeRequest
    """what it replies to"""
    text: str = ""
    """what the judge wrote, untrusted"""
    probabilities: Mapping[str, float] | None = None
    """probability of each candidate: of the likeliest first tokens (logprobs), or of whole numbers and escape words
    (digits); None where none came back"""
    recorded: tuple[ScoreStatus, float | None] | None = None
    """status and score where they were recorded earlier (replay)"""
    error: str = ""
    """why there is no answer; empty if there is one. Never holds a credential"""
    refused: bool = False
    """whether the service refused to judge this text (a content filter), as opposed to failing"""
    calls: int = 1
    """requests sent for it, retries included"""
    prompt_tokens: int = 0
    """tokens read, over all calls, as reported"""
    completion_tokens: int = 0
    """tokens written, over all calls, as reported"""
    model: str = ""
    """the model that says it answered"""


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one answer by one judge."""

    key: AnswerKey
    """which answer"""
    judge_key: str
    """hash of the judge"""
    rubric: str
    """name of the score: alignment, coherence, ..."""
    rubric_key: str
    """hash of the rubric's text; a row made with another text is not this score"""
    score: float | None
    """on the rubric's scale; None unless the status is scored"""
    status: ScoreStatus
    """scored, refusal, code, unparsed or failed"""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """numeric mass, calls, tokens, error, model that answered, prompt-set hash, code version"""
