"""Many LoRA adapters of one base in one pass: their factors stacked, and applied to the rows that asked for them.

    stack = AdapterStack([lora_factors(model, name) for name in names])     PEFT loaded and checked them
    with stack.applied():
        stack.route([0, 0, 2, ...])        the place of every token's adapter in that list, -1 for the base
        trunk.run(...)

An adapted module adds B A x to what the base gives. Tokens are laid out as a grid, adapters by rows, and all adapters
are multiplied by one batched matmul per factor (what the kernels of Punica and S-LoRA do, arXiv 2310.18547 and
2311.03285, with what torch has); rows that would make the grid ragged, and prompts, are multiplied adapter by adapter.

Shapes: K adapters, T tokens, r the largest rank, m rows of every adapter in the grid.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from truing.base.errors import Unsupported

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_CALL = 8
"""what a matmul of its own costs, in rows of the grid"""


class Factors(NamedTuple):
    """One adapter's share in one linear module."""

    module: torch.nn.Module
    """the base's own module"""
    down: torch.Tensor
    """A, transposed: [d_in, r]"""
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
        found[path] = Factors(base, a.weight.detach().T, b.weight.detach().T * layer.scaling[name])
    return found


def first_layer(adapters: Sequence[Adapter], depth: int) -> int:
    """The first layer that any of them changes; `depth` for none."""
    layers = [_LAYER.search(path) for adapter in adapters for path in adapter]
    return min((int(m[1]) for m in layers if m), default=depth)


@dataclass(slots=True)
class _Stacked:
    """All adapters in one module."""

    path: str
    module: torch.nn.Module
    down: torch.Tensor
    """[K, d_in, r]"""
    up: torch.Tensor
    """[K, r, d_out]"""


@dataclass(slots=True)
class _Route:
    """Where the tokens of one pass go."""

    lo: int = 0
    hi: int = 0
    """adapters lo up to hi (not included) are in the grid"""
    rows: int = 0
    """m; 0 for no grid"""
    cells: torch.Tensor | None = None
    """[K * m] the token of each cell; None where the cells are the first tokens as they lie"""
    filled: torch.Tensor | None = None
    """[N] the cells that are not padding"""
    tokens: torch.Tensor | None = None
    """[N] their tokens"""
    runs: tuple[tuple[int, int, int], ...] = ()
    """(place, first token, last token + 1) of those multiplied by themselves"""
    seen: tuple[Any, Any] = (None, None)
    """an input and its grid: query, key and value projections share one"""


class AdapterStack:
    """LoRA adapters of one base, side by side. Adapters may differ in rank, scaling and modules."""

    def __init__(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        """Copy the factors; places are counted in the order given."""
        self.size = len(adapters)
        """K"""
        self._modules: list[_Stacked] = []
        for path in dict.fromkeys(path for adapter in adapters for path in adapter):
            parts = [adapter.get(path) for adapter in adapters]
            some = next(p for p in parts if p is not None)
            rank = max(p.up.shape[0] for p in parts if p is not None)
            down = torch.zeros(self.size, some.down.shape[0], rank, dtype=dtype, device=some.down.device)
            up = torch.zeros(self.size, rank, some.up.shape[1], dtype=dtype, device=some.down.device)
            for k, part in enumerate(parts):
                if part is not None:
                    down[k, :, : part.down.shape[1]], up[k, : len(part.up)] = part.down, part.up
            self._modules.append(_Stacked(path, some.module, down, up))
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
        spans = [(place, list(group)) for place, group in groupby(range(rows), key=places.__getitem__)]
        own = {place: (ks[0], len(ks)) for place, ks in spans if place >= 0}
        runs: list[tuple[int, int, int]] = []
        route = _Route()
        if own:
            lo, hi = min(own), max(own) + 1
            m = _grid_rows([n for _, n in own.values()], hi - lo)
            cells, filled = [], []
            for place in range(lo, hi):
                first, n = own.get(place, (0, 0))
                filled += [len(cells) + k for k in range(min(n, m))]
                cells += [first + k if k < n else 0 for k in range(m)]
                if n > m:
                    runs.append((place, first + m, first + n))
            device = self._modules[0].down.device if self._modules else None
            route = _Route(lo, hi, m)
            if cells != list(range(len(cells))) or len(filled) < len(cells):
                route.cells, route.filled = torch.tensor(cells, device=device), torch.tensor(filled, device=device)
                route.tokens = route.cells[route.filled]
        for place, group in groupby(range(rows, len(places)), key=places.__getitem__):
            ks = list(group)
            if place >= 0:
                runs.append((place, ks[0], ks[-1] + 1))
        route.runs = tuple(runs)
        self._route = route

    def add(self, stacked: _Stacked, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Add every token's B A x, for inputs [1, T, d_in], to outputs [1, T, d_out]."""
        route, x, y = self._route, inputs[0], outputs[0]
        if route.rows:
            k = route.hi - route.lo
            if route.seen[0] is not inputs:
                grid = x[: k * route.rows] if route.cells is None else x.index_select(0, route.cells)
                route.seen = (inputs, grid.view(k, route.rows, -1))
            down, up = stacked.down[route.lo : route.hi], stacked.up[route.lo : route.hi]
            low = torch.bmm(route.seen[1], down)
            if route.tokens is None or route.filled is None:
                y[: k * route.rows].view(k, route.rows, -1).baddbmm_(low, up)
            else:
                added = torch.bmm(low, up).view(k * route.rows, -1)
                y.index_add_(0, route.tokens, added.index_select(0, route.filled))
        for place, start, end in route.runs:
            y[start:end].addmm_(x[start:end] @ stacked.down[place], stacked.up[place])


def _adder(stack: AdapterStack, stacked: _Stacked) -> Any:
    def add(_module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        stack.add(stacked, args[0], output)

    return add


def _grid_rows(counts: Sequence[int], adapters: int) -> int:
    """Rows of the grid at the least cost: padding of the few against matmuls of their own for the many."""

    def cost(m: int) -> int:
        return adapters * m + sum(_CALL + n - m for n in counts if n > m)

    return min({0, *counts}, key=lambda m: (cost(m), m))
