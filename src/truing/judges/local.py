"""A judge in this process: reads the exact expectation over all numbers of a rubric's scale from the model's logits.

    LocalJudge("google/gemma-3-27b-it", ModelConfig()) .ask(asks) -> replies

Nothing is generated. Asks are taken a window at a time and merged into token trees (see `packing`): the opening of a
rubric, the question and the answer are computed once for all rubrics that begin alike, each with a short fork of its
own, and the digits of every number hang from the end of a fork (see `digits`).

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
from truing.types.judged import JudgeReply, JudgeRequest, Route, Rubric
from truing.types.records import Message

log = logging.getLogger(__name__)
LOCAL = "local:"
"""how the address of a judge in memory begins"""
WINDOW = 16
"""asks that are held at once: rubrics about one answer meet here"""
BATCH_TOKENS = 2048
_PROBE = (Message("user", "How good is this answer, from 0 to 100?"),)


class LocalJudge:
    """A causal language model on this machine as a judge. Not thread-safe: one model, one owner.

    The files are hashed and the tokenizer is loaded at once; the model itself with the first ask.
    """

    remote = False

    def __init__(self, model: str, config: ModelConfig, say: Callable[[str], None] | None = None) -> None:
        """Find the model and its chat format.

        Args:
            model: alias, local path or hub id, with or without `@revision`.
            config: how the model is held. A chat template given there is the audited model's and is not used.
            say: told how much memory the judge takes.

        Raises:
            ModelUnavailable, DamagedWeights, NoChatTemplate, Unsupported (no such device or number type).
        """
        self._path = resolve_model(model)
        self._given = self._path.name if self._path == Path(model).expanduser().resolve() else model
        self._config, self._say = config, say
        self._device = device_of(config.device)
        self._dtype = dtype_of(config.dtype, config.device)
        self._tokenizer = load_tokenizer(self._path, config)
        self._chat = ChatFormat(self._tokenizer)
        self._digits = digit_tokens(self._tokenizer)
        self._markers = _markers(self._tokenizer)
        self._weights = weights_hash(self._path)
        self._trees: dict[str, NumberTree] = {}
        self._loaded: Model | None = None
        self._tree: bool | None = None  # whether this architecture agrees with tree attention; tried once
        self.computed = 0
        """token positions computed so far"""
        self.asked = 0
        """tokens of all asks so far, were each computed alone"""

    @property
    def name(self) -> str:
        """The address; of a model in a folder, the folder's name only."""
        return f"{LOCAL}{self._given}"

    @property
    def model(self) -> str:
        """Hash of the weights."""
        return self._weights

    def route(self, rubrics: Sequence[Rubric]) -> Route:
        """Always the digit tree: where every number is one token it equals the expectation over the first token.

        Raises:
            Unsupported: a rubric that asks for several scores at once, or a scale that is not of whole numbers.
        """
        for rubric in rubrics:
            self._number_tree(rubric)
        return Route.DIGITS

    def ask(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeReply]:
        """Answer every ask, `WINDOW` of them at a time.

        A reply's probabilities are those of all whole numbers of the scale and of the escape words. An ask that the
        model cannot take (too long, roles that its template refuses, weights that yield NaN) is a reply with an error.
        """
        waiting = iter(requests)
        while window := list(islice(waiting, WINDOW)):
            yield from self._judge(window)

    def close(self) -> None:
        """Let go of the model."""
        self._loaded = None

    # -- asks into tokens ---------------------------------------------------------------------------------------------

    def _judge(self, window: Sequence[JudgeRequest]) -> Iterator[JudgeReply]:
        model = self._model()
        able: list[tuple[JudgeRequest, Scale]] = []
        for request in window:
            try:
                able.append((request, self._scale(request, model)))
            except errors.Unsupported as e:
                yield JudgeReply(request, error=str(e), calls=0, model=self.name)
        if not able:
            return
        reading = self._read(model, [scale for _, scale in able])
        for (request, scale), probabilities in zip(able, reading.probabilities, strict=True):
            tokens = len(scale.prefix)
            if any(v != v for v in probabilities.values()):
                error = "the judge's weights give no numbers but NaN"
                yield JudgeReply(request, error=error, prompt_tokens=tokens, model=self.name)
            else:
                yield JudgeReply(request, probabilities=probabilities, prompt_tokens=tokens, model=self.name)

    def _scale(self, request: JudgeRequest, model: Model) -> Scale:
        tree = self._number_tree(request.rubric)
        # A judged text must not be able to close its turn and speak for the judge.
        safe = replace(
            request, question=_defused(request.question, self._markers), answer=_defused(request.answer, self._markers)
        )
        prefix = tuple(self._chat.prefix(safe.messages))
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        longest = len(prefix) + max(map(len, tree.paths))
        if most and longest > most:
            raise errors.Unsupported(f"the filled rubric takes {longest} tokens, this judge reads {most}")
        return Scale(prefix, tree)

    def _number_tree(self, rubric: Rubric) -> NumberTree:
        """The tree of a rubric's scale and escape words; made once per rubric."""
        if rubric.key not in self._trees:
            if rubric.parts:
                parts = ", ".join(rubric.parts)
                raise errors.Unsupported(
                    f"rubric {rubric.name}: a judge in memory reads one score per ask, not {parts} at once; "
                    "ask them apart (they share what they have in common)"
                )
            texts = whole_numbers(rubric.low, rubric.high)
            tokens = {t: self._chat.render(_PROBE, t, closing=False).completion_ids for t in (*texts, *rubric.escapes)}
            words = {t: tokens[t] for t in rubric.escapes}
            self._trees[rubric.key] = NumberTree({t: tokens[t] for t in texts}, words, self._digits)
        return self._trees[rubric.key]

    # -- tokens into probabilities ------------------------------------------------------------------------------------

    def _model(self) -> Model:
        if self._loaded is None:
            if self._say is not None:
                size = sum(f.stat().st_size for f in weight_files(self._path)) / 2**30
                self._say(f"loading the judge {self.name}: a model of its own, {size:.1f} GiB of weights")
            model: Model = load_model(self._path, self._dtype, self._device, self._config)
            known = model.get_input_embeddings().weight.shape[0]
            highest = max(self._chat.prefix(_PROBE))
            if highest >= known:
                raise errors.TemplateMismatch(f"{self._path}: the chat uses token {highest}, the model knows {known}")
            self._loaded = model
        return self._loaded

    def _read(self, model: Model, scales: Sequence[Scale]) -> Reading:
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        longest = max(len(s.prefix) + max(map(len, s.tree.paths)) for s in scales)
        fits = not window or longest < window  # packed rows see all of their prompt
        if self._tree is None and fits:
            self._tree = self._agrees_with_tree(model, scales)
        if self._tree and fits:
            reading = read_packed(model, scales, batch_tokens=self._batch_tokens(model))
        else:
            reading = read_plain(model, scales)
        self.computed += reading.computed
        self.asked += sum(len(s.prefix) for s in scales)
        return reading

    def _agrees_with_tree(self, model: Model, scales: Sequence[Scale]) -> bool | None:
        """Whether packed reading equals the plain way on two short asks; None where NaN weights cannot tell."""
        few = sorted(scales, key=lambda s: len(s.prefix))[:2]
        try:
            packed = read_packed(model, few, batch_tokens=self._batch_tokens(model)).probabilities
        except (RuntimeError, ValueError, TypeError) as e:
            log.warning("token trees are not possible for %s (%s); reading the plain way", self.name, e)
            return False
        plain = read_plain(model, few).probabilities
        differences = [abs(a[t] - b[t]) for a, b in zip(packed, plain, strict=True) for t in a]
        if any(d != d for d in differences):
            return None
        worst = max(differences)
        if worst <= (1e-3 if self._dtype is torch.float32 else 0.05):
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


def _markers(tokenizer: Any) -> tuple[str, ...]:
    """Texts of control tokens, longest first: those that begin and end turns."""
    added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tuple(sorted((t for t in added | set(tokenizer.all_special_tokens) if len(t) > 2), key=len, reverse=True))


def _defused(text: str, markers: Sequence[str]) -> str:
    """The text with a space inside whatever the tokenizer would read as a control token."""
    for marker in markers:
        if marker in text:
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text
