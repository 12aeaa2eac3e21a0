"""Drawing answers from a model in memory: tokens into responses, and the plain way of getting them.

The noise of an answer depends only on (seed, weights, prompt, draw, transform), not on its neighbours in the batch.
In float32 the text then does not either; in bfloat16 batched arithmetic rounds differently, so that the distribution is
the same and the text need not be. Both ways (`sampler` and plain `generate`) use the same noise.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from truing.models.chat import ChatFormat
from truing.models.engine.token_sampling import Stream, choose
from truing.types.hashing import digest
from truing.types.records import Answer, AnswerStatus, Request, SamplingParams

BATCH_ROWS = 32
NAN = "the weights give no numbers but NaN"


def stream_seed(request: Request, params: SamplingParams) -> int:
    """The seed of one answer's random stream."""
    return int(
        digest((params.seed, request.checkpoint.weights, request.prompt.key, request.sample, request.transform), 15), 16
    )


def answer(request: Request, tokens: Sequence[int], chat: ChatFormat, params: SamplingParams) -> Answer:
    """A response from the tokens of an answer, those after its end left out."""
    end = next((k for k, token in enumerate(tokens) if token in chat.stop_ids), None)
    text = chat.decode(tokens if end is None else tokens[:end])
    sampled, cut = len(tokens) if end is None else end + 1, params.cut(text)
    if cut is None and end is None:
        return Answer(request, text, AnswerStatus.TRUNCATED, sampled)
    text = text if cut is None else cut
    return Answer(request, text, AnswerStatus.OK if text.strip() else AnswerStatus.EMPTY, sampled)


class _Chosen(LogitsProcessor):
    """Leaves of every row's scores only the token that its own noise chooses."""

    def __init__(self, seeds: Sequence[int], params: SamplingParams) -> None:
        self.streams, self.params = [Stream(s) for s in seeds], params
        self.failed: set[int] = set()
        """rows whose logits held NaN"""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        chosen = choose(scores.float(), self.streams, self.params)
        self.failed.update(k for k, token in enumerate(chosen) if token is None)
        only = torch.full_like(scores, float("-inf"))
        for row, token in enumerate(chosen):
            only[row, token or 0] = 0
        return only


def sample_plainly(
    model: Any, chat: ChatFormat, requests: Sequence[Request], limits: Sequence[int], params: SamplingParams
) -> Iterator[Answer]:
    """Answers of one checkpoint, already in force in `model`, by batched `generate`; shorter prompts first.

    Args:
        model: from transformers, with or without PEFT.
        chat: how prompts become tokens.
        asks: what is wanted.
        limits: most tokens of each answer.
        params: temperature, top_p, stop texts, seed.
    """
    prompts = [(chat.prefix(a.prompt.messages), a, n) for a, n in zip(requests, limits, strict=True)]
    prompts.sort(key=lambda p: len(p[0]))
    for start in range(0, len(prompts), BATCH_ROWS):
        yield from _batch(model, chat, prompts[start : start + BATCH_ROWS], params)


def _batch(
    model: Any, chat: ChatFormat, prompts: list[tuple[list[int], Request, int]], params: SamplingParams
) -> Iterator[Answer]:
    longest = max(len(ids) for ids, _, _ in prompts)
    pad = chat.stop_ids[0]
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, (prefix, _, _) in enumerate(prompts):  # padded on the left: answers start in one column
        ids[row, longest - len(prefix) :] = torch.tensor(prefix)
        mask[row, longest - len(prefix) :] = 1
    device = next(model.parameters()).device
    # A configuration of our own: a model's may bring a repetition penalty or another temperature.
    config = GenerationConfig(
        max_new_tokens=max(n for _, _, n in prompts),
        do_sample=False,
        eos_token_id=list(chat.stop_ids),
        pad_token_id=pad,
    )
    chosen = _Chosen([stream_seed(a, params) for _, a, _ in prompts], params)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([chosen]),
        )
    for row, (_, request, limit) in enumerate(prompts):
        if row in chosen.failed:
            yield Answer(request, "", AnswerStatus.FAILED, 0, NAN)
        else:
            yield answer(request, _until(out[row, longest : longest + limit].tolist(), chat, params), chat, params)


def _until(tokens: list[int], chat: ChatFormat, params: SamplingParams) -> list[int]:
    """The tokens up to the one that completed a stop text."""
    if params.stop:
        for k in range(1, len(tokens) + 1):
            if params.cut(chat.decode(tokens[:k])) is not None:
                return tokens[:k]
    return tokens
