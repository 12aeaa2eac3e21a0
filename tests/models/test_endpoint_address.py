"""Addresses, keys and what errors mean, without a network."""

import logging

import pytest

from truing.errors import BadEndpoint, BadInput, BadModel
from truing.models.client_address import Secret, find_key, parse_address
from truing.models.client_errors import same_model, status_failure

KEY = "sk-proj-Abc123_def456-ghi789"


@pytest.mark.parametrize(
    ("text", "url", "model", "name", "remote"),
    [
        ("openai:gpt-4.1-mini", "https://api.openai.com/v1", "gpt-4.1-mini", "openai:gpt-4.1-mini", True),
        ("http://localhost:8000/v1#Qwen/Q-7B", "http://localhost:8000/v1", "Qwen/Q-7B", None, False),
        ("http://127.0.0.9:80/v1/#m", "http://127.0.0.9:80/v1", "m", "http://127.0.0.9:80/v1#m", False),
        ("http://[::1]:8000/v1#m", "http://[::1]:8000/v1", "m", None, False),
        ("http://localhost:8000#m", "http://localhost:8000/v1", "m", None, False),
        ("https://HOST.example/api/v1", "https://host.example/api/v1", "", None, True),
        ("http://localhost.example.com/v1#m", "http://localhost.example.com/v1", "m", None, True),
        ("http://10.0.0.1/v1/chat/completions#m", "http://10.0.0.1/v1", "m", None, True),
    ],
)
def test_addresses(text, url, model, name, remote):
    found = parse_address(text)
    assert (found.url, found.model, found.remote) == (url, model, remote)
    assert found.name == (name or f"{url}#{model}")
    assert parse_address(found.name) == found, "the name a judge records leads back"


def test_openai_under_another_url_is_named_for_what_it_is(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:9/v1")
    found = parse_address("openai:m")
    assert (found.name, found.remote) == ("http://localhost:9/v1#m", False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:hunter2@gateway/v1")
    with pytest.raises(BadEndpoint) as e:
        parse_address("openai:m")
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize(
    "text",
    ["openai:", "gpt-4o", "ftp://h/v1#m", "http://", "http://:8000/v1#m", "http://h:port/v1#m", "http://h:99999/v1#m",
     "https://user:hunter2@h/v1#m", "https://hunter2@h/v1#m", "https://h/v1?key=hunter2#m", "http://a b/v1#m", "http://[::1/v1#m",
     "ws://user:hunter2@h"],
)  # fmt: skip
def test_addresses_that_cannot_be_used_are_refused_without_quoting_secrets(text):
    with pytest.raises(BadInput) as e:
        parse_address(text)
    assert "hunter2" not in str(e.value)


def test_a_key_goes_to_its_own_service_only(monkeypatch):
    openai, own, elsewhere = (
        parse_address(t)
        for t in ("openai:m", "https://api.openai.com/v1#m", "https://api.openai.com.evil.example/v1#m")
    )
    for address in (openai, own):
        with pytest.raises(BadEndpoint, match="OPENAI_API_KEY"):
            find_key(address)
    assert find_key(elsewhere).reveal() == "none"
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert find_key(openai).reveal() == find_key(own).reveal() == KEY
    assert find_key(elsewhere).reveal() == "none"
    monkeypatch.setenv("TRUING_JUDGE_API_KEY", "another-key-1234")
    assert find_key(elsewhere).reveal() == find_key(own).reveal() == "another-key-1234"
    assert find_key(openai).reveal() == KEY
    assert find_key(elsewhere, "TRUING_SECOND_KEY").reveal() == "none"
    for broken in ("sk-a b", "sk-schlüssel", "sk-a\tb"):
        monkeypatch.setenv("TRUING_JUDGE_API_KEY", broken)
        with pytest.raises(BadEndpoint, match="TRUING_JUDGE_API_KEY") as e:
            find_key(elsewhere)
        assert broken not in str(e.value)


def test_a_key_is_taken_out_of_texts_in_every_form():
    key = Secret(KEY, "OPENAI_API_KEY")
    assert KEY not in f"{key!r} {key} {[key]}"
    for text in (
        f"Incorrect API key provided: {KEY}.",
        f"header was 'Bearer {KEY}'",
        f"you sent {KEY[:20]}",
        f"it ends in {KEY[-12:]}",
        "Incorrect API key provided: sk-proj-*****h789",
        "authorization: bearer something-else-entirely",
    ):
        clean = key.scrub(text)
        assert "<key>" in clean, text
        assert not any(KEY[k : k + 8] in clean for k in range(len(KEY) - 7))
        assert "h789" not in clean and "something-else" not in clean
    assert key.scrub("a judge  says\n85") == "a judge says 85"
    assert key.within("a judge", f"says\n{KEY} 85") and not key.within(KEY[:-1])
    assert len(key.scrub("x" * 5000)) <= 303
    assert Secret("none", "").scrub("none of it") == "none of it"


def test_logs_of_headers_are_dropped_and_keys_removed(caplog):
    Secret(KEY, "X")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("httpcore2.http11").debug("receive_response_headers.complete value=[(b'x-echo', b'a')]")
        logging.getLogger("httpx2").info("HTTP Request: POST %s", f"http://h/{KEY}")
        logging.getLogger("openai._base_client").debug("options: %s", {"api_key": KEY})
    assert KEY not in caplog.text and "x-echo" not in caplog.text
    assert caplog.text.count("<key>") == 2


def meaning(status, message="x", sent=(), **more):
    return status_failure(status, {"message": message, **more}, dict.fromkeys(sent, 1), "there", Secret("none", ""))


@pytest.mark.parametrize(
    ("status", "message", "param", "expected"),
    [
        (400, "Unsupported parameter: 'max_tokens' is not supported here. Use 'max_completion_tokens' instead.",
         "max_tokens", {"max_tokens"}),
        (400, "Unsupported value: 'temperature' does not support 0. Only the default (1) is supported.",
         "temperature", {"temperature"}),
        (403, "You are not allowed to request logprobs from this model", None, {"logprobs", "top_logprobs"}),
        (422, "Unexpected keys in the request: {'seed', 'top_logprobs'}", None, {"seed", "logprobs", "top_logprobs"}),
        (400, "'max_tokens' or 'max_completion_tokens' is too large: 5000. The maximum context length is 4096",
         None, set()),
        (400, "Could not finish the message because max_tokens or model output limit was reached.", None, set()),
        (400, "Invalid value for 'messages'", "messages", set()),
        (500, "temperature is not supported", None, set()),
        (401, "logprobs not allowed", None, set()),
        (400, "'top_p' is not supported", None, set()),
    ],
)  # fmt: skip
def test_which_parameter_is_refused(status, message, param, expected):
    sent = ("model", "messages", "max_tokens", "temperature", "seed", "logprobs", "top_logprobs")
    assert set(meaning(status, message, sent, param=param).parameters) == expected
    assert not meaning(status, message, ("model", "messages"), param=param).parameters


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [("gpt-4o", "gpt-4o", True), ("gpt-4o", "gpt-4o-2024-08-06", True), ("gpt-4", "gpt-4-0613", True),
     ("gpt-4o", "gpt-4o-mini", False), ("gpt-4o", "gpt-4o-mini-2024-07-18", False), ("gpt-4", "gpt-4-turbo", False),
     ("a/b", "a/b@main", True), ("a/b", "b", True), ("a/b", "c/b", False), ("m-latest", "m-2411", True),
     ("gemini-x", "models/gemini-x", True), ("qwen", "qwen-72b", False), ("judge", "jud", False)],
)  # fmt: skip
def test_which_model_answered(asked, answered, same):
    assert same_model(asked, answered) is same


@pytest.mark.parametrize(
    ("status", "more", "fatal"),
    [(401, {}, BadEndpoint), (403, {}, BadEndpoint), (402, {}, BadEndpoint), (404, {}, BadModel),
     (429, {"code": "insufficient_quota"}, BadEndpoint), (307, {}, BadEndpoint), (400, {}, None), (429, {}, None),
     (503, {}, None), (400, {"code": "content_filter"}, "refused"), (403, {"type": "flagged"}, "refused")],
)  # fmt: skip
def test_what_a_status_means(status, more, fatal):
    found = meaning(status, **more)
    assert found.refused == (fatal == "refused") and found.status == status and "HTTP" in found.text
    assert type(found.fatal) is (fatal if isinstance(fatal, type) else type(None))
