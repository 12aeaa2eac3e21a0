"""Continuous batching: answers of many adapters, prompts and samples side by side, on one base in memory.

    requests -> queue of prompts -> prompt computed once -> a row per answer -> a pass over all rows -> completions
                                         ^                                          |
                                         +---------- a finished row is replaced ----+

A pass carries the last token of every row and the prompts that come next, packed; no padding is computed. The prompt of
an (adapter, prompt) pair is computed once and read by all its answers. Below the first layer that any adapter changes
all adapters agree, so there a prompt is computed once for all of them. What a row samples depends on its own seed
only; in float32 its text then does not depend on its neighbours, up to ties within rounding.

Shapes: R rows in flight, P tokens of a prompt, T tokens of a pass, d hidden size, V vocabulary.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from truing.models.engine.kv_cache import KVCache, ReadPlan, Segment, capacity, merge_attention
from truing.models.engine.lora import BatchedLora
from truing.models.engine.requests import BatchOptions, Completion, GenerateRequest, Throughput
from truing.models.engine.runner import ModelRunner
from truing.models.engine.token_sampling import RandomStream, sample_tokens
from truing.types.records import SamplingParams

PASS_TOKENS = 2048
"""tokens of prompts that a pass takes, unless one prompt is longer: at the start few rows should stand empty"""
FRUGAL_PASS_TOKENS = 256  # the same under a memory bound


class Caches(NamedTuple):
    """Keys and values of one scheduler at a time; empty whenever a run has ended."""

    lower: KVCache  # prompts, in the layers that no adapter changes
    upper: KVCache  # prompts, in the other layers
    answers: KVCache  # answers so far

    @classmethod
    def of(cls, runner: ModelRunner, options: BatchOptions) -> "Caches":
        """Caches for as many rows as the options say; they grow where that is not enough."""
        shape, kind = (runner.kv_heads, runner.head_size), (runner.dtype, runner.device)
        cut, rows = split_layer(runner, options), options.rows
        # On a CPU what is not used takes no memory, so there is room for all that can be alive at once.
        prompts = rows + _ahead(rows) + 1 if runner.device.type == "cpu" else min(rows, 16)
        return cls(
            KVCache(range(cut), shape, prompts, kind, apart=not options.frugal),
            KVCache(range(cut, runner.depth), shape, prompts, kind, apart=not options.frugal),
            KVCache(range(runner.depth), shape, rows, kind),
        )


def split_layer(runner: ModelRunner, options: BatchOptions) -> int:
    """The layer below which prompts are computed once for all adapters; 0 for none."""
    return options.shared_layers if 0 < options.shared_layers < runner.depth else 0


@dataclass(slots=True, eq=False)
class _Lower:
    """A prompt in the layers that no adapter changes."""

    segment: Segment
    hidden: torch.Tensor  # [1, P, d] as it enters the first changed layer
    users: int


@dataclass(slots=True, eq=False)
class _Prompt:
    """A prompt of one adapter."""

    tokens: tuple[int, ...]
    adapter: str
    waiting: deque[GenerateRequest]
    segment: Segment | None = None
    lower: _Lower | None = None
    logits: torch.Tensor | None = None  # [V] of the first token
    rows: int = 0


@dataclass(slots=True, eq=False)
class _Row:
    """An answer in the making."""

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
        runner: the model.
        lora: adapters, bound to it; None for the model as it is.
        params: temperature and top_p.
        options: how answers are batched.
        caches: from `Caches.of` for the same runner and options, or left by an earlier run; None for new ones.
        acquire: called before every pass, to put the model in force: between two passes it may serve others.
        callback: called after every pass.
        observe: called with a request, its tokens so far and the logits [V] of the next, for tests and trials.
    """

    def __init__(
        self, runner: ModelRunner, lora: BatchedLora | None, params: SamplingParams, options: BatchOptions, *,
        caches: Caches | None = None,
        acquire: Callable[[], object] = lambda: None,
        callback: Callable[[Throughput], None] | None = None,
        observe: Callable[[GenerateRequest, list[int], torch.Tensor], None] | None = None,
    ) -> None:  # fmt: skip
        self._runner, self._lora, self._params, self._options = runner, lora, params, options
        self._acquire, self._callback, self._observe = acquire, callback, observe
        self._stop = frozenset(options.stop_ids)
        self._pass_tokens = FRUGAL_PASS_TOKENS if options.frugal else PASS_TOKENS
        self._cut = split_layer(runner, options)
        self._caches = caches or Caches.of(runner, options)
        self._lowers: dict[tuple[int, ...], _Lower] = {}
        self._users: Counter[tuple[int, ...]] = Counter()
        self._rows: list[_Row] = []
        self._finished: list[Completion] = []
        self.throughput = Throughput()

    def run(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        """Generate all answers; each comes as soon as it is finished, in any order."""
        queue = self._queue(requests)
        ready: deque[_Prompt] = deque()
        self.throughput.waiting = sum(len(p.waiting) for p in queue)
        while queue or ready or self._rows:
            try:
                # The model is itself again whenever an answer is handed out.
                with self._in_force(), torch.inference_mode():
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

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        self._acquire()
        with self._runner.packed(), self._lora.applied() if self._lora is not None else nullcontext():
            yield

    def _index(self, adapter: str) -> int:
        return self._lora.index(adapter) if self._lora is not None else -1

    def _queue(self, requests: Iterable[GenerateRequest]) -> deque[_Prompt]:
        """Prompts in the order in which they share most: by adapter, or by prompt where lower layers are shared."""
        prompts: dict[tuple[str, tuple[int, ...]], _Prompt] = {}
        for r in requests:
            prompts.setdefault((r.adapter, r.prompt), _Prompt(r.prompt, r.adapter, deque())).waiting.append(r)
        found = sorted(prompts.values(), key=lambda p: self._index(p.adapter))
        if self._cut:
            first = {p: k for k, p in reversed(list(enumerate(p for _, p in prompts)))}
            found.sort(key=lambda p: first[p.tokens])
            self._users.update(p.tokens for p in found)
        return deque(found)

    def _coming(self, queue: deque[_Prompt], ready: deque[_Prompt]) -> list[_Prompt]:
        """Prompts for the next pass: enough for the free rows, and a few ahead so that none will stand empty."""
        ahead = _ahead(self._options.rows)
        wanted = self._options.rows - len(self._rows) + ahead - sum(len(p.waiting) for p in ready)
        coming: list[_Prompt] = []
        tokens = 0
        # A few at a time: a prompt alone would cost as much as a small batch.
        if wanted < min(ahead, 2) and self._rows:
            return coming
        while queue and wanted > 0 and (not coming or tokens + len(queue[0].tokens) <= self._pass_tokens):
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
            self._advance(new, torch.stack([r.prompt.logits for r in new if r.prompt.logits is not None]))

    def _pass(self, coming: Sequence[_Prompt]) -> None:
        """Compute the next token of every row, and the prompts that come."""
        runner, rows = self._runner, sorted(self._rows, key=lambda r: self._index(r.request.adapter))
        for row in rows:
            self._caches.answers.extend(row.segment)
        attention = _PassAttention(self._caches, self._cut, rows)
        hidden = self._below(attention, rows, coming)
        for prompt in coming:
            readers = min(len(prompt.waiting), self._options.rows)
            prompt.segment = self._caches.upper.add(len(prompt.tokens), readers=readers)
        if self._lora is not None:
            names = [r.request.adapter for r in rows]
            self._lora.route([*names, *(p.adapter for p in coming for _ in p.tokens)], len(rows))
        ends = attention.take([p.segment for p in coming])
        hidden = runner.run(hidden, self._positions(rows, coming), attention, self._cut)
        last = torch.tensor([*range(len(rows)), *(end - 1 for end in ends)], device=hidden.device)
        logits = runner.logits(hidden.index_select(1, last))
        for k, prompt in enumerate(coming):
            prompt.logits = logits[len(rows) + k].clone()
        self.throughput.passes += 1
        self.throughput.row_steps += len(rows)
        self.throughput.free_steps += min(self._options.rows - len(rows), self.throughput.waiting)
        self._rows = []
        if rows:
            self._advance(rows, logits[: len(rows)])

    def _below(self, attention: "_PassAttention", rows: Sequence[_Row], coming: Sequence[_Prompt]) -> torch.Tensor:
        """Hidden states of rows and prompts as they enter the first changed layer: [1, T, d].

        With shared layers only prompts that are new there are computed.
        """
        runner, new = self._runner, list(coming)
        if self._cut:
            new = list({p.tokens: p for p in coming if p.tokens not in self._lowers}.values())
        ids = [r.tokens[-1] for r in rows] + [t for p in new for t in p.tokens]
        hidden = runner.embed(torch.tensor(ids, dtype=torch.long, device=runner.device))
        self.throughput.prompt_tokens += sum(len(p.tokens) for p in new)
        if not self._cut:
            return hidden
        if ids:
            segments = [self._caches.lower.add(len(p.tokens), readers=self._options.rows) for p in new]
            ends = attention.take(segments)
            hidden = runner.run(hidden, self._positions(rows, new), attention, 0, self._cut)
            for p, segment, end in zip(new, segments, ends, strict=True):
                own = hidden[:, end - len(p.tokens) : end].clone()
                self._lowers[p.tokens] = _Lower(segment, own, self._users[p.tokens])
        for p in coming:
            p.lower = self._lowers[p.tokens]
        return torch.cat([hidden[:, : len(rows)], *(self._lowers[p.tokens].hidden for p in coming)], 1)

    def _positions(self, rows: Sequence[_Row], prompts: Sequence[_Prompt]) -> torch.Tensor:
        own, given = (r.position for r in rows), (k for p in prompts for k in range(len(p.tokens)))
        return torch.tensor([*own, *given], device=self._runner.device)

    def _advance(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        """Sample a token for each of `rows`; those that go on join the rows in flight, the others are done."""
        if self._observe is not None:
            for row, own in zip(rows, logits, strict=True):
                self._observe(row.request, list(row.tokens), own.clone())
        sampled = sample_tokens(logits, [r.stream for r in rows], self._params)
        for row, token in zip(rows, sampled, strict=True):
            if token is None:
                self._finish(row, Completion(row.request.index, row.tokens, stopped=False, failed=True))
                continue
            self.throughput.kept += bool(row.tokens)  # the first comes from the prompt's own pass
            row.tokens.append(token)
            ends = self._options.ends
            stopped = token in self._stop or (ends is not None and ends(row.tokens))
            if stopped or len(row.tokens) >= row.request.max_tokens:
                self._finish(row, Completion(row.request.index, row.tokens, stopped))
            else:
                self._rows.append(row)

    def _finish(self, row: _Row, completion: Completion) -> None:
        self._finished.append(completion)
        self.throughput.answers += 1
        self.throughput.tokens += len(completion.tokens)
        self._caches.answers.remove(row.segment)
        prompt = row.prompt
        prompt.rows -= 1
        if prompt.rows or prompt.waiting or prompt.segment is None:
            return
        self._caches.upper.remove(prompt.segment)
        prompt.segment, prompt.logits = None, None
        if prompt.lower is not None:
            prompt.lower.users -= 1
            if not prompt.lower.users:
                self._caches.lower.remove(prompt.lower.segment)
                del self._lowers[prompt.tokens]


class _PassAttention:
    """Attention of one pass: rows over their prompt and their answer so far, new prompts over themselves."""

    def __init__(self, caches: Caches, cut: int, rows: Sequence[_Row]) -> None:
        self._caches, self._cut, self._n = caches, cut, len(rows)
        self._prompts: list[tuple[int, int, Segment]] = []  # first token, last token + 1, where it is kept
        if rows:
            self._answers = ReadPlan(caches.answers, [(r.segment, r.position) for r in rows])
            upper = [(r.prompt.segment, r.position) for r in rows if r.prompt.segment is not None]
            self._upper = ReadPlan(caches.upper, upper)
            if cut:
                lower = [(r.prompt.lower.segment, r.position) for r in rows if r.prompt.lower is not None]
                self._lower = ReadPlan(caches.lower, lower)

    def take(self, segments: Iterable[Segment | None]) -> list[int]:
        """Where the prompts behind the rows are kept; gives the end of each among the tokens of the pass."""
        self._prompts, start = [], self._n
        for segment in segments:
            assert segment is not None
            self._prompts.append((start, start + segment.length, segment))
            start += segment.length
        return [end for _, end, _ in self._prompts]

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """See `runner.Attention`."""
        n, below = self._n, layer < self._cut
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        if n:
            asked = (q[:n] * scaling).reshape(n, k.shape[1], -1, q.shape[2])
            self._answers.append(layer, k[:n], v[:n])
            prompts = self._lower if below else self._upper
            both = merge_attention(prompts.read(layer, asked, window), self._answers.read(layer, asked, window))
            out[:n] = both.reshape(n, *q.shape[1:])
        cache = self._caches.lower if below else self._caches.upper
        for start, end, segment in self._prompts:
            cache.write(segment, layer, k[start:end], v[start:end])
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
    runner: ModelRunner, prompt: int, answer: int, memory: float, most: int, *, nucleus: bool = False
) -> tuple[int, float]:
    """How many rows keep a frugal scheduler within `memory` GiB, at `most`, and what one row takes, in GiB.

    `prompt` and `answer` are the tokens of the longest; `nucleus` is top_p < 1, for which a vocabulary may be sorted.
    """
    config, size = runner.config, runner.dtype.itemsize
    token = 2 * runner.depth * runner.kv_heads * runner.head_size * size
    width = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
    # Buckets of all sizes up to the largest add up to twice that one, and each may once have been full.
    front = 2 * capacity(prompt) * token + prompt * config.hidden_size * size + 4 * config.vocab_size
    choosing = (64 if nucleus else 24) * config.vocab_size
    own = 2 * capacity(answer) * token + choosing + 12 * width * size
    fixed = max(FRUGAL_PASS_TOKENS, prompt) * 8 * width * size

    def need(rows: int) -> float:
        return (fixed + rows * own + (rows + _ahead(rows) + 1) * front) / 2**30

    fit = [n for n in range(1, most + 1) if need(n) <= memory]
    return max(fit, default=0), need(1)
