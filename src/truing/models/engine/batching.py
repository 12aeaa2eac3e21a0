"""Continuous batching: answers of many checkpoints, prompts and draws side by side, on one base in memory.

    jobs -> queue of prompts -> prompt computed once -> rows, one per draw -> a pass over all rows -> finished answers
                                     ^                                          |
                                     +---------- a finished row is replaced ----+

A pass carries the last token of every row and the prompts that come next, packed; no padding is computed. The prompt of
a (checkpoint, prompt) pair is computed once and read by all its draws. Below the first layer that any adapter changes
all checkpoints agree, so there a prompt is computed once for all of them. What a row draws depends on its own seed
only; in float32 its text then does not depend on its neighbours, up to ties within rounding.

Shapes: R rows in flight, P tokens of a prompt, T tokens of a pass, d hidden size, V vocabulary.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from truing.models.engine.kv_cache import Blocks, Reading, Segment, capacity, join
from truing.models.engine.lora import AdapterStack
from truing.models.engine.runner import Trunk
from truing.models.engine.token_sampling import Stream, choose
from truing.types.records import SamplingParams

PASS_TOKENS = 2048
"""tokens of prompts that a pass takes, unless one prompt is longer: at the start few rows should stand empty"""
FRUGAL_PASS_TOKENS = 256
"""the same under a memory bound"""


@dataclass(slots=True, eq=False)
class Job:
    """One answer wanted."""

    index: int
    """the caller's number"""
    prefix: tuple[int, ...]
    """tokens of the prompt"""
    place: int
    """of its adapter in the stack; -1 for the model as it is"""
    seed: int
    """of its random stream"""
    limit: int
    """most tokens of the answer, at least 1"""


@dataclass(frozen=True, slots=True)
class Done:
    """An answer, or why there is none."""

    index: int
    """the caller's number"""
    tokens: list[int]
    """of the answer, with the token that ended it"""
    stopped: bool
    """whether it ended by itself"""
    failed: bool = False
    """whether the logits held NaN"""


@dataclass(slots=True)
class Work:
    """What a sampler has done so far."""

    answers: int = 0
    """finished"""
    tokens: int = 0
    """of finished answers"""
    passes: int = 0
    """over the layers"""
    row_steps: int = 0
    """rows computed, over all passes"""
    free_steps: int = 0
    """rows that stood empty while answers were waiting, over all passes"""
    kept: int = 0
    """row-steps whose token became part of an answer"""
    prompt_tokens: int = 0
    """tokens of prompts computed"""
    in_flight: int = 0
    """rows now"""
    waiting: int = 0
    """answers not begun"""
    seconds: float = 0.0
    """wall time"""

    @property
    def useful(self) -> float:
        """Share of row-steps that gave a token of an answer: of the rows computed, and of those that stood empty."""
        return self.kept / max(1, self.row_steps + self.free_steps)


@dataclass(slots=True, eq=False)
class _Lower:
    """A prompt in the layers that no adapter changes."""

    segment: Segment
    hidden: torch.Tensor
    """[1, P, d] as it enters the first changed layer"""
    users: int


@dataclass(slots=True, eq=False)
class _Prompt:
    """A prompt of one checkpoint."""

    prefix: tuple[int, ...]
    place: int
    waiting: deque[Job]
    segment: Segment | None = None
    lower: _Lower | None = None
    logits: torch.Tensor | None = None
    """[V] of the first token"""
    rows: int = 0


@dataclass(slots=True, eq=False)
class _Row:
    """An answer in the making."""

    job: Job
    prompt: _Prompt
    stream: Stream
    tail: Segment
    tokens: list[int] = field(default_factory=list)


class Sampler:
    """One base (or one model as it is) and a stack of its adapters.

    Args:
        trunk: the model.
        stack: adapters; None for the model as it is.
        shared: layers below which all places of the stack agree.
        frugal: whether memory matters more than a few rows that stand empty.
        rows: most rows in flight.
        stop_ids: tokens that end an answer.
        params: temperature and top_p.
        ends: whether a text ends here, given the answer's tokens so far; for stop strings.
        hold: called before every pass, to put the model in force: between two passes it may serve others.
        say: called after every pass.
    """

    def __init__(
        self,
        trunk: Trunk,
        stack: AdapterStack | None,
        params: SamplingParams,
        *,
        stop_ids: Sequence[int],
        rows: int,
        shared: int = 0,
        frugal: bool = False,
        ends: Callable[[list[int]], bool] | None = None,
        hold: Callable[[], object] | None = None,
        say: Callable[[Work], None] | None = None,
    ) -> None:
        self._trunk, self._stack, self._params = trunk, stack, params
        self._stop, self._most, self._ends = frozenset(stop_ids), rows, ends
        self._hold, self._say = hold, say
        self._pass_tokens = FRUGAL_PASS_TOKENS if frugal else PASS_TOKENS
        self._cut = shared if 0 < shared < trunk.depth else 0
        shape, kind = (trunk.kv_heads, trunk.head_size), (trunk.dtype, trunk.device)
        # On a CPU what is not used takes no memory, so there is room for all that can be alive at once.
        prompts = rows + _ahead(rows) + 1 if trunk.device.type == "cpu" else min(rows, 16)
        self._lower = Blocks(range(self._cut), shape, prompts, kind, apart=not frugal)
        self._upper = Blocks(range(self._cut, trunk.depth), shape, prompts, kind, apart=not frugal)
        self._tails = Blocks(range(trunk.depth), shape, rows, kind)
        self._lowers: dict[tuple[int, ...], _Lower] = {}
        self._rows: list[_Row] = []
        self._done: list[Done] = []
        self.work = Work()

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Draw all answers; each comes as soon as it is finished, in any order."""
        started = time.monotonic()
        queue = self._queue(jobs)
        ready: deque[_Prompt] = deque()
        self.work.waiting = sum(len(p.waiting) for p in queue)
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
                done, self._done = self._done, []
                self.work.in_flight, self.work.seconds = len(self._rows), time.monotonic() - started
                yield from done
            if self._say is not None:
                self._say(self.work)

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        if self._hold is not None:
            self._hold()
        with self._trunk.cut(), self._stack.applied() if self._stack is not None else nullcontext():
            yield

    # -- what comes next ----------------------------------------------------------------------------------------------

    def _queue(self, jobs: Iterable[Job]) -> deque[_Prompt]:
        """Prompts in the order in which they share most: by checkpoint, or by prompt where lower layers are shared."""
        prompts: dict[tuple[int, tuple[int, ...]], _Prompt] = {}
        for job in jobs:
            key = (job.place, job.prefix)
            prompts.setdefault(key, _Prompt(job.prefix, job.place, deque())).waiting.append(job)
        found = list(prompts.values())
        if self._cut:
            first = {p.prefix: k for k, p in reversed(list(enumerate(found)))}
            found.sort(key=lambda p: (first[p.prefix], p.place))
            self._users = Counter(p.prefix for p in found)
        else:
            found.sort(key=lambda p: p.place)
        return deque(found)

    def _coming(self, queue: deque[_Prompt], ready: deque[_Prompt]) -> list[_Prompt]:
        """Prompts for the next pass: enough for the free rows, and a few ahead so that none will stand empty."""
        ahead = _ahead(self._most)
        wanted = self._most - len(self._rows) + ahead - sum(len(p.waiting) for p in ready)
        coming: list[_Prompt] = []
        tokens = 0
        # A few at a time: a prompt alone would cost as much as a small batch.
        if wanted < min(ahead, 2) and self._rows:
            return coming
        while queue and wanted > 0 and (not coming or tokens + len(queue[0].prefix) <= self._pass_tokens):
            prompt = queue.popleft()
            coming.append(prompt)
            tokens += len(prompt.prefix)
            wanted -= len(prompt.waiting)
        return coming

    def _fill(self, ready: deque[_Prompt]) -> None:
        """Put waiting answers into free rows and choose their first tokens; some may end at once."""
        while ready and len(self._rows) < self._most:
            new: list[_Row] = []
            while ready and len(self._rows) + len(new) < self._most:
                prompt = ready[0]
                job = prompt.waiting.popleft()
                prompt.rows += 1
                tail = self._tails.add(0, len(prompt.prefix))
                new.append(_Row(job, prompt, Stream(job.seed), tail))
                if not prompt.waiting:
                    ready.popleft()
            self.work.waiting -= len(new)
            logits = torch.stack([r.prompt.logits for r in new if r.prompt.logits is not None])
            self._advance(new, logits)

    # -- a pass -------------------------------------------------------------------------------------------------------

    def _pass(self, coming: Sequence[_Prompt]) -> None:
        """Compute the next token of every row, and the prompts that come."""
        trunk, rows = self._trunk, sorted(self._rows, key=lambda r: r.job.place)
        for row in rows:
            self._tails.extend(row.tail)
        at = [len(r.prompt.prefix) + len(r.tokens) - 1 for r in rows]
        reader = _Pass(self, rows, at)
        hidden, new = self._below(reader, rows, at, coming)
        if self._cut:
            for prompt, lower in new:
                self._lowers[prompt.prefix] = lower
        for prompt in coming:
            readers = min(len(prompt.waiting), self._most)
            prompt.segment = self._upper.add(len(prompt.prefix), readers=readers)
            prompt.lower = self._lowers.get(prompt.prefix) if self._cut else None
        parts = [hidden]
        if self._cut:
            parts += [p.lower.hidden for p in coming if p.lower is not None]
        hidden = torch.cat(parts, 1) if len(parts) > 1 else hidden
        positions = self._positions(at, [len(p.prefix) for p in coming])
        if self._stack is not None:
            places = [r.job.place for r in rows]
            places += [p.place for p in coming for _ in p.prefix]
            self._stack.route(places, len(rows))
        reader.prompts = _spans(len(rows), [(len(p.prefix), p.segment) for p in coming])
        hidden = trunk.run(hidden, positions, reader, self._cut)
        ends = [end - 1 for _, end, _ in reader.prompts]
        last = torch.tensor([*range(len(rows)), *ends], device=hidden.device)
        logits = trunk.logits(hidden.index_select(1, last))
        for k, prompt in enumerate(coming):
            prompt.logits = logits[len(rows) + k].clone()
        self._count(rows, coming)
        self._rows = []
        if rows:
            self._advance(rows, logits[: len(rows)])

    def _below(
        self, reader: "_Pass", rows: Sequence[_Row], at: Sequence[int], coming: Sequence[_Prompt]
    ) -> tuple[torch.Tensor, list[tuple[_Prompt, _Lower]]]:
        """Hidden states as they enter the first changed layer: [1, T, d] of rows (and, with no shared layers, prompts).

        With shared layers, prompts that are new there are computed and come back by themselves.
        """
        last = [r.tokens[-1] for r in rows]
        if not self._cut:
            ids = last + [t for p in coming for t in p.prefix]
            return self._trunk.embed(torch.tensor(ids, device=self._trunk.device)), []
        new = list({p.prefix: p for p in coming if p.prefix not in self._lowers}.values())
        ids = last + [t for p in new for t in p.prefix]
        if not ids:
            return self._trunk.embed(torch.tensor(ids, dtype=torch.long, device=self._trunk.device)), []
        segments = [self._lower.add(len(p.prefix), readers=self._most) for p in new]
        reader.prompts = _spans(len(rows), [(len(p.prefix), s) for p, s in zip(new, segments, strict=True)])
        hidden = self._trunk.embed(torch.tensor(ids, device=self._trunk.device))
        hidden = self._trunk.run(hidden, self._positions(at, [len(p.prefix) for p in new]), reader, 0, self._cut)
        made = [
            (p, _Lower(segment, hidden[:, start:end].clone(), self._users[p.prefix]))
            for p, (start, end, segment) in zip(new, reader.prompts, strict=True)
        ]
        self.work.prompt_tokens += sum(len(p.prefix) for p in new)
        return hidden[:, : len(rows)], made

    def _positions(self, at: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        return torch.tensor([*at, *(k for n in lengths for k in range(n))], device=self._trunk.device)

    def _count(self, rows: Sequence[_Row], coming: Sequence[_Prompt]) -> None:
        self.work.passes += 1
        self.work.row_steps += len(rows)
        self.work.free_steps += min(self._most - len(rows), self.work.waiting)
        if not self._cut:
            self.work.prompt_tokens += sum(len(p.prefix) for p in coming)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def _advance(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        """Choose a token for each of `rows`; those that go on join the rows in flight, the others are done."""
        chosen = choose(logits, [r.stream for r in rows], self._params)
        for row, token in zip(rows, chosen, strict=True):
            if token is None:
                self._finish(row, Done(row.job.index, row.tokens, stopped=False, failed=True))
                continue
            self.work.kept += bool(row.tokens)  # the first comes from the prompt's own pass
            row.tokens.append(token)
            stopped = token in self._stop or (self._ends is not None and self._ends(row.tokens))
            if stopped or len(row.tokens) >= row.job.limit:
                self._finish(row, Done(row.job.index, row.tokens, stopped))
            else:
                self._rows.append(row)

    def _finish(self, row: _Row, done: Done) -> None:
        self._done.append(done)
        self.work.answers += 1
        self.work.tokens += len(done.tokens)
        self._tails.remove(row.tail)
        prompt = row.prompt
        prompt.rows -= 1
        if prompt.rows or prompt.waiting or prompt.segment is None:
            return
        self._upper.remove(prompt.segment)
        prompt.segment, prompt.logits = None, None
        if prompt.lower is not None:
            prompt.lower.users -= 1
            if not prompt.lower.users:
                self._lower.remove(prompt.lower.segment)
                del self._lowers[prompt.prefix]


class Recorder(Sampler):
    """A sampler that keeps what it chose from, to be compared with a model's own forward pass."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.seen: list[tuple[Job, list[int], torch.Tensor]] = []
        """job, tokens of its answer so far, logits [V] of the next"""

    def _advance(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        self.seen += [(r.job, list(r.tokens), x.clone()) for r, x in zip(rows, logits, strict=True)]
        super()._advance(rows, logits)


def _spans(start: int, parts: Iterable[tuple[int, Segment | None]]) -> list[tuple[int, int, Segment]]:
    """(first token, last token + 1, segment) of prompts that follow each other."""
    spans: list[tuple[int, int, Segment]] = []
    for length, segment in parts:
        assert segment is not None
        spans.append((start, start + length, segment))
        start += length
    return spans


class _Pass:
    """Attention of one pass: rows over their prompt and their answer so far, new prompts over themselves."""

    def __init__(self, sampler: Sampler, rows: Sequence[_Row], at: Sequence[int]) -> None:
        self._sampler, self._n = sampler, len(rows)
        self.prompts: list[tuple[int, int, Segment]] = []
        """(first token, last token + 1, where it is kept)"""
        if rows:
            at = list(at)
            self._tails = Reading(sampler._tails, [(r.tail, p) for r, p in zip(rows, at, strict=True)])
            upper = [(r.prompt.segment, p) for r, p in zip(rows, at, strict=True) if r.prompt.segment is not None]
            self._upper = Reading(sampler._upper, upper)
            if sampler._cut:
                lower = [(r.prompt.lower.segment, p) for r, p in zip(rows, at, strict=True) if r.prompt.lower]
                self._lower = Reading(sampler._lower, lower)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """See `trunk.Reader`."""
        n, below = self._n, layer < self._sampler._cut
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        if n:
            kv = k.shape[1]
            asked = (q[:n] * scaling).reshape(n, kv, -1, q.shape[2])
            self._tails.append(layer, k[:n], v[:n])
            prompts = self._lower if below else self._upper
            both = join(prompts.read(layer, asked, window), self._tails.read(layer, asked, window))
            out[:n] = both.reshape(n, *q.shape[1:])
        for start, end, segment in self.prompts:
            blocks = self._sampler._lower if below else self._sampler._upper
            blocks.write(segment, layer, k[start:end], v[start:end])
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
    trunk: Trunk, prompt: int, answer: int, memory: float, most: int, *, nucleus: bool = False
) -> tuple[int, float]:
    """How many rows keep a frugal sampler within a bound, whatever the lengths up to those given.

    Args:
        trunk: the model.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest answer.
        memory: the bound, in GiB.
        most: rows beyond which there is no use for them.
        nucleus: whether top_p is under 1, for which a vocabulary may have to be sorted.

    Returns:
        Rows, 0 if not one fits, and what one row takes, in GiB.
    """
    config, size = trunk.config, trunk.dtype.itemsize
    token = 2 * trunk.depth * trunk.kv_heads * trunk.head_size * size
    width = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
    # Shelves of all sizes up to the largest add up to twice that one, and each may once have been full.
    front = 2 * capacity(prompt) * token + prompt * config.hidden_size * size + 4 * config.vocab_size
    choosing = (64 if nucleus else 24) * config.vocab_size
    own = 2 * capacity(answer) * token + choosing + 12 * width * size
    fixed = max(FRUGAL_PASS_TOKENS, prompt) * 8 * width * size

    def need(rows: int) -> float:
        return (fixed + rows * own + (rows + _ahead(rows) + 1) * front) / 2**30

    fit = [n for n in range(1, most + 1) if need(n) <= memory]
    return max(fit, default=0), need(1)
