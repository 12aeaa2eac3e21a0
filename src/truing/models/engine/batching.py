"""Continuous batching: answers of many adapters, prompts and samples side by side, on one base in memory.

    requests -> queue of prompts -> prompt computed once -> a row per answer -> a pass over all rows -> completions
                                         ^                                          |
                                         +---------- a finished row is replaced ----+

A pass carries the last token of every row and the prompts that come next, packed; no padding is computed. The prompt of
an (adapter, prompt) pair is computed once and read by all its answers. What a row samples depends on its own seed
only; in float32 its text then does not depend on its neighbours, up to ties within rounding.

Shapes: R rows in flight, P tokens of a prompt, T tokens of a pass, d hidden size, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from truing.models.engine.kv_cache import KVCache, ReadPlan, Segment, capacity, merge_attention
from truing.models.engine.lora import AdaptedModel
from truing.models.engine.requests import BatchOptions, Completion, GenerateRequest, Throughput
from truing.models.engine.runner import ModelRunner
from truing.models.engine.token_sampling import RandomStream, sample_tokens
from truing.types.records import SamplingParams


class Caches(NamedTuple):
    """Keys and values of one scheduler at a time; empty whenever a run has ended."""

    prompts: KVCache
    answers: KVCache  # so far

    @classmethod
    def of(cls, runner: ModelRunner, rows: int) -> "Caches":
        """Caches for as many rows; they grow where that is not enough."""
        # On a CPU what is not used takes no memory, so there is room for all that can be alive at once.
        prompts = rows + _ahead(rows) + 1 if runner.device.type == "cpu" else min(rows, 16)
        shape = (runner.depth, runner.kv_heads, runner.head_size)
        return cls(*(KVCache(shape, entries, runner.dtype, runner.device) for entries in (prompts, rows)))


@dataclass(slots=True, eq=False)
class _Prompt:
    """A prompt of one adapter."""

    tokens: tuple[int, ...]
    adapter: str
    waiting: deque[GenerateRequest] = field(default_factory=deque)
    rows: int = 0
    segment: Segment = field(init=False)  # from the pass that computes it on
    logits: torch.Tensor = field(init=False)  # [V] of the first token


@dataclass(slots=True, eq=False)
class _Row:
    """An answer in flight."""

    request: GenerateRequest
    prompt: _Prompt
    stream: RandomStream
    segment: Segment
    tokens: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Of its last token."""
        return len(self.prompt.tokens) + len(self.tokens) - 1


class Scheduler:
    """Decides which rows and prompts go into every pass of one base and its adapters, and runs them.

    Args:
        model: the base and its adapters, put in force for every pass: between two passes it may serve others.
        params: temperature and top_p.
        options: how answers are batched.
        caches: from `Caches.of` for the same runner and rows, or left by an earlier run; None for new ones.
        callback: called after every pass.
        observe: called with a request, its tokens so far and the logits [V] of the next, for tests and trials.
    """

    def __init__(
        self, model: AdaptedModel, params: SamplingParams, options: BatchOptions, *,
        caches: Caches | None = None,
        callback: Callable[[Throughput], None] | None = None,
        observe: Callable[[GenerateRequest, list[int], torch.Tensor], None] | None = None,
    ) -> None:  # fmt: skip
        self._model, self._params, self._options = model, params, options
        self._callback, self._observe = callback, observe
        self._caches = caches or Caches.of(model.runner, options.rows)
        self._rows: list[_Row] = []
        self._finished: list[Completion] = []
        self.throughput = Throughput()

    def run(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        """Generate all answers; each comes as soon as it is finished, in any order."""
        prompts: dict[tuple[str, tuple[int, ...]], _Prompt] = {}
        for r in requests:
            prompts.setdefault((r.adapter, r.prompt), _Prompt(r.prompt, r.adapter)).waiting.append(r)
            self.throughput.waiting += 1
        queue = deque(sorted(prompts.values(), key=lambda p: self._model.lora.index(p.adapter)))
        ready: deque[_Prompt] = deque()
        while queue or ready or self._rows:
            try:
                # The model is itself again whenever an answer is handed out.
                with self._model.in_force():
                    self._fill(ready)
                    coming = self._coming(queue, ready)
                    if self._rows or coming:
                        self._pass(coming)
                        ready.extend(coming)
            finally:  # finished answers are handed out, whatever happened
                finished, self._finished = self._finished, []
                self.throughput.in_flight = len(self._rows)
                yield from finished
            if self._callback is not None:
                self._callback(self.throughput)

    def _coming(self, queue: deque[_Prompt], ready: deque[_Prompt]) -> list[_Prompt]:
        """Prompts for the next pass: enough for the free rows, and a few ahead so that none will stand empty."""
        ahead = _ahead(self._options.rows)
        wanted = self._options.rows - len(self._rows) + ahead - sum(len(p.waiting) for p in ready)
        coming: list[_Prompt] = []
        tokens = 0
        # A few at a time: a prompt alone would cost as much as a small batch.
        if wanted < min(ahead, 2) and self._rows:
            return coming
        while queue and wanted > 0 and (not coming or tokens + len(queue[0].tokens) <= self._options.pass_tokens):
            prompt = queue.popleft()
            coming.append(prompt)
            tokens += len(prompt.tokens)
            wanted -= len(prompt.waiting)
        return coming

    def _fill(self, ready: deque[_Prompt]) -> None:
        """Put waiting answers into free rows and sample their first tokens; some may end at once."""
        while ready and len(self._rows) < self._options.rows:
            new: list[_Row] = []
            while ready and len(self._rows) + len(new) < self._options.rows:
                prompt = ready[0]
                request = prompt.waiting.popleft()
                prompt.rows += 1
                segment = self._caches.answers.add(0, len(prompt.tokens))
                new.append(_Row(request, prompt, RandomStream(request.seed), segment))
                if not prompt.waiting:
                    ready.popleft()
            self.throughput.waiting -= len(new)
            self._advance(new, torch.stack([r.prompt.logits for r in new]))

    def _pass(self, coming: Sequence[_Prompt]) -> None:
        """Compute the next token of every row, and the prompts that come."""
        runner, lora = self._model.runner, self._model.lora
        rows = sorted(self._rows, key=lambda r: lora.index(r.request.adapter))
        for row in rows:
            self._caches.answers.extend(row.segment)
        ids = [r.tokens[-1] for r in rows] + [t for p in coming for t in p.tokens]
        positions = [r.position for r in rows] + [k for p in coming for k in range(len(p.tokens))]
        lora.route([*(r.request.adapter for r in rows), *(p.adapter for p in coming for _ in p.tokens)], len(rows))
        attention = _PassAttention(self._caches, rows, coming)
        hidden = runner.embed(torch.tensor(ids, device=runner.device))
        hidden = runner.run(hidden, torch.tensor(positions, device=runner.device), attention)
        last = [*range(len(rows)), *(end - 1 for _, end, _ in attention.prompts)]
        logits = runner.logits(hidden.index_select(1, torch.tensor(last, device=runner.device)))
        for prompt, own in zip(coming, logits[len(rows) :], strict=True):
            prompt.logits = own.clone()
        self.throughput.prompt_tokens += len(ids) - len(rows)
        self.throughput.row_steps += len(rows)
        self.throughput.free_steps += min(self._options.rows - len(rows), self.throughput.waiting)
        self._rows = []
        if rows:
            self._advance(rows, logits[: len(rows)])

    def _advance(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        """Sample a token for each of `rows`; those that go on join the rows in flight, the others are done."""
        if self._observe is not None:
            for row, own in zip(rows, logits, strict=True):
                self._observe(row.request, list(row.tokens), own.clone())
        sampled = sample_tokens(logits, [r.stream for r in rows], self._params)
        for row, token in zip(rows, sampled, strict=True):
            if token is None:
                self._finish(row, failed=True)
                continue
            self.throughput.kept += bool(row.tokens)  # the first comes from the prompt's own pass
            row.tokens.append(token)
            if self._options.stops(row.tokens) or len(row.tokens) >= row.request.max_tokens:
                self._finish(row)
            else:
                self._rows.append(row)

    def _finish(self, row: _Row, *, failed: bool = False) -> None:
        self._finished.append(Completion(row.request.index, row.tokens, failed))
        self.throughput.answers += 1
        self._caches.answers.remove(row.segment)
        row.prompt.rows -= 1
        if not row.prompt.rows and not row.prompt.waiting:
            self._caches.prompts.remove(row.prompt.segment)


class _PassAttention:
    """Attention of one pass: rows over their prompt and their answer so far, new prompts over themselves."""

    def __init__(self, caches: Caches, rows: Sequence[_Row], coming: Sequence[_Prompt]) -> None:
        self._cache, self._n = caches.prompts, len(rows)
        self._of_answers = ReadPlan(caches.answers, [(r.segment, r.position) for r in rows])
        self._of_prompts = ReadPlan(caches.prompts, [(r.prompt.segment, r.position) for r in rows])
        self.prompts: list[tuple[int, int, Segment]] = []  # first token, last token + 1, where it is kept
        start = len(rows)
        for prompt in coming:
            prompt.segment = caches.prompts.add(len(prompt.tokens))
            self.prompts.append((start, start + len(prompt.tokens), prompt.segment))
            start += len(prompt.tokens)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """See `runner.Attention`."""
        n, out = self._n, torch.empty_like(q, memory_format=torch.contiguous_format)
        if n:
            asked = (q[:n] * scaling).reshape(n, k.shape[1], -1, q.shape[2])
            self._of_answers.append(layer, k[:n], v[:n])
            parts = (plan.read(layer, asked, window) for plan in (self._of_prompts, self._of_answers))
            out[:n] = merge_attention(*parts).reshape(n, *q.shape[1:])
        for start, end, segment in self.prompts:
            self._cache.write(segment, layer, k[start:end], v[start:end])
            out[start:end] = _causal(q[start:end], k[start:end], v[start:end], scaling, window)
        return out


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None) -> torch.Tensor:
    """A prompt's attention over itself: q [P, H, h], k and v [P, KV, h] -> [P, H, h]."""
    n, mask = len(q), None
    if window is not None and n > window:
        mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril().triu(1 - window)
    one, two, three = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    found = scaled_dot_product_attention(
        one, two, three, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return found[0].transpose(0, 1)


def _ahead(rows: int) -> int:
    """Prompts computed before a row is free for them."""
    return max(2, rows // 16)


def rows_within(
    runner: ModelRunner, prompt: int, answer: int, memory: float, options: BatchOptions, *, nucleus: bool = False
) -> tuple[int, float]:
    """How many rows keep a scheduler within `memory` GiB, at most `options.rows`, and what one row takes, in GiB.

    `prompt` and `answer` are the tokens of the longest; `nucleus` is top_p < 1, for which a vocabulary may be sorted.
    """
    config, size = runner.config, runner.dtype.itemsize
    token = 2 * runner.depth * runner.kv_heads * runner.head_size * size
    width = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
    # Buckets of all sizes up to the largest add up to twice that one, and each may once have been full.
    front = 2 * capacity(prompt) * token + 4 * config.vocab_size
    choosing = (64 if nucleus else 24) * config.vocab_size
    own = 2 * capacity(answer) * token + choosing + 12 * width * size
    fixed = max(options.pass_tokens, prompt) * 8 * width * size

    def need(rows: int) -> float:
        return (fixed + rows * own + (rows + _ahead(rows) + 1) * front) / 2**30

    fit = [n for n in range(1, options.rows + 1) if need(n) <= memory]
    return max(fit, default=0), need(1)
