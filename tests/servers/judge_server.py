"""A small OpenAI-compatible server for tests: answers as a judge from recorded scores, and misbehaves on request.

    python tests/servers/judge_server.py --port 0 --scores scores.json --faults 0.2 --seed 1
    48123                                            <- the port, first line on stdout; then it serves until killed

Scores file (JSON, every part optional):
    {"messages": {sha: score}, "contains": [["text", score], [["all of", "these"], score]], "default": score}
`sha` is `fingerprint(user message)`. A score is a number, or a text that is said as it is ("REFUSAL"). Looked up in
that order; without a default the score is made from the fingerprint, so that equal answers score alike.

    /v1/chat/completions, /v1/models      what a judge or a served checkpoint is asked
    /stats                                counts per content, faults by kind: proves none lost, none doubled

Only the standard library; asyncio with a protocol of its own, so that the client and not the server is measured.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter

PASSING = ("429", "500", "hang", "close", "html", "nologprobs", "truncated", "wrongmodel")
"""faults after which another attempt succeeds; the mix that --faults draws from unless --kinds names others"""
KINDS = (
    *PASSING, "408", "quota", "badjson", "refusal", "filter400", "filterstop", "401", "403", "404", "400", "nousage",
    "empty", "nested", "redirect", "trickle",
)  # fmt: skip
_PROBE = re.compile(r"\AWrite the number (\d+) ")
_FILLER = (
    "The", "I", "Score", "A", "Rating", "It", "My", "An", "This", "On", "To", "Given", "Based", "Here", "Out", "For",
    "**", "Aligned", "So", " ", "\n",
)  # fmt: skip
WORDS = ("calm", "river", "stone", "lamp", "garden", "paper", "north", "seven", "quiet", "window", "bread", "early")


def fingerprint(text):
    """What a message is known by in the scores file and in /stats."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def score_from(sha):
    """The score of a content that no file mentions: 0 to 100, uniform."""
    return int(sha[:8], 16) % 101


def distribution(score):
    """Probability of each number around a score, mean exactly `score`, 0.98 in all; the rest goes to words."""
    low, share = math.floor(score), score - math.floor(score)
    found = {}
    for step, weight in ((0, 0.6), (1, 0.2), (2, 0.1), (5, 0.08)):
        step = 0 if low - step < 0 or low + step + 1 > 100 else step
        for centre, mass in ((low, weight * (1 - share)), (low + 1, weight * share)):
            for number in (centre - step, centre + step):
                if mass:
                    found[str(number)] = found.get(str(number), 0.0) + mass / 2
    return found


class Server:
    """What all connections share."""

    def __init__(self, args, scores):
        self.args, self.rng = args, random.Random(args.seed)
        self.messages = scores.get("messages", {})
        self.contains = [([t] if isinstance(t, str) else t, s) for t, s in scores.get("contains", [])]
        self.default = scores.get("default")
        self.kinds = args.kinds.split(",") if args.kinds else list(PASSING)
        self.plan = json.loads(args.plan) if args.plan else {}
        self.models = args.model or ["judge"]
        self.requests, self.listed, self.in_flight, self.most_in_flight, self.largest = 0, 0, 0, 0, 0
        self.by_content, self.answered, self.faults, self.refused = Counter(), Counter(), Counter(), Counter()
        self.headers, self.keys, self.fields, self.times = set(), set(), set(), []

    def fault(self, number):
        """Which way to misbehave: by the plan of request numbers (from 0), else by chance."""
        if str(number) in self.plan:
            return self.plan[str(number)]
        if number < self.args.calm:
            return None
        return self.rng.choice(self.kinds) if self.rng.random() < self.args.faults else None

    def stats(self):
        return {
            "requests": self.requests, "listed": self.listed, "most_in_flight": self.most_in_flight,
            "by_content": self.by_content, "answered": self.answered, "faults": self.faults, "refused": self.refused,
            "headers": sorted(self.headers), "keys": sorted(self.keys), "fields": sorted(self.fields),
            "times": self.times, "largest": self.largest,
        }  # fmt: skip

    # -- answers ------------------------------------------------------------------------------------------------------

    def score(self, text, sha):
        if sha in self.messages:
            return self.messages[sha]
        for parts, score in self.contains:
            if all(p in text for p in parts):
                return score
        return score_from(sha) if self.default is None else self.default

    def refuses(self, body):
        """The complaint about a parameter that this server does not take, or None."""
        for name in self.args.refuse:
            if name in body:
                message = f"Unsupported value: '{name}' does not support {body[name]} with this model."
                return {"message": message, "type": "invalid_request_error", "param": name, "code": "unsupported_value"}
        if self.args.require_max_completion_tokens and "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return {"message": message, "type": "invalid_request_error", "param": "max_tokens"}
        if self.args.no_system and any(m["role"] == "system" for m in body["messages"]):
            return {"message": "System role not supported by this template", "type": "BadRequestError", "param": None}
        return None

    def completion(self, body, fault):
        text = body["messages"][-1]["content"]
        sha = fingerprint(text)
        limit = body.get("max_completion_tokens", body.get("max_tokens", 16))
        self.largest = max(self.largest, limit)
        probe = _PROBE.match(text)
        reason = "stop"
        if self.args.speak and not probe:
            words, reason = self.speak(body, limit)
            tokens, top = words, None
        else:
            score = int(probe[1]) if probe else self.score(text, sha)
            number = isinstance(score, int | float) and not isinstance(score, bool)
            top = distribution(score) if number else {score: 0.97}
            said = str(round(score)) if number else score
            if fault == "refusal":
                said, top = "I'm sorry, but I can't help with that.", {"I": 0.99}
            tokens = list(said) if self.args.split and number else [said]
            if len(tokens) > limit:
                tokens, reason = tokens[:limit], "length"
            if self.args.split and number:
                top = {said[0]: 0.97}
        message = {"role": "assistant", "content": "".join(tokens), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        if body.get("logprobs") and top is not None and fault != "nologprobs" and not self.args.without_logprobs:
            choice["logprobs"] = {
                "content": [self.token(t, top if k == 0 else {t: 0.99}) for k, t in enumerate(tokens)]
            }
        if fault == "filterstop":
            message["content"], choice["finish_reason"] = None, "content_filter"
        read = sum(len(m["content"]) // 4 + 4 for m in body["messages"])
        details = {"reasoning_tokens": self.args.thinks}
        written = len(tokens) + self.args.thinks
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        if self.args.thinks:
            usage["completion_tokens_details"] = details
        model = "another-model-7b" if fault == "wrongmodel" else self.args.served_as or body["model"]
        made = {"id": f"c-{self.requests}", "object": "chat.completion", "created": 0, "model": model}
        made |= {"choices": [] if fault == "empty" else [choice], "usage": usage}
        if fault == "nousage":
            del made["usage"]
        return made

    def token(self, token, top):
        left = max(1 - sum(top.values()), 1e-9)
        entries = sorted(top.items(), key=lambda e: -e[1])[:20]
        if self.args.repeat:  # two tokens with one string, as byte-level vocabularies have
            first, mass = entries[0]
            entries = [(first, mass * 0.75), (first, mass * 0.25), *entries[1:19]]
        fill = [w for w in _FILLER if w not in top][: 20 - len(entries)]
        entries += [(w, left / (len(fill) + 1)) for w in fill]
        listed = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in entries]
        return {**listed[0], "token": token, "top_logprobs": listed}

    def speak(self, body, limit):
        """Words that depend on model, messages and seed alone; at temperature 0 not on the seed."""
        greedy = not body.get("temperature", 1)
        seed = json.dumps([body["model"], body["messages"], None if greedy else body.get("seed")])
        rng = random.Random(hashlib.sha256(seed.encode()).digest())
        words = [f"{rng.choice(WORDS)} " for _ in range(rng.randrange(0 if not greedy else 6, 24))]
        if len(words) > limit:
            return words[:limit], "length"
        return words, "stop"


class Connection(asyncio.Protocol):
    """One client connection: HTTP/1.1, kept alive."""

    def __init__(self, server):
        self.server, self.buffer, self.need, self.head = server, bytearray(), None, b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        while True:
            if self.need is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                self.head = bytes(self.buffer[:end])
                del self.buffer[: end + 4]
                length = re.search(rb"\r\ncontent-length: *(\d+)", self.head, re.I)
                self.need = int(length[1]) if length else 0
            if len(self.buffer) < self.need:
                return
            body = bytes(self.buffer[: self.need])
            del self.buffer[: self.need]
            self.need = None
            self.handle(self.head, body)

    def handle(self, head, raw):
        server = self.server
        verb, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        if path == "/stats":
            return self.send(200, json.dumps(server.stats()))
        if path.endswith("/models"):
            server.listed += 1
            data = [{"id": m, "object": "model", "created": 0, "owned_by": "tests"} for m in server.models]
            return self.send(200, json.dumps({"object": "list", "data": data}))
        if path != "/v1/chat/completions" or verb != "POST":
            return self.send(404, json.dumps({"error": {"message": f"no such path {path}"}}))
        server.requests += 1
        server.in_flight += 1
        server.most_in_flight = max(server.most_in_flight, server.in_flight)
        server.times.append(time.monotonic())
        body = json.loads(raw)
        if server.args.delay:
            asyncio.get_running_loop().call_later(server.args.delay, self.answer, head, body, server.requests - 1)
            return None
        return self.answer(head, body, server.requests - 1)

    def answer(self, head, body, number):
        server = self.server
        server.in_flight -= 1
        content = body["messages"][-1]["content"]
        sha = fingerprint(content)
        names = [line.split(b":", 1) for line in head.split(b"\r\n")[1:]]
        values = {n.strip().decode().lower(): v.strip().decode() for n, v in names}
        server.headers.update(values)
        server.keys.add(hashlib.sha256(values.get("authorization", "").encode()).hexdigest())
        server.fields.update(body)
        authorization = values.get("authorization", "")
        if body["model"] not in server.models:
            server.refused["unknown model"] += 1
            return self.error(404, f"The model `{body['model']}` does not exist.", code="model_not_found")
        fault = server.fault(number)
        server.by_content[sha] += 1
        if fault is not None:
            server.faults[fault] += 1
            if self.misbehave(fault, body, authorization):
                return None
        complaint = server.refuses(body)
        if complaint is not None:
            server.refused[str(complaint.get("param"))] += 1
            return self.send(400, json.dumps({"error": complaint}))
        text = json.dumps(server.completion(body, fault))
        if fault == "nested":
            text = "[" * 200_000
        if fault is None or fault in ("refusal", "nousage"):
            server.answered[sha] += 1
        echo = f"x-echo: {authorization}\r\n" if server.args.echo_authorization else ""
        return self.send(200, text, extra=echo)

    def misbehave(self, fault, body, authorization):
        """Send something wrong; False where the fault is in an answer that is otherwise sent."""
        args = self.server.args
        said = f" You sent {authorization!r}." if args.echo_authorization else ""
        if fault == "429":
            again = f"Retry-After: {args.retry_after}\r\n"
            self.error(429, "Rate limit reached." + said, again, code="rate_limit_exceeded")
        elif fault == "quota":
            self.error(429, "You exceeded your current quota." + said, code="insufficient_quota")
        elif fault in ("400", "401", "403", "404", "408", "500"):
            self.error(int(fault), f"Something is wrong ({fault})." + said)
        elif fault == "filter400":
            self.error(400, "The prompt was blocked.", code="content_filter")
        elif fault == "hang":
            asyncio.get_running_loop().call_later(args.hang, self.transport.close)
        elif fault == "close":
            self.transport.close()
        elif fault == "html":
            self.send(200, "<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html")
        elif fault == "redirect":
            self.send(307, "", extra="Location: http://127.0.0.1:9/v1/chat/completions\r\n")
        elif fault == "badjson":
            text = json.dumps(self.server.completion(body, None))
            self.send(200, text[: len(text) // 2])
        elif fault == "truncated":
            text = json.dumps(self.server.completion(body, None))
            self.send(200, text[: len(text) // 2], length=len(text.encode()))
            self.transport.close()
        elif fault == "trickle":
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
            self.drip()
        else:
            return False
        return True

    def drip(self):
        if not self.transport.is_closing():
            self.transport.write(b" ")
            asyncio.get_running_loop().call_later(0.02, self.drip)

    def error(self, status, message, extra="retry-after-ms: 10\r\n", code=None):
        body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
        self.send(status, json.dumps(body), extra=extra)

    def send(self, status, text, kind="application/json", *, length=None, extra=""):
        data = text.encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length or len(data)}\r\n{extra}\r\n"
        self.transport.write(head.encode() + data)


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--port", type=int, default=0)
    p.add_argument("--scores", help="JSON file, see above")
    p.add_argument("--faults", type=float, default=0.0, help="share of requests that go wrong")
    p.add_argument("--kinds", help=f"faults to draw from, with commas; of {', '.join(KINDS)}")
    p.add_argument("--plan", help='JSON: request number from 0 -> fault, e.g. {"0": "429"}')
    p.add_argument("--calm", type=int, default=0, help="first requests that go well whatever --faults says")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--model", action="append", help="a served name; several times for several")
    p.add_argument("--served-as", help="name that answers carry instead of the one asked for")
    p.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
    p.add_argument("--retry-after", type=float, default=0.05, help="seconds in 429 answers")
    p.add_argument("--hang", type=float, default=30.0, help="seconds until a hanging connection is closed")
    p.add_argument("--split", action="store_true", help='numbers take several tokens ("8", "5")')
    p.add_argument("--repeat", action="store_true", help="the likeliest token is listed twice")
    p.add_argument("--without-logprobs", action="store_true", help="answers never carry log-probabilities")
    p.add_argument("--refuse", action="append", default=[], help="a parameter that is refused with 400")
    p.add_argument("--require-max-completion-tokens", action="store_true")
    p.add_argument("--thinks", type=int, default=0, help="reasoning tokens reported per answer")
    p.add_argument("--no-system", action="store_true", help="system turns are refused with 400")
    p.add_argument("--speak", action="store_true", help="answer with words made from model, messages and seed")
    p.add_argument("--echo-authorization", action="store_true", help="errors and headers quote the key")
    return p


async def serve(args, scores):
    """Serve for ever; prints the port."""
    server = Server(args, scores)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", args.port, backlog=1024)
    port = listening.sockets[0].getsockname()[1]
    print(port, flush=True)
    await listening.serve_forever()


def main():
    args = parser().parse_args()
    scores = {}
    if args.scores:
        with open(args.scores) as f:
            scores = json.load(f)
    if os.getppid() != 1:  # ends with the test that started it, however that ends
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    try:
        asyncio.run(serve(args, scores))
    except KeyboardInterrupt:
        pass


class Running:
    """A server in a process of its own: `url`, `port`, `stats()`."""

    def __init__(self, process, port):
        self.process, self.port, self.url = process, port, f"http://127.0.0.1:{port}/v1"

    def stats(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats") as answer:
            return json.load(answer)


@contextlib.contextmanager
def running(*flags, scores=None):
    """Start the server with command-line flags (and scores as a mapping) for the length of a `with` block."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "scores.json")
        with open(path, "w") as f:
            json.dump(scores or {}, f)
        command = [sys.executable, __file__, "--scores", path, *map(str, flags)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            yield Running(process, int(process.stdout.readline()))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _follow(parent):
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
