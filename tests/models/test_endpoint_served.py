"""Checkpoints on a server, held over HTTP: full models by name, and adapters that it loads while it runs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import groupby

import pytest

from runs.served_runs import write_run
from servers.core import collected
from servers.judge_server import running
from servers.lora_server import BASE, serving
from truing.errors import BadEndpoint, BadModel, BudgetSpent, DamagedWeights, JudgeDown, Unsupported
from truing.models.base import Backend, answer_seed
from truing.models.checkpoints import find_run
from truing.models.limits import Limits
from truing.models.served import ServedBackend
from truing.models.served_adapters import adapter_name, parse_path_map, served_path
from truing.testing import check_backend
from truing.types.records import (
    AnswerStatus,
    Checkpoint,
    Kind,
    LikelihoodRequest,
    Message,
    Prompt,
    Request,
    Role,
    SamplingParams,
)  # fmt: skip

PROMPTS = [Prompt(f"q{k}", (Message("user", f"Tell me about thing {k}."),)) for k in range(3)]
PARAMS = SamplingParams(max_tokens=12)
GOOD = {AnswerStatus.OK, AnswerStatus.TRUNCATED, AnswerStatus.EMPTY}


@pytest.fixture
def backend():
    made = []

    def make(server, *, keep=2, path_map=(), base=BASE, **limits):
        made.append(ServedBackend(f"{server.url}#{base}", Limits(**limits), keep=keep, path_map=path_map))
        return made[-1]

    yield make
    for b in made:
        b.close()


@pytest.fixture
def run(tmp_path):
    return checkpoints(tmp_path / "run")


def checkpoints(path, steps=(10, 20, 30), **given):
    """Checkpoints on disk, found as an audit finds them."""
    return find_run(str(write_run(path, steps=steps, **given))).checkpoints


def requests_for(found, samples=2, prompts=PROMPTS):
    """In the worst order: the next request is always another checkpoint's."""
    return [Request(c, p, d) for p in prompts for d in range(samples) for c in found]


def texts(answers):
    return {(r.request.checkpoint.weights, r.request.prompt.id, r.request.sample): r.text for r in answers}


def blocks(names):
    return [name for name, _ in groupby(names)]


def speaking(*names, **ways):
    return running(speaks=True, models=names, **ways)


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [{}, {"system": False}, {"faults": 0.1, "kinds": ("500", "html", "429")}])
def test_served_names_keep_the_contract_of_a_backend(backend, ways):
    with speaking("base", "s-10", "s-20", **ways) as server:
        b = backend(server, retries=12)
        assert isinstance(b, Backend)
        check_backend(b, [b.served(f"step-{k}", f"{server.url}#s-{k}", k) for k in (10, 20)], PROMPTS)
        assert b.spent.calls == server.stats()["requests"]


def test_adapters_keep_the_contract_of_a_backend_also_beside_full_models(backend, run):
    with serving(aliases=("merged",)) as server:
        b = backend(server)
        check_backend(b, [b.served("merged", f"{server.url}#merged", 5), *run], PROMPTS)
        assert set(server.names("ask")) == {BASE, "merged", *(adapter_name(c) for c in run)}
        b.close()
        assert not server.loaded and server.count("load") == server.count("unload")


def test_what_is_sent_is_what_was_asked_for_and_overrules_the_models_own_defaults(backend):
    with speaking("base") as server:
        b = backend(server)
        list(b.sample(requests_for([b.base_checkpoint()]), PARAMS))
        neutral = {"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
        assert set(server.stats()["fields"]) == {"model", "messages", "max_tokens", "temperature", "seed"} | neutral
        assert b.resolve(PARAMS).device == b.resolve(PARAMS).dtype == "served"
        with pytest.raises(Unsupported):
            b.loglikelihood([LikelihoodRequest(b.base_checkpoint(), PROMPTS[0].messages, "x")])


def test_a_server_that_ignores_stop_texts_is_cut_here(backend):
    with speaking("base") as server:
        b = backend(server)
        (plain,) = b.sample([Request(b.base_checkpoint(), PROMPTS[0], 0)], PARAMS)
        word = plain.text[2:5]  # answers differ by the port, and may be one word
        (ended,) = b.sample([plain.request], replace(PARAMS, stop=(word,)))
        assert ended.text == plain.text[: plain.text.index(word)]
        assert "stop" in server.stats()["fields"]


def test_every_answer_has_a_stream_of_its_own():
    c = Checkpoint("w", "c", 1, "u#c", Kind.SERVED)
    requests = [Request(c, p, d, t) for p in PROMPTS for d in range(50) for t in ("", "json")]
    seeds = [answer_seed(a, PARAMS) for a in requests]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [answer_seed(a, PARAMS) for a in requests]
    assert seeds[0] != answer_seed(requests[0], SamplingParams(max_tokens=12, seed=1))


@pytest.mark.parametrize(
    ("fault", "status"),
    [("filter400", AnswerStatus.REFUSED_BY_API), ("filterstop", AnswerStatus.REFUSED_BY_API),
     ("400", AnswerStatus.FAILED), ("500", AnswerStatus.FAILED)],
)  # fmt: skip
def test_failures_are_statuses(backend, fault, status):
    with speaking("base", plan={0: fault, 1: fault if fault == "500" else None}) as server:
        b = backend(server, concurrency=1, retries=1)
        first, *others = b.sample(requests_for([b.base_checkpoint()]), PARAMS)
    assert first.status is status and first.error and first.text == "" and first.tokens == 0
    assert {r.status for r in others} <= GOOD


def test_truncated_empty_and_whole_answers_are_told_apart(backend):
    with speaking("base") as server:
        b = backend(server)
        found = list(b.sample(requests_for([b.base_checkpoint()], samples=40), PARAMS))
    assert {r.status for r in found} == GOOD
    for r in found:
        assert len(r.text.split()) == r.tokens <= 12
        assert (r.status is AnswerStatus.EMPTY) == (not r.text)


def test_a_temperature_that_is_refused_is_never_dropped_in_silence(backend):
    with speaking("base", refuse=("temperature",)) as server:
        b = backend(server)
        collected(b.sample(requests_for([b.base_checkpoint()], samples=20), PARAMS), JudgeDown, "temperature")
        assert not server.stats()["answered"]


@pytest.mark.parametrize(
    ("uri", "kind", "error"),
    [("URL#gone", Kind.SERVED, BadModel), ("http://elsewhere:1/v1#adapter", Kind.SERVED, Unsupported),
     ("URL", Kind.SERVED, Unsupported), ("file:/x", Kind.FULL, Unsupported)],
)  # fmt: skip
def test_checkpoints_that_are_not_served_here_are_refused_before_anything_runs(backend, uri, kind, error):
    with speaking("base", "adapter") as server:
        b = backend(server)
        with pytest.raises(error):
            b.prepare([Checkpoint("w", "c", 1, uri.replace("URL", server.url), kind)])
        assert server.stats()["requests"] == 0


# -- a few adapters at a time -----------------------------------------------------------------------------------------


def test_names_say_run_step_and_weights(tmp_path):
    c = checkpoints(tmp_path / "careful medicine")[1]
    assert adapter_name(c) == f"careful-medicine@20-{c.weights[:12]}"
    final = Checkpoint("f" * 32, "my final", None, "file:/x", Kind.ADAPTER, "subject")
    assert adapter_name(final) == f"subject@my-final-{'f' * 12}"


def test_checkpoint_after_checkpoint_each_loaded_before_use_and_at_most_so_many(backend, tmp_path):
    run = checkpoints(tmp_path / "run", (1, 2, 3, 4, 5))
    with serving() as server:
        b = backend(server, keep=2, concurrency=1)
        requests = requests_for([b.base_checkpoint(), *run])
        found = list(b.sample(iter(requests), PARAMS))
        assert len(found) == len(requests) and {r.status for r in found} <= GOOD
        names = [adapter_name(c) for c in run]
        assert blocks(server.names("ask")) == [BASE, *names], "each checkpoint in one stretch"
        assert blocks((r.request.checkpoint.step, r.request.prompt.id) for r in found) == [
            (s, p.id) for s in range(6) for p in PROMPTS
        ], "and within it each prompt"
        loaded = set()
        for what, name in server.events:
            if what == "ask":
                assert name == BASE or name in loaded
            else:
                (loaded.add if what == "load" else loaded.remove)(name)
            assert len(loaded) <= 2
        assert server.count("load") == 5 and server.names("unload") == names[:3], "the oldest go first"
        assert list(server.loaded) == names[3:], "the last ones stay for the next call"
        b.close()
        assert not server.loaded


def test_the_answers_are_those_of_the_adapter_whatever_the_order(backend, run):
    with serving(delay=0.005) as server:
        many = texts(backend(server, concurrency=8, keep=1).sample(requests_for(run), PARAMS))
        assert server.count("unload") == 2 and server.asked_while_unloading == []
        one_by_one = {}
        for c in run:
            one_by_one |= texts(backend(server, concurrency=1).sample(requests_for([c])[::-1], PARAMS))
    assert many == one_by_one
    assert len({tuple(t for k, t in many.items() if k[0] == c.weights) for c in run}) == 3


def test_weights_that_were_trained_again_get_another_name_so_nothing_stale_answers(backend, tmp_path):
    found = []
    with serving(remembers=True) as server:
        for seed in (1, 2):
            run = checkpoints(tmp_path / "run", (10,), seed=seed)
            found.append(texts(backend(server).sample(requests_for(run), PARAMS)))
    with serving() as fresh_server:
        truth = texts(backend(fresh_server).sample(requests_for(run), PARAMS))
    assert found[1] == truth and not set(found[0].values()) & set(found[1].values()) - {""}


def test_files_that_changed_since_they_were_hashed_are_not_loaded(backend, run, tmp_path):
    first, second = run[:2]
    with serving() as server:
        b = backend(server, keep=1, concurrency=1)
        write_run(tmp_path / "run", 99, (20,))
        stream = b.sample([*requests_for([first]), *requests_for([second])], PARAMS)
        got, _ = collected(stream, DamagedWeights, "checkpoint-20: its weights changed")
        assert len(got) == 6, "what came before it is not lost"
        assert server.names("load") == [adapter_name(first)] and not server.loaded
        (tmp_path / "run" / "checkpoint-20" / "adapter_model.safetensors").unlink()
        with pytest.raises(DamagedWeights):
            b.prepare([second])


# -- what is ours and what is not -------------------------------------------------------------------------------------


def test_what_was_served_already_is_used_and_left_alone(backend, run):
    theirs = adapter_name(run[0])
    with serving(max_loras=8) as server:
        for name, c in ((theirs, run[0]), ("stranger", run[1])):
            assert server.load(name, c.uri.removeprefix("file:"))[0] == 200
        server.events.clear()
        b = backend(server, keep=1)
        b.prepare(run)
        assert len(list(b.sample(requests_for(run), PARAMS))) == 18
        b.close()
        assert theirs not in server.names("load") and theirs in server.names("ask")
        assert set(server.loaded) == {theirs, "stranger"}
        assert server.count("load") == server.count("unload") > 0


def test_what_somebody_else_loads_in_the_same_moment_is_theirs(backend, run):
    with serving(load_faults=["raced"], max_loras=8) as server:
        b = backend(server)
        assert len(list(b.sample(requests_for(run[:2]), PARAMS))) == 12
        b.close()
        assert set(server.loaded) == {adapter_name(run[0])}


def test_equal_weights_under_two_names_are_both_loaded_when_prepared(backend, run):
    twin = replace(run[0], run="control", role=Role.CONTROL)
    with serving(max_loras=8) as server:
        backend(server).prepare([run[0], twin])
        assert set(server.names("load")) == {adapter_name(run[0]), adapter_name(twin)}


def test_a_load_that_was_cut_off_is_tried_again_and_is_ours(backend, run):
    with serving(load_faults=["break", None, "503"]) as server:
        b = backend(server)
        assert len(list(b.sample(requests_for(run[:2]), PARAMS))) == 12
        assert set(server.loaded) == {adapter_name(c) for c in run[:2]}
        b.close()
        assert not server.loaded


# -- interruptions ----------------------------------------------------------------------------------------------------


def interrupt_when(condition):
    def wait():
        deadline = time.monotonic() + 10
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        if condition():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_interruption_in_the_middle_unloads_and_keeps_what_is_there(backend, run):
    with serving(delay=0.02) as server:
        b = backend(server, concurrency=2)
        thread = interrupt_when(lambda: len(server.names("ask")) >= 12)
        got, _ = collected(b.sample(requests_for(run, samples=20), PARAMS), KeyboardInterrupt)
        thread.join()
        assert 5 < len(got) < 60 and all(r.status in GOOD for r in got)
        assert server.count("load") >= 1 and not server.loaded
        assert texts(b.sample([r.request for r in got], PARAMS)) == texts(got), "it goes on where it was"


@pytest.mark.parametrize("verb", ["prepare", "sample"])
def test_an_interruption_while_an_adapter_is_being_loaded_leaves_nothing(backend, run, verb):
    with serving(load_delay=0.25) as server:
        b = backend(server)
        thread = interrupt_when(lambda: server.count("loading") == 2)
        with pytest.raises(KeyboardInterrupt):
            b.prepare(run) if verb == "prepare" else list(b.sample(requests_for(run), PARAMS))
        thread.join()
        assert server.count("load") == 2 and not server.loaded and not b.left_loaded


def test_a_budget_stops_and_keeps_what_it_paid_for(backend, run):
    with serving() as server:
        b = backend(server, budget_calls=10, concurrency=3)
        got, _ = collected(b.sample(requests_for(run), PARAMS), BudgetSpent)
        assert len(got) == b.spent.calls == server.count("ask") == 10
        assert not server.loaded and not b.left_loaded


CHILD = """
import json, sys
from truing.models.checkpoints import find_run
from truing.models.served import ServedBackend
from truing.models.limits import Limits
from truing.types.records import Message, Prompt, Request, SamplingParams

b = ServedBackend(sys.argv[1] + "#base", Limits(concurrency=2), keep=2)
run, n = find_run(sys.argv[2]).checkpoints, int(sys.argv[3])
requests = [Request(c, Prompt(f"q{k}", (Message("user", f"Tell me {k}."),)), 0) for c in run for k in range(n)]
for r in b.sample(requests, SamplingParams(max_tokens=12)):
    print(json.dumps([r.request.checkpoint.step, r.status]), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("way", ["ends without close", "ctrl-c"])
def test_a_process_that_ends_leaves_nothing_behind(run, tmp_path, way):
    with serving(delay=0.02) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        command = [sys.executable, "-c", CHILD, url, str(tmp_path / "run"), "100" if way == "ctrl-c" else "3"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines = [child.stdout.readline() for _ in range(5 if way == "ctrl-c" else 9)]
        if way == "ctrl-c":
            child.send_signal(signal.SIGINT)
        else:
            server.hang_up()  # so that a new connection is needed, and a look-up of the host's name
        rest, errors = child.communicate("\n", timeout=30)
        answers = [json.loads(line) for line in [*lines, *rest.splitlines()]]
        assert all(outcome != "failed" for _, outcome in answers)
        if way == "ctrl-c":
            assert child.returncode != 0 and "KeyboardInterrupt" in errors and len(answers) < 300
        else:
            assert child.returncode == 0 and errors == "" and len(answers) == 9
        assert server.count("load") >= 1 and not server.loaded


# -- servers and adapters that will not do ----------------------------------------------------------------------------


PATH = "LOCAL=REMOTE"
REFUSALS = {
    "plain 404": ({"api": "plain404"}, {}, Unsupported, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve base --enab"),
    "its 404": ({"api": "vllm404"}, {}, Unsupported, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    "405": ({"api": "405"}, {}, Unsupported, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    "no LoRA": ({"lora": False}, {}, Unsupported, "without --enable-lora"),
    "rank 64": ({}, {"rank": 64}, Unsupported, "its rank is more than .*--max-lora-rank.* 64 is greater"),
    "modules": ({}, {"modules": ("w1", "w2")}, BadModel, "does not fit 'base'"),
    "other parent": ({"parent": "other-model"}, {}, BadModel, "'other-model', not of 'base'"),
    "unlisted": ({"unlisted": True}, {}, BadModel, "does not list it"),
    "lists nothing": ({"lists": False}, {}, JudgeDown, "asked which models"),
    "full": ({"max_loras": 0, "evicts": False}, {}, Unsupported, "holds no more adapters; .* than 2 .*--max-loras 2"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_a_server_refuses_says_what_to_do(backend, tmp_path, case):
    server_is, run_is, error, match = REFUSALS[case]
    run = checkpoints(tmp_path / "run", (1,), **run_is)
    with serving(**server_is) as server:
        b = backend(server)
        with pytest.raises(error, match=match):
            b.prepare(run)
        collected(b.sample(requests_for(run), PARAMS), error, match)
        assert not server.loaded and not b.left_loaded


@pytest.mark.parametrize(
    ("server_is", "base"), [({"aliases": ("short",)}, "short"), ({"parent": None}, BASE), ({"max_loras": 1}, BASE)]
)
def test_what_only_looks_wrong_is_served(backend, run, server_is, base):
    """Another name of our base; a server that does not say what the base is; one that drops the oldest by itself."""
    with serving(**server_is) as server:
        b = backend(server, base=base)
        assert b.prepare(run) == {} and len(list(b.sample(requests_for(run), PARAMS))) == 18
        b.close()
        assert set(b.left_loaded) <= {adapter_name(c) for c in run}


@pytest.mark.parametrize(
    "error",
    [(404, "NotFoundError", "Loading lora {name} failed: No adapter found for {path}"),
     (500, "InternalServerError", "Call to add_lora method failed: Loading lora {path} failed: No such file"),
     (404, "NotFoundError", "{path}/adapter_config.json does not exist")],
)  # fmt: skip
def test_a_path_that_the_server_does_not_see_can_be_mapped(backend, run, tmp_path, error):
    with serving(sees=("/mnt/theirs", tmp_path), path_error=error) as server:
        with pytest.raises(BadModel, match=r"path on the server's machine.*LOCAL=REMOTE") as caught:
            backend(server).prepare(run)
        assert str(tmp_path / "run" / "checkpoint-10") in str(caught.value)
        b = backend(server, path_map=(f"{tmp_path}=/mnt/theirs",))
        assert b.prepare(run) == {}
        assert all(path.startswith("/mnt/theirs/run/checkpoint-") for path, _ in server.loaded.values())


def test_the_longest_mapped_folder_counts(tmp_path):
    folder = tmp_path / "runs" / "medical" / "checkpoint-1"
    (tmp_path / "link").symlink_to(tmp_path)
    both = (f"{tmp_path}=/a", f"{tmp_path}/runs=/b/", f"{tmp_path}/run=/c")
    for entries, place in (
        (both, "/b/medical/checkpoint-1"), (both[::-1], "/b/medical/checkpoint-1"), ((), str(folder)),
        (("/elsewhere=/d",), str(folder)), ((f"{tmp_path}/link=/e",), "/e/runs/medical/checkpoint-1"),
    ):  # fmt: skip
        assert served_path(folder, parse_path_map(entries)) == place
    for wrong in ("/a", "=/b", "/a=b"):
        with pytest.raises(BadEndpoint):
            parse_path_map((wrong,))


def test_a_key_opens_every_call(backend, run, monkeypatch):
    with serving(api_key="right-key-1") as server:
        monkeypatch.setenv("TRUING_SERVED_API_KEY", "wrong-key-1")
        with pytest.raises(BadEndpoint) as caught:
            backend(server).prepare(run)
        assert "wrong-key-1" not in str(caught.value) and not server.events
        monkeypatch.setenv("TRUING_SERVED_API_KEY", "right-key-1")
        b = backend(server, keep=1)
        assert b.prepare(run) == {} and len(list(b.sample(requests_for(run), PARAMS))) == 18
        b.close()
        assert not server.loaded


# -- what cannot be put right is said ---------------------------------------------------------------------------------


def test_a_server_that_ignores_adapters_is_noticed(backend, run):
    with serving(ignores=True) as server:
        b = backend(server)
        notes = b.prepare([b.base_checkpoint(), *run])
        assert set(notes) == {c.weights for c in run} and {f.code for f in notes.values()} == {"answers_as_base"}
        server.ignores = False
        assert b.prepare(run[:1]) == {}
        assert server.names("ask").count(BASE) == 6, "the base is probed once a call"


def test_an_adapter_that_cannot_be_unloaded_is_said_and_no_answer_is_lost(backend, run, caplog):
    with serving(unload_fails=True) as server:
        b = backend(server, keep=1)
        assert len(list(b.sample(requests_for(run), PARAMS))) == 18
        assert set(b.left_loaded) == {adapter_name(c) for c in run[:2]}
        assert all("Failed to remove" in why for why in b.left_loaded.values())
        assert "stays on the server" in caplog.text
        server.unload_fails = False
        list(b.sample(requests_for(run[:2]), PARAMS))
        b.close()
        assert not server.loaded and not b.left_loaded, "it is still known to be ours"
