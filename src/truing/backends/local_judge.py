"""A judge in this process: reads the exact expectation over all numbers of a rubric's scale from the model's logits.

    LocalJudge("google/gemma-3-27b-it", JudgeOptions(), ModelOptions()) .ask(asks) -> replies

Nothing is generated. Asks are taken a window at a time and merged into token trees (see `packing`): the opening of a
rubric, the question and the answer are computed once for all rubrics that begin alike, each with a short fork of its
own, and the digits of every number hang from the end of a fork (see `digits`).

The judge holds a model of its own, also where it is the very model that is audited: memory for both is needed.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from truing.backends import packing
from truing.backends.chat import ChatFormat
from truing.backends.digits import NumberTree, digit_tokens, whole_numbers
from truing.backends.loading import Model, device_of, dtype_of, load_model, load_tokenizer
from truing.backends.models import resolve_model
from truing.backends.weights import weight_files, weights_hash
from truing.base import errors
from truing.base.judged import JudgeAsk, JudgeOptions, JudgeReply, Route, Rubric
from truing.base.options import ModelOptions
from truing.base.records import Message

log = logging.getLogger(__name__)
LOCAL = "local:"
"""how the address of a judge in memory begins"""
WINDOW = 16
"""asks that are held at once: rubrics about one answer meet here"""
ROW_TOKENS, BATCH_TOKENS = 512, 2048
_LOGITS_AT_ONCE = 64
_PROBE = (Message("user", "How good is this answer, from 0 to 100?"),)
_Key = tuple[int, int]
"""which ask of a window, which inner node of its tree"""


@dataclass(slots=True)
class _Row(packing.Row):
    """A token tree with the nodes whose next tokens are wanted."""

    asked: list[tuple[_Key, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Planned:
    """An ask as tokens."""

    ask: JudgeAsk
    prefix: tuple[int, ...]
    tree: NumberTree


@dataclass(frozen=True, slots=True)
class _Next:
    """What follows one inner node: probabilities of the wanted tokens, and of all that go on with a digit."""

    following: list[float]
    digit: float


class LocalJudge:
    """A causal language model on this machine as a judge. Not thread-safe: one model, one owner.

    The files are hashed and the tokenizer is loaded at once; the model itself with the first ask.
    """

    remote = False

    def __init__(self, model: str, options: JudgeOptions, model_options: ModelOptions) -> None:
        """Find the model and its chat format.

        Args:
            model: alias, local path or hub id, with or without `@revision`.
            options: settings of judging; `say` is told how much memory the judge takes.
            model_options: how the model is held. A chat template given there is the audited model's and is not used.

        Raises:
            ModelUnavailable, DamagedWeights, NoChatTemplate, Unsupported (no such device or number type).
        """
        self._path = resolve_model(model)
        self._given = self._path.name if self._path == Path(model).expanduser().resolve() else model
        self._options, self._model_options = options, model_options
        self._device = device_of(model_options.device)
        self._dtype = dtype_of(model_options.dtype, model_options.device)
        self._tokenizer = load_tokenizer(self._path, model_options)
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

    def ask(self, asks: Iterable[JudgeAsk]) -> Iterator[JudgeReply]:
        """Answer every ask, `WINDOW` of them at a time.

        A reply's probabilities are those of all whole numbers of the scale and of the escape words. An ask that the
        model cannot take (too long, roles that its template refuses, weights that yield NaN) is a reply with an error.
        """
        waiting = iter(asks)
        while window := list(islice(waiting, WINDOW)):
            yield from self._judge(window)

    def close(self) -> None:
        """Let go of the model."""
        self._loaded = None

    # -- asks into tokens ---------------------------------------------------------------------------------------------

    def _judge(self, window: Sequence[JudgeAsk]) -> Iterator[JudgeReply]:
        model, planned = self._model(), []
        for ask in window:
            try:
                planned.append(self._plan(ask, model))
            except errors.Unsupported as e:
                yield JudgeReply(ask, error=str(e), calls=0, model=self.name)
        if not planned:
            return
        found = self._next_tokens(model, planned)
        for k, p in enumerate(planned):
            nodes = [found[k, node] for node in range(len(p.tree.paths))]
            probabilities = p.tree.read([n.following for n in nodes], [n.digit for n in nodes])
            broken = any(v != v for v in probabilities.values())
            yield JudgeReply(
                p.ask,
                probabilities=None if broken else probabilities,
                error="the judge's weights give no number (NaN)" if broken else "",
                prompt_tokens=len(p.prefix),
                model=self.name,
            )

    def _plan(self, ask: JudgeAsk, model: Model) -> _Planned:
        tree = self._number_tree(ask.rubric)
        # A judged text must not be able to close its turn and speak for the judge.
        safe = replace(ask, question=_defused(ask.question, self._markers), answer=_defused(ask.answer, self._markers))
        prefix = tuple(self._chat.prefix(safe.messages))
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        longest = len(prefix) + max(map(len, tree.paths))
        if most and longest > most:
            raise errors.Unsupported(f"the filled rubric takes {longest} tokens, this judge reads {most}")
        return _Planned(ask, prefix, tree)

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
            if self._options.say is not None:
                size = sum(f.stat().st_size for f in weight_files(self._path)) / 2**30
                self._options.say(f"loading the judge {self.name}: a model of its own, {size:.1f} GiB of weights")
            model: Model = load_model(self._path, self._dtype, self._device, self._model_options)
            known = model.get_input_embeddings().weight.shape[0]
            highest = max(self._chat.prefix(_PROBE))
            if highest >= known:
                raise errors.TemplateMismatch(f"{self._path}: the chat uses token {highest}, the model knows {known}")
            self._loaded = model
        return self._loaded

    def _next_tokens(self, model: Model, planned: Sequence[_Planned]) -> dict[_Key, _Next]:
        """Probabilities after every inner node of every ask."""
        head = model.get_output_embeddings()
        if head is None:
            raise errors.Unsupported(f"{self.name} has no language-model head; a causal model is needed")
        if self._tree is None:
            self._tree = self._agrees_with_tree(model, head, planned)
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        longest = max(len(p.prefix) + max(map(len, p.tree.paths)) for p in planned)
        tree = bool(self._tree) and not (window and longest >= window)
        return self._forward(model, head, planned, tree=tree)

    def _forward(
        self, model: Model, head: torch.nn.Module, planned: Sequence[_Planned], *, tree: bool
    ) -> dict[_Key, _Next]:
        rows = _packed(planned) if tree else _alone(planned)
        found: dict[_Key, _Next] = {}
        for batch in packing.batches(rows, self._batch_tokens(model)):
            asked = [(b, key, node) for b, row in enumerate(batch) if isinstance(row, _Row) for key, node in row.asked]
            logits = packing.logits_at(model, head, batch, [(b, node) for b, _, node in asked], tree=tree)
            self.computed += sum(len(row.tokens) for row in batch)
            for start in range(0, len(asked), _LOGITS_AT_ONCE):
                keys = [key for _, key, _ in asked[start : start + _LOGITS_AT_ONCE]]
                found |= _read(logits[start : start + _LOGITS_AT_ONCE], keys, planned)
        self.asked += sum(len(p.prefix) for p in planned)
        return found

    def _agrees_with_tree(self, model: Model, head: torch.nn.Module, planned: Sequence[_Planned]) -> bool | None:
        """Whether packed reading equals the plain way on two short asks; None where NaN weights cannot tell."""
        few = sorted(planned, key=lambda p: len(p.prefix))[:2]
        try:
            packed = self._forward(model, head, few, tree=True)
        except (RuntimeError, ValueError, TypeError) as e:
            log.warning("token trees are not possible for %s (%s); reading the plain way", self.name, e)
            return False
        plain = self._forward(model, head, few, tree=False)
        worst = max(
            abs(a - b)
            for key in plain
            for a, b in zip(
                (*packed[key].following, packed[key].digit), (*plain[key].following, plain[key].digit), strict=True
            )
        )
        if worst != worst:
            return None
        if worst <= (1e-3 if self._dtype is torch.float32 else 0.05):
            return True
        log.warning("token trees differ from the plain way by %.4f in a probability; reading the plain way", worst)
        return False

    def _batch_tokens(self, model: Model) -> int:
        if self._model_options.memory is None:
            return BATCH_TOKENS
        config = model.config.get_text_config()
        # A dozen activations of the widest layer per token; logits are few.
        width = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
        per_token = torch.finfo(self._dtype).bits // 8 * 12 * width + config.vocab_size
        return max(256, int(self._model_options.memory * 2**30 / per_token))


def _packed(planned: Sequence[_Planned]) -> list[_Row]:
    """Asks in token trees, sorted so that those which begin alike are neighbours.

    A row takes what shares half of its tokens with it, and beyond that up to `ROW_TOKENS`: the cost of attention grows
    with the row, so that sharing only the opening of a rubric does not pay.
    """
    rows, row = [], _Row()
    for k, p in sorted(enumerate(planned), key=lambda item: item[1].prefix):
        new = row.new_nodes(p.prefix)
        if row.tokens and len(row.tokens) + new > ROW_TOKENS and new > len(p.prefix) // 2:
            rows.append(row)
            row = _Row()
        for node, path in enumerate(p.tree.paths):
            row.asked.append(((k, node), row.walk((*p.prefix, *path))[-1]))
    return sorted([*rows, row], key=lambda r: len(r.tokens))


def _alone(planned: Sequence[_Planned]) -> list[_Row]:
    """Every inner node a row of its own with all that comes before it: for states that are not a tree's."""
    rows = []
    for k, p in enumerate(planned):
        for node, path in enumerate(p.tree.paths):
            row = _Row()
            row.asked.append(((k, node), row.walk((*p.prefix, *path))[-1]))
            rows.append(row)
    return sorted(rows, key=lambda r: len(r.tokens))


def _read(logits: torch.Tensor, keys: Sequence[_Key], planned: Sequence[_Planned]) -> dict[_Key, _Next]:
    """Probabilities over the whole vocabulary in float32, sums in float64, from logits [n, V]."""
    with torch.inference_mode():
        probabilities = logits.float().softmax(-1)
        flat = [(i, t) for i, (k, node) in enumerate(keys) for t in planned[k].tree.following[node]]
        at = torch.tensor(flat, device=logits.device)
        chosen = iter(probabilities[at[:, 0], at[:, 1]].double().tolist())
        masses: dict[int, list[float]] = {}
        for k in {k for k, _ in keys}:
            tree = planned[k].tree
            if id(tree) not in masses:
                digits = torch.tensor(tree.digits, device=logits.device)
                masses[id(tree)] = probabilities[:, digits].double().sum(-1).tolist()
    out = {}
    for i, (k, node) in enumerate(keys):
        tree = planned[k].tree
        out[k, node] = _Next([next(chosen) for _ in tree.following[node]], masses[id(tree)][i])
    return out


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
