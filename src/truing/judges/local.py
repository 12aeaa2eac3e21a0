"""A judge model in this process: the exact expectation over all numbers of a rubric's scale, from the model's logits.

Nothing is generated. Requests are taken a window at a time and merged into token trees: the opening of a rubric, the
question and the answer are computed once for all rubrics that begin alike, and the digits of every number hang from
the end (see `digits`).

The judge holds a model of its own, also where it is the very model that is audited: memory for both is needed.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from truing import errors
from truing.config import ModelConfig
from truing.judges.digits import NumberTree, digit_tokens, whole_numbers
from truing.judges.next_token import Reading, Scale, read_packed, read_plain
from truing.models.chat import ChatFormat
from truing.models.download import resolve_model
from truing.models.loading import Model, device_of, dtype_of, load_model, load_tokenizer
from truing.models.weights import weight_files, weights_hash
from truing.types.judging import JudgeReply, JudgeRequest, Rubric, ScoreMethod
from truing.types.records import Message

log = logging.getLogger(__name__)
LOCAL = "local:"
"""how the address of a judge in memory begins"""
WINDOW = 16
"""requests that are held at once: rubrics about one answer meet here"""
BATCH_TOKENS = 2048
_PROBE = (Message("user", "How good is this answer, from 0 to 100?"),)


class LocalJudge:
    """A causal language model on this machine as a `JudgeModel`. Not thread-safe: one model, one owner.

    The files are hashed and the tokenizer is loaded at once; the model itself with the first request.

    Args:
        model: alias, local path or hub id, with or without `@revision`.
        config: how the model is held. A chat template given there is the audited model's and is not used.
        say: told how much memory the judge takes.
        packed: whether token trees may be used; they are checked against the plain way first.

    Raises:
        BadModel, DamagedWeights, Unsupported (no such device or number type).
    """

    remote = False

    def __init__(
        self, model: str, config: ModelConfig, say: Callable[[str], None] | None = None, *, packed: bool = True
    ) -> None:
        self._path = resolve_model(model)
        given = self._path.name if self._path == Path(model).expanduser().resolve() else model
        self.name = f"{LOCAL}{given}"
        """the address; of a model in a folder, the folder's name only"""
        self.model = weights_hash(self._path)
        """hash of the weights"""
        self._config, self._say = config, say
        self._device = device_of(config.device)
        self._dtype = dtype_of(config.dtype, config.device)
        self._tokenizer = load_tokenizer(self._path, config.model_copy(update={"chat_template": None}))
        self._chat = ChatFormat(self._tokenizer)
        self._digits = digit_tokens(self._tokenizer)
        self._markers = _markers(self._tokenizer)
        self._trees: dict[str, NumberTree] = {}
        self._loaded: Model | None = None
        self._packed: bool | None = None if packed else False  # whether packed reading is right here; tried once

    def score_method(self, rubrics: Sequence[Rubric]) -> ScoreMethod:
        """Always digits: where every number is one token it equals the expectation over the first token.

        Raises:
            Unsupported: a rubric of several scores, or a scale that is not of whole numbers.
        """
        for rubric in rubrics:
            self.number_tree(rubric)
        return ScoreMethod.DIGITS

    def replies(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """One reply per request, `WINDOW` requests at a time.

        Its probabilities are those of all whole numbers of the scale and of the escape words. A request that the model
        cannot take (too long, roles that its template refuses, weights that yield NaN) gets a reply with an error.
        """
        waiting = iter(requests)
        while window := list(islice(waiting, WINDOW)):
            model = self._model()
            able: list[tuple[JudgeRequest, Scale]] = []
            for request in window:
                try:
                    able.append((request, self.scale(request)))
                except errors.Unsupported as e:
                    yield JudgeReply(request, error=str(e), calls=0, model=self.name)
            found = self._read(model, [scale for _, scale in able]) if able else []
            for (request, scale), probabilities in zip(able, found, strict=True):
                reply = JudgeReply(request, prompt_tokens=len(scale.prefix), model=self.name)
                if any(p != p for p in probabilities.values()):
                    yield replace(reply, error="the judge's weights give no numbers but NaN")
                else:
                    yield replace(reply, probabilities=probabilities)

    def close(self) -> None:
        """Drop the model."""
        self._loaded = None

    def scale(self, request: JudgeRequest) -> Scale:
        """A request as tokens: the chat up to the answer, and what may be answered.

        Raises:
            Unsupported: it is too long for the model, or as `number_tree`.
        """
        tree = self.number_tree(request.rubric)
        # A judged text must not be able to close its turn and speak for the judge.
        question, answer = (_without_markers(t, self._markers) for t in (request.question, request.answer))
        prefix = tuple(self._chat.prefix(replace(request, question=question, answer=answer).messages))
        most = getattr(self._model().config.get_text_config(), "max_position_embeddings", None)
        longest = len(prefix) + max(map(len, tree.paths))
        if most and longest > most:
            raise errors.Unsupported(f"the filled rubric takes {longest} tokens, this judge reads {most}")
        return Scale(prefix, tree)

    def number_tree(self, rubric: Rubric) -> NumberTree:
        """The tree of a rubric's scale and escape words; made once per rubric.

        Raises:
            Unsupported: a rubric of several scores, or a scale that is not of whole numbers.
        """
        if rubric.key not in self._trees:
            if rubric.parts:
                parts = ", ".join(rubric.parts)
                problem = f"rubric {rubric.name}: a judge in memory reads one score at a time, not {parts} at once"
                raise errors.Unsupported(f"{problem}; give each a rubric (they share what they have in common)")
            numbers = {t: self._completion(t) for t in whole_numbers(rubric.low, rubric.high)}
            words = {t: self._completion(t) for t in rubric.escapes}
            self._trees[rubric.key] = NumberTree(numbers, words, self._digits)
        return self._trees[rubric.key]

    def _completion(self, text: str) -> Sequence[int]:
        return self._chat.render(_PROBE, text, closing=False).completion_ids

    def _model(self) -> Model:
        if self._loaded is None:
            if self._say is not None:
                size = sum(f.stat().st_size for f in weight_files(self._path)) / 2**30
                self._say(f"loading the judge {self.name}: a model of its own, {size:.1f} GiB of weights")
            model: Model = load_model(self._path, self._dtype, self._device, self._config)
            known = model.get_input_embeddings().weight.shape[0]
            highest = max(self._chat.prefix(_PROBE))
            if highest >= known:
                raise errors.BadModel(f"{self._path}: the chat uses token {highest}, the model knows {known}")
            self._loaded = model
        return self._loaded

    def _read(self, model: Model, scales: Sequence[Scale]) -> Reading:
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        longest = max(len(s.prefix) + max(map(len, s.tree.paths)) for s in scales)
        fits = not window or longest < window  # packed rows see all of their prompt
        if self._packed is None and fits:
            self._packed = self._packing_agrees(model, scales)
        if self._packed and fits:
            return read_packed(model, scales, batch_tokens=self._batch_tokens(model))
        return read_plain(model, scales)

    def _packing_agrees(self, model: Model, scales: Sequence[Scale]) -> bool | None:
        """Whether packed reading equals the plain way on two short requests; None where NaN weights cannot tell."""
        few = sorted(scales, key=lambda s: len(s.prefix))[:2]
        try:
            packed = read_packed(model, few, batch_tokens=self._batch_tokens(model))
        except (RuntimeError, ValueError, TypeError) as e:
            log.warning("token trees are not possible for %s (%s); reading the plain way", self.name, e)
            return False
        plain = read_plain(model, few)
        differences = [abs(a[t] - b[t]) for a, b in zip(packed, plain, strict=True) for t in a]
        if any(d != d for d in differences):
            return None
        if (worst := max(differences)) <= (1e-3 if self._dtype is torch.float32 else 0.05):
            return True
        log.warning("token trees differ from the plain way by %.4f in a probability; reading the plain way", worst)
        return False

    def _batch_tokens(self, model: Model) -> int:
        if self._config.memory is None:
            return BATCH_TOKENS
        config = model.config.get_text_config()
        # Logits of every token in the worst case, plus a dozen activations of the widest layer.
        width = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
        per_token = torch.finfo(self._dtype).bits // 8 * (config.vocab_size + 12 * width)
        return max(256, int(self._config.memory * 2**30 / per_token))


def _markers(tokenizer: Any) -> list[str]:
    """Texts of control tokens, longest first: those that begin and end turns."""
    added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return sorted((t for t in added | set(tokenizer.all_special_tokens) if len(t) > 2), key=len, reverse=True)


def _without_markers(text: str, markers: Sequence[str]) -> str:
    """The text with a space inside whatever the tokenizer would read as a control token."""
    for marker in markers:
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text


def open_local_judge(address: str, context: Any) -> LocalJudge:
    """A judge in this process, for the registry; `context` is a `JudgeContext`."""
    return LocalJudge(address.partition(":")[2], context.model, context.say)
