"""Many LoRA adapters of one base in one pass: their factors stacked, and applied to the rows that asked for them.

    lora = BatchedLora(dtype, device)
    lora.load(names, {name: lora_factors(model, name)}, most_bytes)  PEFT loaded and checked them
    with AdaptedModel(runner, lora, acquire).in_force():
        lora.route(["one", "one", "two", "", ...], rows)             the adapter of every token, "" for the base
        runner.run(...)

An adapted module adds B A x to what the base gives. Tokens are laid out as a grid, adapters by rows, and all adapters
are multiplied by one batched matmul per factor (what the kernels of Punica and S-LoRA do, arXiv 2310.18547 and
2311.03285, with what torch has); rows that would make the grid ragged, and prompts, are multiplied adapter by adapter.

An adapter's index is where its factors lie in the stacked tensors at the moment.

Shapes: K indices, T tokens, r the largest rank, m rows of every adapter in the grid.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.other import AuxiliaryTrainingWrapper

from truing.errors import Unsupported
from truing.models.engine.runner import ModelRunner, inner_model

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_CALL = 64  # what a matmul of its own costs, in cells of the grid: a cell is little work beside the base's for a row
_NARROW = 8  # ranks up to which A x is faster than x A on CPUs: 1.4x to 2x at 35 to 400 tokens, half as fast at rank 16


class Factors(NamedTuple):
    """One adapter's share in one linear module, as PEFT holds it."""

    down: torch.Tensor  # A: [r, d_in]
    up: torch.Tensor  # B: [d_out, r]
    scaling: float  # what BA is multiplied by


Adapter = Mapping[str, Factors]  # by path of the module in the base


def lora_factors(model: Any, name: str) -> dict[str, Factors]:
    """The factors of an adapter that PEFT holds; views of its tensors.

    Raises:
        Unsupported: it is more than plain LoRA on linear modules of the layers (DoRA, biases, heads, other methods), or
            not finite: padding adds 0 times an adapter's factors to another's token, which has to be 0.
    """
    if not isinstance(model, PeftModel):
        raise Unsupported("no adapter is loaded")
    kind = model.peft_config[name].peft_type
    if str(getattr(kind, "value", kind)) != "LORA":
        raise Unsupported(f"{kind} adapters are not batched")
    found: dict[str, Factors] = {}
    for path, module in model.get_base_model().named_modules():
        layer: Any = module
        if isinstance(module, AuxiliaryTrainingWrapper) and name in getattr(layer, "_adapters", ()):
            raise Unsupported(f"{path} is trained as a whole")
        if not isinstance(module, LoraLayer) or name not in layer.scaling:
            continue
        if not _LAYER.search(path):
            raise Unsupported(f"{path} lies outside the layers")
        special = isinstance(module, ParamWrapper) or name in layer.lora_variant or layer.merged_adapters
        if name not in layer.lora_A or special:
            raise Unsupported(f"{path} holds more than plain LoRA")
        a, b = layer.lora_A[name], layer.lora_B[name]
        if a.weight.dim() != 2 or b.bias is not None or getattr(layer, "fan_in_fan_out", False):
            raise Unsupported(f"{path} holds more than plain LoRA on a linear module")
        found[path] = Factors(a.weight.detach(), b.weight.detach(), layer.scaling[name])
        most = torch.finfo(layer.get_base_layer().weight.dtype).max
        if not (a.weight.abs().max() <= most and b.weight.abs().max() * abs(layer.scaling[name]) <= most):
            raise Unsupported(f"{path} holds numbers that are not finite")
    return found


@dataclass(slots=True, eq=False)
class _Stacked:
    """All adapters in one module, by index."""

    down: torch.Tensor  # [K, r, d_in]
    up: torch.Tensor  # [K, r, d_out]: B transposed and scaled
    part: tuple[Any, ...] = ()  # (lo, hi), and `between` of them

    def between(self, lo: int, hi: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of indices lo up to hi as they are multiplied, [n, d_in, r] and [n, r, d_out].

        Kept from pass to pass: beside so small products every call into torch counts.
        """
        if not self.part or self.part[0] != (lo, hi):
            self.part = (lo, hi), (self.down[lo:hi].mT, self.up[lo:hi])
        return self.part[1]

    def grow(self, size: int, rank: int) -> None:
        """Room for `size` adapters of rank `rank` at least; what is there stays."""
        n, r, _ = self.down.shape
        if size > n or rank > r:
            old = self.down, self.up
            self.down, self.up = (x.new_zeros(max(size, n), max(rank, r), x.shape[2]) for x in old)
            self.down[:n, :r], self.up[:n, :r] = old
            self.part = ()

    def put(self, index: int, factors: Factors | None) -> None:
        """Set one adapter's factors, zeros for None."""
        self.down[index], self.up[index] = 0, 0
        if factors is not None:
            rank = len(factors.down)
            self.down[index, :rank] = factors.down
            self.up[index, :rank] = factors.up.T * factors.scaling


@dataclass(slots=True)
class _Held:
    """What is known of one adapter."""

    index: int
    bytes: int
    first: int  # first layer that it changes


@dataclass(slots=True)
class _Route:
    """Where the tokens of one pass go."""

    lo: int = 0
    hi: int = 0  # adapters of index lo up to hi (excluded) are in the grid
    rows: int = 0  # m; 0 for no grid
    cells: torch.Tensor | None = None
    """[K * m] the token of each cell, 0 for padding; None where the cells are the first tokens as they lie"""
    padding: torch.Tensor | None = None  # [N] which cells are padding
    runs: tuple[tuple[int, int, int], ...] = ()
    """(index, first token, last token + 1) of those multiplied by themselves"""
    seen: tuple[Any, Any] = (None, None)  # an input and its grid: query, key and value projections share one
    spaces: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def space(self, purpose: str, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same memory as [K * m, d] and [K, m, d], of the width and kind of [T, d], with anything in it.

        All modules of a pass use it in turn: fresh pages for each would take a tenth of the time of generating.
        """
        key = purpose, like.shape[1]
        if key not in self.spaces:
            flat = like.new_empty((self.hi - self.lo) * self.rows, like.shape[1])
            self.spaces[key] = flat, flat.view(-1, self.rows, like.shape[1])
        return self.spaces[key]


class BatchedLora:
    """LoRA adapters of one base, side by side, by name. Adapters may differ in rank, scaling and modules."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._stacked: dict[str, _Stacked] = {}  # by path
        self._held: dict[str, _Held] = {}  # least recently asked for first
        self._free: list[int] = []
        self._modules: dict[str, torch.nn.Module] = {}
        self._route = _Route()

    def __contains__(self, name: str) -> bool:
        return name in self._held

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters held, least recently asked for first."""
        return tuple(self._held)

    @property
    def first_layer(self) -> int | None:
        """The first layer that any adapter held changes; None for none."""
        return min((held.first for held in self._held.values()), default=None)

    def index(self, name: str) -> int:
        """Where an adapter's factors lie at the moment; -1 for the base."""
        return self._held[name].index if name else -1

    def load(self, names: Sequence[str], factors: Mapping[str, Adapter], most_bytes: float = float("inf")) -> None:
        """Hold these adapters, copying the factors of those that are not held yet (KeyError where none are given).

        Beyond `most_bytes`, adapters that are not needed now are dropped, the least recently asked for first.
        """
        self._held |= {name: self._held.pop(name) for name in names if name in self._held}
        new = {name: factors[name] for name in dict.fromkeys(names) if name not in self._held}
        if not new:
            return
        size = self._dtype.itemsize
        bytes_of = {n: size * sum(f.down.numel() + f.up.numel() for f in a.values()) for n, a in new.items()}
        for name in self.names:
            held = sum(h.bytes for h in self._held.values())
            if name not in names and held + sum(bytes_of.values()) > most_bytes:
                self._free.append(self._held.pop(name).index)
        self._make_room(new)
        for name, adapter in new.items():
            index = self._free.pop()
            for path, stacked in self._stacked.items():
                stacked.put(index, adapter.get(path))
            first = min((int(_LAYER.findall(path)[0]) for path in adapter), default=1 << 30)
            self._held[name] = _Held(index, bytes_of[name], first)

    def _make_room(self, new: Mapping[str, Adapter]) -> None:
        """Free indices and large enough tensors for these adapters."""
        size = len(self._held) + len(self._free)
        if (more := len(new) - len(self._free)) > 0:
            more = max(more, size // 2)  # growing copies everything
            self._free += range(size, size + more)
            size += more
        self._free.sort(reverse=True)
        for path in dict.fromkeys((*self._stacked, *(path for adapter in new.values() for path in adapter))):
            parts = [a[path] for a in new.values() if path in a]
            rank = max((len(p.down) for p in parts), default=1)
            if path in self._stacked:
                self._stacked[path].grow(size, rank)
            else:
                widths = parts[0].down.shape[1], parts[0].up.shape[0]
                down, up = (torch.zeros(size, rank, n, dtype=self._dtype, device=self._device) for n in widths)
                self._stacked[path] = _Stacked(down, up)

    def bind(self, model: Any) -> None:
        """Apply to the modules of this model from now on; None lets go of the last one."""
        inner = inner_model(model)
        modules = {path: inner.get_submodule(path) for path in self._stacked} if inner is not None else {}
        self._modules = {p: m.get_base_layer() if isinstance(m, LoraLayer) else m for p, m in modules.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the base's modules add what `route` says."""
        self._route = _Route()
        handles = [m.register_forward_hook(self._adder(self._stacked[path])) for path, m in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def route(self, names: Sequence[str], rows: int) -> None:
        """Say whose tokens come next: the adapter of each of T, "" for the base; equal ones side by side.

        The first `rows` tokens are rows, which go into the grid, by `index`; the rest are prompts.
        """
        spans = _spans(names, 0, rows)
        self._move_together([self._held[name] for name, _, _ in spans])
        own = {self._held[name].index: (start, end - start) for name, start, end in spans}
        runs: list[tuple[int, int, int]] = []
        route = _Route()
        if own:
            lo, hi = min(own), max(own) + 1
            m = _grid_rows([n for _, n in own.values()], hi - lo)
            cells, padding = [], []
            for index in range(lo, hi):
                first, n = own.get(index, (0, 0))
                padding += [len(cells) + k for k in range(n, m)]
                cells += [first + k if k < n else 0 for k in range(m)]
                if n > m:
                    runs.append((index, first + m, first + n))
            route = _Route(lo, hi, m)
            if cells != list(range(len(cells))):
                route.cells = torch.tensor(cells, device=self._device)
            if padding:
                route.padding = torch.tensor(padding, device=self._device)
        runs += [(self.index(name), start, end) for name, start, end in _spans(names, rows, len(names))]
        route.runs = tuple(runs)
        self._route = route

    def _move_together(self, asked: Sequence[_Held]) -> None:
        """Move adapters together when most between them have no rows: the grid reads all from the first to the last."""
        at, n = sorted(held.index for held in asked), len(asked)
        if not n or at[-1] - at[0] < 2 * n:
            return
        size = len(self._held) + len(self._free)
        lo = min(max(at, key=lambda lo: sum(lo <= k < lo + n for k in at)), size - n)
        here = range(lo, lo + n)
        coming, going = [k for k in at if k not in here], [k for k in here if k not in at]
        a, b = torch.tensor(coming), torch.tensor(going)
        for m in self._stacked.values():
            for factors in (m.down, m.up):
                factors[torch.cat((a, b))] = factors[torch.cat((b, a))]
        new = dict(zip(coming + going, going + coming, strict=True))
        for held in self._held.values():
            held.index = new.get(held.index, held.index)
        self._free = [new.get(k, k) for k in self._free]

    def _adder(self, stacked: _Stacked) -> Any:
        """A hook that adds every token's B A x, for inputs [1, T, d_in], to outputs [1, T, d_out]."""

        def add(_module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            route, inputs, y = self._route, args[0], output[0]
            if route.rows:
                if route.seen[0] is not inputs:
                    route.seen = (inputs, self._grid(inputs[0]))
                down, up = stacked.between(route.lo, route.hi)
                low = torch.bmm(route.seen[1], down)
                if route.cells is None:
                    y[: len(up) * route.rows].view(len(up), route.rows, -1).baddbmm_(low, up)
                else:
                    flat, added = route.space("out", y)
                    torch.bmm(low, up, out=added)
                    y.index_add_(0, route.cells, flat)
            for index, start, end in route.runs:
                a, x = stacked.down[index], inputs[0, start:end]
                y[start:end].addmm_((a @ x.T).T if len(a) <= _NARROW else x @ a.T, stacked.up[index])

        return add

    def _grid(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [T, d_in] as [K, m, d_in], zeros where it is padding."""
        route = self._route
        if route.cells is None:
            return x[: (route.hi - route.lo) * route.rows].view(-1, route.rows, x.shape[1])
        flat, grid = route.space("in", x)
        torch.index_select(x, 0, route.cells, out=flat)
        if route.padding is not None:
            flat.index_fill_(0, route.padding, 0)
        return grid


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """A base and the adapters on it, for passes between which others may use the model."""

    runner: ModelRunner
    lora: BatchedLora
    acquire: Callable[[], Any]  # puts the base in force and returns it

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within the block passes over the layers are packed, and heed the adapters."""
        model = self.acquire()
        if self.runner.bind(model):  # another object with its weights, if it was let go of meanwhile
            self.lora.bind(model)
        with self.runner.packed(), self.lora.applied(), torch.inference_mode():
            yield


def _spans(names: Sequence[str], start: int, end: int) -> list[tuple[str, int, int]]:
    """(adapter, first token, last token + 1) of equal neighbours from `start` up to `end`, without the base's."""
    spans = [(name, list(ks)) for name, ks in groupby(range(start, end), key=names.__getitem__)]
    return [(name, ks[0], ks[-1] + 1) for name, ks in spans if name]


def _grid_rows(counts: Sequence[int], adapters: int) -> int:
    """Rows of the grid at the least cost: padding of the few against matmuls of their own for the many."""

    def cost(m: int) -> int:
        return adapters * m + sum(_CALL + n - m for n in counts if n > m)

    return min({0, *counts}, key=lambda m: (cost(m), m))
