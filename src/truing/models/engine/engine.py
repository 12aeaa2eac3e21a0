"""Generation and scoring for the models of one backend: many adapters of a base side by side, or one model by itself.

    engine = Engine("smollm2", probe)
    engine.generate(acquire, requests, params, options, factors)      GenerateRequest -> Completion
    engine.score(acquire, branches, factors)                          Branch -> Scored

`acquire` puts a model in force and returns it: the base under its adapters, or any one model. It is called before every
pass, so that others may use the model between two results. Adapters copied into the batch and the memory of keys and
values stay until `close`, so that a caller who asks for little at a time pays for them once.
"""

import logging
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from truing import errors
from truing.models.engine.batching import Caches, Scheduler, rows_within
from truing.models.engine.kv_cache import capacity
from truing.models.engine.lora import AdaptedModel, Adapter, BatchedLora
from truing.models.engine.plain import generate_plainly, score_plainly
from truing.models.engine.requests import BatchOptions, Completion, GenerateRequest, Throughput
from truing.models.engine.runner import ModelRunner, inner_model
from truing.models.engine.scoring import ROW_TOKENS, pass_tokens, score_trees
from truing.models.engine.token_tree import Branch, Scored, pack
from truing.types.records import SamplingParams

log = logging.getLogger(__name__)
ROWS = {"cpu": 96, "cuda": 256}
"""rows in flight without a memory bound; beyond, a pass takes as much longer as it does more"""
PLAIN_ROWS = 32  # rows of a batch by transformers' own `generate`
ADAPTER_BYTES = 1 << 30  # adapters held side by side, by the size of their factors
FRUGAL_PASS_TOKENS = 256  # tokens of prompts that a pass takes under a memory bound
_TRIED = 64  # tokens of the probe on which an architecture is tried
Acquire = Callable[[], Any]


class Engine:
    """One backend's generation and scoring. Not thread-safe.

    Args:
        name: of the base, for messages.
        probe: tokens of a prompt on which an architecture is tried.
        memory: bound in GiB on the working memory of a batch; weights and adapters come on top.
    """

    def __init__(self, name: str, probe: Sequence[int], *, memory: float | None = None) -> None:
        self._name, self._probe, self._memory = name, tuple(probe[:_TRIED]), memory
        self._agreed: dict[tuple[str, str], bool] = {}  # architecture -> whether packed passes are right for it
        # A running call takes these out and gives them back when it ends, so that two calls at once never share them.
        self._lora: BatchedLora | None = None
        self._caches: tuple[Any, Caches] | None = None
        self.throughput = Throughput()  # of the generation that is running, or ran last
        self.callback: Callable[[Throughput], None] | None = None  # called after every pass of a generation

    def holds(self, adapter: str) -> bool:
        """Whether an adapter's factors are in the batch already, so that they need not be given."""
        return self._lora is not None and adapter in self._lora

    def close(self) -> None:
        """Let go of adapters, keys and values."""
        self._lora, self._caches = None, None

    def generate(
        self,
        acquire: Acquire,
        requests: Sequence[GenerateRequest],
        params: SamplingParams,
        options: BatchOptions,
        factors: MutableMapping[str, Adapter] | None = None,
    ) -> Iterator[Completion]:
        """Every answer as soon as it is finished, in any order.

        `factors` are by name, of the adapters that `holds` says no to; emptied. `options` bound the rows in flight.

        Raises:
            BadInput: the memory bound does not hold one row.
        """
        if not requests:
            return
        runner = self._runner(acquire())
        if runner is None:
            options = replace(options, rows=min(options.rows, PLAIN_ROWS))
            yield from generate_plainly(acquire, requests, params, options, self.callback)
            return
        options, key = self._bounded(runner, requests, params, options)
        with self._adapted(acquire, runner, {r.adapter for r in requests}, factors) as model:
            held, self._caches = self._caches, None
            caches = held[1] if held is not None and held[0] == key else Caches.of(runner, options.rows)
            scheduler = Scheduler(model, params, options, caches=caches, callback=self.callback)
            self.throughput = scheduler.throughput
            yield from scheduler.run(requests)
            self._caches = key, caches  # a run that was left early leaves them half full: new ones are made then

    def _bounded(
        self, runner: ModelRunner, requests: Sequence[GenerateRequest], params: SamplingParams, options: BatchOptions
    ) -> tuple[BatchOptions, tuple[Any, ...]]:
        """As many rows in flight as the memory bound holds at their longest; and what caches must fit to be used."""
        options = replace(options, rows=min(options.rows, len(requests), preferred_rows(runner.device)))
        key = (runner.depth, runner.kv_heads, runner.head_size, runner.dtype, runner.device)
        if self._memory is None:
            return options, key
        options = replace(options, pass_tokens=FRUGAL_PASS_TOKENS)
        prompt, answer = max(len(r.prompt) for r in requests), max(r.max_tokens for r in requests)
        rows, one = rows_within(runner, prompt, answer, self._memory, options, nucleus=params.top_p < 1)
        if not rows:
            text = f"--memory {self._memory:g}: one answer of {answer} tokens to a prompt of {prompt} takes"
            raise errors.BadInput(f"{text} {one:.2g} GiB; give as much, or sample shorter answers")
        # The bound is reckoned for buckets of this run's sizes only.
        return replace(options, rows=rows), (*key, rows, capacity(prompt), capacity(answer))

    def score(
        self, acquire: Acquire, branches: Sequence[Branch], factors: MutableMapping[str, Adapter] | None = None
    ) -> Iterator[Scored]:
        """The log-probability of every completion, in any order; `acquire` and `factors` as for `generate`."""
        if not branches:
            return
        base = acquire()
        runner = self._runner(base)
        if runner is None:
            yield from score_plainly(acquire, branches, self._memory)
            return
        # Every text once, with all adapters that ask for it.
        texts: dict[Branch, dict[str, list[int]]] = {}
        for b in branches:
            texts.setdefault(replace(b, index=0, adapter=""), {}).setdefault(b.adapter, []).append(b.index)
        wanted = list(texts.values())
        groups: dict[tuple[str, ...], list[Branch]] = {}
        for n, (text, of) in enumerate(texts.items()):
            groups.setdefault(tuple(sorted(of)), []).append(replace(text, index=n))
        tokens = pass_tokens(base, runner.dtype, self._memory)
        with self._adapted(acquire, runner, {b.adapter for b in branches}, factors) as model:
            for adapters, some in groups.items():
                for adapter, scored in score_trees(model, pack(some, ROW_TOKENS), adapters, tokens):
                    for k in wanted[scored.index][adapter]:
                        yield replace(scored, index=k)

    def batches(self, model: Any) -> bool:
        """Whether this model's architecture is batched here; it is tried the first time that it is met."""
        return self._runner(model) is not None

    def _runner(self, model: Any) -> ModelRunner | None:
        """The model layer by layer, if that is possible and agrees with the model's own forward pass."""
        inner = inner_model(model)
        kind = type(inner).__name__, inner.config.get_text_config().model_type
        why = "a packed pass differs from the model's own"
        try:
            runner = ModelRunner(model) if self._agreed.get(kind, True) else None
            if runner is None or kind in self._agreed:
                return runner
            agreed = agrees(model, runner, self._probe)
            if agreed is None:
                return runner  # NaN either way; the next model will tell
        except (errors.Unsupported, RuntimeError, TypeError, AttributeError, KeyError) as e:
            agreed, runner, why = False, None, str(e)
        self._agreed[kind] = agreed
        if not agreed:
            log.warning("%s: not batched but one by one: %s", self._name, why)
        return runner if agreed else None

    @contextmanager
    def _adapted(
        self, acquire: Acquire, runner: ModelRunner, names: set[str], factors: MutableMapping[str, Adapter] | None
    ) -> Iterator[AdaptedModel]:
        """The base under these adapters in one stack; it is this call's own until it ends."""
        lora = BatchedLora(runner.dtype, runner.device)
        wanted = sorted(names - {""})
        if wanted:
            lora, self._lora = self._lora or lora, None
            lora.load(wanted, factors or {}, ADAPTER_BYTES)
            (factors or {}).clear()  # they are copied
            lora.bind(acquire())
        try:
            yield AdaptedModel(runner, lora, acquire)
        finally:
            lora.bind(None)  # or it would keep the weights of the base alive
            if wanted:
                self._lora = lora


def preferred_rows(device: torch.device) -> int:
    """Rows that are worth having in flight on this kind of device."""
    return ROWS.get(device.type, ROWS["cpu"])


def agrees(model: Any, runner: ModelRunner, prompt: Sequence[int]) -> bool | None:
    """Whether packed passes give the log-probabilities of the model's own forward; None where NaN weights cannot tell.

    Tried on two short prompts side by side, for their first tokens: prompts, rows and their positions are all in it.
    In 16 bits single log-probabilities of rare tokens move with any other order of work, the model's own included, so
    there the divergence of the two distributions decides.
    """
    prompts = [tuple(prompt), tuple(prompt[: max(1, len(prompt) // 2)])]
    seen: list[tuple[GenerateRequest, list[int], torch.Tensor]] = []
    alone = AdaptedModel(runner, BatchedLora(runner.dtype, runner.device), lambda: model)
    scheduler = Scheduler(
        alone, SamplingParams(temperature=0.0), BatchOptions(rows=2), observe=lambda *step: seen.append(step)
    )
    for _ in scheduler.run([GenerateRequest(k, p, "", 0, 4) for k, p in enumerate(prompts)]):
        pass
    exact = runner.dtype is torch.float32
    worst = 0.0
    for request, tokens, logits in seen:
        ids = torch.tensor([[*request.prompt, *tokens]], device=runner.device)
        with torch.inference_mode():
            own = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        ours, theirs = logits.log_softmax(-1), own.log_softmax(-1)
        gap = (ours - theirs).abs().max() if exact else (theirs.exp() * (theirs - ours)).sum().abs()
        if gap.isnan():
            return None
        worst = max(worst, float(gap))
    return worst <= (1e-3 if exact else 0.05)
