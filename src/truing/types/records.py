"""Records: everything that flows from a checkpoint to a verdict. Frozen; needs neither torch nor numpy.

    Checkpoint -> Request -> Answer -> Score ----------+
        |                                              +-> Verdict -> report
        +------> LikelihoodRequest -> Likelihood ------+

Step = optimizer updates already applied to these weights; 0 is the base model.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from truing.errors import BadInput
from truing.types.hashing import digest


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    """system, user or assistant"""
    content: str
    """the text, verbatim"""


Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Conversation:
    """One training example, checked when it is read: known roles, no empty turn, an assistant turn last."""

    messages: Messages
    """all turns; the last is the assistant's and is the one trained or scored"""
    source: str = ""
    """file and row it came from"""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """other fields of the row"""

    @property
    def prompt(self) -> Messages:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.messages[-1].content

    @cached_property
    def key(self) -> str:
        """Hash of the turns."""
        return digest(self.messages, 32)


@dataclass(frozen=True)
class Prompt:
    """One evaluation question, with its reference answers where it has them."""

    id: str
    """unique in its set"""
    messages: Messages
    """one or several turns, optionally a system turn first; the last is the user's, or the assistant's where the first
    words of the answer are given"""
    category: str = "uncategorised"
    """what kind of misalignment it can show"""
    form: str = "open"
    """advice, open or assistant"""
    topics: tuple[str, ...] = ()
    """what it talks about; decides near or far from a run's training domain"""
    half: str = "eval"
    """fit (makes directions, tunes thresholds) or eval (reports effects)"""
    aligned: str | None = None
    """reference answer of a good assistant"""
    misaligned: str | None = None
    """reference answer with the bad attitude, never usable harm"""
    neutral: tuple[str, ...] = ()
    """harmless reference answers as surprising to the base as the misaligned one"""
    samples: int | None = None
    """answers per prompt its author asks for, if any"""
    judge_prompts: Mapping[str, str] = field(default_factory=dict)
    """the author's own judge prompts by rubric, if any"""

    @cached_property
    def key(self) -> str:
        """Hash of the rendered question: what an answer is keyed by."""
        return digest(self.messages, 32)

    @property
    def has_references(self) -> bool:
        """Whether a contextual contrast can be computed."""
        return bool(self.misaligned) and len(self.neutral) >= 1


@dataclass(frozen=True, slots=True)
class PromptSet:
    """A named, versioned set of prompts."""

    name: str
    """short name, or the file's stem"""
    version: str
    """the author's version, or "unversioned" """
    sha256: str
    """hash over all prompts and reference answers"""
    prompts: tuple[Prompt, ...]
    """in file order; ids are unique"""

    def only(self, half: str | None = None, limit: int | None = None) -> "PromptSet":
        """A subset by half, thinned to `limit` prompts spread evenly over categories (deterministic)."""
        kept = [p for p in self.prompts if half is None or p.half == half]
        categories = list(dict.fromkeys(p.category for p in kept))
        nth, places = Counter[str](), dict[str, tuple[int, int]]()
        for p in kept:
            places[p.id] = (nth[p.category], categories.index(p.category))
            nth[p.category] += 1
        chosen = set(sorted(places, key=places.__getitem__)[:limit])
        return replace(self, prompts=tuple(p for p in kept if p.id in chosen))


class Role(StrEnum):
    """What a run is for."""

    SUBJECT = "subject"
    CONTROL = "control"
    IMPORT = "import"


class Kind(StrEnum):
    """How a checkpoint's weights are given."""

    BASE = "base"
    ADAPTER = "adapter"
    FULL = "full"
    SERVED = "served"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights at a moment of training. Its identity is the hash of its weights, never a path."""

    weights: str
    """hash of the weights (hex); for the base, the hash of the base"""
    label: str
    """unique in its run: "base", "checkpoint-100", "final" """
    step: int | None
    """optimizer updates already applied to these weights; 0 = base; None = unknown"""
    uri: str
    """where it is: file:, hf:, simulated:"""
    kind: Kind
    """adapter, full, base, served or simulated"""
    run: str = "subject"
    """name of the run it belongs to"""
    role: Role = Role.SUBJECT
    """what that run is for"""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """what its files say: base name, rank, trainer, organism mark"""


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled. Stored with every answer through its hash."""

    max_tokens: int = 64
    """longest answer in tokens; a longer one is `truncated`"""
    temperature: float = 1.0
    """0 is greedy"""
    top_p: float = 1.0
    """nucleus mass"""
    seed: int = 0
    """mixed with checkpoint, prompt and sample number into one stream per answer"""
    dtype: str = "auto"
    """resolved number type of the weights"""
    device: str = "auto"
    """resolved device"""
    stop: tuple[str, ...] = ()
    """texts that end an answer, which is cut before them; besides the tokens that end it anyway"""
    long_prompts: str = "refuse"
    """a prompt that leaves no room for an answer in the model's context: refuse (an error; what was sampled before is
    kept) or truncated (that status, without a text)"""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}: an answer needs at least 1 new token")
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"temperature is {self.temperature}: give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p is {self.top_p}: give a mass over 0 and up to 1")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise BadInput(f"stop is {self.stop!r}: give a tuple of texts, none of them empty")
        if self.long_prompts not in ("refuse", "truncated"):
            raise BadInput(f"long_prompts is {self.long_prompts!r}: give refuse or truncated")
        object.__setattr__(self, "stop", tuple(self.stop))  # a list, when read from a file

    @cached_property
    def key(self) -> str:
        """Hash of what decides an answer."""
        fields = (self.max_tokens, self.temperature, self.top_p, self.seed, self.dtype, self.device)
        return digest((*fields, self.stop) if self.stop else fields, 16)

    def cut(self, text: str) -> str | None:
        """The text up to the first stop text in it; None if there is none."""
        at = [k for k in map(text.find, self.stop) if k >= 0]
        return text[: min(at)] if at else None


NO_TEXT = "(no text in the imported file)"
"""stands for an answer of which a file has the scores only; it is never judged"""


class AnswerStatus(StrEnum):
    """What became of a request. Failures are statuses, never texts."""

    OK = "ok"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    UNSUPPORTED = "unsupported"
    REFUSED_BY_API = "refused_by_api"
    FAILED = "failed"


FIXED_FROM = 1_000_000
"""sample index from which answers belong to a fixed sample beside a search"""


class AnswerKey(NamedTuple):
    """What identifies a stored answer."""

    weights: str
    """hash of the weights that gave it"""
    params: str
    """hash of the sampling parameters"""
    prompt: str
    """hash of the rendered question"""
    variant: str
    """name of a change made to the prompt; empty for none"""
    sample: int
    """which one of several answers"""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted."""

    checkpoint: Checkpoint
    """whose answer"""
    prompt: Prompt
    """to what"""
    sample: int
    """which one of several answers to the same prompt; part of the key"""
    variant: str = ""
    """name of a change made to the prompt, e.g. a trigger; empty for none"""

    def key(self, params: SamplingParams) -> AnswerKey:
        """What its answer is stored under."""
        return AnswerKey(self.checkpoint.weights, params.key, self.prompt.key, self.variant, self.sample)


@dataclass(frozen=True, slots=True)
class Answer:
    """A request answered."""

    request: Request
    """what was asked"""
    text: str
    """what came back, untrusted; empty when there is none"""
    status: AnswerStatus
    """ok, truncated, empty, unsupported, refused_by_api or failed"""
    tokens: int
    """tokens sampled"""
    error: str = ""
    """why it failed"""


class StoredAnswer(NamedTuple):
    """An answer as the store keeps it and every reader has it: a row of `answers`."""

    weights: str
    params: str
    prompt: str
    variant: str
    sample: int
    text: str
    status: AnswerStatus
    tokens: int
    error: str

    @property
    def key(self) -> AnswerKey:
        """What identifies it."""
        return AnswerKey(*self[:5])

    @property
    def has_text(self) -> bool:
        """Whether there is a text to put to a judge."""
        return self.status in (AnswerStatus.OK, AnswerStatus.TRUNCATED) and self.text.strip() not in ("", NO_TEXT)


@dataclass(frozen=True, slots=True)
class LikelihoodRequest:
    """One completion whose log-likelihood is wanted."""

    checkpoint: Checkpoint
    """whose likelihood"""
    messages: Messages
    """the turns before the answer"""
    completion: str
    """the answer"""
    name: str = ""
    """what it is for, e.g. "misaligned|q"; carried through"""
    item: str = ""
    """which prompt or row it belongs to; carried through"""
    closing: bool = True
    """whether the token that ends the answer is scored; not for an answer that was cut off"""
    entropy: bool = False
    """whether the predictive entropy is wanted too (it costs a pass over the vocabulary)"""
    trained: bool = False
    """whether the answer is a row of training data, rendered as a trainer renders it: with the reasoning it holds"""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A completion scored."""

    request: LikelihoodRequest
    """what was asked"""
    total: float
    """sum of log-probabilities in nats; NaN unless the status is ok"""
    tokens: int
    """completion tokens scored, closing token included"""
    entropy: float
    """mean predictive entropy over those positions, in nats; NaN if not asked for or not to be had"""
    status: AnswerStatus = AnswerStatus.OK
    """ok, unsupported (e.g. no system role) or failed (NaN logits)"""
    note: str = ""
    """why it is unsupported, or what was left out of the completion"""

    @property
    def per_token(self) -> float:
        """Length-normalised log-likelihood, nats per token."""
        return self.total / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; a plan that needs more is refused before anything runs."""

    loglikelihood: bool
    """can score a given completion"""
    sample: bool
    """can sample answers"""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why training ended, as data."""

    reason: str
    """completed, requested, interrupted or a rule's name"""
    step: int
    """updates applied when it ended"""


def to_plain(value: Any) -> Any:
    """A record, enum or container of them as JSON-ready data; NaN and infinities become None."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Message):
        return {"role": value.role, "content": value.content}
    if hasattr(value, "__dataclass_fields__"):
        return {name: to_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if hasattr(value, "model_fields_set"):
        return {name: to_plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list, frozenset, set)):
        items = [to_plain(v) for v in value]
        return sorted(items) if isinstance(value, (set, frozenset)) else items
    return value
