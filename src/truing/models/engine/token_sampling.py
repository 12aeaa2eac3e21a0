"""Sampling the next token of every row, each from a random stream of its own.

    streams = [RandomStream(seed) for seed in seeds]
    tokens = sample_tokens(logits, streams, params)        [R, V] -> R token ids, None where the logits are NaN

The noise of an answer depends only on its seed and on how many tokens it has, never on its neighbours. Sampling is
exact Gumbel-max in two stages (first a block of the vocabulary, by its mass, then a token within it), which needs
about 2 sqrt(V) random numbers per token instead of V.
"""

from collections.abc import Sequence

import torch

from truing.types.records import SamplingParams

_AHEAD = 8  # tokens for which a stream makes noise at a time
_FIRST = 256  # likeliest tokens among which a nucleus is looked for before all are sorted


class RandomStream:
    """The random numbers of one answer."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._sampled: torch.Tensor | None = None
        self._used = 0

    def next(self, n: int) -> torch.Tensor:
        """[n] exponential random numbers for one token; n is the same for every token of an answer."""
        if self._sampled is None or self._used == len(self._sampled):
            self._sampled, self._used = torch.empty(_AHEAD, n).exponential_(generator=self._generator), 0
        self._used += 1
        return self._sampled[self._used - 1]


def sample_tokens(logits: torch.Tensor, streams: Sequence[RandomStream], params: SamplingParams) -> list[int | None]:
    """The next token of every row of logits [R, V]; None for rows that hold NaN or no finite number.

    Streams, one per row, are left alone where the temperature is 0.
    """
    if params.temperature == 0:
        top, tokens = logits.max(-1)
        good = top.isfinite()  # NaN is larger than everything to max()
    else:
        scaled = logits / params.temperature
        if params.top_p < 1:
            scaled = nucleus(scaled, params.top_p)
        tokens, good = _gumbel(scaled, streams)
    return [t if ok else None for t, ok in zip(tokens.tolist(), good.tolist(), strict=True)]


def _gumbel(logits: torch.Tensor, streams: Sequence[RandomStream]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, vocabulary = logits.shape
    size = max(1, round(vocabulary**0.5))
    blocks = -(-vocabulary // size)
    if blocks * size > vocabulary:
        logits = torch.nn.functional.pad(logits, (0, blocks * size - vocabulary), value=float("-inf"))
    noise = torch.stack([s.next(blocks + size) for s in streams]).log().to(logits.device)
    parts = logits.view(rows, blocks, size)
    mass = parts.logsumexp(-1)
    block = (mass - noise[:, :blocks]).argmax(-1)
    within = parts[torch.arange(rows, device=logits.device), block]
    token = block * size + (within - noise[:, blocks:]).argmax(-1)
    total = mass.sum(-1)  # NaN or plus infinity in any block comes through; minus infinity is an empty block
    return token, ~(total.isnan() | (mass.amax(-1).isinf()))


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Logits [R, V] with those outside the smallest set of mass `top_p` at minus infinity (Holtzman et al. 2020)."""
    first = min(_FIRST, logits.shape[-1])
    total = logits.logsumexp(-1, keepdim=True)
    top, order = logits.topk(first, dim=-1)
    held = (top - total).exp()
    if bool((held.sum(-1) < top_p).any()):
        top, order = logits.sort(descending=True, dim=-1)
        held = (top - total).exp()
    before = held.cumsum(-1) - held
    kept = top.masked_fill(before >= top_p, float("-inf"))
    return torch.full_like(logits, float("-inf")).scatter(-1, order, kept)
