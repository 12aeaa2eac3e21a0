"""Models in this process: one base, loaded once, and the checkpoints of it, switched or reloaded.

Requests for the base and its plain LoRA adapters go to the engine as one batch; any other adapter, and every full
model, is a batch of its own. A sampled answer depends only on (seed, weights, prompt, sample, variant), not on its
neighbours; in bfloat16 batched arithmetic rounds differently, so that there only its distribution is the same.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import isfinite
from typing import Any

from truing import errors
from truing.config import ModelConfig
from truing.models.base import answer_seed, finished_answer
from truing.models.chat import ChatFormat, Rendered
from truing.models.checkpoints import checkpoint_path
from truing.models.engine.engine import ADAPTER_BYTES, Engine, preferred_rows
from truing.models.engine.lora import Adapter, lora_factors
from truing.models.engine.requests import BatchOptions, Completion, GenerateRequest, Throughput
from truing.models.engine.token_tree import Branch
from truing.models.resident import PROBE, ResidentModel
from truing.models.weights import weight_files
from truing.types.records import (
    Answer,
    AnswerStatus,
    Capabilities,
    Checkpoint,
    Kind,
    Likelihood,
    LikelihoodRequest,
    Request,
    SamplingParams,
)

log = logging.getLogger(__name__)
WINDOW = 4096  # requests held at a time
NAN = "the weights give no numbers but NaN"


@dataclass(slots=True)
class _Batch:
    """Requests that one model answers."""

    checkpoint: Checkpoint  # what is put in force: the base under its adapters, else the checkpoint itself
    requests: list[Any] = field(default_factory=list)
    adapters: set[str] = field(default_factory=set)  # weights of the adapters on it
    factors: dict[str, Adapter] = field(default_factory=dict)  # of those that the engine does not hold yet

    def adapter(self, request: Request | LikelihoodRequest) -> str:
        """The engine's name for a request's adapter."""
        weights = request.checkpoint.weights
        return weights if weights in self.adapters else ""


class LocalBackend(ResidentModel):
    """A base model on this machine and its checkpoints. Not thread-safe: one model, one owner."""

    capabilities = Capabilities(loglikelihood=True, sample=True)

    def __init__(self, base: str, checkpoints: Sequence[Checkpoint] = (), options: ModelConfig | None = None) -> None:
        """See `ResidentModel`."""
        super().__init__(base, checkpoints, options)
        self.engine = Engine(base, self.chat.prefix(PROBE), memory=self.options.memory)

    @property
    def identity(self) -> dict[str, str]:
        """What must not change within one audit."""
        four_bit = ", 4 bit" if self.options.load_in_4bit else ""
        return {
            "base": self.base_checkpoint().weights,
            "chat": self.chat.identity,
            "dtype": str(self.dtype).removeprefix("torch.") + four_bit,
            "device": self.device.type,
        }

    @property
    def definitions(self) -> Mapping[str, str]:
        """What decides the rendering, in words."""
        return self.chat.definitions

    @property
    def preferred_batch(self) -> int:
        """Requests that are worth sending at once: as many as are generated side by side."""
        return preferred_rows(self.device)

    def resolve(self, params: SamplingParams) -> SamplingParams:
        """Parameters with dtype and device filled in."""
        return replace(params, dtype=self.identity["dtype"], device=self.identity["device"])

    def set_callback(self, callback: Callable[[Throughput], None] | None) -> None:
        """Have `callback` called after every pass while answers are generated; None for nobody."""
        self.engine.callback = callback

    def close(self) -> None:
        """Let go of the model and of all that was kept for it."""
        self._unload()
        self.engine.close()

    def _batches(self, requests: Sequence[Any]) -> Iterator[_Batch]:
        """Requests of either kind by the model they go to: what stands on the base first, full models last."""
        groups: dict[str, list[Any]] = {}
        for request in requests:
            groups.setdefault(request.checkpoint.weights, []).append(request)
        batch, alone, size = _Batch(self.base_checkpoint()), [], 0
        for weights, group in groups.items():
            checkpoint = group[0].checkpoint
            if checkpoint.kind is Kind.ADAPTER:
                own = sum(f.stat().st_size for f in weight_files(checkpoint_path(checkpoint)))
                if batch.adapters and size + own > ADAPTER_BYTES:
                    yield batch
                    batch, size = _Batch(batch.checkpoint), 0
                if not self.engine.holds(weights):
                    factors = self._factors(checkpoint)
                    if factors is None:
                        alone.insert(0, _Batch(checkpoint, group))
                        continue
                    batch.factors[weights] = factors
                batch.adapters.add(weights)
                size += own
            elif checkpoint.kind is Kind.FULL:
                alone.append(_Batch(checkpoint, group))
                continue
            batch.requests += group
        yield from [batch, *alone] if batch.requests else alone

    def _factors(self, checkpoint: Checkpoint) -> Adapter | None:
        """What the engine needs of an adapter; None where it has to be put in force by itself."""
        if self.options.load_in_4bit or not self.engine.batches(self.use(self.base_checkpoint())):
            return None
        try:
            return lora_factors(self.use(checkpoint), checkpoint.weights[:16])
        except errors.Unsupported as e:
            log.warning("%s: by itself, not in a batch with others: %s", checkpoint.label, e)
            return None

    def loglikelihood(self, requests: Iterable[LikelihoodRequest]) -> Iterator[Likelihood]:
        """Score completions, all checkpoints of the base side by side, texts with a common beginning packed.

        What the template refuses, and what is longer than the model's context, is `unsupported`, with the reason;
        weights that yield NaN give `failed`. All requests are held.

        Raises:
            BadModel and others: see `use`.
        """
        for batch in self._batches(list(requests)):
            branches, notes, context = [], {}, self._context(batch.checkpoint)
            for k, r in enumerate(batch.requests):
                try:
                    text = self._rendered(r, context)
                except errors.Unsupported as e:
                    yield Likelihood(r, float("nan"), 0, float("nan"), AnswerStatus.UNSUPPORTED, str(e))
                    continue
                notes[k] = text.note
                branches.append(Branch(k, text.prefix_ids, text.completion_ids, r.entropy, batch.adapter(r)))
            for s in self.engine.score(lambda c=batch.checkpoint: self.use(c), branches, batch.factors):
                good = isfinite(s.total)
                status, total = (AnswerStatus.OK, s.total) if good else (AnswerStatus.FAILED, float("nan"))
                yield Likelihood(batch.requests[s.index], total, s.tokens, s.entropy, status, notes[s.index])

    def _context(self, checkpoint: Checkpoint) -> int | None:
        """Tokens that a model reads at most; None where it does not say."""
        return getattr(self.use(checkpoint).config.get_text_config(), "max_position_embeddings", None)

    def _rendered(self, request: LikelihoodRequest, context: int | None) -> Rendered:
        """Raises Unsupported, with the reason, for what cannot be scored."""
        self.chat.refuse_unsupported(request.messages)
        try:
            if request.trained:
                text = self.chat.render_trained(request.messages, request.completion)
            else:
                text = self.chat.render(request.messages, request.completion, closing=request.closing)
        except ValueError as e:  # no token to score
            raise errors.Unsupported(str(e)) from e
        if context is not None and len(text.prefix_ids) + len(text.completion_ids) > context:
            raise errors.Unsupported(f"longer than the {context} tokens that this model reads")
        return text

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """One answer per request, in any order, all checkpoints of the base side by side.

        Requests are taken a window at a time, so that millions never sit in memory.

        Raises:
            BadInput: a prompt that leaves no room for an answer, unless `params.long_prompts` says otherwise.
            BadInput: the memory bound does not hold one row.
            BadModel and others: see `use`.
        """
        waiting = iter(requests)
        while window := list(islice(waiting, WINDOW)):
            able = []
            for request in window:
                if self.chat.supports(request.prompt.messages):
                    able.append(request)
                else:
                    yield Answer(request, "", AnswerStatus.UNSUPPORTED, 0)
            for batch in self._batches(able):
                yield from self._generate(batch, params)

    def _generate(self, batch: _Batch, params: SamplingParams) -> Iterator[Answer]:
        context = self._context(batch.checkpoint)
        wanted: list[GenerateRequest] = []
        too_long: list[Answer] = []
        for k, request in enumerate(batch.requests):
            prompt = tuple(self.chat.prefix(request.prompt.messages))
            limit = params.max_tokens if context is None else min(params.max_tokens, context - len(prompt))
            if limit >= 1:
                wanted.append(GenerateRequest(k, prompt, batch.adapter(request), answer_seed(request, params), limit))
                continue
            why = f"prompt {request.prompt.id} takes {len(prompt)} tokens, this model reads {context} with the answer"
            if params.long_prompts == "refuse":
                hint = "leave it out or shorten it, or count it as truncated (long_prompts='truncated')"
                raise errors.BadInput(f"{why}; {hint}")
            too_long.append(Answer(request, "", AnswerStatus.TRUNCATED, 0, why))
        decode = self.chat.decode
        ends = (lambda tokens: params.cut(decode(tokens)) is not None) if params.stop else None
        options = BatchOptions(self.preferred_batch, self.chat.stop_ids, ends)
        found = self.engine.generate(lambda: self.use(batch.checkpoint), wanted, params, options, batch.factors)
        for completion in found:
            yield answer(batch.requests[completion.index], completion, self.chat, params)
        yield from too_long


def answer(request: Request, completion: Completion, chat: ChatFormat, params: SamplingParams) -> Answer:
    """The text of a completion, without what ended it, and what became of the request."""
    if completion.failed:
        return Answer(request, "", AnswerStatus.FAILED, 0, NAN)
    ended = completion.tokens[-1] in chat.stop_ids
    text = chat.decode(completion.tokens[:-1] if ended else completion.tokens)
    return finished_answer(request, text, len(completion.tokens), params, cut_off=not ended)


def open_local(base: str, checkpoints: Sequence[Checkpoint], config: ModelConfig) -> LocalBackend:
    """A base in this process, for the registry."""
    if config.path_map:
        raise errors.BadInput(f"--path-map {config.path_map[0]}: is for a served base, --base http://host:port/v1#NAME")
    return LocalBackend(base, checkpoints, config)
