"""What the mock workers answer: bodies that an OpenAI client and a router's probes can read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from benchmarks.router.answers import (
    PAGES,
    Asked,
    BadRequest,
    first_event,
    read_request,
    token_event,
    tokenize_answer,
    usage_event,
    whole_answer,
)
from benchmarks.router.text import TokenCounter

COUNTER = TokenCounter()
CHAT = {"model": "bench", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
COMPLETION = {"model": "bench", "prompt": "hello", "max_tokens": 3}


def read(body: dict[str, Any]) -> Asked:
    return read_request(msgspec.json.encode(body), "messages" in body, COUNTER)


def answer(body: dict[str, Any], transfer: bytes = b"null") -> Any:
    return msgspec.json.decode(whole_answer(read(body), b"id-1", transfer))


def events(data: bytes) -> list[Any]:
    *found, rest = data.split(b"\n\n")
    assert rest == b""
    return [msgspec.json.decode(event.removeprefix(b"data: ")) for event in found]


def test_a_chat_is_answered_with_usage() -> None:
    """Prompt tokens are those of the template, answer tokens those asked for."""
    got = answer(CHAT, b'{"a":1}')
    assert got["choices"][0]["message"]["content"] == " la la la"
    assert got["choices"][0]["finish_reason"] == "length"
    prompt = COUNTER.chat([("user", "hello")])
    assert got["usage"]["prompt_tokens"] == prompt
    assert got["usage"]["total_tokens"] == prompt + 3
    assert got["kv_transfer_params"] == {"a": 1}


def test_a_completion_is_answered() -> None:
    """Of a text, of token ids, and of several prompts with several choices."""
    assert answer(COMPLETION)["choices"][0]["text"] == " la la la"
    assert answer(COMPLETION | {"prompt": [1, 2, 3]})["usage"]["prompt_tokens"] == 3
    got = answer(COMPLETION | {"prompt": ["a", "bc"], "n": 2})
    assert [choice["index"] for choice in got["choices"]] == [0, 1, 2, 3]
    assert got["usage"] == {"prompt_tokens": 3, "total_tokens": 15, "completion_tokens": 12}


def test_the_chat_limit_that_counts_is_the_newer_one() -> None:
    """max_completion_tokens goes before max_tokens, as in the engine."""
    assert read(CHAT | {"max_completion_tokens": 1}).tokens == 1


@pytest.mark.parametrize(
    "body", [CHAT | {"logprobs": True, "top_logprobs": 2}, COMPLETION | {"logprobs": 2}]
)
def test_logprobs_depend_on_the_prompt_alone(body: dict[str, Any]) -> None:
    """The same on each worker and for each repetition, other for another prompt."""

    def first(of: dict[str, Any]) -> float:
        found = answer(of)["choices"][0]["logprobs"]
        value = found["content"][0]["logprob"] if "content" in found else found["token_logprobs"][0]
        assert isinstance(value, float)
        return value

    other = {**body}
    if "prompt" in other:
        other["prompt"] = "another"
    else:
        other["messages"] = [{"role": "user", "content": "another"}]
    assert first(body) == first(body | {"max_tokens": 1})
    assert first(body) != first(other)


def test_alternatives_are_as_many_as_asked_for() -> None:
    """And the chosen token is the likeliest."""
    chat = answer(CHAT | {"logprobs": True, "top_logprobs": 2})["choices"][0]["logprobs"]
    assert [len(token["top_logprobs"]) for token in chat["content"]] == [2, 2, 2]
    text = answer(COMPLETION | {"logprobs": 3})["choices"][0]["logprobs"]
    best = max(text["top_logprobs"][0].items(), key=lambda item: item[1])
    assert best == (text["tokens"][0], text["token_logprobs"][0])


@pytest.mark.parametrize("body", [CHAT, COMPLETION])
def test_a_stream_says_the_same(body: dict[str, Any]) -> None:
    """Its pieces are the whole answer's text; only the last has the reason for the end."""
    asked = read(body | {"stream": True, "stream_options": {"include_usage": True}})
    pieces = [token_event(asked, b"id", at) for at in range(asked.tokens)]
    data = first_event(asked, b"id") + b"".join(pieces) + usage_event(asked, b"id")
    *chunks, usage = events(data)
    said = [c["choices"][0].get("delta", c["choices"][0]) for c in chunks]
    assert "".join(p.get("content", p.get("text")) for p in said) == " la la la"
    assert [c["choices"][0]["finish_reason"] for c in chunks][-2:] == [None, "length"]
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["choices"] == []


def test_no_usage_without_being_asked() -> None:
    """As in the API."""
    assert usage_event(read(CHAT | {"stream": True}), b"id") == b""


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"messages":[]}', b'{"max_tokens":"x"}'])
def test_nonsense_is_refused(body: bytes) -> None:
    """As a bad request, not as a crash."""
    for chat in (True, False):
        with pytest.raises(BadRequest):
            read_request(body, chat, COUNTER)
    with pytest.raises(BadRequest):
        tokenize_answer(body, COUNTER)


def test_tokenize_counts_what_usage_says() -> None:
    """A router compares the two."""
    for body in (CHAT, COMPLETION):
        got = msgspec.json.decode(tokenize_answer(msgspec.json.encode(body), COUNTER))
        assert got["count"] == len(got["tokens"]) == answer(body)["usage"]["prompt_tokens"]


def test_pages_that_say_json_are_json() -> None:
    """Whatever a router asks a worker at its start."""
    for kind, body in PAGES.values():
        if kind == "application/json":
            msgspec.json.decode(body)
