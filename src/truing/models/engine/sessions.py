"""What a local backend's checkpoints answer and how they score, as many side by side as one model allows.

    asks -> sessions: the base with all its plain LoRA adapters | one other adapter | one full model
            each session -> Sampler or score_trees, or the plain way where the architecture is not known

Answers are asked for a window at a time, so that millions never sit in memory; within it they come in whatever order
shares most.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch

from truing import errors
from truing.config import ModelConfig
from truing.models.chat import ChatFormat
from truing.models.checkpoints import checkpoint_path
from truing.models.engine.batching import Job, Recorder, Sampler, Work, rows_within
from truing.models.engine.lora import Adapter, AdapterStack, first_layer, lora_factors
from truing.models.engine.runner import Trunk
from truing.models.engine.scoring import ROW_TOKENS, PlainScorer, pass_tokens, score_trees
from truing.models.engine.token_tree import Branch, Scored, pack
from truing.models.generation import NAN, answer, sample_plainly, stream_seed
from truing.models.weights import weight_files
from truing.types.records import (
    Answer,
    AnswerStatus,
    Checkpoint,
    Kind,
    Likelihood,
    LikelihoodRequest,
    Request,
    SamplingParams,
)

log = logging.getLogger(__name__)
WINDOW = 4096
"""asks held at a time"""
ROWS = {"cpu": 96, "cuda": 256}
"""rows in flight without a memory bound; beyond, a step takes as much longer as it does more"""
_TRIED = 64
"""tokens of a prompt on which an architecture is tried"""
STACK_BYTES = 1 << 30
"""adapters held side by side, by the size of their files"""


class Holder(Protocol):
    """What is needed of a backend."""

    chat: ChatFormat
    options: ModelConfig
    base_name: str

    def use(self, checkpoint: Checkpoint) -> Any:
        """The model with a checkpoint in force."""
        ...

    def base_checkpoint(self) -> Checkpoint:
        """Step 0."""
        ...


@dataclass(slots=True)
class _Session:
    """Asks that one model answers."""

    holder: Checkpoint
    """what is put in force: the base under a stack, else the checkpoint itself"""
    requests: list[Any] = field(default_factory=list)
    adapters: dict[str, Adapter] | None = None
    """weights -> factors, in stack order; None without a stack"""


class Sessions:
    """Draws answers for one backend, and remembers what was found out about its models."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._agreed: dict[tuple[str, str], bool] = {}  # architecture -> whether packed passes are right for it
        self._plain: PlainScorer | None = None
        self.work = Work()
        """of the session that is running, or ran last"""
        self.say: Callable[[Work], None] | None = None
        """called after every pass"""

    def sample(self, requests: Iterable[Request], params: SamplingParams) -> Iterator[Answer]:
        """One response per ask, in any order.

        Raises:
            PromptTooLong: a prompt that leaves no room for an answer, unless `params.long_prompts` says otherwise.
            TooLittleMemory: the memory bound does not hold one row.
            AdapterMismatch and others: see `LocalBackend.use`.
        """
        waiting = iter(requests)
        while window := list(islice(waiting, WINDOW)):
            able = []
            for request in window:
                if self._holder.chat.supports(request.prompt.messages):
                    able.append(request)
                else:
                    yield Answer(request, "", AnswerStatus.UNSUPPORTED, 0)
            for session in self._sessions(able):
                yield from self._run(session, params)

    # -- who goes with whom -------------------------------------------------------------------------------------------

    def _sessions(self, requests: Sequence[Any]) -> Iterator[_Session]:
        """Asks of either kind by the model they go to: what stands on the base first, whole models after."""
        groups: dict[str, list[Any]] = {}
        for request in requests:
            groups.setdefault(request.checkpoint.weights, []).append(request)
        whole = [g for g in groups.values() if g[0].checkpoint.kind is Kind.FULL]
        rest = [g for g in groups.values() if g[0].checkpoint.kind is not Kind.FULL]
        alone: list[list[Any]] = []
        base = self._holder.base_checkpoint()
        stack, size = _Session(base, adapters={}), 0
        for group in rest:
            checkpoint = group[0].checkpoint
            if checkpoint.kind is Kind.ADAPTER:
                own = sum(f.stat().st_size for f in weight_files(checkpoint_path(checkpoint)))
                if stack.adapters and size + own > STACK_BYTES:
                    yield stack
                    stack, size = _Session(base, adapters={}), 0
                factors = self._factors(checkpoint)
                if factors is None:
                    alone.append(group)
                    continue
                assert stack.adapters is not None
                stack.adapters[checkpoint.weights] = factors
                size += own
            stack.requests += group
        if stack.requests:
            yield stack
        for group in (*alone, *whole):
            yield _Session(group[0].checkpoint, list(group))

    def _factors(self, checkpoint: Checkpoint) -> Adapter | None:
        model = self._holder.use(checkpoint)
        if self._agreed.get(_architecture(model)) is False or self._holder.options.load_in_4bit:
            return None
        try:
            return lora_factors(model, checkpoint.weights[:16])
        except errors.Unsupported as e:
            log.warning("%s: by itself, not side by side with others: %s", checkpoint.label, e)
            return None

    # -- scores -------------------------------------------------------------------------------------------------------

    def score(self, requests: Iterable[LikelihoodRequest]) -> Iterator[Likelihood]:
        """One likelihood per ask, in any order; all asks are held.

        Raises:
            AdapterMismatch and others: see `LocalBackend.use`.
        """
        able = []
        for request in requests:
            if self._holder.chat.supports(request.messages):
                able.append(request)
            else:
                yield Likelihood(request, float("nan"), 0, float("nan"), AnswerStatus.UNSUPPORTED)
        for session in self._sessions(able):
            branches = [self._branch(k, request) for k, request in enumerate(session.requests)]
            trunk = self._trunk(self._holder.use(session.holder), branches[0].prefix)
            found = self._side(trunk, session, branches) if trunk is not None else self._one_by_one(session, branches)
            for k, s in found:
                good = s.total == s.total and s.total != float("-inf")
                outcome = AnswerStatus.OK if good else AnswerStatus.FAILED
                total = s.total if good else float("nan")
                yield Likelihood(session.requests[k], total, s.tokens, s.entropy, outcome)

    def _branch(self, k: int, request: LikelihoodRequest) -> Branch:
        rendered = self._holder.chat.render(request.messages, request.completion, closing=request.closing)
        return Branch(k, rendered.prefix_ids, rendered.completion_ids, request.entropy)

    def _side(self, trunk: Trunk, session: _Session, branches: Sequence[Branch]) -> Iterator[tuple[int, Scored]]:
        """Every text once, at all places that ask for it."""
        adapters = list((session.adapters or {}).values())
        places = {weights: k for k, weights in enumerate(session.adapters or {})}
        texts: dict[tuple[Any, ...], dict[int, list[int]]] = {}
        for request, b in zip(session.requests, branches, strict=True):
            wanted = texts.setdefault((b.prefix, b.completion, b.entropy), {})
            wanted.setdefault(places.get(request.checkpoint.weights, -1), []).append(b.index)
        groups: dict[tuple[int, ...], list[Branch]] = {}
        keys = list(texts)
        for n, (prefix, completion, entropy) in enumerate(keys):
            group = tuple(sorted(texts[keys[n]]))
            groups.setdefault(group, []).append(Branch(n, prefix, completion, entropy))
        stack = AdapterStack(adapters, trunk.dtype) if adapters else None
        shared = first_layer(adapters, trunk.depth)
        session.adapters = None
        del adapters  # the stack holds them now
        tokens = pass_tokens(self._holder.use(session.holder), trunk.dtype, self._holder.options.memory)
        for group, some in groups.items():
            found = score_trees(
                trunk, stack, pack(some, ROW_TOKENS), group, shared=shared, batch_tokens=tokens,
                hold=self._hold(session, trunk, stack),
            )  # fmt: skip
            for place, scored in found:
                for k in texts[keys[scored.index]][place]:
                    yield k, scored

    def _one_by_one(self, session: _Session, branches: Sequence[Branch]) -> Iterator[tuple[int, Scored]]:
        """One checkpoint after the other, by the model's own forward pass."""
        groups: dict[str, list[Branch]] = {}
        for request, b in zip(session.requests, branches, strict=True):
            groups.setdefault(request.checkpoint.weights, []).append(b)
        options = self._holder.options
        for group in groups.values():
            model = self._holder.use(session.requests[group[0].index].checkpoint)
            dtype = next(model.parameters()).dtype
            if self._plain is None:
                self._plain = PlainScorer(self._holder.base_name, dtype, trees=not options.load_in_4bit)
            for scored in self._plain.score(model, group, pass_tokens(model, dtype, options.memory)):
                yield scored.index, scored

    # -- answers ------------------------------------------------------------------------------------------------------

    def _run(self, session: _Session, params: SamplingParams) -> Iterator[Answer]:
        model = self._holder.use(session.holder)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        fit: list[tuple[Request, list[int], int]] = []
        for request in session.requests:
            prefix = self._holder.chat.prefix(request.prompt.messages)
            limit = params.max_tokens if context is None else min(params.max_tokens, context - len(prefix))
            if limit >= 1:
                fit.append((request, prefix, limit))
                continue
            why = f"prompt {request.prompt.id} takes {len(prefix)} tokens, this model reads {context} with the answer"
            if params.long_prompts == "refuse":
                raise errors.PromptTooLong(
                    f"{why}; leave it out or shorten it, or count it as truncated (long_prompts='truncated')"
                )
            yield Answer(request, "", AnswerStatus.TRUNCATED, 0, why)
        if not fit:
            return
        trunk = self._trunk(model, fit[0][1])
        if trunk is not None:
            yield from self._sample(trunk, session, fit, params)
            return
        for group in self._plain_groups(session, fit):
            model = self._holder.use(group[0][0].checkpoint)
            requests, limits = [a for a, _, _ in group], [n for _, _, n in group]
            yield from sample_plainly(model, self._holder.chat, requests, limits, params)

    def _plain_groups(
        self, session: _Session, fit: Sequence[tuple[Request, list[int], int]]
    ) -> list[list[tuple[Request, list[int], int]]]:
        groups: dict[str, list[tuple[Request, list[int], int]]] = {}
        for one in fit:
            groups.setdefault(one[0].checkpoint.weights, []).append(one)
        return list(groups.values())

    def _sample(
        self, trunk: Trunk, session: _Session, fit: Sequence[tuple[Request, list[int], int]], params: SamplingParams
    ) -> Iterator[Answer]:
        chat, adapters = self._holder.chat, session.adapters or {}
        places = {weights: k for k, weights in enumerate(adapters)}
        jobs = [
            Job(k, tuple(prefix), places.get(request.checkpoint.weights, -1), stream_seed(request, params), limit)
            for k, (request, prefix, limit) in enumerate(fit)
        ]
        several = len({j.place for j in jobs}) > 1
        stack = AdapterStack(list(adapters.values()), trunk.dtype) if adapters else None
        shared = first_layer(list(adapters.values()), trunk.depth) if several else 0
        session.adapters = None
        del adapters  # the stack holds them now
        sampler = Sampler(
            trunk,
            stack,
            params,
            stop_ids=chat.stop_ids,
            rows=self._rows(trunk, jobs, params.top_p < 1),
            shared=shared,
            frugal=self._holder.options.memory is not None,
            ends=(lambda tokens: params.cut(chat.decode(tokens)) is not None) if params.stop else None,
            hold=self._hold(session, trunk, stack),
            say=self.say,
        )
        self.work = sampler.work
        for done in sampler.run(jobs):
            request = fit[done.index][0]
            if done.failed:
                yield Answer(request, "", AnswerStatus.FAILED, 0, NAN)
            else:
                yield answer(request, done.tokens, chat, params)

    def _rows(self, trunk: Trunk, jobs: Sequence[Job], nucleus: bool = False) -> int:
        """Rows in flight: as many as the memory bound holds at their longest."""
        most = ROWS.get(trunk.device.type, ROWS["cpu"])
        bound = self._holder.options.memory
        if bound is None:
            return min(most, len(jobs))
        prompt, answer = max(len(j.prefix) for j in jobs), max(j.limit for j in jobs)
        rows, one = rows_within(trunk, prompt, answer, bound, min(most, len(jobs)), nucleus=nucleus)
        if not rows:
            text = f"--memory {bound:g}: one answer of {answer} tokens to a prompt of {prompt} takes {one:.2g} GiB"
            raise errors.TooLittleMemory(f"{text}; give as much, or draw shorter answers")
        return rows

    def _trunk(self, model: Any, prefix: Sequence[int]) -> Trunk | None:
        """The model cut at its layers, if that is possible and agrees with the model's own forward pass."""
        kind = _architecture(model)
        try:
            trunk = Trunk(model) if self._agreed.get(kind, True) else None
            if trunk is not None and kind not in self._agreed:
                said = agrees(model, trunk, prefix)
                if said is None:
                    return trunk  # NaN either way; the next model will tell
                self._agreed[kind] = said
                if not said:
                    log.warning(
                        "%s: not side by side but one by one: a packed pass differs from the model's own",
                        self._holder.base_name,
                    )
                    return None
            return trunk
        except (errors.Unsupported, RuntimeError, TypeError, AttributeError, KeyError) as e:
            log.warning("%s: not side by side but one by one: %s", self._holder.base_name, e)
            self._agreed[kind] = False
            return None

    def _hold(self, session: _Session, trunk: Trunk, stack: AdapterStack | None) -> Callable[[], None]:
        """Puts a session's model in force again; another object with its weights, if it was let go of meanwhile."""

        def hold() -> None:
            model = self._holder.use(session.holder)
            if trunk.bind(model) and stack is not None:
                stack.bind(model)

        return hold


def _architecture(model: Any) -> tuple[str, str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__, inner.config.get_text_config().model_type


def agrees(model: Any, trunk: Trunk, prefix: Sequence[int]) -> bool | None:
    """Whether packed passes give the log-probabilities of the model's own forward; None where NaN weights cannot tell.

    Tried on two short prompts side by side, for their first tokens: prompts, rows and their positions are all in it.
    In 16 bits single log-probabilities of rare tokens move with any other order of work, the model's own included, so
    there the divergence of the two distributions decides.
    """
    prefix = prefix[:_TRIED]
    prompts = [tuple(prefix), tuple(prefix[: max(1, len(prefix) // 2)])]
    sampler = Recorder(trunk, None, SamplingParams(temperature=0.0), stop_ids=(), rows=2)
    for _ in sampler.run([Job(k, p, -1, 0, 4) for k, p in enumerate(prompts)]):
        pass
    worst = 0.0
    for job, tokens, logits in sampler.seen:
        ids = torch.tensor([[*job.prefix, *tokens]], device=trunk.device)
        with torch.inference_mode():
            own = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        ours, theirs = logits.log_softmax(-1), own.log_softmax(-1)
        exact = trunk.dtype is torch.float32
        gap = (ours - theirs).abs().max() if exact else (theirs.exp() * (theirs - ours)).sum().abs()
        if gap.isnan():
            return None
        worst = max(worst, float(gap))
    return worst <= (1e-3 if trunk.dtype is torch.float32 else 0.05)
