"""Keys and values of many sequences in pre-allocated blocks, and attention over them.

    blocks = Blocks(layers, (kv_heads, head_size), entries, (dtype, device))
    segment = blocks.add(length, readers=4)        a prompt, or the answer of one row
    plan = Reading(blocks, rows)                   once a pass: who reads what
    out, lse = plan.read(layer, q, window)

A segment lies in a shelf of its size, and a shelf is always full from its start, so that every shelf is read by one
batched matmul over its first entries: nothing is gathered or copied to be read. A segment that outgrows its shelf
moves to the next; the last of a shelf fills a gap. Prompts and answers lie in different `Blocks`: all answers to a
prompt read its one segment, in one matmul, and the two parts of attention are joined by their log-sum-exp (Hydragen,
Juravsky et al. 2024, arXiv 2402.05099).

Keys are kept as [h, capacity], values as [capacity, h]: both products then run over contiguous memory.

Shapes: L layers, E entries of a shelf, C its capacity in tokens, KV key-value heads, G query heads per key-value head,
h size of a head, R rows (one query each).
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

SMALLEST = 32
"""tokens of the smallest shelf; each next one is twice as large"""
_MASKED = -1e30
"""instead of minus infinity: a part of which nothing is seen then weighs nothing, where infinity would give NaN"""


@dataclass(slots=True, eq=False)
class Segment:
    """Consecutive tokens of one sequence."""

    length: int
    """tokens held"""
    start: int = 0
    """position of the first"""
    shelf: "Shelf | None" = None
    """where it lies"""
    entry: int = 0
    """which of the shelf's entries it is"""


@dataclass(slots=True, eq=False)
class Shelf:
    """Segments of about one size."""

    capacity: int
    """tokens an entry can hold"""
    keys: torch.Tensor
    """[L, E, KV, h, C]"""
    values: torch.Tensor
    """[L, E, KV, C, h]"""
    members: list[Segment] = field(default_factory=list)
    """by entry, without gaps"""


class Blocks:
    """Shelves for the segments of some layers.

    Args:
        layers: which.
        shape: key-value heads and size of a head.
        entries: segments for which a shelf is made; one that needs more grows.
        kind: number type and device.
        apart: whether segments with many readers lie apart from those with few; it saves padding and takes memory.
    """

    def __init__(
        self,
        layers: range,
        shape: tuple[int, int],
        entries: int,
        kind: tuple[torch.dtype, torch.device],
        *,
        apart: bool = True,
    ) -> None:
        self.layers = layers
        self._shape, self._entries, self._apart = shape, entries, apart
        self._dtype, self._device = kind
        self._shelves: dict[tuple[int, int], Shelf] = {}

    @property
    def shelves(self) -> list[Shelf]:
        """Those that hold anything."""
        return [s for s in self._shelves.values() if s.members]

    def add(self, length: int, start: int = 0, readers: int = 1) -> Segment:
        """A new segment with room for `length` tokens at least.

        Args:
            length: tokens it will hold at first.
            start: position of the first of them.
            readers: about how many rows will read it; those with alike numbers lie together.
        """
        segment = Segment(length, start)
        self._put(segment, self._shelf(length, readers))
        return segment

    def extend(self, segment: Segment) -> None:
        """Room for one more token, which counts as held from now on."""
        assert segment.shelf is not None
        segment.length += 1
        if segment.length > segment.shelf.capacity:
            old, entry = segment.shelf, segment.entry
            new = self._shelf(segment.length, 1)
            held, n = segment.length - 1, len(new.members)
            new.keys[:, n, :, :, :held] = old.keys[:, entry, :, :, :held]
            new.values[:, n, :, :held] = old.values[:, entry, :, :held]
            self.remove(segment)
            self._put(segment, new)

    def remove(self, segment: Segment) -> None:
        """Forget a segment; the last of its shelf takes its entry.

        The values left behind are cleared: if they hold NaN it would live on, since masked or not, 0 times NaN is NaN.
        """
        shelf = segment.shelf
        assert shelf is not None
        last = shelf.members.pop()
        gone, length = last.entry, last.length
        if last is not segment:
            shelf.keys[:, segment.entry, :, :, :length] = shelf.keys[:, gone, :, :, :length]
            # Whole, so that nothing of a longer segment stays behind the end of a shorter one.
            shelf.values[:, segment.entry] = shelf.values[:, gone]
            last.entry = segment.entry
            shelf.members[last.entry] = last
        shelf.values[:, gone, :, :length] = 0
        segment.shelf = None

    def write(self, segment: Segment, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Fill a segment of P tokens with keys and values [P, KV, h] of one layer."""
        shelf, at = segment.shelf, layer - self.layers.start
        assert shelf is not None
        shelf.keys[at, segment.entry, :, :, : len(k)] = k.permute(1, 2, 0)
        shelf.values[at, segment.entry, :, : len(v)] = v.transpose(0, 1)

    def _put(self, segment: Segment, shelf: Shelf) -> None:
        segment.shelf, segment.entry = shelf, len(shelf.members)
        shelf.members.append(segment)

    def _shelf(self, length: int, readers: int) -> Shelf:
        key = (capacity(length), min(readers, 16).bit_length() if self._apart else 0)
        if key not in self._shelves or len(self._shelves[key].members) == self._shelves[key].keys.shape[1]:
            self._shelves[key] = self._allocate(key[0], self._shelves.get(key))
        return self._shelves[key]

    def _allocate(self, size: int, old: Shelf | None) -> Shelf:
        """A shelf, or a larger one in its place."""
        kv, h = self._shape
        entries = self._entries if old is None else len(old.members) + max(4, len(old.members) // 2)
        keys = _zeros((len(self.layers), entries, kv, h, size), self._dtype, self._device)
        values = _zeros((len(self.layers), entries, kv, size, h), self._dtype, self._device)
        if old is None:
            return Shelf(size, keys, values)
        n = len(old.members)
        keys[:, :n], values[:, :n] = old.keys, old.values
        old.keys, old.values = keys, values
        return old


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU fresh pages of the system, of which those that are never written take no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(raw, dtype=dtype).view(shape)


def capacity(length: int) -> int:
    """Tokens of the smallest shelf that holds `length`."""
    size = SMALLEST
    while size < length:
        size *= 2
    return size


@dataclass(slots=True)
class _Group:
    """What is read of one shelf."""

    shelf: Shelf
    entries: int
    width: int
    """longest segment"""
    readers: int
    """rows per segment, those with fewer padded"""
    rows: torch.Tensor
    """[entries * readers] which row each query is"""
    lengths: torch.Tensor
    """[entries] tokens held"""
    ahead: torch.Tensor
    """[entries * readers] position of the query, counted from the start of the segment"""
    full: bool
    """whether all lengths are equal"""
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)


class Reading:
    """Which row reads which segment in one step.

    Args:
        blocks: where the segments lie; every one in it has a reader, or is passed over.
        rows: for each of R rows its segment and the position of its query.
    """

    def __init__(self, blocks: Blocks, rows: Sequence[tuple[Segment, int]]) -> None:
        self._first = blocks.layers.start
        self._groups: list[_Group] = []
        readers: dict[int, list[int]] = {}
        for k, (segment, _) in enumerate(rows):
            readers.setdefault(id(segment), []).append(k)
        place = [0] * len(rows)
        offset = 0
        for shelf in blocks.shelves:
            who = [readers.get(id(s), []) for s in shelf.members]
            most = max(map(len, who))
            if not most:
                continue
            index, ahead = [], []
            for e, (segment, own) in enumerate(zip(shelf.members, who, strict=True)):
                for k, row in enumerate(own):
                    place[row] = offset + e * most + k
                index += own + [0] * (most - len(own))
                ahead += [rows[r][1] - segment.start for r in own] + [0] * (most - len(own))
            lengths = [s.length for s in shelf.members]
            width = max(lengths)
            device = shelf.keys.device
            group = _Group(
                shelf, len(lengths), width, most, torch.tensor(index, device=device),
                torch.tensor(lengths, device=device), torch.tensor(ahead, device=device), min(lengths) == width,
            )  # fmt: skip
            self._groups.append(group)
            offset += len(lengths) * most
        device = blocks.shelves[0].keys.device if blocks.shelves else None
        self._place = torch.tensor(place, device=device)

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store keys and values [R, KV, h] as the last token of every row's segment; one reader per segment."""
        at = layer - self._first
        for g in self._groups:
            n = torch.arange(g.entries, device=g.rows.device)
            last = g.lengths - 1
            g.shelf.keys[at][n, :, :, last] = k.index_select(0, g.rows)
            g.shelf.values[at][n, :, last] = v.index_select(0, g.rows)

    def read(self, layer: int, q: torch.Tensor, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of scaled queries [R, KV, G, h] over their segments.

        Returns:
            [R, KV, G, h] in float32, and the log-sum-exp of the scores [R, KV, G], by which parts are joined.
        """
        at = layer - self._first
        kv, heads, size = q.shape[1:]
        outs, weights = [], []
        for g in self._groups:
            n, m = g.entries, g.readers
            # [n, m, KV, G, h] -> [n * KV, m * G, h]: all rows of a segment are one matrix
            asked = q.index_select(0, g.rows).view(n, m, kv, heads, size).transpose(1, 2).reshape(n * kv, -1, size)
            keys = g.shelf.keys[at, :n].flatten(0, 1)[:, :, : g.width]
            values = g.shelf.values[at, :n].flatten(0, 1)[:, : g.width]
            scores = torch.bmm(asked, keys).float()
            mask = self._mask(g, window)
            if mask is not None:
                scores.view(n, kv, m, heads, -1).masked_fill_(mask, _MASKED)
            top = scores.amax(-1, keepdim=True)
            shares = scores.sub_(top).exp_()
            total = shares.sum(-1, keepdim=True)
            out = torch.bmm(shares.to(values.dtype), values).float().div_(total)
            lse = total.log_().add_(top)
            outs.append(out.view(n, kv, m, heads, size).transpose(1, 2).reshape(n * m, kv, heads, size))
            weights.append(lse.view(n, kv, m, heads).transpose(1, 2).reshape(n * m, kv, heads))
        out, lse = (torch.cat(outs), torch.cat(weights)) if len(outs) > 1 else (outs[0], weights[0])
        return out.index_select(0, self._place), lse.index_select(0, self._place)

    def _mask(self, g: _Group, window: int | None) -> torch.Tensor | None:
        """[n, 1, m or 1, 1, width] what is not seen; None where everything is."""
        if window not in g.masks:
            n, m = g.entries, g.readers
            slots = torch.arange(g.width, device=g.rows.device)
            hidden = (slots >= g.lengths[:, None])[:, None]
            reach = None
            if window is not None and int(g.ahead.max()) >= window:
                reach = slots <= (g.ahead - window).view(n, m, 1)
            if reach is None and g.full:
                g.masks[window] = None
            else:
                hidden = hidden if reach is None else hidden | reach
                g.masks[window] = hidden[:, None, :, None]
        return g.masks[window]


def join(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Attention over two parts of a context, from (output, log-sum-exp) of each."""
    share = torch.sigmoid(other[1] - one[1]).unsqueeze(-1)
    return torch.lerp(one[0], other[0], share)
