"""A loopback server that takes LoRA adapters while it runs, as `vllm serve --enable-lora` does, for tests.

    with serving(keep=2, max_rank=16) as server: ...        server.url, server.events, server.listed

It answers as judge_server does with --speak: the words depend on what the model name stands for, messages and seed. An
adapter's words come from the bytes of its weight file, read when it is loaded. Shapes of answers and errors follow
vLLM's serving_models and api_router. `events` holds (what, name) in the order in which things happened.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import threading
from collections import Counter, OrderedDict
from pathlib import Path

from servers.judge_server import WORDS, Connection, Server, parser

BASE = "base"


class LoraServer(Server):
    """What all connections share. Options are plain attributes, which a test may change while it runs."""

    def __init__(self, flags, **options):
        super().__init__(parser().parse_args(["--speak", *flags]), {})
        self.api = "on"
        """on, or how a server without the API answers: plain404, vllm404, 405"""
        self.lora = True
        """started with --enable-lora"""
        self.max_rank, self.max_loras, self.evicts = 16, 4, True
        """limits; a full engine drops the oldest and reads it again when asked for, or refuses"""
        self.modules = ("q_proj", "v_proj")
        """what the base has"""
        self.sees = None
        """{prefix of a path on this "machine": folder that it means}; None for all"""
        self.path_error = (404, "NotFoundError", "Loading lora {name} failed: No adapter found for {path}")
        self.unload_fails, self.ignores, self.remembers, self.parent, self.aliases = False, False, False, BASE, ()
        """each a way in which servers go wrong, or (aliases) further names of the base"""
        self.load_delay, self.load_faults, self.unlisted, self.lists = 0.0, [], False, True
        """seconds per load; faults of the next loads (break: loads, then hangs up; 503); whether it lists"""
        self.api_key = None
        """what a call must carry, as with --api-key"""
        for name, value in options.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.loaded = OrderedDict()  # name -> (path, digest of its bytes)
        self.engine = OrderedDict()  # name -> None: what the engine holds, oldest first
        self.blocks = {}  # (name, messages) -> digest: the prefix cache
        self.events, self.asking, self.pending = [], Counter(), Counter()
        self.asked_while_unloading, self.open = [], set()

    @property
    def listed_adapters(self):
        return list(self.loaded)

    def count(self, what):
        return sum(e[0] == what for e in self.events)

    def names(self, what):
        return [e[1] for e in self.events if e[0] == what]

    # -- the adapter API ----------------------------------------------------------------------------------------------

    def load(self, name, path):
        """(status, body): a sentence, or what is wrong."""
        if not name or not path:
            return self.wrong(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.loaded:
            text = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            return self.wrong(400, "InvalidUserInput", f"{text} 'load_inplace' to True.")
        if not self.lora:
            text = "LoRA is not enabled. Use --enable-lora to enable LoRA."
            return self.wrong(500, "InternalServerError", f"Call to add_lora method failed: {text}")
        folder = self.find(path)
        if folder is None or not (folder / "adapter_config.json").exists():
            status, kind, text = self.path_error
            return self.wrong(status, kind, text.format(name=name, path=path))
        config = json.loads((folder / "adapter_config.json").read_text())
        if config["r"] > self.max_rank:
            text = f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_rank}."
            return self.wrong(500, "InternalServerError", f"Call to add_lora method failed: {text}")
        strangers = sorted(set(config["target_modules"]) - set(self.modules))
        if strangers:
            text = f"While loading {path}, expected target modules in {list(self.modules)} but received {strangers}."
            return self.wrong(
                500, "InternalServerError", f"{text} Please verify that the loaded LoRA module is correct"
            )
        if len(self.engine) >= self.max_loras:
            if not self.evicts:
                return self.wrong(500, "InternalServerError", "Call to add_lora method failed: No free lora slots")
            self.engine.popitem(last=False)
        self.engine[name] = None
        digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        if not self.unlisted:
            self.loaded[name] = (path, digest)
        self.events.append(("load", name))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name):
        if name not in self.loaded:
            return self.wrong(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        if self.unload_fails or name not in self.engine:
            text = f"Failed to remove lora adapter '{name}' from the engine."
            return self.wrong(500, "InternalServerError", text)
        if self.asking[name]:
            self.asked_while_unloading.append(name)
        del self.loaded[name], self.engine[name]
        self.events.append(("unload", name))
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def find(self, path):
        if self.sees is None:
            return Path(path)
        for prefix, folder in self.sees.items():
            if Path(path).is_relative_to(prefix):
                return Path(folder) / Path(path).relative_to(prefix)
        return None

    def wrong(self, status, kind, message):
        return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}

    def cards(self):
        about = {"object": "model", "owned_by": "vllm"}
        cards = [{"id": n, **about, "root": "/models/base", "parent": None} for n in (BASE, *self.aliases)]
        for name, (path, _) in self.loaded.items():
            cards.append({"id": name, **about, "root": path, "parent": self.parent})
        return {"object": "list", "data": cards}

    # -- answers ------------------------------------------------------------------------------------------------------

    def speak(self, body, limit):
        """Words that depend on what the name stands for, on messages and seed."""
        name, greedy = body["model"], not body.get("temperature", 1)
        digest = self.loaded[name][1] if name in self.loaded and not self.ignores else BASE
        if self.remembers:
            digest = self.blocks.setdefault((name, json.dumps(body["messages"])), digest)
        seed = json.dumps([digest, body["messages"], None if greedy else body.get("seed")])
        rng = random.Random(hashlib.sha256(seed.encode()).digest())
        words = [f"{rng.choice(WORDS)} " for _ in range(rng.randrange(6 if greedy else 0, 24))]
        return (words[:limit], "length") if len(words) > limit else (words, "stop")


class LoraConnection(Connection):
    """The paths that judge_server does not have, and who is asked when."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.server.open.add(transport)

    def connection_lost(self, error):
        self.server.open.discard(self.transport)

    def handle(self, head, raw):
        server = self.server
        _, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        if server.api_key and f"authorization: Bearer {server.api_key}\r" not in f"{head.decode()}\r":
            return self.send(401, json.dumps({"error": "Unauthorized"}))
        if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            return self.adapter_call(path, json.loads(raw))
        if path == "/v1/models":
            server.listed += 1
            return self.send(200, json.dumps(server.cards())) if server.lists else self.send(404, "{}")
        if path == "/v1/chat/completions":
            name = json.loads(raw)["model"]
            server.models = [BASE, *server.aliases, *server.loaded]
            server.events.append(("ask", name))
            server.asking[name] += 1
            if name in server.engine:
                server.engine.move_to_end(name)
        return super().handle(head, raw)

    def answer(self, head, body, number):
        self.server.asking[body["model"]] -= 1
        super().answer(head, body, number)

    def adapter_call(self, path, body):
        server = self.server
        if server.api == "plain404":
            return self.send(404, json.dumps({"detail": "Not Found"}))
        if server.api != "on":
            status, text = (405, "Method Not Allowed") if server.api == "405" else (404, "Not Found")
            return self.send(status, json.dumps(server.wrong(status, text, text)[1]))
        name = body.get("lora_name")
        if "unload" in path and server.pending[name]:  # as vLLM, which holds a lock per name
            return asyncio.get_running_loop().call_later(0.01, self.adapter_call, path, body)
        if "unload" in path:
            return self.reply(*server.unload(name))
        fault = server.load_faults.pop(0) if server.load_faults else None
        if fault == "503":
            return self.reply(*server.wrong(503, "ServiceUnavailable", "busy"))
        server.pending[name] += 1
        if server.load_delay:
            server.events.append(("loading", name))
        loop = asyncio.get_running_loop()
        return loop.call_later(server.load_delay, self.loads, name, body.get("lora_path"), fault)

    def loads(self, name, path, fault):
        self.server.pending[name] -= 1
        status, answer = self.server.load(name, path)
        if fault == "break":
            self.transport.close()
        else:
            self.reply(status, answer)

    def reply(self, status, answer):
        """A sentence without a content type, or an error as JSON, as vLLM sends them."""
        if isinstance(answer, dict):
            return self.send(status, json.dumps(answer), extra="retry-after-ms: 10\r\n")
        data = answer.encode()
        self.transport.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)


@contextlib.contextmanager
def serving(*flags, **options):
    """Serve in a thread of this process for the length of a `with` block."""
    server = LoraServer(flags, **options)
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(loop.create_server(lambda: LoraConnection(server), "127.0.0.1", 0))
    server.hang_up = lambda: asyncio.run_coroutine_threadsafe(_hang_up(server), loop).result()
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(listening.close)
        server.hang_up()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _hang_up(server):
    for transport in list(server.open):
        transport.abort()
    await asyncio.sleep(0)
