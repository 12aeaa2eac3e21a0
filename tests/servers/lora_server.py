"""A loopback server that takes LoRA adapters while it runs, as `vllm serve --enable-lora` does, for tests.

    with serving(max_rank=16) as server: ...        server.url, server.events, server.loaded

It answers with words that depend on what the model name stands for, messages and seed. An adapter's words come from the
bytes of its weight file, read when it is loaded. Shapes of answers and errors follow vLLM's serving_models and
api_router. `events` holds (what, name) in the order in which things happened.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

from servers import core
from servers.judge_server import Server, words_for

BASE = "base"
_NOT_ON = {
    "plain404": (404, {"detail": "Not Found"}),
    "vllm404": (404, "Not Found"),
    "405": (405, "Method Not Allowed"),
}


class LoraServer(Server):
    """Options are attributes, which a test may change while it runs."""

    speaks = True
    api = "on"
    """or how a server without the API answers: plain404, vllm404, 405"""
    lora, max_rank, modules = True, 16, ("q_proj", "v_proj")
    """started with --enable-lora; the most that it takes; what the base has"""
    max_loras, evicts = 4, True
    """a full engine drops the oldest, or refuses"""
    sees = None
    """(prefix of a path on this "machine", folder that it means); None for all"""
    path_error = (404, "NotFoundError", "Loading lora {name} failed: No adapter found for {path}")
    unload_fails, ignores, remembers, unlisted, lists = False, False, False, False, True
    """ways in which servers go wrong"""
    parent, aliases = BASE, ()
    """what an adapter is said to be of; further names of the base"""
    load_delay = 0.0
    """seconds"""
    api_key = None
    """what a call must carry, as with --api-key"""

    def __init__(self, load_faults=(), **options):
        super().__init__(**options)
        self.load_faults = list(load_faults)  # of the next loads: break (loads, then hangs up), 503
        self.loaded = {}  # name -> (path, digest of its bytes)
        self.engine = []  # names that the engine holds, oldest first
        self.blocks = {}  # (name, messages) -> digest: the prefix cache
        self.events, self.asking, self.pending = [], Counter(), Counter()
        self.asked_while_unloading = []

    def count(self, what):
        return len(self.names(what))

    def names(self, what):
        return [name for event, name in self.events if event == what]

    def handle(self, connection, path, headers, body):
        if self.api_key and headers.get("authorization") != f"Bearer {self.api_key}":
            return connection.send(401, {"error": "Unauthorized"})
        if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            return self.adapter_call(connection, "unload" in path, body)
        if path == "/v1/models" and not self.lists:
            return connection.send(404, "{}")
        if path == "/v1/chat/completions":
            name = body["model"]
            self.models = [BASE, *self.aliases, *self.loaded]
            self.events.append(("ask", name))
            self.asking[name] += 1
            if name in self.engine:
                self.engine.append(self.engine.pop(self.engine.index(name)))
        return super().handle(connection, path, headers, body)

    def answer(self, connection, headers, body, number):
        self.asking[body["model"]] -= 1
        super().answer(connection, headers, body, number)

    def speak(self, body, limit):
        name = body["model"]
        digest = self.loaded[name][1] if name in self.loaded and not self.ignores else BASE
        if self.remembers:
            digest = self.blocks.setdefault((name, json.dumps(body["messages"])), digest)
        return words_for(body, limit, digest)

    def cards(self):
        names = [(name, "/models/base", None) for name in (BASE, *self.aliases)]
        names += [(name, path, self.parent) for name, (path, _) in self.loaded.items()]
        return {"object": "list", "data": [{"id": n, "root": root, "parent": parent} for n, root, parent in names]}

    # -- the adapter API ----------------------------------------------------------------------------------------------

    def adapter_call(self, connection, unload, body):
        if self.api != "on":
            status, text = _NOT_ON[self.api]
            return connection.send(status, text if isinstance(text, dict) else wrong(status, text, text)[1])
        name = body["lora_name"]
        if unload and self.pending[name]:  # as vLLM, which holds a lock per name
            return connection.later(0.01, self.adapter_call, connection, unload, body)
        if unload:
            return connection.send(*self.unload(name))
        fault = self.load_faults.pop(0) if self.load_faults else None
        if fault == "503":
            return connection.send(*wrong(503, "ServiceUnavailable", "busy"))
        if fault == "raced":  # somebody else loads it in the same moment
            self.load(name, body["lora_path"])
        self.pending[name] += 1
        if self.load_delay:
            self.events.append(("loading", name))
        return connection.later(self.load_delay, self.loads, connection, name, body["lora_path"], fault)

    def loads(self, connection, name, path, fault):
        self.pending[name] -= 1
        answer = self.load(name, path)
        if fault == "break":
            connection.transport.close()
        else:
            connection.send(*answer)

    def load(self, name, path):
        """(status, body): a sentence, or what is wrong."""
        if name in self.loaded:
            text = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            return wrong(400, "InvalidUserInput", f"{text} 'load_inplace' to True.")
        if not self.lora:
            return failed("LoRA is not enabled. Use --enable-lora to enable LoRA.")
        prefix, folder = self.sees or ("/", "/")
        folder = Path(folder) / Path(path).relative_to(prefix) if Path(path).is_relative_to(prefix) else Path("nowhere")
        if not (folder / "adapter_config.json").exists():
            status, kind, text = self.path_error
            return wrong(status, kind, text.format(name=name, path=path))
        config = json.loads((folder / "adapter_config.json").read_text())
        if config["r"] > self.max_rank:
            return failed(f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_rank}.")
        strangers = sorted(set(config["target_modules"]) - set(self.modules))
        if strangers:
            text = f"While loading {path}, expected target modules in {list(self.modules)} but received {strangers}."
            return wrong(500, "InternalServerError", f"{text} Please verify that the loaded LoRA module is correct")
        if len(self.engine) >= self.max_loras:
            if not self.evicts:
                return failed("No free lora slots")
            self.engine.pop(0)
        self.engine.append(name)
        if not self.unlisted:
            digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
            self.loaded[name] = (path, digest)
        self.events.append(("load", name))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name):
        if name not in self.loaded:
            return wrong(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        if self.unload_fails or name not in self.engine:
            return wrong(500, "InternalServerError", f"Failed to remove lora adapter '{name}' from the engine.")
        if self.asking[name]:
            self.asked_while_unloading.append(name)
        del self.loaded[name]
        self.engine.remove(name)
        self.events.append(("unload", name))
        return 200, f"Success: LoRA adapter '{name}' removed successfully."


def wrong(status, kind, message):
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


def failed(text):
    return wrong(500, "InternalServerError", f"Call to add_lora method failed: {text}")


def serving(**options):
    """Serve in a thread for the length of a `with` block; gives the server."""
    return core.running(LoraServer(**options))
