"""Keys and values of many sequences in pre-allocated buckets, and attention over them.

    cache = KVCache((layers, kv_heads, head_size), entries, dtype, device)
    segment = cache.add(length)                   a prompt, or the answer of one row
    plan = ReadPlan(cache, rows)                  once a pass: who reads what
    out, lse = plan.read(layer, q, window)

A segment lies in the bucket of its size, and a bucket is always full from its start, so that it is read by one batched
matmul over its first entries: nothing is gathered or copied. A segment that outgrows its bucket moves to the next; the
last of a bucket fills the gap. Prompts and answers lie in different caches: all answers to a prompt read its one
segment, in one matmul, and the two parts of attention are merged by their log-sum-exp (Hydragen, Juravsky et al. 2024,
arXiv 2402.05099).

Keys are kept as [h, capacity], values as [capacity, h]: both products then run over contiguous memory.

Shapes: L layers, E entries of a bucket, C its capacity in tokens, KV key-value heads, G query heads per key-value head,
h size of a head, R rows (one query each).
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

SMALLEST = 32  # tokens of the smallest bucket; each next one is twice as large
_MASKED = -1e30
"""instead of minus infinity: a part of which nothing is seen then weighs nothing, where infinity would give NaN"""


@dataclass(slots=True, eq=False)
class Segment:
    """Consecutive tokens of one sequence."""

    length: int  # tokens held
    start: int  # position of the first
    bucket: "Bucket"  # where it lies
    entry: int  # which of the bucket's entries it is


@dataclass(slots=True, eq=False)
class Bucket:
    """Segments of about one size."""

    keys: torch.Tensor  # [L, E, KV, h, C]
    values: torch.Tensor  # [L, E, KV, C, h]
    members: list[Segment] = field(default_factory=list)  # by entry, without gaps


class KVCache:
    """Buckets for segments of `shape` (L, KV, h); one is made for `entries` segments and grows where it needs more."""

    def __init__(self, shape: tuple[int, int, int], entries: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._entries, self._dtype, self._device = shape, entries, dtype, device
        self._buckets: dict[int, Bucket] = {}  # by capacity

    @property
    def buckets(self) -> list[Bucket]:
        """Those that hold anything."""
        return [b for b in self._buckets.values() if b.members]

    def add(self, length: int, start: int = 0) -> Segment:
        """A new segment of `length` tokens at position `start`."""
        bucket = self._bucket(length)
        segment = Segment(length, start, bucket, len(bucket.members))
        bucket.members.append(segment)
        return segment

    def extend(self, segment: Segment) -> None:
        """Room for one more token, which counts as held from now on."""
        held, segment.length = segment.length, segment.length + 1
        if capacity(segment.length) > capacity(held):
            old, entry, new = segment.bucket, segment.entry, self._bucket(segment.length)
            n = len(new.members)
            new.keys[:, n, :, :, :held] = old.keys[:, entry, :, :, :held]
            new.values[:, n, :, :held] = old.values[:, entry, :, :held]
            self.remove(segment)
            segment.bucket, segment.entry = new, n
            new.members.append(segment)

    def remove(self, segment: Segment) -> None:
        """Forget a segment; the last of its bucket takes its entry.

        The values left behind are cleared: NaN among them would live on, since masked or not, 0 times NaN is NaN.
        """
        bucket = segment.bucket
        last = bucket.members.pop()
        gone, length = last.entry, last.length
        if last is not segment:
            bucket.keys[:, segment.entry, :, :, :length] = bucket.keys[:, gone, :, :, :length]
            # Whole, so that nothing of a longer segment stays behind the end of a shorter one.
            bucket.values[:, segment.entry] = bucket.values[:, gone]
            last.entry = segment.entry
            bucket.members[last.entry] = last
        bucket.values[:, gone, :, :length] = 0

    def write(self, segment: Segment, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Fill a segment of P tokens with keys and values [P, KV, h] of one layer."""
        segment.bucket.keys[layer, segment.entry, :, :, : len(k)] = k.permute(1, 2, 0)
        segment.bucket.values[layer, segment.entry, :, : len(v)] = v.transpose(0, 1)

    def _bucket(self, length: int) -> Bucket:
        """One of the right size with a free entry."""
        size = capacity(length)
        old = self._buckets.get(size)
        if old is None:
            self._buckets[size] = Bucket(*self._tensors(size, self._entries))
        elif len(old.members) == old.keys.shape[1]:
            n = len(old.members)
            keys, values = self._tensors(size, n + max(4, n // 2))
            keys[:, :n], values[:, :n] = old.keys, old.values
            old.keys, old.values = keys, values
        return self._buckets[size]

    def _tensors(self, size: int, entries: int) -> tuple[torch.Tensor, torch.Tensor]:
        n, kv, h = self._shape
        return self._zeros(n, entries, kv, h, size), self._zeros(n, entries, kv, size, h)

    def _zeros(self, *shape: int) -> torch.Tensor:
        """Zeros; on a CPU fresh pages of the system, of which those that are never written take no memory."""
        if self._device.type != "cpu":
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        raw = mmap.mmap(-1, math.prod(shape) * self._dtype.itemsize)
        return torch.frombuffer(raw, dtype=self._dtype).view(shape)


def capacity(length: int) -> int:
    """Tokens of the smallest bucket that holds `length`."""
    return max(SMALLEST, 1 << (length - 1).bit_length()) if length else SMALLEST


@dataclass(slots=True)
class _Group:
    """What is read of one bucket."""

    bucket: Bucket
    readers: int  # rows per segment, those with fewer padded
    rows: torch.Tensor  # [entries * readers] which row each query is
    ahead: torch.Tensor  # [entries, readers] position of the query, counted from the start of the segment
    lengths: torch.Tensor  # [entries] tokens held
    width: int  # the most of them
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor | None:
        """[n, 1, m or 1, 1, width] what is not seen; None where everything is."""
        if window not in self.masks:
            slots = torch.arange(self.width, device=self.rows.device)
            hidden = (slots >= self.lengths[:, None])[:, None]
            if window is not None and int(self.ahead.max()) >= window:
                hidden = hidden | (slots <= (self.ahead - window)[:, :, None])
            self.masks[window] = hidden[:, None, :, None] if bool(hidden.any()) else None
        return self.masks[window]


class ReadPlan:
    """Which row reads which segment in one pass: for each of R rows its segment and the position of its query."""

    def __init__(self, cache: KVCache, rows: Sequence[tuple[Segment, int]]) -> None:
        self._groups: list[_Group] = []
        readers: dict[int, list[int]] = {}
        for k, (segment, _) in enumerate(rows):
            readers.setdefault(id(segment), []).append(k)
        queries: list[int] = []  # which row each query is, over all groups; 0 for padding
        order = [0] * len(rows)
        for bucket in cache.buckets:
            who = [readers.get(id(s), []) for s in bucket.members]
            most = max(map(len, who))
            if not most:
                continue
            first, ahead = len(queries), []
            for segment, own in zip(bucket.members, who, strict=True):
                for k, row in enumerate(own, len(queries)):
                    order[row] = k
                padding = [0] * (most - len(own))
                queries += own + padding
                ahead.append([rows[r][1] - segment.start for r in own] + padding)
            lengths = [s.length for s in bucket.members]
            index, far, held = (torch.tensor(x, device=bucket.keys.device) for x in (queries[first:], ahead, lengths))
            self._groups.append(_Group(bucket, most, index, far, held, max(lengths)))
        self._order = torch.tensor(order, device=self._groups[0].rows.device if self._groups else None)

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store keys and values [R, KV, h] as the last token of every row's segment; one reader per segment."""
        for g in self._groups:
            n = torch.arange(len(g.lengths), device=g.rows.device)
            g.bucket.keys[layer][n, :, :, g.lengths - 1] = k.index_select(0, g.rows)
            g.bucket.values[layer][n, :, g.lengths - 1] = v.index_select(0, g.rows)

    def read(self, layer: int, q: torch.Tensor, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of scaled queries [R, KV, G, h] over their segments: [R, KV, G, h] in float32, and the log-sum-exp
        of the scores [R, KV, G], by which parts are merged.
        """
        kv, heads, size = q.shape[1:]
        outs, weights = [], []
        for g in self._groups:
            n, m = len(g.lengths), g.readers
            # [n, m, KV, G, h] -> [n * KV, m * G, h]: all rows of a segment are one matrix
            asked = q.index_select(0, g.rows).view(n, m, kv, heads, size).transpose(1, 2).reshape(n * kv, -1, size)
            keys = g.bucket.keys[layer, :n].flatten(0, 1)[:, :, : g.width]
            values = g.bucket.values[layer, :n].flatten(0, 1)[:, : g.width]
            scores = torch.bmm(asked, keys).float()
            mask = g.mask(window)
            if mask is not None:
                scores.view(n, kv, m, heads, -1).masked_fill_(mask, _MASKED)
            top = scores.amax(-1, keepdim=True)
            shares = scores.sub_(top).exp_()
            total = shares.sum(-1, keepdim=True)
            out = torch.bmm(shares.to(values.dtype), values).float().div_(total)
            lse = total.log_().add_(top)
            outs.append(out.view(n, kv, m, heads, size).transpose(1, 2).reshape(n * m, kv, heads, size))
            weights.append(lse.view(n, kv, m, heads).transpose(1, 2).reshape(n * m, kv, heads))
        return torch.cat(outs).index_select(0, self._order), torch.cat(weights).index_select(0, self._order)


def merge_attention(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Attention over two parts of a context, from (output, log-sum-exp) of each."""
    share = torch.sigmoid(other[1] - one[1]).unsqueeze(-1)
    return torch.lerp(one[0], other[0], share)
