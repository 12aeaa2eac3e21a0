"""Sampling from served checkpoints: the contract of a backend, held over HTTP."""

import json
from dataclasses import replace

import pytest

from servers.judge_server import running
from truing.errors import BudgetSpent, JudgeDown, ModelUnavailable, ServedNameReused, Unsupported
from truing.models.base import Backend
from truing.models.limits import Limits
from truing.models.served import EndpointBackend, _seed
from truing.testing import check_backend
from truing.types.records import (
    AnswerStatus,
    Checkpoint,
    Kind,
    LikelihoodRequest,
    Message,
    Prompt,
    Request,
    SamplingParams,
)

PROMPTS = [Prompt(f"q{k}", (Message("user", f"Tell me about thing {k}."),)) for k in range(3)]
PARAMS = SamplingParams(max_tokens=12)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "TRUING_SERVED_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def backend():
    made = []

    def make(server, name="base", **limits):
        made.append(EndpointBackend(f"{server.url}#{name}", Limits(**limits), backoff=0.005))
        return made[-1]

    yield make
    for b in made:
        b.close()


def models(*names):
    return [part for name in names for part in ("--model", name)]


def outcomes(backend, checkpoint, prompts=PROMPTS, params=PARAMS, samples=1):
    requests = [Request(checkpoint, p, d) for p in prompts for d in range(samples)]
    return list(backend.sample(requests, params))


@pytest.mark.parametrize("flags", [[], ["--no-system"], ["--faults", "0.2", "--kinds", "500,close,html,429"]])
def test_it_keeps_the_contract_of_a_backend(backend, flags):
    with running("--speak", *models("base", "s-10", "s-20"), *flags) as server:
        b = backend(server)
        assert isinstance(b, Backend)
        check_backend(b, [b.served(f"step-{k}", f"{server.url}#s-{k}", k) for k in (10, 20)], PROMPTS)
        assert b.spent.calls == server.stats()["requests"]


def test_what_is_sent_is_what_was_asked_for(backend):
    with running("--speak", *models("base")) as server:
        b = backend(server)
        list(outcomes(b, b.base_checkpoint()))
        assert server.stats()["fields"] == ["max_tokens", "messages", "model", "seed", "temperature"]
        list(outcomes(b, b.base_checkpoint(), params=SamplingParams(top_p=0.9)))
        assert "top_p" in server.stats()["fields"]
        assert b.resolve(PARAMS).device == b.resolve(PARAMS).dtype == "served"
        with pytest.raises(Unsupported):
            b.loglikelihood([LikelihoodRequest(b.base_checkpoint(), PROMPTS[0].messages, "x")])


def test_a_server_that_ignores_stop_texts_is_cut_here(backend):
    with running("--speak", *models("base")) as server:
        b = backend(server)
        (plain,) = outcomes(b, b.base_checkpoint(), PROMPTS[:1])
        word = plain.text.split()[1]
        (ended,) = outcomes(b, b.base_checkpoint(), PROMPTS[:1], replace(PARAMS, stop=(word,)))
        assert ended.text == plain.text[: plain.text.index(word)]
        assert "stop" in server.stats()["fields"]


def test_every_answer_has_a_stream_of_its_own():
    c = Checkpoint("w", "c", 1, "u#c", Kind.SERVED)
    requests = [Request(c, p, d, t) for p in PROMPTS for d in range(50) for t in ("", "json")]
    seeds = [_seed(a, PARAMS) for a in requests]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**31 for s in seeds)
    assert seeds == [_seed(a, PARAMS) for a in requests]
    assert seeds[0] != _seed(requests[0], SamplingParams(max_tokens=12, seed=1))


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [("filter400", AnswerStatus.REFUSED_BY_API), ("filterstop", AnswerStatus.REFUSED_BY_API),
     ("400", AnswerStatus.FAILED), ("500", AnswerStatus.FAILED), ("wrongmodel", AnswerStatus.FAILED)],
)  # fmt: skip
def test_failures_are_outcomes(backend, fault, outcome):
    plan = json.dumps({"0": fault, "1": fault if fault in ("500", "wrongmodel") else None})
    with running("--speak", *models("base"), "--plan", plan) as server:
        b = backend(server, concurrency=1, retries=1)
        first, *others = outcomes(b, b.base_checkpoint())
    assert first.outcome is outcome and first.error and first.text == "" and first.tokens == 0
    assert {r.outcome for r in others} <= {AnswerStatus.OK, AnswerStatus.TRUNCATED, AnswerStatus.EMPTY}


def test_truncated_empty_and_whole_answers_are_told_apart(backend):
    with running("--speak", *models("base")) as server:
        b = backend(server)
        found = outcomes(b, b.base_checkpoint(), samples=40)
        assert {r.outcome for r in found} == {AnswerStatus.OK, AnswerStatus.TRUNCATED, AnswerStatus.EMPTY}
        for r in found:
            assert len(r.text.split()) == r.tokens <= 12
            assert (r.outcome is AnswerStatus.EMPTY) == (not r.text)


def test_a_temperature_that_is_refused_is_never_dropped_in_silence(backend):
    with running("--speak", *models("base"), "--refuse", "temperature") as server:
        b = backend(server)
        with pytest.raises(JudgeDown, match="temperature"):
            outcomes(b, b.base_checkpoint(), samples=20)
        assert "temperature" in server.stats()["fields"] and not server.stats()["answered"]


def test_a_name_stands_for_one_set_of_weights(backend):
    with running("--speak", *models("base", "adapter")) as server:
        b = backend(server)
        one, two = (Checkpoint(w, w, 1, f"{server.url}#adapter", Kind.SERVED) for w in ("first", "second"))
        assert b.prepare([one]) == {}
        assert b.prepare([one]) == {}, "the same weights may come again"
        with pytest.raises(ServedNameReused, match="'adapter'"):
            b.prepare([two])
        with pytest.raises(ServedNameReused):
            outcomes(backend(server), two)


def test_checkpoints_that_are_not_served_here_are_refused_before_anything_runs(backend):
    with running("--speak", *models("base", "adapter")) as server:
        b = backend(server)
        for uri, kind, error in (
            (f"{server.url}#gone", Kind.SERVED, ModelUnavailable),
            ("http://elsewhere:1/v1#adapter", Kind.SERVED, Unsupported),
            (f"{server.url}", Kind.SERVED, Unsupported),
            ("file:/x", Kind.ADAPTER, Unsupported),
        ):
            with pytest.raises(error):
                b.prepare([Checkpoint("w", "c", 1, uri, kind)])
        assert server.stats()["requests"] == 0


def test_the_budget_holds_for_sampling_too(backend):
    with running("--speak", *models("base")) as server:
        b = backend(server, budget_calls=10)
        got = []
        with pytest.raises(BudgetSpent):
            for r in b.sample((Request(b.base_checkpoint(), PROMPTS[0], d) for d in range(100)), PARAMS):
                got.append(r)
        assert len(got) == b.spent.calls == server.stats()["requests"] == 10
