"""Requests: what is refused, what is taken out, and what each leg is sent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import InvalidRequest, OurFault
from router.api import (
    GENERATING,
    MAX_DEPTH,
    PASSED_THROUGH,
    Endpoint,
    GenerateRequest,
    LocalReason,
    as_chat,
    count_question,
    decode_body,
    greedy,
    parse_passthrough,
    parse_request,
    prefill_body,
    prompt_bytes_of,
    session_of,
)

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "m", "messages": MESSAGES}
COMPLETION = {"model": "m", "prompt": "hi"}
RESPONSE = {"model": "m", "input": "hi"}
MESSAGE = {"model": "m", "messages": MESSAGES, "max_tokens": 8}


def chat(**fields: Any) -> GenerateRequest:
    return parse_request(Endpoint.CHAT, json.dumps({**CHAT, **fields}).encode())


def completion(**fields: Any) -> GenerateRequest:
    return parse_request(Endpoint.COMPLETIONS, json.dumps({**COMPLETION, **fields}).encode())


def refused(endpoint: Endpoint, raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(endpoint, raw)
    return caught.value


def nested(levels: int) -> bytes:
    """A body whose arrays and objects are ``levels`` deep, the body itself being the first."""
    inner = b"[" * (levels - 1) + b"]" * (levels - 1)
    return b'{"model":"m","prompt":"hi","deep":' + inner + b"}"


class TestParse:
    def test_reads_a_chat(self) -> None:
        """A plain chat may be handed over, and its body stays what the client wrote."""
        request = chat(stream=True, temperature=0.5)
        assert request.endpoint is Endpoint.CHAT
        assert (request.model, request.stream) == ("m", True)
        assert (request.local_reason, request.stripped) == (None, False)
        assert request.max_new_tokens is None
        assert request.body == {**CHAT, "stream": True, "temperature": 0.5}

    @pytest.mark.parametrize(
        ("fields", "limit"),
        [
            ({}, 16),
            ({"max_tokens": None}, 16),
            ({"max_tokens": 7}, 7),
            ({"max_tokens": 0, "echo": True}, 0),
        ],
    )
    def test_completion_limit(self, fields: dict[str, Any], limit: int) -> None:
        """Completions have the engine's default of 16 new tokens; none at all only with echo."""
        assert completion(**fields).max_new_tokens == limit

    @pytest.mark.parametrize(
        ("fields", "limit"),
        [
            ({"max_tokens": 5}, 5),
            ({"max_completion_tokens": 6}, 6),
            ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ],
    )
    def test_chat_limit(self, fields: dict[str, Any], limit: int) -> None:
        """For chats max_completion_tokens wins over max_tokens."""
        assert chat(**fields).max_new_tokens == limit

    @pytest.mark.parametrize("prompt", ["hi", [1, 2, 3], [0]])
    def test_one_prompt_is_not_local(self, prompt: Any) -> None:
        """A string and a list of token ids are one prompt each."""
        assert completion(prompt=prompt).local_reason is None

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{",
            b"nul",
            b'{"model":"m","prompt":"hi"} x',
            b'{"model":"m","prompt":"\xff"}',
            b'{"model":"m","prompt":"\xed\xa0\x80"}',
            b'\xef\xbb\xbf{"model":"m","prompt":"hi"}',
            b'{"model":"m","prompt":"\\ud800"}',
            b'{"model":"m","prompt":"\\udc00x"}',
            b'{"model":"m","prompt":"hi","temperature":NaN}',
            b'{"model":"m","prompt":"hi","temperature":-Infinity}',
            b'{"model":"m","prompt":"hi","temperature":1e999}',
            b'{"model":"m","prompt":"hi","seed":' + b"9" * 10_000 + b"}",
            b"[]",
            b'"hi"',
            b"1",
            b"null",
        ],
    )
    def test_refuses_what_is_no_json_object(self, raw: bytes) -> None:
        """Bad JSON, bad UTF-8, numbers beyond JSON and other values are the client's fault."""
        assert refused(Endpoint.COMPLETIONS, raw).status == 400

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"model": None}, "model"),
            ({"model": ""}, "model"),
            ({"model": 1}, "model"),
            ({"model": "m" * 513}, "model"),
            ({"messages": None}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": {"role": "user"}}, "messages"),
            ({"messages": "hi"}, "messages"),
            ({"messages": ["hi"]}, "messages[0]"),
            ({"messages": [*MESSAGES, {"content": "hi"}]}, "messages[1].role"),
            ({"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role"),
            ({"messages": [{"role": "", "content": "hi"}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_completion_tokens": 0}, "max_completion_tokens"),
            ({"max_completion_tokens": 1.0}, "max_completion_tokens"),
            ({"logprobs": 1}, "logprobs"),
        ],
    )
    def test_refuses_a_chat(self, change: dict[str, Any], param: str) -> None:
        """The error names the field at fault."""
        assert refused(Endpoint.CHAT, json.dumps({**CHAT, **change}).encode()).param == param

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"prompt": None}, "prompt"),
            ({"prompt": ""}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"prompt": 1}, "prompt"),
            ({"prompt": {}}, "prompt"),
            ({"prompt": [None]}, "prompt"),
            ({"prompt": [1.5]}, "prompt"),
            ({"prompt": [True, 1]}, "prompt"),
            ({"prompt": [1, True]}, "prompt"),
            ({"prompt": [1, -1]}, "prompt"),
            ({"prompt": ["a", 1]}, "prompt"),
            ({"prompt": [[1], 2]}, "prompt"),
            ({"prompt": [[1], ["a"]]}, "prompt"),
            ({"prompt": [[-1]]}, "prompt"),
            ({"prompt_embeds": 1}, "prompt_embeds"),
            ({"prompt_embeds": []}, "prompt_embeds"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": -1, "echo": True}, "max_tokens"),
            ({"max_tokens": "7"}, "max_tokens"),
            ({"max_tokens": True}, "max_tokens"),
            ({"stream": "true"}, "stream"),
            ({"stream": 1}, "stream"),
            ({"n": 0}, "n"),
            ({"n": "2"}, "n"),
            ({"n": 2.0}, "n"),
            ({"n": True}, "n"),
            ({"best_of": 0}, "best_of"),
            ({"use_beam_search": "yes"}, "use_beam_search"),
            ({"prompt_logprobs": "1"}, "prompt_logprobs"),
            ({"prompt_logprobs": -2}, "prompt_logprobs"),
            ({"echo": 1}, "echo"),
            ({"logprobs": True}, "logprobs"),
            ({"min_tokens": -1}, "min_tokens"),
            ({"min_tokens": 17}, "min_tokens"),
            ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
            ({"truncate_prompt_tokens": "1"}, "truncate_prompt_tokens"),
            ({"stream_options": []}, "stream_options"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"return_token_ids": 1}, "return_token_ids"),
            ({"vllm_xargs": "kv_transfer_params"}, "vllm_xargs"),
        ],
    )
    def test_refuses_a_completion(self, change: dict[str, Any], param: str) -> None:
        """No type that the engine would quietly turn into another gets past the router."""
        raw = json.dumps({**COMPLETION, **change}).encode()
        assert refused(Endpoint.COMPLETIONS, raw).param == param

    def test_depth_is_bounded(self) -> None:
        """The last allowed depth passes, one more is refused, and no depth breaks the stack."""
        assert parse_request(Endpoint.COMPLETIONS, nested(MAX_DEPTH)).model == "m"
        for levels in (MAX_DEPTH + 1, 900, 200_000):
            assert "nested" in refused(Endpoint.COMPLETIONS, nested(levels)).message
        refused(Endpoint.COMPLETIONS, b'{"a":' * 200_000 + b"1" + b"}" * 200_000)

    def test_many_brackets_are_no_depth(self) -> None:
        """Width is not depth: a thousand short arrays and brackets in texts pass."""
        assert completion(wide=[[]] * 1000, prompt="[{" * 500).model == "m"

    def test_null_is_absent(self) -> None:
        """A null in a field that the router reads is dropped: the engine refuses some of them."""
        request = completion(n=None, stream=None, echo=None, use_beam_search=None, suffix=None)
        assert request.body == {**COMPLETION, "suffix": None}
        assert request.local_reason is None

    def test_the_last_of_duplicate_keys_counts(self) -> None:
        """The engine is sent what the router has read, so the two cannot differ."""
        raw = b'{"model":"a","model":"m","prompt":"hi","n":1,"n":3}'
        request = parse_request(Endpoint.COMPLETIONS, raw)
        assert request.local_reason is LocalReason.SEVERAL_CHOICES
        assert decode_body(request, None) == b'{"model":"m","prompt":"hi","n":3}'

    def test_numbers_survive(self) -> None:
        """Integers stay integers of any size, floats stay floats."""
        raw = (
            b'{"model":"m","prompt":"hi","a":1,"b":1.0,"c":36893488147419103232,'
            b'"d":-9223372036854775809,"e":0.1,"f":5e-324,"g":-0.0}'
        )
        assert decode_body(parse_request(Endpoint.COMPLETIONS, raw), None) == raw

    def test_text_survives(self) -> None:
        """Astral characters, NUL and combining marks come out as they went in."""
        text = "😀 \x00 é 日本 </script>"
        assert json.loads(decode_body(completion(prompt=text), None))["prompt"] == text


class TestTransferParams:
    @pytest.mark.parametrize(
        "fields",
        [
            {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.1"}},
            {"kv_transfer_params": "x"},
            {"ec_transfer_params": {"a": 1}},
            {"new_transfer_params": {"a": 1}},
            {"vllm_xargs": {"kv_transfer_params": "x"}},
            {"vllm_xargs": {"ec_transfer_params": ["x"]}},
            {"vllm_xargs": {"kv_cache_report_mode": "full"}},
        ],
    )
    def test_a_client_cannot_set_them(self, fields: dict[str, Any]) -> None:
        """Every field that ends up among the engine's transfer parameters is taken out."""
        for request in (chat(**fields), completion(**fields)):
            assert request.stripped
            assert not fields.keys() & request.body.keys()
            assert b"transfer_params" not in decode_body(request, None)

    def test_nothing_said_is_nothing_stripped(self) -> None:
        """A null goes too, but is no attempt."""
        request = chat(kv_transfer_params=None, vllm_xargs={"kv_transfer_params": None})
        assert not request.stripped
        assert request.body == CHAT

    def test_other_extra_arguments_stay(self) -> None:
        """Arguments for the engine's own extensions pass."""
        request = chat(vllm_xargs={"my_logits": 1.5, "kv_transfer_params": "x"})
        assert request.body["vllm_xargs"] == {"my_logits": 1.5}

    def test_a_duplicate_does_not_smuggle(self) -> None:
        """Writing the field twice leaves none."""
        raw = b'{"model":"m","prompt":"x","kv_transfer_params":null,"kv_transfer_params":{"a":1}}'
        request = parse_request(Endpoint.COMPLETIONS, raw)
        assert request.stripped
        assert decode_body(request, None) == b'{"model":"m","prompt":"x"}'

    def test_an_escaped_key_does_not_smuggle(self) -> None:
        """A key written with escapes is the same key."""
        raw = b'{"model":"m","prompt":"x","kv\\u005ftransfer_params":{"a":1}}'
        assert parse_request(Endpoint.COMPLETIONS, raw).body == {"model": "m", "prompt": "x"}


IMAGE = {"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}


class TestLocalReason:
    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"prompt": ["a", "b"]}, LocalReason.PROMPT_LIST),
            ({"prompt": ["a"]}, LocalReason.PROMPT_LIST),
            ({"prompt": [[1, 2]]}, LocalReason.PROMPT_LIST),
            ({"n": 2}, LocalReason.SEVERAL_CHOICES),
            ({"best_of": 2}, LocalReason.SEVERAL_CHOICES),
            ({"use_beam_search": True}, LocalReason.BEAM_SEARCH),
            ({"prompt_logprobs": 0}, LocalReason.PROMPT_LOGPROBS),
            ({"prompt_logprobs": -1}, LocalReason.PROMPT_LOGPROBS),
            ({"echo": True, "logprobs": 0}, LocalReason.ECHO_LOGPROBS),
            ({"prompt_embeds": "AAAA"}, LocalReason.PROMPT_EMBEDS),
            ({"prompt": None, "prompt_embeds": ["AAAA"]}, LocalReason.PROMPT_EMBEDS),
            ({"truncate_prompt_tokens": -1}, LocalReason.TRUNCATION),
            ({"echo": True}, None),
            ({"logprobs": 5}, None),
            ({"n": 1, "best_of": 1, "use_beam_search": False}, None),
        ],
    )
    def test_completions(self, fields: dict[str, Any], reason: LocalReason | None) -> None:
        """What would come back wrong from a handoff is kept on one engine."""
        assert completion(**fields).local_reason is reason

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"n": 2}, LocalReason.SEVERAL_CHOICES),
            ({"echo": True}, LocalReason.ECHO_LOGPROBS),
            ({"logprobs": True, "top_logprobs": 5}, None),
            ({"messages": [{"role": "user", "content": [IMAGE]}]}, LocalReason.MEDIA),
            ({"messages": [{"role": "user", "content": [{"image_url": "x"}]}]}, LocalReason.MEDIA),
            ({"messages": [{"role": "user", "content": [{"type": 1}]}]}, LocalReason.MEDIA),
            ({"messages": [{"role": "user", "content": [{"type": "new"}]}]}, LocalReason.MEDIA),
            ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, None),
            ({"messages": [{"role": "assistant", "content": None}]}, None),
        ],
    )
    def test_chats(self, fields: dict[str, Any], reason: LocalReason | None) -> None:
        """Echo in a chat implies prompt logprobs; media are fetched by each engine."""
        assert chat(**fields).local_reason is reason

    def test_a_local_request_has_no_handoff_bodies(self) -> None:
        """Sending one to prefill, or with parameters to decode, is a bug and not a request."""
        request = completion(n=2)
        with pytest.raises(OurFault):
            prefill_body(request)
        with pytest.raises(OurFault):
            decode_body(request, {"remote_host": "h"})
        assert json.loads(decode_body(request, None))["n"] == 2


OFFER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class TestBodies:
    def test_prefill_of_a_chat(self) -> None:
        """One token, one choice, no stream, and an offer; what would clash with that is gone."""
        request = chat(
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=50,
            min_tokens=10,
            best_of=1,
            echo=False,
            return_token_ids=True,
        )
        before = json.dumps(request.body)
        assert json.loads(prefill_body(request)) == {
            **CHAT,
            "max_tokens": 1,
            "max_completion_tokens": 1,
            "n": 1,
            "stream": False,
            "kv_transfer_params": OFFER,
        }
        assert json.dumps(request.body) == before

    def test_prefill_of_a_completion(self) -> None:
        """Completions know no max_completion_tokens."""
        assert json.loads(prefill_body(completion(echo=True))) == {
            **COMPLETION,
            "max_tokens": 1,
            "n": 1,
            "stream": False,
            "kv_transfer_params": OFFER,
        }

    def test_prefill_keeps_what_shapes_the_prompt(self) -> None:
        """Otherwise decode would read another prompt than the one whose KV it pulls."""
        shaping = {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": "required",
            "response_format": {"type": "json_object"},
            "chat_template_kwargs": {"enable_thinking": False},
            "add_generation_prompt": False,
            "continue_final_message": True,
            "add_special_tokens": True,
            "documents": [{"title": "t", "text": "x"}],
            "reasoning_effort": "low",
            "cache_salt": "salt",
            "logprobs": True,
            "stop": ["x"],
        }
        sent = json.loads(prefill_body(chat(**shaping)))
        assert {key: sent[key] for key in shaping} == shaping

    def test_decode_carries_the_parameters_unchanged(self) -> None:
        """Prefill's answer goes through as it is, even what the router knows nothing of."""
        params = {"remote_block_ids": [[1, 2]], "remote_port": 5600, "x": None, "y": 1.0}
        request = chat(max_tokens=50, stream=True)
        sent = msgspec.json.decode(decode_body(request, params))
        assert sent == {**CHAT, "max_tokens": 50, "stream": True, "kv_transfer_params": params}
        assert "kv_transfer_params" not in request.body


FIELDS = [
    *("model", "messages", "prompt", "prompt_embeds", "stream", "stream_options", "n", "best_of"),
    *("max_tokens", "max_completion_tokens", "min_tokens", "use_beam_search", "prompt_logprobs"),
    *("echo", "logprobs", "truncate_prompt_tokens", "vllm_xargs", "kv_transfer_params", "other"),
    *("input", "instructions", "max_output_tokens", "tools", "tool_choice", "store", "background"),
    *("previous_response_id", "previous_input_messages", "truncation", "reasoning"),
    *("system", "thinking", "metadata", "user", "temperature", "chat_template_kwargs"),
]
KEYS = st.sampled_from(["role", "content", "type", "text", "kv_transfer_params"]) | st.text()
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.sampled_from(["m", "user", "text", "tool", "function", "message"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
BASES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: CHAT,
    Endpoint.COMPLETIONS: COMPLETION,
    Endpoint.RESPONSES: RESPONSE,
    Endpoint.MESSAGES: MESSAGE,
}


LIMITS: dict[Endpoint, tuple[str, ...]] = {
    Endpoint.CHAT: ("max_tokens", "max_completion_tokens"),
    Endpoint.COMPLETIONS: ("max_tokens",),
    Endpoint.RESPONSES: ("max_output_tokens",),
    Endpoint.MESSAGES: ("max_tokens",),
}


def check_invariants(endpoint: Endpoint, raw: bytes) -> None:
    try:
        request = parse_request(endpoint, raw)
    except InvalidRequest:
        return
    sent = json.loads(decode_body(request, None))
    assert sent["model"] == request.model
    assert "kv_transfer_params" not in sent
    assert "kv_transfer_params" not in sent.get("vllm_xargs", {})
    prompt_bytes_of(request)
    session_of(request)
    greedy(request)
    as_chat(request)
    count_question(request)
    if request.local_reason is None:
        prefill = json.loads(prefill_body(request))
        assert prefill["stream"] is False
        assert {prefill[name] for name in LIMITS[endpoint]} == {1}
        if endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS):
            assert prefill["n"] == 1
            assert sent.get("n", 1) == 1


class TestFuzz:
    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(GENERATING), st.binary())
    def test_any_bytes(self, endpoint: Endpoint, raw: bytes) -> None:
        """Whatever arrives is a request or an InvalidRequest."""
        check_invariants(endpoint, raw)

    @settings(max_examples=800, deadline=None)
    @given(st.sampled_from(GENERATING), st.dictionaries(st.sampled_from(FIELDS), VALUES))
    def test_any_values_in_known_fields(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        """No value of any type gets a handoff that would go wrong, or an exception of ours."""
        check_invariants(endpoint, json.dumps({**BASES[endpoint], **body}).encode())
        check_invariants(endpoint, json.dumps(body).encode())

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(PASSED_THROUGH), st.dictionaries(st.sampled_from(FIELDS), VALUES))
    def test_any_values_passed_through(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        """What is passed through has a model and no transfer parameters, or is refused."""
        try:
            request = parse_passthrough(endpoint, json.dumps(body).encode())
        except InvalidRequest:
            return
        sent = json.loads(request.body)
        assert sent["model"] == request.model
        assert "kv_transfer_params" not in sent
