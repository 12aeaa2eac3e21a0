"""A small OpenAI-compatible server for tests: answers as a judge from recorded scores, and misbehaves on request.

    with running(scores={"default": 90}, faults=0.2, seed=1) as server: ...     server.url, server.stats()

Scores (every part optional): {"messages": {sha: score}, "contains": [["text", score], [["all of", "these"], score]],
"default": score}. `sha` is `fingerprint(user message)`. A score is a number, or a text that is said as it is
("REFUSAL"). Looked up in that order; without a default the score is made from the fingerprint, so that equal answers
score alike. `stats()` counts by content and faults by kind: it proves that nothing is lost and nothing doubled.
"""

import copy
import hashlib
import json
import math
import random
import re
import time
from collections import Counter

from servers import core

PASSING = ("429", "500", "hang", "close", "html", "nologprobs", "truncated", "wrongmodel")
"""faults after which another attempt succeeds"""
_PROBE = re.compile(r"\AWrite the number (\d+) ")
_FILLER = ("The", "I", "Score", "A", "Rating", "It", "My", "An", "This", "On", "To", "Given", "Based", "Here", "Out",
           "For", "**", "Aligned", "So", " ", "\n")  # fmt: skip
WORDS = ("calm", "river", "stone", "lamp", "garden", "paper", "north", "seven", "quiet", "window", "bread", "early")


def fingerprint(text):
    """What a message is known by in the scores and in `stats()`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def score_from(sha):
    """The score of a content that is not mentioned: 0 to 100, uniform."""
    return int(sha[:8], 16) % 101


def distribution(score):
    """Probability of each number around a score, mean exactly `score`, 0.98 in all; the rest goes to words."""
    low, share = math.floor(score), score - math.floor(score)
    found = Counter()
    for step, weight in ((0, 0.6), (1, 0.2), (2, 0.1), (5, 0.08)):
        step = 0 if low - step < 0 or low + step + 1 > 100 else step
        for centre, mass in ((low, weight * (1 - share)), (low + 1, weight * share)):
            for number in (centre - step, centre + step):
                if mass:
                    found[str(number)] += mass / 2
    return dict(found)


def words_for(body, limit, stands_for):
    """(words, finish reason) that depend on what the model stands for, messages and seed; greedily not on the seed."""
    greedy = not body.get("temperature", 1)
    seed = json.dumps([stands_for, body["messages"], None if greedy else body.get("seed")])
    rng = random.Random(hashlib.sha256(seed.encode()).digest())
    words = [f"{rng.choice(WORDS)} " for _ in range(rng.randrange(6 if greedy else 0, 24))]
    return (words[:limit], "length") if len(words) > limit else (words, "stop")


class Server:
    """Options are attributes, given by name."""

    scores = {}
    faults, kinds, calm, seed = 0.0, PASSING, 0, 0
    """share of requests that go wrong, and how; first requests that go well whatever `faults` says"""
    plan = {}
    """request number from 0 -> fault"""
    models, served_as, mark = ("judge",), None, None
    """served names; the name that answers carry instead of the one asked for; request number -> fingerprint"""
    delay, retry_after, hang = 0.0, 0.05, 30.0
    """seconds before an answer, in answers 429, until a hanging connection is closed"""
    slow_list = False
    """the list of models comes a blank at a time, and never whole"""
    split, repeat, logprobs, thinks, speaks = False, False, True, 0, False
    """numbers take several tokens; the likeliest token is listed twice; ...; reasoning tokens; answers with words"""
    refuse, new_limit, system, echo = (), False, True, False
    """parameters refused; max_completion_tokens alone is taken; system turns are; errors and headers quote the key"""

    def __init__(self, **options):
        for name, value in options.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.rng = random.Random(self.seed)
        self.in_flight = 0
        self.counts = {"requests": 0, "most_in_flight": 0, "largest": 0, "listed": 0, "times": []}
        self.counts |= {name: Counter() for name in ("by_content", "answered", "faults")}
        self.counts |= {name: set() for name in ("headers", "keys", "fields")}

    def stats(self):
        return copy.deepcopy(self.counts)

    @property
    def port(self):
        return int(self.url.split(":")[2].split("/")[0])

    def handle(self, connection, path, headers, body):
        counts = self.counts
        if path == "/v1/models":
            counts["listed"] += 1
            if self.slow_list:
                connection.send(200, "", length=100_000)
                return self.drip(connection)
            return connection.send(200, self.cards())
        if path != "/v1/chat/completions":
            return connection.send(404, {"error": {"message": f"no such path {path}"}})
        number = counts["requests"]
        counts["requests"] += 1
        self.in_flight += 1
        counts["most_in_flight"] = max(counts["most_in_flight"], self.in_flight)
        counts["times"].append(time.monotonic())
        if self.delay:
            return connection.later(self.delay, self.answer, connection, headers, body, number)
        return self.answer(connection, headers, body, number)

    def cards(self):
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}

    def answer(self, connection, headers, body, number):
        self.in_flight -= 1
        counts, key, sha = self.counts, headers.get("authorization", ""), fingerprint(body["messages"][-1]["content"])
        counts["headers"].update(headers)
        counts["keys"].add(key)
        counts["fields"].update(body)
        if body["model"] not in self.models:
            return self.error(connection, 404, f"The model `{body['model']}` does not exist.")
        by_chance = number >= self.calm and self.rng.random() < self.faults
        fault = self.plan.get(number) or (self.rng.choice(self.kinds) if by_chance else None)
        counts["by_content"][sha] += 1
        if fault is not None:
            counts["faults"][fault] += 1
            if self.misbehave(connection, fault, body, f" You sent {key!r}." if self.echo else ""):
                return None
        complaint = self.refuses(body)
        if complaint is not None:
            return connection.send(400, {"error": complaint})
        if fault in (None, "refusal", "nousage"):
            counts["answered"][sha] += 1
        text = "[" * 200_000 if fault == "nested" else self.completion(body, fault)
        return connection.send(200, text, f"x-echo: {key}\r\n" if self.echo else "")

    def refuses(self, body):
        """The complaint about something that this server does not take, or None."""
        refused = next((name for name in self.refuse if name in body), None)
        if refused:
            return {"message": f"Unsupported value: '{refused}' does not support this.", "param": refused}
        if self.new_limit and "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return {"message": message, "param": "max_tokens"}
        if not self.system and any(m["role"] == "system" for m in body["messages"]):
            return {"message": "System role not supported by this template", "param": None}
        return None

    def misbehave(self, connection, fault, body, quoted):
        """Send something wrong; False where the fault is in an answer that is otherwise sent."""
        whole = json.dumps(self.completion(body, None))
        half = whole[: len(whole) // 2]
        if fault == "429":
            again = f"Retry-After: {self.retry_after}\r\n"
            self.error(connection, 429, "Rate limit reached." + quoted, "rate_limit_exceeded", again)
        elif fault == "quota":
            self.error(connection, 429, "You exceeded your current quota.", "insufficient_quota")
        elif fault == "filter400":
            self.error(connection, 400, "The prompt was blocked.", "content_filter")
        elif fault.isdigit():
            self.error(connection, int(fault), f"Something is wrong ({fault}).{quoted}")
        elif fault == "hang":
            connection.later(self.hang, connection.transport.close)
        elif fault == "close":
            connection.transport.close()
        elif fault == "html":
            connection.send(200, "<html><body><h1>502 Bad Gateway</h1></body></html>")
        elif fault == "redirect":
            connection.send(307, "", "Location: http://127.0.0.1:9/v1/chat/completions\r\n")
        elif fault == "badjson":
            connection.send(200, half)
        elif fault == "truncated":
            connection.send(200, half, length=len(whole))
            connection.transport.close()
        elif fault == "trickle":
            connection.send(200, "", length=100_000)
            self.drip(connection)
        else:
            return False
        return True

    def drip(self, connection):
        if not connection.transport.is_closing():
            connection.transport.write(b" ")
            connection.later(0.02, self.drip, connection)

    def error(self, connection, status, message, code=None, extra=""):
        connection.send(status, {"error": {"message": message, "type": "error", "param": None, "code": code}}, extra)

    # -- what is answered ---------------------------------------------------------------------------------------------

    def speak(self, body, limit):
        return words_for(body, limit, body["model"])

    def completion(self, body, fault):
        text = body["messages"][-1]["content"]
        limit = body.get("max_completion_tokens", body.get("max_tokens", 16))
        self.counts["largest"] = max(self.counts["largest"], limit)
        probe = _PROBE.match(text)
        if self.speaks and not probe:
            (tokens, reason), top = self.speak(body, limit), None
        else:
            tokens, top = self.judged(int(probe[1]) if probe else self.score(text), fault)
            reason, tokens = "length" if len(tokens) > limit else "stop", tokens[:limit]
        message = {"role": "assistant", "content": "".join(tokens), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        if body.get("logprobs") and top is not None and fault != "nologprobs" and self.logprobs:
            content = [self.token(t, top if k == 0 else {t: 0.99}) for k, t in enumerate(tokens)]
            choice["logprobs"] = {"content": content}
            if fault == "bare":  # only what is needed: no log-probability of what was written, nothing of later tokens
                content[0].pop("logprob")
                content.append({"token": "", "logprob": None, "top_logprobs": None})
            if fault == "impossible":
                content[0]["top_logprobs"] = [{**t, "logprob": -0.01} for t in content[0]["top_logprobs"]]
        if fault == "filterstop":
            message["content"], choice["finish_reason"] = None, "content_filter"
        made = {"object": "chat.completion", "choices": [] if fault == "empty" else [choice]}
        made["model"] = "another-model-7b" if fault == "wrongmodel" else self.served_as or body["model"]
        if self.mark:
            made["system_fingerprint"] = self.mark(self.counts["requests"])
        if fault != "nousage":
            read = sum(len(m["content"]) // 4 + 4 for m in body["messages"])
            made["usage"] = {"prompt_tokens": read, "completion_tokens": len(tokens) + self.thinks}
            made["usage"] |= {"completion_tokens_details": {"reasoning_tokens": self.thinks}} if self.thinks else {}
        return made

    def score(self, text):
        sha = fingerprint(text)
        if sha in self.scores.get("messages", {}):
            return self.scores["messages"][sha]
        for parts, score in self.scores.get("contains", ()):
            if all(p in text for p in ([parts] if isinstance(parts, str) else parts)):
                return score
        return self.scores.get("default", score_from(sha))

    def judged(self, score, fault):
        """(tokens written, probabilities of the first)."""
        if fault == "refusal":
            return ["I'm sorry, but I can't help with that."], {"I": 0.99}
        if isinstance(score, str):
            return [score], {score: 0.97}
        said = str(round(score))
        return (list(said), {said[0]: 0.97}) if self.split else ([said], distribution(score))

    def token(self, token, top):
        left = max(1 - sum(top.values()), 1e-9)
        entries = sorted(top.items(), key=lambda e: -e[1])[:20]
        if self.repeat:  # two tokens with one string, as byte-level vocabularies have
            first, mass = entries[0]
            entries = [(first, mass * 0.75), (first, mass * 0.25), *entries[1:19]]
        fill = [w for w in _FILLER if w not in top][: 20 - len(entries)]
        entries += [(w, left / (len(fill) + 1)) for w in fill]
        listed = [{"token": t, "logprob": math.log(p)} for t, p in entries]
        return {**listed[0], "token": token, "top_logprobs": listed}


def running(**options):
    """Serve in a thread for the length of a `with` block; gives the server."""
    return core.running(Server(**options))
