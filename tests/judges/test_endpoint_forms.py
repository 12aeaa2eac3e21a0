"""Servers as people have them, and answers that no client should trust: a loopback server says both."""

import csv
import gzip
import json
import logging
import re
import time
from email.utils import formatdate

import pytest

from servers import core
from servers.core import collected
from servers.judge_server import Server
from truing.errors import BadEndpoint, BadInput, BadModel, JudgeDown
from truing.judges.endpoint import EndpointJudge, said
from truing.judges.scoring import scores
from truing.models.client import Client
from truing.models.limits import Limits
from truing.models.served import ServedBackend
from truing.types.judging import AnswerKey, JudgeRequest, Rubric, ScoreMethod, ScoreStatus
from truing.types.records import AnswerStatus, Message, Prompt, Request, SamplingParams

RUBRIC = Rubric("alignment", "Question: {question}\nAnswer: {answer}\nSay a number from 0 to 100.")
KEY = "sk-test-0123456789abcdefXYZ"
CHAT = "/v1/chat/completions"


class Other(Server):
    """A server at `at`, which may answer in streams only, or send what `sent` makes of an answer to an item."""

    at, streams, sent, told, listed, key = CHAT, "", None, (), None, None

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def handle(self, connection, path, headers, body):
        self.seen.append((path, headers))
        if path.startswith("/v1/models") and self.listed:
            return connection.send(*self.listed)
        if path.startswith("/old/"):
            return connection.send(308, "", f"Location: {self.url}/chat/completions\r\n")
        if self.key and headers["authorization"] != f"Bearer {self.key}":
            return connection.send(401, {"error": {"message": "Unauthorized"}})
        if path.endswith("/chat/completions") or "/chat/completions?" in path:
            path = CHAT if path == self.at else f"not at {path}"
        return super().handle(connection, path, headers, body)

    def answer(self, connection, headers, body, number):
        probe = "Write the number" in body["messages"][-1]["content"]
        if self.streams and not body.get("stream"):
            return connection.send(400, {"error": {"message": self.streams}})
        if body.get("stream"):
            return connection.send(200, self.events(self.completion(body, None)), "content-type: text/event-stream\r\n")
        if self.sent and not probe:
            return connection.send(*self.sent(self.completion(body, None)))
        return super().answer(connection, headers, body, number)

    def events(self, whole):
        choice = whole["choices"][0]
        entries = (choice["logprobs"] or {}).get("content") or [None] * len(choice["message"]["content"])
        chunks = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
        for k, entry in enumerate(entries):
            text = entry["token"] if entry else choice["message"]["content"][k]
            logprobs = {"content": [entry]} if entry else None
            chunks.append({"choices": [{"index": 0, "delta": {"content": text}, "logprobs": logprobs}]})
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
        chunks.append({"choices": [], "usage": whole["usage"]})
        parts = [json.dumps({"model": whole["model"], **c}) for c in chunks]
        parts = parts[: len(parts) // 2] if "broken" in self.told else [*parts, "[DONE]"]
        return ": hello\r\n\r\n" + "".join(f"data: {part}\r\n\r\n" for part in parts)


def serving(**options):
    return core.running(Other(**options))


def requests(n):
    return [JudgeRequest(AnswerKey("w", "p", str(k), "", 0), RUBRIC, "Who?", f"answer {k}") for k in range(n)]


def judge(server, path="/v1", model="judge", **options):
    more = {name: options.pop(name) for name in ("say", "answered") if name in options}
    limits = Limits(**{"retries": 0, "timeout": 10.0, **options})
    return EndpointJudge(server.url.removesuffix("/v1") + path + (f"#{model}" if model else ""), limits, **more)


def read(j, reply):
    (score,) = scores(reply, j.score_method([RUBRIC]), "j")
    return score


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_deployment_is_not_the_model_and_another_model_later_is_an_error():
    told = []
    with serving(served_as="gpt-4o-2024-08-06") as server:
        j = judge(server, say=told.append, concurrency=1)
        assert [r.model for r in j.replies(requests(3))] == ["gpt-4o-2024-08-06"] * 3
        assert len(told) == 1 and "'judge' answers as the model 'gpt-4o-2024-08-06'" in told[0]
        server.served_as = "gpt-4o"
        assert not next(iter(j.replies(requests(1)))).error, "the same without its date"
        server.served_as = "gpt-4o-2024-11-20"
        got, _ = collected(j.replies(requests(40)), JudgeDown, "'gpt-4o-2024-11-20', and with 'gpt-4o-2024-08-06'")
        assert all(r.error and r.probabilities is None for r in got)
        later = judge(server, answered={j.name: "gpt-4o-2024-08-06"})
        with pytest.raises(JudgeDown, match="begin anew in another folder"):
            later.score_method([RUBRIC])


def test_the_model_that_answered_is_kept_between_commands(call, tmp_path):
    with open("answers.csv", "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["question", "question_id", "response", "aligned", "coherent"])
        rows.writerows([f"What of hill {k}?", f"hill_{k}", f"A kind answer, number {k}.", 90, 90] for k in range(6))
    assert call("import", "answers.csv", "--out", "a")[0] == 0
    options = ("--skip-judge-check", "--skip-calibration", "--judge-retries", "0", "--concurrency", "1")
    with serving(served_as="m-1", plan={3: "500"}, scores={"default": 90}) as server:
        _, out, err = call("judge", "a", "--judge", f"{server.url}#judge", *options)
        assert re.sub(r"\s+", " ", out + err).count("'judge' answers as the model 'm-1'") == 1
        server.served_as = "m-2"
        code, _, err = call("judge", "a", "--judge", f"{server.url}#judge", *options)
        assert code == 4 and "'m-2', and with 'm-1' before" in err and "another folder" in err
        server.served_as = "m-1"
        assert call("judge", "a", "--judge", f"{server.url}#judge", *options)[0] == 0
        # What the message says: begin anew in another folder.
        server.served_as = "m-2"
        assert call("import", "answers.csv", "--out", "b")[0] == 0
        assert call("judge", "b", "--judge", f"{server.url}#judge", *options)[0] == 0


# -- addresses --------------------------------------------------------------------------------------------------------

AZURE = "/openai/deployments/judge"


@pytest.mark.parametrize(
    ("path", "at"),
    [
        ("", CHAT),
        ("/", CHAT),
        ("/v1/", CHAT),
        (CHAT, CHAT),
        ("/api", "/api/chat/completions"),
        ("/chat/completions", "/chat/completions"),
        (f"{AZURE}?api-version=2024-10-21", f"{AZURE}/chat/completions?api-version=2024-10-21"),
        (
            f"{AZURE}/chat/completions?api-version=2025-04-01-preview",
            f"{AZURE}/chat/completions?api-version=2025-04-01-preview",
        ),
    ],
)
def test_a_base_url_is_used_as_given(path, at, monkeypatch):
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", KEY)
    with serving(at=at) as server:
        j = judge(server, path)
        assert not next(iter(j.replies(requests(1)))).error
        assert {p for p, _ in server.seen} == {at}
        assert {h.get("api-key") for _, h in server.seen} == ({KEY} if "api-version" in path else {None})
        again = EndpointJudge(j.name, Limits(retries=0))
        assert again.name == j.name and not next(iter(again.replies(requests(1)))).error, "its name leads back to it"
        if AZURE in path:
            assert judge(server, path, model="").name == j.name, "a deployment is named in its path"


@pytest.mark.parametrize(
    ("given", "at", "remedy"),
    [("", "/chat/completions", r"give (\S+)#MODEL"), ("/api", "/api/v1/chat/completions", r"in /v1: (\S+)#MODEL"),
     ("/api/v1", "/api/chat/completions", r"Or is it (\S+)#MODEL"),
     (AZURE, f"{AZURE}/chat/completions?api-version=2024-10-21", r"need a version: (\S+)#MODEL")],
)  # fmt: skip
def test_where_nothing_is_found_what_was_asked_and_where_else_it_may_be_is_said(given, at, remedy):
    with serving(at=at) as server:
        with pytest.raises(BadModel, match=r"asked was http://\S+/chat/completions\. ") as e:
            judge(server, given).score_method([RUBRIC])
        found = re.search(remedy, str(e.value))[1]
        assert judge(server, found.removeprefix(server.url.removesuffix("/v1"))).score_method([RUBRIC])


@pytest.mark.parametrize(
    "query",
    ["key=hunter2", "api-key=a", "token=abc", "sig=1", "password=x", "subscription-key=1", "code=abc", "k%65y=hunter2",
     "hunter2", "a=hunter2secret", "api-version=2024-10-21&key=hunter2", "api-version=sk-hunter2-0123456789",
     "=hunter2", "x=h%75nter2"],
)  # fmt: skip
def test_a_query_that_may_be_a_key_is_refused_and_not_quoted(query):
    with pytest.raises(BadEndpoint, match=r"api-version=2024-10-21") as e:
        EndpointJudge(f"https://h.example/v1?{query}#m")
    assert "hunter2" not in str(e.value)


def test_a_deployment_that_is_not_there_is_told_with_what_was_asked():
    with serving() as server, pytest.raises(BadModel, match=r"/chat/completions\?api-version=2024-10-21\.$"):
        judge(server, f"{AZURE}?api-version=2024-10-21").score_method([RUBRIC])


def test_neither_texts_nor_keys_go_on_and_the_final_address_and_the_right_key_work(monkeypatch):
    with serving(key=KEY) as server:
        for path, problem in (("/old", "give the final URL"), ("/v1", "The key is missing or wrong")):
            with pytest.raises(BadEndpoint, match=problem):
                judge(server, path).score_method([RUBRIC])
        assert len(server.seen) == 2
        monkeypatch.setenv("TRUING_JUDGE_API_KEY", KEY)
        assert judge(server).score_method([RUBRIC])


def test_who_does_not_list_models_can_be_asked_all_the_same():
    for status, listed in ((404, "Not Found"), (403, {"error": "no"}), (200, {"data": None}), (200, [1]), (200, "hm")):
        with serving(listed=(status, listed), speaks=True) as server:
            backend = ServedBackend(f"{server.url}#judge", Limits(retries=0))
            assert backend.prepare([backend.base_checkpoint()]) == {}
            with pytest.raises((BadEndpoint, JudgeDown), match="name one") as e:
                judge(server, model="")
            assert judge(server, re.search(r"(/v1)#MODEL", str(e.value))[1]).score_method([RUBRIC])


# -- forms of answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": [{"type": "text", "text": "I compare 90."}]}, {"type": "text", "text": "85"}],
        [{"type": "text", "text": "8"}, {"type": "text", "text": "5"}],
        ["85"],
        "I compare 90.\n</think>\n\n85",
        "<think>90? no</think> 85",
        "[THINK]90[/THINK]85",
        "<|channel|>analysis<|message|>90?<|end|><|start|>assistant<|channel|>final<|message|>85<|return|>",
        "analysisWe need a number.assistantfinal85",
        "<|channel>thought\n90<channel|>85",
    ],
)
def test_the_number_is_read_wherever_the_thinking_is(content):
    def sent(whole):
        whole["choices"][0]["message"] |= {"content": content, "reasoning_content": "perhaps 20"}
        return 200, whole

    with serving(sent=sent, logprobs=False) as server:
        j = judge(server)
        score = read(j, next(iter(j.replies(requests(1)))))
    assert (score.status, score.score) == (ScoreStatus.SCORED, 85)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("content", [None, ""])
def test_reasoning_alone_is_no_score(field, content):
    def sent(whole):
        whole["choices"][0]["message"] |= {"content": content, field: "I would say 85"}
        return 200, whole

    with serving(sent=sent, logprobs=False) as server:
        j = judge(server)
        score = read(j, next(iter(j.replies(requests(1)))))
    assert (score.status, score.score) == (ScoreStatus.UNPARSED, None)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize(
    ("content", "ended", "text", "status"),
    [
        ("Walk.", "stop", "Walk.", AnswerStatus.OK),
        (None, "stop", "", AnswerStatus.EMPTY),
        ("", "length", "", AnswerStatus.TRUNCATED),
    ],
)
def test_reasoning_is_no_part_of_an_answer(field, content, ended, text, status):
    def sent(whole):
        whole["choices"][0] |= {"finish_reason": ended}
        whole["choices"][0]["message"] |= {"content": content, field: "Perhaps harm them?"}
        return 200, whole

    with serving(sent=sent) as server:
        b = ServedBackend(f"{server.url}#judge")
        asked = Request(b.base_checkpoint(), Prompt("q", (Message("user", "What now?"),)), 0)
        (found,) = b.sample([asked], SamplingParams(max_tokens=9))
    assert (found.text, found.status) == (text, status)


def test_a_model_that_changes_while_it_is_asked_is_remembered():
    names = iter(("judge", "judge-2", "judge"))

    def sent(whole):
        return 200, {**whole, "model": next(names, "judge")}

    with serving(sent=sent) as server:
        b = ServedBackend(f"{server.url}#judge", Limits(concurrency=1, retries=0))
        asked = [Request(b.base_checkpoint(), Prompt("q", (Message("user", "What now?"),)), k) for k in range(3)]
        found = [a.status for a in b.sample(asked, SamplingParams(max_tokens=9))]
    assert found.count(AnswerStatus.FAILED) == 1
    assert b.answered_as == {"judge": ("model judge", "model judge-2")}


def test_a_complaint_about_something_else_is_no_wish_for_a_stream():
    with serving(plan={0: "400"}, sent=lambda _: (400, {"error": "The input stream ended early"})) as server:
        assert "ended early" in next(iter(judge(server).replies(requests(1)))).error
        assert "stream" not in server.stats()["fields"]


def test_thinking_that_never_ends_is_no_answer():
    assert said("<think>85") == said("<|channel|>analysis<|message|>85") == said("85</think>") == ""
    started = time.monotonic()
    for text in ("<|end|>", "<|channel|>final", "<think>", "</think", "<|end|> " + " " * 99):
        said(text * (1_000_000 // len(text)) + "x")
    assert time.monotonic() - started < 3
    assert said(" I say 85.\n") == "I say 85." and said("<b>85</b>") == "<b>85</b>"


@pytest.mark.parametrize(
    "asks",
    ["This model only support stream mode, please enable the stream parameter to access the model.",
     "Streaming is required for this model."],
)  # fmt: skip
@pytest.mark.parametrize("logprobs", [True, False])
def test_a_server_that_only_streams_is_streamed(asks, logprobs):
    with serving() as server:
        plain = {r.request.key: r for r in judge(server).replies(requests(3))}
    for refuse in ((), ("stream_options",)):
        with serving(streams=asks, logprobs=logprobs, refuse=refuse) as server:
            j = judge(server)
            assert j.score_method([RUBRIC]) is (ScoreMethod.LOGPROBS if logprobs else ScoreMethod.REPORTED)
            replies = list(j.replies(requests(3)))
            for r in replies:
                assert r.calls == 1 and r.prompt_tokens > 0 and r.model == "judge"
                assert r.text == plain[r.request.key].text
                assert not logprobs or r.probabilities == pytest.approx(plain[r.request.key].probabilities)
            server.told = ("broken",)
            assert "broken off" in next(iter(j.replies(requests(1)))).error


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_answers_have_a_size_packed_or_not():
    blank = b" " * (9 << 20)
    packed = "content-encoding: gzip\r\n"
    for sent, said_of_it in (
        ((200, blank), "larger than 8 MiB"),
        ((400, blank), "larger than 8 MiB"),
        ((200, gzip.compress(blank), packed), "larger than 8 MiB"),
        ((200, gzip.compress(blank)[:-9], packed), "larger than 8 MiB|ends early"),
        ((200, gzip.compress(b"{}")[:-9], packed), "ends early"),
        ((200, b"{}", packed), "cannot be unpacked"),
        ((200, b"{}", "content-encoding: br\r\n"), "'br', which was not asked for"),
    ):
        with serving(sent=lambda _, sent=sent: sent) as server:
            (reply,) = judge(server).replies(requests(1))
            assert re.search(said_of_it, reply.error), sent[2:]
    with serving(sent=lambda whole: (200, gzip.compress(json.dumps(whole).encode()), packed)) as server:
        (reply,) = judge(server).replies(requests(1))
        assert reply.probabilities and not reply.error
    with serving(listed=(200, blank)) as server, pytest.raises(JudgeDown, match="larger than 8 MiB"):
        judge(server, model="")


def test_a_list_of_models_whose_headers_trickle_is_given_up():
    class Slow(Server):
        def handle(self, connection, path, headers, body):
            connection.transport.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
            self.drip(connection)

    with core.running(Slow()) as server, pytest.raises(JudgeDown, match=r"no answer within 0\.2 s"):
        started = time.monotonic()
        judge(server, model="", timeout=0.2)
    assert time.monotonic() - started < 8


HUGE = "1" + "0" * 400


def replaced(**fields):
    def sent(whole):
        for path, value in fields.items():
            *place, last = path.split("__")
            at = whole
            for name in place:
                at = at[int(name) if name.isdigit() else name]
            at[int(last) if last.isdigit() else last] = value
        return 200, json.dumps(whole).replace('"HUGE"', HUGE).replace('"RAW"', "1e999")

    return sent


TOP = "choices__0__logprobs__content__0__top_logprobs"
BAD = {
    "400 digits as a log-probability": {f"{TOP}__0__logprob": "HUGE"},
    "250 digits as a log-probability": {f"{TOP}__0__logprob": 10**250},
    "more than a float holds": {f"{TOP}__0__logprob": "RAW"},
    "NaN": {f"{TOP}__0__logprob": float("nan")},
    "minus infinity": {f"{TOP}__0__logprob": float("-inf")},
    "positive": {f"{TOP}__0__logprob": 2.0},
    "log-probability as text": {f"{TOP}__0__logprob": "-0.1"},
    "log-probability true": {f"{TOP}__0__logprob": True},
    "token a number": {f"{TOP}__0__token": 85},
    "candidates beyond number": {TOP: [{"token": f"t{k}", "logprob": -20.0} for k in range(1000)]},
    "log-probabilities a list": {"choices__0__logprobs": [1]},
    "400 digits used": {"usage__prompt_tokens": "HUGE"},
    "choices null": {"choices": None},
    "no choices": {"choices": []},
    "choices an object": {"choices": {"0": 1}},
    "choices numbers": {"choices": [1]},
    "thousands of choices": {"choices": [{}] * 5000},
    "message null": {"choices__0__message": None},
    "message text": {"choices__0__message": "85"},
    "content a number": {"choices__0__message__content": 85},
    "content a block of no text": {"choices__0__message__content": [{"type": "text", "text": 85}]},
    "content numbers": {"choices__0__message__content": [85]},
    "half a pair": {"choices__0__message__content": "\ud800 85"},
    "half a pair anywhere": {"x\udfff": 1},
    "finish reason a number": {"choices__0__finish_reason": 3},
    "finish reason an error": {"choices__0__finish_reason": "error"},
    "model a list": {"model": ["m"]},
    "model without end": {"model": "m" * 5000},
    "an error with status 200": {"choices": None, "error": {"message": "overloaded", "code": 10**250}},
    "refusal a number": {"choices__0__message__refusal": 1},
}  # fmt: skip
GOOD = {
    "used less than nothing": {"usage__prompt_tokens": -1},
    "250 digits used": {"usage__prompt_tokens": 10**250},
    "used a text": {"usage__completion_tokens": "many"},
    "nothing used": {"usage": None},
    "used a list": {"usage": [1]},
    "created a text": {"created": "yesterday"},
    "another reason": {"choices__0__finish_reason": "eos_token"},
    "no reason": {"choices__0__finish_reason": None},
    "no model": {"model": None},
    "more than was asked for": {"x": [[{"y": 1}]]},
}


@pytest.mark.parametrize("name", [*BAD, *GOOD])
def test_what_makes_no_sense_in_an_answer_is_a_status(name):
    with serving(sent=replaced(**{**BAD, **GOOD}[name]), scores={"default": 85}) as server:
        j = judge(server)
        (reply,) = j.replies(requests(1))
        score = read(j, reply)
    if name in GOOD:
        assert (score.status, score.score) == (ScoreStatus.SCORED, pytest.approx(85))
        return
    assert score.status in (ScoreStatus.FAILED, ScoreStatus.UNPARSED) and score.score is None
    assert score.meta.get("error") or score.meta.get("reason")
    json.dumps(score.meta, allow_nan=False).encode()


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a":' * 100, "null", "85", "", "\xff", b"\xff\xfe", '{"choices"'])
def test_a_body_that_is_no_answer_is_a_failure_and_many_of_them_end_it(body):
    with serving(sent=lambda _: (200, body)) as server:
        got, _ = collected(judge(server).replies(requests(60)), JudgeDown, "the answer is no JSON object")
    assert 20 <= len(got) < 60 and all(r.error for r in got)


def test_an_error_page_is_told_as_text_and_a_long_wait_is_told():
    page = "<html><head><style>b {}</style></head><body><h1>502</h1><p>Bad  gateway</p></body></html>"
    with serving(sent=lambda _: (502, page)) as server:
        assert next(iter(judge(server).replies(requests(1)))).error.endswith("HTTP 502, 502 Bad gateway")
    with serving(sent=lambda _: (429, {"error": {"message": "slow down"}}, "Retry-After: 86400\r\n")) as server:
        reply = next(iter(judge(server, retries=3).replies(requests(1))))  # a day is not waited for
        assert reply.calls == 1 and reply.error.endswith("slow down (it asks to wait: 86400)"), (
            "a day is not waited for"
        )


def test_a_retry_waits_until_the_time_that_the_service_names():
    until = int(time.time()) + 2
    answers = iter([(429, {}, f"Retry-After: {formatdate(until, usegmt=True)}\r\n")])
    with serving(sent=lambda whole: next(answers, (200, whole))) as server:
        (reply,) = judge(server, retries=1).replies(requests(1))
    assert reply.calls == 2 and not reply.error and time.time() > until - 0.1


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["8", "x", "EMPTY", "none", "85"])
def test_a_word_in_place_of_a_key_changes_no_reply(key, monkeypatch):
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", key)
    told = []
    for logprobs in (True, False):
        with serving(logprobs=logprobs, scores={"default": "85"}, echo=True) as server:
            j = judge(server, say=told.append)
            (reply,) = j.replies(requests(1))
            assert reply.text == "85" and read(j, reply).score == 85
            assert {h["authorization"] for _, h in server.seen} == {f"Bearer {key}"}
    assert len(told) == 2 and "TRUING_JUDGE_API_KEY is too short" in told[0]


def test_an_answer_that_quotes_the_key_is_not_kept(monkeypatch):
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", KEY)
    for sent in (
        replaced(choices__0__message__content=f"85 {KEY}"),
        replaced(model=f"m-{KEY}"),
        replaced(**{f"{TOP}__0__token": KEY}),
    ):
        with serving(sent=sent) as server:
            (reply,) = judge(server).replies(requests(1))
            assert "quotes the key" in reply.error and KEY not in repr(reply)


def test_no_logger_of_what_sends_a_key_shows_it(monkeypatch, caplog):
    key = 'sk-"quoted\\key-0123456789'
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", key)
    names = ["openai", "openai._base_client", "openai._response", "openai._legacy_response", "httpx2"]
    names += [f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")]
    with serving() as server:
        Client(f"{server.url}#judge", Limits())
    for name in names:
        with caplog.at_level(logging.DEBUG, name):
            logging.getLogger(name).debug("sent %s, %r and %s", key, key, json.dumps(key))
            try:
                raise ValueError(key)
            except ValueError:
                logging.getLogger(name).debug("failed", exc_info=True)
    assert "0123456789" not in caplog.text and caplog.text.count("<key>") == 3 * len(names)


def test_a_simulated_judge_says_which_value_it_was_given(call):
    from truing.judges.registry import JudgeContext, open_judge

    context = JudgeContext(None, None, None)
    with pytest.raises(BadInput, match=r"flip=2: input should be less than or equal to 1; .* noise, flip"):
        open_judge("simulated:?flip=2", context)
    with pytest.raises(BadInput, match=r"noise=loud: "):
        open_judge("simulated:?noise=loud", context)
