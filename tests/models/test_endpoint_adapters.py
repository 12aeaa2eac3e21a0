"""Adapter checkpoints on a server that loads them while it runs, held over HTTP against a server of that API."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from servers.lora_server import BASE, serving
from truing.errors import (
    AdapterMismatch,
    BadEndpoint,
    BudgetSpent,
    DamagedWeights,
    EndpointRefused,
    JudgeDown,
    ModelUnavailable,
    ServedNameReused,
    Unsupported,
    WrongBase,
)
from truing.models import served as endpoint_sampling
from truing.models import served_lora as endpoint_lora
from truing.models.base import Backend
from truing.models.checkpoints import find_run
from truing.models.client_failures import status_failure
from truing.models.limits import Limits
from truing.models.served_adapters import PROBE, AdapterBackend, AdapterOptions, adapter_name, served_path
from truing.testing import check_backend
from truing.types.records import Answer, AnswerStatus, Checkpoint, Kind, Message, Prompt, Request, SamplingParams

PROMPTS = [Prompt(f"q{k}", (Message("user", f"Tell me about thing {k}."),)) for k in range(3)]
PARAMS = SamplingParams(max_tokens=12)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No keys, and no memory of names: ports come again, and every test is another machine."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "TRUING_SERVED_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint_sampling, "_seen", {})


@pytest.fixture
def backend():
    made = []

    def make(server, *, keep=2, path_map=(), window=50_000, base=BASE, **limits):
        options = AdapterOptions(keep=keep, path_map=path_map, window=window)
        made.append(AdapterBackend(f"{server.url}#{base}", Limits(**limits), options, backoff=0.005))
        return made[-1]

    yield make
    for b in made:
        b.close()


def write_adapter(folder, seed=0, rank=8, modules=("q_proj", "v_proj")):
    """Files that hash and read as an adapter does."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(rank, 4)).astype("f4")
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": values},
              folder / "adapter_model.safetensors")  # fmt: skip
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": list(modules)}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))


def write_run(path, steps=(10, 20, 30), seed=0, **given):
    """A run's checkpoints on disk, found as an audit finds them."""
    for step in steps:
        write_adapter(path / f"checkpoint-{step}", [seed, step], **given)
    return find_run(str(path)).checkpoints


def asks_for(checkpoints, samples=2, prompts=PROMPTS):
    """In the worst order: the next ask is always another checkpoint's."""
    return [Request(c, p, d) for p in prompts for d in range(samples) for c in checkpoints]


def texts(answers):
    return {(r.request.checkpoint.weights, r.request.prompt.id, r.request.sample): r.text for r in answers}


def blocks(names):
    return [name for name, _ in groupby(names)]


# -- what it is for ---------------------------------------------------------------------------------------------------


def test_it_keeps_the_contract_of_a_backend(backend, tmp_path):
    with serving() as server:
        b = backend(server)
        assert isinstance(b, Backend)
        check_backend(b, write_run(tmp_path / "run"), PROMPTS)
        b.close()
        assert not server.loaded and server.count("load") == server.count("unload")


def test_names_say_run_step_and_weights(tmp_path):
    c = write_run(tmp_path / "careful medicine")[1]
    assert adapter_name(c) == f"careful-medicine@20-{c.weights[:12]}"
    final = Checkpoint("f" * 32, "my final", None, "file:/x", Kind.ADAPTER, "subject")
    assert adapter_name(final) == f"subject@my-final-{'f' * 12}"


def test_checkpoint_after_checkpoint_each_loaded_before_use_and_at_most_so_many(backend, tmp_path):
    run = write_run(tmp_path / "run", (1, 2, 3, 4, 5))
    with serving() as server:
        b = backend(server, keep=2, concurrency=1)
        requests = asks_for([b.base_checkpoint(), *run])
        found = list(b.sample(iter(requests), PARAMS))
        assert len(found) == len(requests) and {r.outcome for r in found} <= {AnswerStatus.OK, AnswerStatus.TRUNCATED,
                                                                          AnswerStatus.EMPTY}  # fmt: skip
        names = [adapter_name(c) for c in run]
        assert blocks(server.names("ask")) == [BASE, *names], "each checkpoint in one stretch"
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


def test_prompts_stay_together_within_a_checkpoint(backend, tmp_path):
    run = write_run(tmp_path / "run", (1, 2))
    with serving() as server:
        found = list(backend(server, concurrency=1).sample(asks_for(run, samples=3), PARAMS))
    assert blocks((r.request.checkpoint.step, r.request.prompt.id) for r in found) == [
        (s, p.id) for s in (1, 2) for p in PROMPTS
    ]


def test_small_windows_answer_the_same_and_only_load_more_often(backend, tmp_path):
    run = write_run(tmp_path / "run")
    loads, answers = [], []
    for window in (1, 4, 1000):
        with serving() as server:
            b = backend(server, keep=1, window=window)
            answers.append(texts(b.sample(iter(asks_for(run)), PARAMS)))
            loads.append(server.count("load"))
    assert answers[0] == answers[1] == answers[2]
    assert loads[0] > loads[1] > loads[2] == 3


def test_asks_are_not_held_beyond_the_window(backend, tmp_path):
    run = write_run(tmp_path / "run", (1,))
    pulled = 0

    def endless():
        nonlocal pulled
        for d in range(10_000):
            pulled += 1
            yield Request(run[0], PROMPTS[0], d)

    with serving() as server:
        stream = backend(server, window=20, concurrency=2).sample(endless(), PARAMS)
        for _ in range(30):
            next(stream)
        stream.close()
    assert 30 <= pulled <= 80


def test_what_is_loaded_already_is_asked_first_and_not_loaded_again(backend, tmp_path):
    run = write_run(tmp_path / "run")
    with serving() as server:
        b = backend(server, keep=2, concurrency=1)
        list(b.sample(asks_for(run), PARAMS))
        before = server.count("load")
        server.events.clear()
        list(b.sample(asks_for(run), PARAMS))
        order = blocks(server.names("ask"))
        assert order == [adapter_name(c) for c in (run[1], run[2], run[0])]
        assert before == 3 and server.count("load") == 1


def test_the_answers_are_those_of_the_adapter_whatever_the_road(backend, tmp_path):
    run = write_run(tmp_path / "run")
    with serving() as server:
        many = texts(backend(server, concurrency=8).sample(asks_for(run), PARAMS))
        one_by_one = {}
        for c in run:
            one_by_one |= texts(backend(server, concurrency=1).sample(asks_for([c])[::-1], PARAMS))
        assert many == one_by_one
        assert len({tuple(t for k, t in many.items() if k[0] == c.weights) for c in run}) == 3


def test_the_models_own_sampling_defaults_are_overruled(backend, tmp_path):
    run = write_run(tmp_path / "run", (1,))
    with serving() as server:
        list(backend(server).sample(asks_for(run), PARAMS))
        sent = set(server.stats()["fields"])
    neutral = {"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
    assert sent == {"model", "messages", "max_tokens", "temperature", "seed"} | neutral


# -- names that servers remember --------------------------------------------------------------------------------------


def post(server, path, body):
    data = json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}{path}", data)) as answer:
        return answer.read().decode()


def ask_plainly(server, name):
    body = {"model": name, "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 12, "temperature": 0}
    return json.loads(post(server, "/chat/completions", body))["choices"][0]["message"]["content"]


def test_weights_that_were_trained_again_get_another_name_so_nothing_stale_answers(backend, tmp_path):
    with serving(remembers=True) as server:
        # The trap is real: the same name with other weights answers as the old ones.
        write_adapter(tmp_path / "plain", 1)
        post(server, "/load_lora_adapter", {"lora_name": "same", "lora_path": str(tmp_path / "plain")})
        old = ask_plainly(server, "same")
        post(server, "/unload_lora_adapter", {"lora_name": "same"})
        write_adapter(tmp_path / "plain", 2)
        post(server, "/load_lora_adapter", {"lora_name": "same", "lora_path": str(tmp_path / "plain")})
        assert ask_plainly(server, "same") == old

        stale = []
        for seed in (1, 2):
            run = write_run(tmp_path / "run", (10,), seed=seed)
            stale.append(texts(backend(server).sample(asks_for(run), PARAMS)))
        run = write_run(tmp_path / "run", (10,), seed=2)
    with serving() as fresh_server:
        truth = texts(backend(fresh_server).sample(asks_for(run), PARAMS))
    assert stale[1] == truth and not set(stale[0].values()) & set(stale[1].values()) - {""}


def test_two_weights_under_one_name_are_refused(backend, tmp_path):
    (c,) = write_run(tmp_path / "run", (10,))
    other = Checkpoint(c.weights[:12] + "0" * 20, c.label, c.step, c.uri, c.kind, c.run)
    with serving() as server:
        b = backend(server)
        b.prepare([c])
        with pytest.raises(ServedNameReused):
            b.prepare([other])


def test_files_that_changed_since_they_were_hashed_are_not_loaded(backend, tmp_path):
    first, second = write_run(tmp_path / "run", (10, 20))
    with serving() as server:
        b = backend(server, concurrency=1)
        write_adapter(tmp_path / "run" / "checkpoint-20", 99)
        got = []
        with pytest.raises(DamagedWeights, match="checkpoint-20: its weights changed"):
            for r in b.sample([*asks_for([first]), *asks_for([second])], PARAMS):
                got.append(r)
        assert len(got) == len(asks_for([first])), "what came before it is not lost"
        assert server.names("load") == [adapter_name(first)] and not server.loaded
        (tmp_path / "run" / "checkpoint-20" / "adapter_model.safetensors").unlink()
        with pytest.raises(DamagedWeights):
            b.prepare([second])


# -- what is ours and what is not -------------------------------------------------------------------------------------


def test_what_was_served_already_is_used_and_left_alone(backend, tmp_path):
    run = write_run(tmp_path / "run")
    theirs = adapter_name(run[0])
    with serving(max_loras=8) as server:
        for name, c in ((theirs, run[0]), ("stranger", run[1])):
            post(server, "/load_lora_adapter", {"lora_name": name, "lora_path": c.uri.removeprefix("file:")})
        server.events.clear()
        b = backend(server, keep=1)
        b.prepare(run)
        assert len(list(b.sample(asks_for(run), PARAMS))) == 18
        b.close()
        assert theirs not in server.names("load") and theirs in server.names("ask")
        assert set(server.loaded) == {theirs, "stranger"}
        assert server.count("load") == server.count("unload") > 0


def test_it_may_be_loaded_by_somebody_else_between_looking_and_loading(backend, tmp_path, monkeypatch):
    (c,) = write_run(tmp_path / "run", (10,))
    with serving() as server:
        b = backend(server)
        real = b._client.post

        def late(path, body, timeout):
            if "/load" in path:
                post(server, path, body)
            return real(path, body, timeout)

        monkeypatch.setattr(b._client, "post", late)
        assert len(list(b.sample(asks_for([c]), PARAMS))) == 6
        b.close()
        assert list(server.loaded) == [adapter_name(c)] and not server.count("unload")


def test_a_load_that_was_cut_off_is_tried_again_and_is_ours(backend, tmp_path):
    run = write_run(tmp_path / "run", (10, 20))
    with serving(load_faults=["break", None, "503"]) as server:
        b = backend(server)
        assert len(list(b.sample(asks_for(run), PARAMS))) == 12
        assert set(server.loaded) == {adapter_name(c) for c in run}
        b.close()
        assert not server.loaded


def test_a_load_that_never_answers_is_taken_back(backend, tmp_path):
    run = write_run(tmp_path / "run", (10,))
    with serving(load_faults=["break"]) as server:
        b = backend(server, retries=0)
        with pytest.raises(JudgeDown, match="checkpoint-10: the adapter could not be loaded"):
            b.prepare(run)
        assert server.count("load") == server.count("unload") == 1 and not server.loaded


# -- interruptions ----------------------------------------------------------------------------------------------------


def interrupt_soon(condition):
    def wait():
        deadline = time.monotonic() + 10
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        if condition():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_interruption_in_the_middle_unloads_and_keeps_what_is_there(backend, tmp_path):
    run = write_run(tmp_path / "run")
    with serving("--delay", "0.02") as server:
        b = backend(server, concurrency=2)
        got = []
        thread = interrupt_soon(lambda: len(server.names("ask")) >= 12)
        with pytest.raises(KeyboardInterrupt):
            for r in b.sample(asks_for(run, samples=20), PARAMS):
                got.append(r)
        thread.join()
        assert 5 < len(got) < 60 and all(r.outcome is not AnswerStatus.FAILED for r in got)
        assert server.count("load") >= 1 and not server.loaded
        assert texts(b.sample([r.request for r in got], PARAMS)) == texts(got), "it goes on where it was"


@pytest.mark.parametrize("step", ["prepare", "sample"])
def test_an_interruption_while_an_adapter_is_being_loaded_leaves_nothing(backend, tmp_path, step):
    run = write_run(tmp_path / "run")
    with serving(load_delay=0.25) as server:
        b = backend(server)
        thread = interrupt_soon(lambda: server.count("loading") == 2)
        with pytest.raises(KeyboardInterrupt):
            list(b.sample(asks_for(run), PARAMS)) if step == "sample" else b.prepare(run)
        thread.join()
        assert server.count("loading") == server.count("load") == 2, "nothing new was loaded"
        assert not server.loaded and not b.left_loaded


def test_a_load_that_outlasts_our_patience_is_said_and_taken_out_at_the_end(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_lora, "_PATIENCE", 0.05)
    run = write_run(tmp_path / "run", (10,))
    with serving(load_delay=0.9) as server:
        b = backend(server)
        thread = interrupt_soon(lambda: server.count("loading") == 1)
        with pytest.raises(KeyboardInterrupt):
            list(b.sample(asks_for(run), PARAMS))
        thread.join()
        assert b.left_loaded == {adapter_name(run[0]): "it was still being loaded"}
        monkeypatch.undo()
        b.close()
        assert server.count("load") == 1 and not server.loaded and not b.left_loaded


def test_a_backend_that_is_forgotten_unloads_too(tmp_path):
    run = write_run(tmp_path / "run", (10,))
    with serving() as server:
        b = AdapterBackend(f"{server.url}#base")
        list(b.sample(asks_for(run), PARAMS))
        assert server.loaded
        del b
        gc.collect()
        assert not server.loaded


def test_one_collected_in_the_thread_that_sends_does_not_wait_for_itself(backend, tmp_path):
    run = write_run(tmp_path / "run", (10,))
    with serving() as server:
        b = backend(server)
        list(b.sample(asks_for(run), PARAMS))

        async def collected():
            b._shelf.clear()

        b._client._host.run(collected())
        deadline = time.monotonic() + 5
        while server.loaded and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server.loaded


def test_a_server_that_was_started_again_is_an_error_once(backend, tmp_path):
    run = write_run(tmp_path / "run", (10,))
    with serving() as server:
        b = backend(server)
        before = texts(b.sample(asks_for(run), PARAMS))
        server.loaded.clear()
        server.engine.clear()
        with pytest.raises(ModelUnavailable, match="does not exist"):
            list(b.sample(asks_for(run), PARAMS))
        assert texts(b.sample(asks_for(run), PARAMS)) == before


def test_an_error_of_the_asks_unloads_too(backend, tmp_path):
    run = write_run(tmp_path / "run")

    def broken():
        yield from asks_for(run[:1])
        raise OSError("the list of prompts ended early")

    with serving() as server:
        b = backend(server, window=4)
        got = []
        with pytest.raises(OSError, match="ended early"):
            for r in b.sample(broken(), PARAMS):
                got.append(r)
        assert len(got) == 6 and not server.loaded, "what was asked before the error is answered"


def test_a_budget_stops_and_keeps_what_it_paid_for(backend, tmp_path):
    run = write_run(tmp_path / "run")
    with serving() as server:
        b = backend(server, budget_calls=10, concurrency=3)
        got = []
        with pytest.raises(BudgetSpent):
            for r in b.sample(asks_for(run), PARAMS):
                got.append(r)
        assert len(got) == b.spent.calls == server.count("ask") == 10
        assert not server.loaded and not b.left_loaded


CHILD = """
import json, sys
from truing.models.checkpoints import find_run
from truing.models.served_adapters import AdapterBackend, AdapterOptions
from truing.models.limits import Limits
from truing.types.records import Ask, Message, Prompt, SamplingParams

b = AdapterBackend(sys.argv[1] + "#base", Limits(concurrency=2), AdapterOptions(keep=2))
run = find_run(sys.argv[2]).checkpoints
asks = [Ask(c, Prompt(f"q{k}", (Message("user", f"Tell me {k}."),)), 0) for c in run for k in range(int(sys.argv[3]))]
for r in b.sample(asks, SamplingParams(max_tokens=12)):
    print(json.dumps([r.ask.checkpoint.step, r.outcome]), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("way", ["ends without close", "ends after a while", "ctrl-c"])
def test_a_process_that_ends_leaves_nothing_behind(tmp_path, way, host):
    write_run(tmp_path / "run")
    with serving("--delay", "0.02") as server:
        asked = 100 if way == "ctrl-c" else 3
        url = server.url.replace("127.0.0.1", host)
        command = [sys.executable, "-c", CHILD, url, str(tmp_path / "run"), str(asked)]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines = [child.stdout.readline() for _ in range(5 if way == "ctrl-c" else 9)]
        if way == "ctrl-c":
            child.send_signal(signal.SIGINT)
        elif way == "ends after a while":
            server.hang_up()  # so that a new connection is needed, and a look-up of the host's name
        rest, errors = child.communicate("\n", timeout=30)
        answers = [json.loads(line) for line in [*lines, *rest.splitlines()]]
        assert all(outcome != "failed" for _, outcome in answers)
        if way == "ctrl-c":
            assert child.returncode != 0 and "KeyboardInterrupt" in errors and len(answers) < 300
        else:
            assert child.returncode == 0 and errors == "" and len(answers) == 9
        assert server.count("load") >= 1 and not server.loaded


def test_two_streams_at_once_share_the_room(backend, tmp_path):
    run = write_run(tmp_path / "run", (1, 2, 3, 4))
    with serving() as server:
        b = backend(server, keep=1, concurrency=2)
        one, two = (b.sample(asks_for(part), PARAMS) for part in (run[:2], run[2:]))
        pairs = list(zip(one, two, strict=True))
        assert len(pairs) == 12 and all(isinstance(r, Answer) and not r.error for pair in pairs for r in pair)
        b.close()
        assert not server.loaded


# -- servers and adapters that will not do ----------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["plain404", "vllm404", "405"])
def test_a_server_without_the_api_says_how_to_start_one(backend, tmp_path, api):
    run = write_run(tmp_path / "run")
    with serving(api=api) as server:
        b = backend(server)
        for attempt in (lambda: b.prepare(run), lambda: list(b.sample(asks_for(run), PARAMS))):
            with pytest.raises(Unsupported) as caught:
                attempt()
            assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve base --enable-lora" in str(caught.value)
        assert BASE in server.names("ask") and not b.left_loaded


def test_a_server_without_lora_says_so(backend, tmp_path):
    with serving(lora=False) as server, pytest.raises(Unsupported, match="without --enable-lora"):
        backend(server).prepare(write_run(tmp_path / "run"))


PATH_ERRORS = [
    (404, "NotFoundError", "Loading lora {name} failed: No adapter found for {path}"),
    (400, "BadRequestError", "Loading lora {name} failed: No adapter found for {path}"),
    (500, "InternalServerError", "Call to add_lora method failed: Loading lora {path} failed: No such file"),
    (404, "NotFoundError", "{path}/adapter_config.json does not exist"),
]


@pytest.mark.parametrize("error", PATH_ERRORS, ids=["404", "400", "500", "config"])
def test_a_path_that_the_server_does_not_see_can_be_mapped(backend, tmp_path, error):
    run = write_run(tmp_path / "run")
    with serving(sees={"/mnt/theirs": tmp_path}, path_error=error) as server:
        with pytest.raises(ModelUnavailable, match=r"path on the server's machine.*LOCAL=REMOTE") as caught:
            backend(server).prepare(run)
        assert str(tmp_path / "run" / "checkpoint-10") in str(caught.value)
        b = backend(server, path_map=(f"{tmp_path}=/mnt/theirs",))
        assert b.prepare(run) == {}
        assert all(path.startswith("/mnt/theirs/run/checkpoint-") for path, _ in server.loaded.values())


def test_the_longest_mapped_folder_counts(tmp_path):
    folder = tmp_path / "runs" / "medical" / "checkpoint-1"
    both = (f"{tmp_path}=/a", f"{tmp_path}/runs=/b/", f"{tmp_path}/run=/c")
    assert served_path(folder, both) == served_path(folder, both[::-1]) == "/b/medical/checkpoint-1"
    assert served_path(folder, ()) == str(folder)
    assert served_path(folder, ("/elsewhere=/d",)) == str(folder)
    (tmp_path / "link").symlink_to(tmp_path)
    assert served_path(folder, (f"{tmp_path}/link=/e",)) == "/e/runs/medical/checkpoint-1"


@pytest.mark.parametrize(
    "wrong", [{"keep": 0}, {"window": 0}, {"timeout": 0.0}, {"path_map": ("/a",)}, {"path_map": ("=/b",)},
              {"path_map": ("/a=b",)}]
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(BadEndpoint):
        AdapterOptions(**wrong)


@pytest.mark.parametrize(("rank", "flag"), [(64, 64), (24, 32)])
def test_a_rank_beyond_the_servers_names_the_flag(backend, tmp_path, rank, flag):
    run = write_run(tmp_path / "run-r64", (1,), rank=rank)
    text = rf"rank is {rank} .* at most 16; .*--max-lora-rank {flag}\."
    with serving() as server, pytest.raises(Unsupported, match=text):
        backend(server).prepare(run)


def test_a_key_opens_every_call(backend, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    with serving(api_key="right-key-1") as server:
        monkeypatch.setenv("TRUING_SERVED_API_KEY", "wrong-key-1")
        with pytest.raises(EndpointRefused) as caught:
            backend(server).prepare(run)
        assert "wrong-key-1" not in str(caught.value) and not server.events
        monkeypatch.setenv("TRUING_SERVED_API_KEY", "right-key-1")
        b = backend(server, keep=1)
        assert b.prepare(run) == {} and len(list(b.sample(asks_for(run), PARAMS))) == 18
        b.close()
        assert not server.loaded


def test_an_adapter_of_another_base_is_refused(backend, tmp_path):
    run = write_run(tmp_path / "run", (1,), modules=("w1", "w2"))
    with serving() as server, pytest.raises(AdapterMismatch, match="does not fit 'base'"):
        backend(server).prepare(run)


def test_another_parent_is_the_wrong_base_and_another_name_of_ours_is_not(backend, tmp_path):
    run = write_run(tmp_path / "run")
    with serving(parent="other-model") as server:
        with pytest.raises(WrongBase, match="'other-model', not of 'base'"):
            backend(server).prepare(run)
        assert server.count("load") == server.count("unload") == 1
    with serving(aliases=("short",)) as server:
        assert backend(server, base="short").prepare(run) == {}
    with serving(parent=None) as server:
        assert backend(server).prepare(run) == {}


def test_a_base_that_is_not_served_is_refused_before_anything_is_loaded(backend, tmp_path):
    with serving() as server:
        with pytest.raises(ModelUnavailable, match="serves base, but not 'gone'"):
            backend(server, base="gone").prepare(write_run(tmp_path / "run"))
        assert not server.events


def test_an_adapter_that_the_server_does_not_list_is_refused_and_taken_back(backend, tmp_path):
    with serving(unlisted=True) as server, pytest.raises(ModelUnavailable, match="does not list it"):
        backend(server).prepare(write_run(tmp_path / "run"))
    with serving(lists=False) as server, pytest.raises(JudgeDown):
        backend(server).prepare(write_run(tmp_path / "run"))


def test_other_kinds_of_checkpoints(backend, tmp_path):
    run = write_run(tmp_path / "run", (1,))
    with serving(aliases=("merged",)) as server:
        b = backend(server)
        merged = b.served("merged", f"{server.url}#merged", 5)
        assert len(list(b.sample(asks_for([b.base_checkpoint(), merged, *run]), PARAMS))) == 18
        assert set(server.names("ask")) == {BASE, "merged", adapter_name(run[0])}
        full = Checkpoint("w" * 32, "checkpoint-5", 5, f"file:{tmp_path}", Kind.FULL)
        with pytest.raises(Unsupported, match="neither an adapter nor a served model"):
            b.prepare([full, *run])
        with pytest.raises(Unsupported):
            list(b.sample(asks_for([full]), PARAMS))


def test_a_full_server_that_refuses_says_what_to_change(backend, tmp_path):
    run = write_run(tmp_path / "run")
    with serving(max_loras=1, evicts=False) as server:
        with pytest.raises(Unsupported, match=r"holds no more adapters; .* than 2 .*--max-loras 2"):
            backend(server, keep=2).prepare(run)
        assert not server.loaded
        assert backend(server, keep=1).prepare(run) == {}


def test_a_key_that_is_refused_is_said_as_it_is():
    failure = replace(status_failure(401, {}, {}, "http://h/v1#base", "no"), status=401)
    adapter = endpoint_lora.Adapter("run@1-ab", "checkpoint-1", Path("/x"), "/x", "w")
    assert isinstance(endpoint_lora.load_error(failure, adapter, BASE, 2), EndpointRefused)


# -- what cannot be put right is said ---------------------------------------------------------------------------------


def test_a_server_that_ignores_adapters_is_noticed(backend, tmp_path):
    run = write_run(tmp_path / "run")
    with serving(ignores=True) as server:
        b = backend(server)
        notes = b.prepare([b.base_checkpoint(), *run])
        assert set(notes) == {c.weights for c in run} and all("exactly as the base does" in n for n in notes.values())
        server.ignores = False
        assert b.prepare(run[:1]) == {} and set(b.notes) == {c.weights for c in run[1:]}


def test_probes_are_greedy_and_once_for_the_base(backend, tmp_path):
    run = write_run(tmp_path / "run")
    with serving() as server:
        backend(server, keep=1).prepare(run)
        assert PROBE.temperature == 0
        assert [server.names("ask").count(n) for n in (BASE, *map(adapter_name, run))] == [3, 3, 3, 3]


def test_an_adapter_that_cannot_be_unloaded_is_said_and_no_answer_is_lost(backend, tmp_path, caplog):
    run = write_run(tmp_path / "run")
    with serving(unload_fails=True) as server:
        b = backend(server, keep=1)
        assert len(list(b.sample(asks_for(run), PARAMS))) == 18
        assert set(b.left_loaded) == {adapter_name(c) for c in run[:2]}
        assert all("Failed to remove" in why for why in b.left_loaded.values())
        assert "stays on the server" in caplog.text
        server.unload_fails = False
        list(b.sample(asks_for(run[:2]), PARAMS))
        b.close()
        assert not server.loaded and not b.left_loaded, "it is still known to be ours"


def test_a_server_that_dropped_one_by_itself_goes_on(backend, tmp_path):
    """vLLM's engine drops the oldest beyond --max-cpu-loras, reads it again when asked, and cannot unload it twice."""
    run = write_run(tmp_path / "run")
    with serving(max_loras=1) as server:
        b = backend(server, keep=2)
        assert len(list(b.sample(asks_for(run), PARAMS))) == 18
        b.close()
        assert set(b.left_loaded) <= {adapter_name(c) for c in run}


def test_nothing_in_use_is_unloaded(backend, tmp_path):
    run = write_run(tmp_path / "run", (1, 2, 3, 4))
    with serving("--delay", "0.01") as server:
        list(backend(server, keep=1, concurrency=8).sample(asks_for(run, samples=4), PARAMS))
        assert server.count("unload") == 3 and server.asked_while_unloading == []
