"""How fast this machine would score and sample with a model, before the model is loaded: by a moment of its arithmetic.

The products of a pass are timed in the shape and number type that the model has, over more memory than a processor
caches: with many rows they are bound by arithmetic, as scoring is, with few by reading the weights, as sampling is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from truing.config import ModelConfig
from truing.errors import TruingError
from truing.models.download import resolve_model
from truing.models.engine.engine import preferred_rows
from truing.models.loading import device_of, dtype_of
from truing.models.weights import tensors

MEMORY, MOST = 256 << 20, 256
"""bytes of the weights that are timed, and how many matrices at most"""
SCORED_ROWS = 512
"""rows of a pass that scores"""
SHARE = 0.5
"""of the time of a real pass that its products take; the rest is attention, adapters, the vocabulary (docs/lab.md)"""


@dataclass(frozen=True, slots=True)
class Pace:
    """What this machine does in a second."""

    scored: float
    """tokens of given texts"""
    sampled: float
    """tokens of answers, as many side by side as are sampled at once"""

    def seconds(self, scored: float, sampled: float) -> float:
        """Time for so many tokens."""
        return scored / self.scored + sampled / self.sampled


def pace(base: str, options: ModelConfig) -> Pace | None:
    """The pace of a model on this machine (an alias or a folder); None for what is no model, or shows no weights."""
    try:
        shapes = [t.shape for t in tensors(resolve_model(base)) if len(t.shape) == 2 and "embed" not in t.name]
        device, dtype = device_of(options.device), dtype_of(options.dtype, options.device)
    except TruingError:
        return None
    if not shapes:
        return None
    numbers, shape = sum(map(prod, shapes)), max(set(shapes), key=lambda s: (shapes.count(s), s))
    rows = preferred_rows(device)
    scored, sampled = (_rate(shape, n, device, dtype) for n in (SCORED_ROWS, rows))
    return Pace(SHARE * scored / numbers, SHARE * sampled / numbers)


def _rate(shape: Sequence[int], rows: int, device: torch.device, dtype: torch.dtype) -> float:
    """Row times weights per second: how many numbers of weights are multiplied with a row."""
    count = max(1, min(MOST, MEMORY // (prod(shape) * dtype.itemsize)))
    weights = torch.ones(count, *shape, dtype=dtype, device=device)
    x = torch.ones(rows, shape[1], dtype=dtype, device=device)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(2):
            began = time.perf_counter()
            y = [torch.nn.functional.linear(x, w) for w in weights][-1]
            float(y[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - began)
    return rows * count * prod(shape) / best
