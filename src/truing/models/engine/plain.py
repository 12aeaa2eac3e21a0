"""The plain way: models whose architecture is not batched here, by transformers' own `generate` and forward pass.

The random streams are those of the batched way, so that both sample the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from truing.models.engine.requests import BatchOptions, Completion, GenerateRequest, Throughput
from truing.models.engine.runner import head_of
from truing.models.engine.scoring import pass_tokens
from truing.models.engine.token_sampling import RandomStream, sample_tokens
from truing.models.engine.token_tree import Branch, Scored, batches, logits_at, pack, read, wanted_nodes
from truing.types.records import SamplingParams


class _OwnChoice(LogitsProcessor):
    """Leaves of every row's scores only the token that its own stream samples."""

    def __init__(self, seeds: Sequence[int], params: SamplingParams, passed: Callable[[], object]) -> None:
        self.streams, self.params, self.passed = [RandomStream(s) for s in seeds], params, passed
        self.failed: set[int] = set()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        sampled = sample_tokens(scores.float(), self.streams, self.params)
        self.failed.update(k for k, token in enumerate(sampled) if token is None)
        self.passed()
        only = torch.full_like(scores, float("-inf"))
        only[torch.arange(len(sampled)), [token or 0 for token in sampled]] = 0
        return only


def generate_plainly(
    acquire: Callable[[], Any],
    requests: Sequence[GenerateRequest],
    params: SamplingParams,
    options: BatchOptions,
    callback: Callable[[Throughput], None] | None = None,
) -> Iterator[Completion]:
    """Answers of the model that `acquire` puts in force, in batches of `options.rows` prompts of about one length.

    `callback` is called after every pass, with the rows of a batch counted until the last of them has ended.
    """
    by_length, work = sorted(requests, key=lambda r: len(r.prompt)), Throughput()
    for start in range(0, len(by_length), options.rows):
        batch = by_length[start : start + options.rows]

        def passed(rows: int = len(batch)) -> None:
            work.in_flight, work.kept = rows, work.kept + rows
            if callback is not None:
                callback(work)

        yield from _batch(acquire(), batch, params, options, passed)
        work.answers, work.in_flight, work.kept = work.answers + len(batch), 0, work.kept - len(batch)


def _batch(
    model: Any,
    requests: Sequence[GenerateRequest],
    params: SamplingParams,
    options: BatchOptions,
    passed: Callable[[], object],
) -> Iterator[Completion]:
    longest, pad = max(len(r.prompt) for r in requests), options.stop_ids[0]
    ids = torch.full((len(requests), longest), pad)
    mask = torch.zeros_like(ids)
    for row, r in enumerate(requests):  # padded on the left: answers start in one column
        ids[row, longest - len(r.prompt) :] = torch.tensor(r.prompt)
        mask[row, longest - len(r.prompt) :] = 1
    device = next(model.parameters()).device
    # A configuration of our own: a model's may bring a repetition penalty or another temperature.
    config = GenerationConfig(
        max_new_tokens=max(r.max_tokens for r in requests),
        do_sample=False,
        eos_token_id=list(options.stop_ids),
        pad_token_id=pad,
    )
    choice = _OwnChoice([r.seed for r in requests], params, passed)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([choice]),
        )
    for row, r in enumerate(requests):
        tokens = out[row, longest : longest + r.max_tokens].tolist()
        end = next((k for k in range(1, len(tokens)) if options.stops(tokens[:k])), None)
        yield Completion(r.index, tokens[:end], failed=row in choice.failed)


def score_plainly(
    acquire: Callable[[], Any], branches: Sequence[Branch], memory: float | None = None
) -> Iterator[Scored]:
    """Scores of texts, every one a row of its own, by the model that `acquire` puts in force, within `memory` GiB."""
    model = acquire()
    tokens = pass_tokens(model, next(model.parameters()).dtype, memory)
    for batch in batches(pack(branches, 0), tokens):
        model = acquire()
        yield from read(logits_at(model, head_of(model), batch, wanted_nodes(batch), tree=False), batch)
