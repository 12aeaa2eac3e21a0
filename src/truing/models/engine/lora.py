"""Many LoRA adapters of one base in one pass: their factors stacked, and applied to the rows that asked for them.

    stack = AdapterStack([lora_factors(model, name) for name in names])     PEFT loaded and checked them
    with stack.applied():
        stack.route([0, 0, 2, ...])        the place of every token's adapter in that list, -1 for the base
        trunk.run(...)

An adapted module adds B A x to what the base gives. Tokens are laid out as a grid, adapters by rows, and all adapters
are multiplied by one batched matmul per factor (what the kernels of Punica and S-LoRA do, arXiv 2310.18547 and
2311.03285, with what torch has); rows that would make the grid ragged, and prompts, are multiplied adapter by adapter.

A place is an adapter's number for the caller, a slot where its factors lie at the moment.

Shapes: K adapters, T tokens, r the largest rank, m rows of every adapter in the grid.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from truing.errors import Unsupported

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_CALL = 64
"""what a matmul of its own costs, in cells of the grid: a cell is little work beside the base's for a row"""

_NARROW = 8
"""ranks up to which A x is faster than x A on CPUs: 1.4x to 2x at 35 to 400 tokens, half as fast at rank 16"""


class Factors(NamedTuple):
    """One adapter's share in one linear module."""

    module: torch.nn.Module
    """the base's own module"""
    down: torch.Tensor
    """A: [r, d_in]"""
    up: torch.Tensor
    """B, transposed and scaled: [r, d_out]"""


Adapter = Mapping[str, Factors]
"""by path of the module"""


def lora_factors(model: Any, name: str) -> dict[str, Factors]:
    """The factors of an adapter that PEFT holds; views of its tensors where scaling is 1.

    Raises:
        Unsupported: it is more than plain LoRA on linear modules of the layers (DoRA, biases, heads, other methods).
    """
    if not isinstance(model, PeftModel):
        raise Unsupported("no adapter is loaded")
    kind = model.peft_config[name].peft_type
    if str(getattr(kind, "value", kind)) != "LORA":
        raise Unsupported(f"{kind} adapters are not stacked")
    found: dict[str, Factors] = {}
    for path, module in model.get_base_model().named_modules():
        layer: Any = module
        if isinstance(module, AuxiliaryTrainingWrapper) and name in getattr(layer, "_adapters", ()):
            raise Unsupported(f"{path} is trained as a whole")
        if not isinstance(module, LoraLayer) or name not in layer.scaling:
            continue
        if not _LAYER.search(path):
            raise Unsupported(f"{path} lies outside the layers")
        if name not in layer.lora_A or name in layer.lora_variant or layer.merged_adapters:
            raise Unsupported(f"{path} holds more than plain LoRA")
        a, b, base = layer.lora_A[name], layer.lora_B[name], layer.get_base_layer()
        if a.weight.dim() != 2 or b.bias is not None or getattr(layer, "fan_in_fan_out", False):
            raise Unsupported(f"{path} holds more than plain LoRA on a linear module")
        found[path] = Factors(base, a.weight.detach(), b.weight.detach().T * layer.scaling[name])
    return found


def first_layer(adapters: Sequence[Adapter], depth: int) -> int:
    """The first layer that any of them changes; `depth` for none."""
    layers = [_LAYER.search(path) for adapter in adapters for path in adapter]
    return min((int(m[1]) for m in layers if m), default=depth)


@dataclass(slots=True)
class _Stacked:
    """All adapters in one module, by slot."""

    path: str
    module: torch.nn.Module
    down: torch.Tensor
    """[K, r, d_in]"""
    up: torch.Tensor
    """[K, r, d_out]"""
    part: tuple[int, int, torch.Tensor, torch.Tensor] | None = None
    """lo, hi, and what lies between: [hi - lo, d_in, r] and [hi - lo, r, d_out]"""

    def between(self, lo: int, hi: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of slots lo up to hi, as they are multiplied; kept, since every call into torch counts here."""
        if self.part is None or self.part[:2] != (lo, hi):
            self.part = (lo, hi, self.down[lo:hi].transpose(1, 2), self.up[lo:hi])
        return self.part[2:]


@dataclass(slots=True)
class _Route:
    """Where the tokens of one pass go."""

    lo: int = 0
    hi: int = 0
    """adapters in slots lo up to hi (not included) are in the grid"""
    rows: int = 0
    """m; 0 for no grid"""
    cells: torch.Tensor | None = None
    """[K * m] the token of each cell, 0 for padding; None where the cells are the first tokens as they lie"""
    padding: torch.Tensor | None = None
    """[N] which cells are padding"""
    runs: tuple[tuple[int, int, int], ...] = ()
    """(slot, first token, last token + 1) of those multiplied by themselves"""
    broken: tuple[tuple[int, int], ...] = ()
    """(first token, last token + 1) of those whose adapter is not finite"""
    spaces: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """what for and width d -> the same memory as [K * m, d] and [K, m, d], used by all modules of the pass"""
    seen: tuple[Any, Any] = (None, None)
    """an input and its grid: query, key and value projections share one"""

    def space(self, purpose: str, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[K * m, d] and [K, m, d] of the width and kind of [T, d], with anything in it."""
        key = (purpose, like.shape[1])
        if key not in self.spaces:
            flat = like.new_empty((self.hi - self.lo) * self.rows, like.shape[1])
            self.spaces[key] = flat, flat.view(-1, self.rows, like.shape[1])
        return self.spaces[key]


class AdapterStack:
    """LoRA adapters of one base, side by side. Adapters may differ in rank, scaling and modules."""

    def __init__(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        """Copy the factors; places are counted in the order given."""
        self.size = len(adapters)
        """K"""
        self._modules: list[_Stacked] = []
        self._broken: set[int] = set()  # places whose factors are not all finite: what they add is NaN
        for path in dict.fromkeys(path for adapter in adapters for path in adapter):
            parts = [adapter.get(path) for adapter in adapters]
            some = next(p for p in parts if p is not None)
            rank = max(p.up.shape[0] for p in parts if p is not None)
            down = torch.zeros(self.size, rank, some.down.shape[1], dtype=dtype, device=some.down.device)
            up = torch.zeros(self.size, rank, some.up.shape[1], dtype=dtype, device=some.down.device)
            for k, part in enumerate(parts):
                if part is not None:
                    down[k, : len(part.down)], up[k, : len(part.up)] = part.down, part.up
            # Padding adds 0 times an adapter's factors to another's token, which has to be 0.
            total = down.sum((1, 2), dtype=torch.float32) + up.sum((1, 2), dtype=torch.float32)
            broken = ~total.isfinite()
            down[broken], up[broken] = 0, 0
            self._modules.append(_Stacked(path, some.module, down, up))
            self._broken.update(broken.nonzero().flatten().tolist())
        self._slots = list(range(self.size))  # of every place
        self._route = _Route()

    @property
    def bytes(self) -> int:
        """Memory of the factors."""
        return sum(m.down.nbytes + m.up.nbytes for m in self._modules)

    def bind(self, model: Any) -> None:
        """Go on with another object that holds the same base."""
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        for stacked in self._modules:
            module = inner.get_submodule(stacked.path)
            stacked.module = module.get_base_layer() if isinstance(module, LoraLayer) else module

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the base's modules add what `route` says."""
        handles = [m.module.register_forward_hook(_adder(self, m)) for m in self._modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def route(self, places: Sequence[int], rows: int) -> None:
        """Say whose tokens come next.

        Args:
            places: of all T tokens, -1 for the base; equal ones side by side.
            rows: the first so many tokens are rows that go into the grid, sorted by place; the rest are prompts.
        """
        spans = _spans(places, 0, rows)
        self._sample_near([place for place, _, _ in spans if place not in self._broken])
        own = {self._slots[place]: (start, end - start) for place, start, end in spans if place not in self._broken}
        runs: list[tuple[int, int, int]] = []
        route = _Route()
        if own:
            lo, hi = min(own), max(own) + 1
            m = _grid_rows([n for _, n in own.values()], hi - lo)
            cells, padding = [], []
            for slot in range(lo, hi):
                first, n = own.get(slot, (0, 0))
                padding += [len(cells) + k for k in range(n, m)]
                cells += [first + k if k < n else 0 for k in range(m)]
                if n > m:
                    runs.append((slot, first + m, first + n))
            device = self._modules[0].down.device if self._modules else None
            route = _Route(lo, hi, m)
            if cells != list(range(len(cells))):
                route.cells = torch.tensor(cells, device=device)
            if padding:
                route.padding = torch.tensor(padding, device=device)
        prompts = _spans(places, rows, len(places))
        runs += [(self._slots[place], start, end) for place, start, end in prompts if place not in self._broken]
        route.runs = tuple(runs)
        route.broken = tuple((start, end) for place, start, end in spans + prompts if place in self._broken)
        self._route = route

    def _sample_near(self, places: Sequence[int]) -> None:
        """Move adapters together when most between them have no rows: the grid reads all from the first to the last."""
        slots, n = sorted(self._slots[p] for p in places), len(places)
        if not n or slots[-1] - slots[0] < 2 * n:
            return
        lo = max(slots, key=lambda lo: sum(lo <= s < lo + n for s in slots))
        lo = min(lo, self.size - n)
        here = set(range(lo, lo + n))
        coming, going = [s for s in slots if s not in here], [s for s in here if s not in slots]
        a, b = torch.tensor(coming), torch.tensor(going)
        for m in self._modules:
            for factors in (m.down, m.up):
                factors[torch.cat((a, b))] = factors[torch.cat((b, a))]
        new = dict(zip(coming + going, going + coming, strict=True))
        self._slots = [new.get(s, s) for s in self._slots]

    def add(self, stacked: _Stacked, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Add every token's B A x, for inputs [1, T, d_in], to outputs [1, T, d_out]."""
        route, y = self._route, outputs[0]
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
        for slot, start, end in route.runs:
            a, x = stacked.down[slot], inputs[0, start:end]
            y[start:end].addmm_((a @ x.T).T if len(a) <= _NARROW else x @ a.T, stacked.up[slot])
        for start, end in route.broken:
            y[start:end] = torch.nan

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


def _adder(stack: AdapterStack, stacked: _Stacked) -> Any:
    def add(_module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        stack.add(stacked, args[0], output)

    return add


def _spans(places: Sequence[int], start: int, end: int) -> list[tuple[int, int, int]]:
    """(place, first token, last token + 1) of equal neighbours from `start` up to `end`, without the base's."""
    spans = [(place, list(ks)) for place, ks in groupby(range(start, end), key=places.__getitem__)]
    return [(place, ks[0], ks[-1] + 1) for place, ks in spans if place >= 0]


def _grid_rows(counts: Sequence[int], adapters: int) -> int:
    """Rows of the grid at the least cost: padding of the few against matmuls of their own for the many."""

    def cost(m: int) -> int:
        return adapters * m + sum(_CALL + n - m for n in counts if n > m)

    return min({0, *counts}, key=lambda m: (cost(m), m))
