"""Usage: read from each API's answers, and over a handoff that of one worker."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import sse
from router.api import (
    Dialect,
    Endpoint,
    PrefillAnswer,
    Usage,
    correct_whole,
    prefill_answer,
    usage_of,
)


def encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "total_tokens": 107,
    "prompt_tokens_details": {"cached_tokens": 32, "created_cache_tokens": 0},
}
RESPONSES = {
    "input_tokens": 100,
    "output_tokens": 7,
    "total_tokens": 107,
    "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 1},
}
MESSAGES = {
    "input_tokens": 68,
    "output_tokens": 7,
    "cache_read_input_tokens": 32,
    "cache_creation_input_tokens": 0,
}
TOLD = Usage(100, 7, 32, 0)
BY_ENDPOINT = {
    Endpoint.CHAT: OPENAI,
    Endpoint.COMPLETIONS: OPENAI,
    Endpoint.RESPONSES: RESPONSES,
    Endpoint.MESSAGES: MESSAGES,
}


@pytest.mark.parametrize(("endpoint", "usage"), BY_ENDPOINT.items())
def test_whole_answers(endpoint: Endpoint, usage: dict[str, Any]) -> None:
    """All three figures mean the same everywhere; Anthropic's parts of the prompt add up."""
    body = {"id": "x", "choices": [{"text": '"usage":{}'}], "usage": usage}
    assert usage_of(endpoint, encoded(body)) == TOLD


def test_without_details() -> None:
    """What the engine does not say is None, not 0."""
    bare = {"usage": {"prompt_tokens": 5, "total_tokens": 5, "prompt_tokens_details": None}}
    assert usage_of(Endpoint.EMBEDDINGS, encoded(bare)) == Usage(5, 0)
    bare = {"usage": {"input_tokens": 5, "output_tokens": 1}}
    assert usage_of(Endpoint.MESSAGES, encoded(bare)) == Usage(5, 1)
    assert usage_of(Endpoint.RESPONSES, encoded(bare)) == Usage(5, 1)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"usage":null}', b'{"usage":{}}', b'{"usage":[1]}']
)
@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_none(endpoint: Endpoint, body: bytes) -> None:
    """What cannot be read is no usage, and no error."""
    assert usage_of(endpoint, body) is None


class TestPrefillAnswer:
    @pytest.mark.parametrize(("endpoint", "usage"), BY_ENDPOINT.items())
    def test_an_offer(self, endpoint: Endpoint, usage: dict[str, Any]) -> None:
        """Parameters as they came, and what computing the prompt took."""
        params = {"remote_block_ids": [[1]], "x": 1.5, "y": None}
        body = encoded({"usage": usage, "kv_transfer_params": params})
        assert prefill_answer(endpoint, body) == PrefillAnswer(params, TOLD)

    @pytest.mark.parametrize(
        "change",
        [
            {"kv_transfer_params": None},
            {"kv_transfer_params": {}},
            {"kv_transfer_params": {"remote_block_ids": []}},
            {"kv_transfer_params": [1]},
            {"usage": None},
            {"usage": {"prompt_tokens": 0}},
            {"usage": {"prompt_tokens": "1"}},
        ],
    )
    def test_no_offer(self, change: dict[str, Any]) -> None:
        """Nothing to pull, or no sound count."""
        good = {"usage": OPENAI, "kv_transfer_params": {"remote_block_ids": [[1]]}}
        assert prefill_answer(Endpoint.CHAT, encoded(good)) is not None
        assert prefill_answer(Endpoint.CHAT, encoded({**good, **change})) is None
        assert prefill_answer(Endpoint.CHAT, b"{") is None


class TestCorrection:
    @pytest.mark.parametrize(("endpoint", "usage"), BY_ENDPOINT.items())
    def test_whole(self, endpoint: Endpoint, usage: dict[str, Any]) -> None:
        """Decode's figures of the cache become prefill's; the total stays."""
        prefill = Usage(100, 1, 40, 56)
        body = encoded({"a": 1e-05, "usage": usage, "z": "\u00e9"})
        found = usage_of(endpoint, correct_whole(endpoint, body, prefill))
        assert found == Usage(100, 7, 40, 56)

    def test_the_rest_of_the_body_is_untouched(self) -> None:
        """Every byte outside ``usage``, spaces and number formats included."""
        body = b'{"a": 1E-05, "usage":' + encoded(OPENAI) + b', "z": {"b":  [1.0, "\\u00e9"]}}'
        corrected = correct_whole(Endpoint.CHAT, body, Usage(100, 1, 32, 64))
        assert b"1E-05" in corrected
        assert b'{"b":  [1.0, "\\u00e9"]}' in corrected
        assert b'"created_cache_tokens":64' in corrected

    @pytest.mark.parametrize("prefill", [Usage(100, 1), Usage(100, 1, 32), Usage(100, 1, 32, 0)])
    def test_nothing_to_correct(self, prefill: Usage) -> None:
        """The body itself, when prefill said nothing or the same."""
        body = encoded({"usage": OPENAI})
        assert correct_whole(Endpoint.CHAT, body, prefill) is body

    def test_figures_are_not_invented(self) -> None:
        """An engine that gives no details is not given any."""
        bare = {"usage": {"prompt_tokens": 5, "prompt_tokens_details": None}}
        others: list[Any] = [bare, {"usage": {"prompt_tokens": 5}}, {"usage": None}, {}, []]
        for answer in others:
            body = encoded(answer)
            assert correct_whole(Endpoint.CHAT, body, Usage(5, 1, 1, 1)) is body


def streams() -> dict[Dialect, tuple[bytes, bytes, bytes]]:
    """Of each dialect: events before, the one with usage, events after."""
    text = 'says "usage": {"prompt_tokens": 1} and more'
    chunk = encoded({"choices": [{"text": text}], "usage": None})
    completed = {"type": "response.completed", "response": {"output": [text], "usage": RESPONSES}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": MESSAGES}
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 1}}}
    return {
        Dialect.OPENAI: (
            b"data: " + chunk + b"\n\n",
            b"data: " + encoded({"choices": [], "usage": OPENAI}) + b"\n\n",
            b"data: [DONE]\n\n",
        ),
        Dialect.RESPONSES: (
            b"event: response.output_text.delta\ndata: " + encoded({"delta": text}) + b"\n\n",
            b"event: response.completed\ndata: " + encoded(completed) + b"\n\n",
            b"",
        ),
        Dialect.MESSAGES: (
            b"event: message_start\ndata: " + encoded(start) + b"\n\n",
            b"event: message_delta\ndata: " + encoded(delta) + b"\n\n",
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        ),
    }


@pytest.mark.parametrize("dialect", list(Dialect))
class TestStreams:
    def test_the_tail(self, dialect: Dialect) -> None:
        """The usage near the end is found, whatever a text says."""
        before, bearing, after = streams()[dialect]
        assert sse.usage_in_tail(dialect, before + bearing + after) == TOLD
        assert sse.usage_in_tail(dialect, bearing) == TOLD
        assert sse.usage_in_tail(dialect, before * 3 + after) is None
        assert sse.usage_in_tail(dialect, b"") is None

    def test_correction(self, dialect: Dialect) -> None:
        """Only the event that bears usage changes."""
        before, bearing, after = streams()[dialect]
        prefill = Usage(100, 1, 40, 56)
        corrected = sse.correct_events(dialect, before + bearing + after, prefill)
        assert corrected.startswith(before)
        assert corrected.endswith(after)
        assert sse.usage_in_tail(dialect, corrected) == Usage(100, 7, 40, 56)
        assert len(sse.split_events(corrected)) == len(sse.split_events(before + bearing + after))

    def test_nothing_to_correct(self, dialect: Dialect) -> None:
        """The very bytes come back."""
        before, bearing, after = streams()[dialect]
        for data, prefill in (
            (before + after, Usage(1, 1, 1, 1)),
            (bearing, Usage(100, 1)),
            (bearing, Usage(100, 1, 32, 0)),
        ):
            assert sse.correct_events(dialect, data, prefill) is data


@given(st.sampled_from(list(Dialect)), st.binary(max_size=60))
def test_no_bytes_break_it(dialect: Dialect, raw: bytes) -> None:
    """Whatever an engine sends, reading usage neither fails nor changes it."""
    data = b'data: {"usage":' + raw + b"\n\n"
    sse.usage_in_tail(dialect, data)
    sse.usage_in_tail(dialect, raw)
    assert sse.correct_events(dialect, raw, Usage(1, 1, 1, 1)) == raw
