"""Drawing answers from a model in memory: plain batched `generate`, with a random stream of its own for every answer.

The noise of an answer depends only on (seed, weights, prompt, draw, transform), not on its neighbours in the batch.
In float32 the text then does not either; in bfloat16 batched arithmetic rounds differently, so that the distribution is
the same and the text need not be.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from truing.backends.chat import ChatFormat
from truing.base.hashing import digest
from truing.base.records import Ask, Response, ResponseOutcome, SamplingParams

BATCH_ROWS = 32


class _OwnNoise(LogitsProcessor):
    """Gumbel-max: adding a row's own Gumbel noise to its logits makes the greedy choice an exact sample."""

    def __init__(self, seeds: Sequence[int], params: SamplingParams) -> None:
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]
        self.params = params

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        logits = scores.float() / self.params.temperature
        if self.params.top_p < 1:
            ordered, order = logits.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.params.top_p)
            logits = logits.masked_fill(cut, float("-inf"))
        noise = torch.stack([torch.empty(logits.shape[-1]).exponential_(generator=g) for g in self.generators])
        return logits - noise.log().to(logits.device)


def draw_answers(model: Any, chat: ChatFormat, asks: Sequence[Ask], params: SamplingParams) -> Iterator[Response]:
    """Answers of one checkpoint, already in force in `model`; shorter prompts first."""
    prompts = [(chat.prefix(a.prompt.messages), a) for a in asks]
    prompts.sort(key=lambda p: len(p[0]))
    for start in range(0, len(prompts), BATCH_ROWS):
        yield from _batch(model, chat, prompts[start : start + BATCH_ROWS], params)


def _batch(
    model: Any, chat: ChatFormat, prompts: list[tuple[list[int], Ask]], params: SamplingParams
) -> Iterator[Response]:
    longest = max(len(ids) for ids, _ in prompts)
    pad = chat.stop_ids[0]
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, (prefix, _) in enumerate(prompts):  # padded on the left: answers start in one column
        ids[row, longest - len(prefix) :] = torch.tensor(prefix)
        mask[row, longest - len(prefix) :] = 1
    device = next(model.parameters()).device
    # A configuration of our own: a model's may bring a repetition penalty or another temperature.
    config = GenerationConfig(
        max_new_tokens=params.max_tokens, do_sample=False, eos_token_id=list(chat.stop_ids), pad_token_id=pad
    )
    noise = LogitsProcessorList()
    if params.temperature > 0:
        noise.append(_OwnNoise([_stream(a, params) for _, a in prompts], params))
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=noise,
        )
    for row, (_, ask) in enumerate(prompts):
        yield _response(ask, out[row, longest:].tolist(), chat)


def _stream(ask: Ask, params: SamplingParams) -> int:
    return int(digest((params.seed, ask.checkpoint.weights, ask.prompt.key, ask.draw, ask.transform), 15), 16)


def _response(ask: Ask, ids: list[int], chat: ChatFormat) -> Response:
    end = next((k for k, token in enumerate(ids) if token in chat.stop_ids), None)
    text = chat.decode(ids if end is None else ids[:end])
    tokens = len(ids) if end is None else end + 1
    if end is None:
        return Response(ask, text, ResponseOutcome.TRUNCATED, tokens)
    return Response(ask, text, ResponseOutcome.OK if text.strip() else ResponseOutcome.EMPTY, tokens)
