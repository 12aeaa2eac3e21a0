"""The contract that every backend keeps, as a function that a test calls.

    check_backend(MyBackend(...), checkpoints, prompts)      raises AssertionError with the sentence that does not hold

It measures a few prompts under step 0 and the given checkpoints, and needs nothing but the interface.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from truing.models.base import Backend
from truing.types.records import (
    Answer,
    AnswerStatus,
    Checkpoint,
    Likelihood,
    LikelihoodRequest,
    Message,
    Prompt,
    Request,
    SamplingParams,
)

__all__ = ["check_backend"]

_SHORT = "Take your time with it."
_LONGER = f"{_SHORT} Ask a friend what they think, sleep on it, and then write down the two things that matter most."
_WITH_SYSTEM = (Message("system", "You answer in one line."), Message("user", "How long is a piece of string?"))
_EXACT = 1e-3


def check_backend(
    backend: Backend, checkpoints: Sequence[Checkpoint], prompts: Sequence[Prompt], *, tolerance: float = 1e-4
) -> None:
    """Hold a backend to the contract of `truing.models.base.Backend`.

    Args:
        backend: the backend, with everything it needs already loaded or loadable.
        checkpoints: one or more checkpoints of one base, different from it and from each other.
        prompts: at least two prompts; the first three are used.
        tolerance: how far a score may move with its neighbours in a batch, nats per token. The default is for float32;
            half precision needs about 0.05. Sampled texts are compared across batches only where it is at most 1e-3.

    Raises:
        AssertionError: the first point that does not hold, in one sentence.
    """
    assert checkpoints, "check_backend needs at least one checkpoint"
    assert len(prompts) >= 2, "check_backend needs at least two prompts"
    every = (backend.base_checkpoint(), *checkpoints)
    assert len({c.weights for c in every}) == len(every), "the checkpoints must differ from the base and each other"
    _declares(backend, every)
    if backend.capabilities.loglikelihood:
        _scores(backend, every, prompts[:3], tolerance)
    if backend.capabilities.sample:
        _samples(backend, every, prompts[:3], exact=tolerance <= _EXACT)


def _declares(backend: Backend, every: Sequence[Checkpoint]) -> None:
    assert isinstance(backend, Backend), f"{type(backend).__name__} lacks a method or property of the interface"
    identity, base = backend.identity, every[0]
    assert identity, "identity must name what may not change within one audit"
    for name, about in (("identity", identity), ("definitions", backend.definitions)):
        strings = all(isinstance(k, str) and isinstance(v, str) for k, v in about.items())
        assert strings, f"{name} must map strings to strings: {dict(about)}"
    assert base.step == 0, f"base_checkpoint() must be step 0, not {base.step}"
    assert base == backend.base_checkpoint(), "base_checkpoint() must return the same checkpoint every time"
    assert set(backend.prepare(every)) <= {c.weights for c in every}, "prepare() must key its findings by weight hashes"
    assert backend.identity == identity, "prepare() must not change the identity"
    asked = SamplingParams(max_tokens=7, temperature=0.5, seed=3)
    params = backend.resolve(asked)
    assert not {params.dtype, params.device} & {"", "auto"}, "resolve() must fill in dtype and device"
    assert replace(params, dtype="auto", device="auto") == asked, "resolve() must leave all but dtype and device alone"
    for c in every:
        norm = backend.weight_norm(c)
        assert norm is None or norm >= 0, f"weight_norm of {c.label} must be None or at least 0, not {norm}"


def _answered_once(found: Iterable[Answer | Likelihood], wanted: Sequence[object], verb: str) -> None:
    """Requests equal as multisets; they may hold mappings and cannot be hashed."""
    left = list(wanted)
    for request in (r.request for r in found):
        assert request in left, f"{verb} answered a request that was not made, changed, or answered already: {request}"
        left.remove(request)
    assert not left, f"{verb} left {len(left)} of {len(wanted)} requests unanswered, first {left[0]}"


# ---------------------------------------------------------------------------------------------------------------------
# Log-likelihoods


def _requests(every: Sequence[Checkpoint], prompts: Sequence[Prompt]) -> list[LikelihoodRequest]:
    """Texts of unequal length, with and without entropy and closing token, under every checkpoint."""
    out = []
    for c in every:
        for k, p in enumerate(prompts):
            texts = [t for t in (p.aligned, p.misaligned, *p.neutral, _SHORT, _LONGER) if t]
            for text in dict.fromkeys(texts):
                out.append(LikelihoodRequest(c, p.messages, text, f"text-{len(out)}", p.id, k != 1, k == 0))
    return out


def _score(backend: Backend, requests: Sequence[LikelihoodRequest]) -> dict[str, Likelihood]:
    return {_name(r.request): r for r in backend.loglikelihood(list(requests))}


def _name(request: LikelihoodRequest) -> str:
    return f"{request.checkpoint.label}/{request.checkpoint.weights[:8]}/{request.item}/{request.name}"


def _scores(backend: Backend, every: Sequence[Checkpoint], prompts: Sequence[Prompt], tolerance: float) -> None:
    requests = _requests(every, prompts)
    assert list(backend.loglikelihood([])) == [], "no requests must give no scores"
    _answered_once(backend.loglikelihood(iter(requests)), requests, "loglikelihood")
    twice = [requests[0], requests[-1], requests[0]]
    _answered_once(backend.loglikelihood(twice), twice, "loglikelihood")
    _scores_hold_still(backend, requests, tolerance)
    _names_do_not_matter(backend, every, prompts[0], tolerance)
    for c in every:
        _scores_make_sense(backend, c, prompts[0], tolerance)
    _system_turn_is_a_status(backend, every[0])


def _scores_hold_still(backend: Backend, requests: Sequence[LikelihoodRequest], tolerance: float) -> None:
    """Equal in any order, in any company, and after any other checkpoint was measured."""
    first, base = _score(backend, requests), requests[0].checkpoint.weights
    for result in first.values():
        _well_formed(result)
    again = [
        ("when asked again", requests),
        ("in reverse order, so that checkpoints come last first", requests[::-1]),
        ("with checkpoints and prompts interleaved", [*requests[::2], *requests[1::2]]),
        ("after other checkpoints", [a for a in requests if a.checkpoint.weights == base]),
        *(("alone in its batch", [request]) for request in requests[:: max(1, len(requests) // 5)]),
    ]
    for when, wanted in again:
        most = 1e-6 if tolerance <= _EXACT and wanted is requests else tolerance
        for name, two in _score(backend, wanted).items():
            one, gap = first[name], abs(first[name].per_token - two.per_token)
            assert one.tokens == two.tokens, f"{name}: {one.tokens} tokens, but {two.tokens} {when}"
            assert gap <= most, f"{name}: the score moves by {gap:.2g} nats per token {when} (at most {most:g})"
    totals: dict[str, list[float]] = {}  # weights -> one total a text, in the same order for all
    for a in requests:
        totals.setdefault(a.checkpoint.weights, []).append(first[_name(a)].total)
    unmoved = [weights for weights, found in totals.items() if weights != base and found == totals[base]]
    assert not unmoved, "a checkpoint scores every text exactly as the base does: are its weights in force?"


def _well_formed(r: Likelihood) -> None:
    where = f"{r.request.checkpoint.label}, {r.request.item}: {r.request.completion[:40]!r}"
    assert r.status is AnswerStatus.OK, f"{where}: a plain text must be scored, not {r.status.value}"
    assert r.tokens > 0, f"{where}: {r.tokens} tokens scored; there must be some"
    assert math.isfinite(r.total) and r.total <= 0, f"{where}: a log-likelihood must be finite and <= 0, not {r.total}"
    entropy = r.entropy
    assert not math.isinf(entropy) and not entropy < 0, f"{where}: entropy must be NaN or >= 0, not {entropy}"


def _names_do_not_matter(backend: Backend, every: Sequence[Checkpoint], prompt: Prompt, tolerance: float) -> None:
    """Weights are the identity: another label for the same weights scores the same, each under its own name."""
    named = every[-1]
    renamed = replace(named, label=f"{named.label} under another name", run="elsewhere")
    requests = [LikelihoodRequest(c, prompt.messages, _LONGER) for c in (named, every[0], renamed)]
    found = list(backend.loglikelihood(requests))
    _answered_once(found, requests, "loglikelihood")
    one, two = (next(r.per_token for r in found if r.request.checkpoint.label == c.label) for c in (named, renamed))
    assert abs(one - two) <= tolerance, f"{named.label}: equal weights under another label score otherwise"


def _scores_make_sense(backend: Backend, c: Checkpoint, prompt: Prompt, tolerance: float) -> None:
    short = LikelihoodRequest(c, prompt.messages, _SHORT, "short", closing=False)
    longer = replace(short, completion=_LONGER, name="longer")
    requests = [short, longer, replace(longer, name="closed", closing=True), replace(short, name="with", entropy=True)]
    r = {x.request.name: x for x in backend.loglikelihood(requests)}
    assert r["short"].tokens < r["longer"].tokens, f"{c.label}: a longer text must have more tokens"
    assert r["short"].total > r["longer"].total, f"{c.label}: going on must cost likelihood: {_SHORT!r}"
    assert r["longer"].tokens < r["closed"].tokens, f"{c.label}: closing=False must leave out the closing token"
    slack = tolerance * r["closed"].tokens
    assert r["closed"].total <= r["longer"].total + slack, f"{c.label}: a closing token must not add likelihood"
    same = math.isclose(r["with"].per_token, r["short"].per_token, abs_tol=tolerance)
    assert same, f"{c.label}: asking for the entropy must not change the score"


def _system_turn_is_a_status(backend: Backend, base: Checkpoint) -> None:
    """A template without a system role gives `unsupported`, others a score; neither raises or harms a neighbour."""
    plain = LikelihoodRequest(base, _WITH_SYSTEM[1:], _SHORT, "plain")
    found = {r.request.name: r for r in backend.loglikelihood([replace(plain, messages=_WITH_SYSTEM, name="s"), plain])}
    status, total = found["s"].status, found["s"].total
    allowed = AnswerStatus.OK, AnswerStatus.UNSUPPORTED
    assert status in allowed, f"a system turn must be scored or unsupported, not {status.value}"
    assert (status is AnswerStatus.UNSUPPORTED) == math.isnan(total), "NaN is the score of what is unsupported alone"
    _well_formed(found["plain"])


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def _samples(backend: Backend, every: Sequence[Checkpoint], prompts: Sequence[Prompt], *, exact: bool) -> None:
    params = backend.resolve(SamplingParams(max_tokens=12, temperature=1.0))
    requests = [Request(c, p, sample) for c in every for p in prompts for sample in range(3)]
    assert list(backend.sample([], params)) == [], "no requests must give no answers"
    found = list(backend.sample(iter(requests), params))
    _answered_once(found, requests, "sample")
    for r in found:
        _fits(r, params.max_tokens)
    first = _texts(found)
    assert first == _texts(backend.sample(requests, params)), "the same requests must give the same answers again"
    if exact:
        again = _texts(backend.sample(requests[::-1], params))
        assert first == again, "an answer must not depend on the order or the company in which it was asked"
        few = requests[:: max(1, len(requests) // 4)]
        alone = {name: text for a in few for name, text in _texts(backend.sample([a], params)).items()}
        assert alone == {n: first[n] for n in alone}, "an answer must not depend on the other answers of its batch"
    for c in every:
        vary = any(len({first[_key(Request(c, p, d))] for d in range(3)}) > 1 for p in prompts)
        assert vary, f"{c.label}: different samples must differ at temperature 1"
        _greedy(backend, c, prompts[0], exact=exact)
    other = _texts(backend.sample(requests, replace(params, seed=params.seed + 1)))
    assert other != first, "another seed must give other answers"
    system = list(backend.sample([Request(every[0], Prompt("system", _WITH_SYSTEM), 0)], params))
    assert len(system) == 1, "a prompt with a system turn must be answered once"
    if system[0].status is not AnswerStatus.UNSUPPORTED:
        _fits(system[0], params.max_tokens)


def _greedy(backend: Backend, c: Checkpoint, prompt: Prompt, *, exact: bool) -> None:
    # In half precision two equal rows of one batch agree, while another batch may round otherwise.
    params = backend.resolve(SamplingParams(max_tokens=8, temperature=0.0))
    found = list(backend.sample([Request(c, prompt, sample) for sample in range(3)], params))
    assert len({r.text for r in found}) == 1, f"{c.label}: at temperature 0 all samples must have the same text"
    if exact:
        text = next(iter(backend.sample([Request(c, prompt, 0)], replace(params, max_tokens=16)))).text
        grows = text.startswith(found[0].text.rstrip("\ufffd"))
        assert grows, f"{c.label}: at temperature 0 a longer limit must continue the same text"


def _fits(r: Answer, limit: int) -> None:
    where = f"{r.request.checkpoint.label}, {r.request.prompt.id}, sample {r.request.sample}"
    allowed = (AnswerStatus.OK, AnswerStatus.TRUNCATED, AnswerStatus.EMPTY)
    assert r.status in allowed, f"{where}: a plain question must be answered, not {r.status.value} ({r.error})"
    assert r.tokens <= limit, f"{where}: {r.tokens} tokens sampled, at most {limit} asked for"
    if r.status is AnswerStatus.TRUNCATED:
        assert r.tokens == limit, f"{where}: truncated after {r.tokens} tokens although {limit} were allowed"
    else:
        empty = not r.text.strip()
        assert empty == (r.status is AnswerStatus.EMPTY), f"{where}: {r.status.value} with the text {r.text!r}"


def _key(request: Request) -> str:
    return f"{request.checkpoint.weights}/{request.prompt.id}/{request.sample}"


def _texts(answers: Iterable[Answer]) -> dict[str, str]:
    return {_key(r.request): r.text for r in answers}
