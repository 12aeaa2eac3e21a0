"""The plain way: models whose architecture is not batched here, by transformers' own `generate` and forward pass.

The random streams are those of the batched way, so that both sample the same.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from truing.models.engine import token_tree
from truing.models.engine.requests import BatchOptions, Completion, GenerateRequest
from truing.models.engine.scoring import ROW_TOKENS, pass_tokens
from truing.models.engine.token_sampling import RandomStream, sample_tokens
from truing.models.engine.token_tree import Branch, Scored
from truing.types.records import SamplingParams

log = logging.getLogger(__name__)


class _OwnChoice(LogitsProcessor):
    """Leaves of every row's scores only the token that its own stream samples."""

    def __init__(self, seeds: Sequence[int], params: SamplingParams) -> None:
        self.streams, self.params = [RandomStream(s) for s in seeds], params
        self.failed: set[int] = set()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        sampled = sample_tokens(scores.float(), self.streams, self.params)
        self.failed.update(k for k, token in enumerate(sampled) if token is None)
        only = torch.full_like(scores, float("-inf"))
        only[torch.arange(len(sampled)), [token or 0 for token in sampled]] = 0
        return only


def generate_plainly(
    acquire: Callable[[], Any], requests: Sequence[GenerateRequest], params: SamplingParams, options: BatchOptions
) -> Iterator[Completion]:
    """Answers of the model that `acquire` puts in force, in batches of `options.rows` prompts of about one length."""
    by_length = sorted(requests, key=lambda r: len(r.prompt))
    for start in range(0, len(by_length), options.rows):
        yield from _batch(acquire(), by_length[start : start + options.rows], params, options)


def _batch(
    model: Any, requests: Sequence[GenerateRequest], params: SamplingParams, options: BatchOptions
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
    choice = _OwnChoice([r.seed for r in requests], params)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([choice]),
        )
    for row, r in enumerate(requests):
        tokens = out[row, longest : longest + r.max_tokens].tolist()
        end = next((k for k in range(1, len(tokens) + 1) if _ended(tokens[:k], options)), None)
        yield Completion(r.index, tokens[:end], end is not None, failed=row in choice.failed)


def _ended(tokens: list[int], options: BatchOptions) -> bool:
    return tokens[-1] in options.stop_ids or (options.ends is not None and options.ends(tokens))


class PlainScorer:
    """Scores with the forward pass of any causal language model.

    Args:
        name: of the base, for messages.
        trees: whether token trees may be tried; where they differ from the plain way they are not used.
    """

    def __init__(self, name: str, *, trees: bool = True) -> None:
        self._name = name
        self._trees: bool | None = None if trees else False  # whether this architecture agrees with tree attention

    def score(self, acquire: Callable[[], Any], branches: list[Branch], memory: float | None) -> Iterator[Scored]:
        """Score texts by the model that `acquire` puts in force, within `memory` GiB."""
        model = acquire()
        dtype = next(model.parameters()).dtype
        if self._trees is None:
            self._trees = self._agrees(model, dtype, branches)  # None again if these weights cannot tell
        longest = max(len(b.prefix) + len(b.completion) for b in branches)
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        tree = bool(self._trees) and not (window and longest >= window)
        rows = token_tree.pack(branches, ROW_TOKENS) if tree else token_tree.single_rows(branches)
        for batch in token_tree.batches(rows, pass_tokens(model, dtype, memory)):
            model = acquire()
            yield from token_tree.score_rows(model, token_tree.head_of(model), batch, tree=tree)

    def _agrees(self, model: Any, dtype: torch.dtype, branches: list[Branch]) -> bool | None:
        """Whether packed scoring equals the plain way on a few branches here; None where NaN weights cannot tell."""
        head = token_tree.head_of(model)
        few = sorted(branches, key=lambda b: len(b.prefix) + len(b.completion))[:3]
        try:
            packed = token_tree.score_rows(model, head, token_tree.pack(few, 10**9), tree=True)
        except (RuntimeError, ValueError, TypeError) as e:
            log.warning("packed scoring is not possible for %s (%s); scoring the plain way", self._name, e)
            return False
        plain = {s.index: s for s in token_tree.score_rows(model, head, token_tree.single_rows(few), tree=False)}
        worst = max(abs(s.total - plain[s.index].total) / s.tokens for s in packed)
        if worst != worst:
            return None
        if worst <= (1e-3 if dtype is torch.float32 else 0.05):
            return True
        log.warning("packed scoring differs from plain by %.4f nats/token; scoring the plain way", worst)
        return False
