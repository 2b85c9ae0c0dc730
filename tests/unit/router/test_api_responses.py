"""Responses and Anthropic messages: what may be handed over, and with which bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baton.errors import InvalidRequest, OurFault
from router.api import (
    GENERATING,
    PASSED_THROUGH,
    Endpoint,
    GenerateRequest,
    LocalReason,
    decode_body,
    parse_passthrough,
    parse_request,
    prefill_body,
)

RESPONSE = {"model": "m", "input": "hi"}
MESSAGE = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def response(**fields: Any) -> GenerateRequest:
    return parse_request(Endpoint.RESPONSES, json.dumps({**RESPONSE, **fields}).encode())


def message(**fields: Any) -> GenerateRequest:
    return parse_request(Endpoint.MESSAGES, json.dumps({**MESSAGE, **fields}).encode())


def blocks(*content: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(content)}]}


class TestResponses:
    def test_reads_one(self) -> None:
        """A plain response may be handed over, and its body stays what the client wrote."""
        request = response(stream=True, max_output_tokens=50, text={"verbosity": "low"})
        assert (request.endpoint, request.model, request.stream) == (Endpoint.RESPONSES, "m", True)
        assert (request.local_reason, request.max_new_tokens) == (None, 50)
        assert request.body == {
            **RESPONSE,
            "stream": True,
            "max_output_tokens": 50,
            "text": {"verbosity": "low"},
        }
        assert response().max_new_tokens is None

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"previous_response_id": "resp_1"}, LocalReason.RESPONSE_STATE),
            ({"background": True}, LocalReason.RESPONSE_STATE),
            ({"previous_input_messages": [{"role": "user"}]}, LocalReason.RESPONSE_STATE),
            ({"input": [{"type": "item_reference", "id": "x"}]}, LocalReason.RESPONSE_STATE),
            ({"input": [{"type": "computer_call"}]}, LocalReason.RESPONSE_STATE),
            ({"input": [{"type": 1}]}, LocalReason.RESPONSE_STATE),
            ({"tools": [{"type": "web_search_preview"}]}, LocalReason.ENGINE_TOOLS),
            ({"tools": [{"type": "mcp", "server_label": "x"}]}, LocalReason.ENGINE_TOOLS),
            ({"tools": [FUNCTION, {"type": "code_interpreter"}]}, LocalReason.ENGINE_TOOLS),
            ({"tools": [1]}, LocalReason.ENGINE_TOOLS),
            ({"truncation": "auto"}, LocalReason.TRUNCATION),
            ({"truncation": None}, LocalReason.TRUNCATION),
            (
                {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
                LocalReason.MEDIA,
            ),
            (
                {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
                LocalReason.MEDIA,
            ),
            (
                {
                    "input": [
                        {
                            "type": "function_call_output",
                            "call_id": "c",
                            "output": [{"type": "input_image"}],
                        }
                    ]
                },
                LocalReason.MEDIA,
            ),
            ({"truncation": "disabled"}, None),
            ({"background": False, "store": True, "previous_response_id": None}, None),
            ({"tools": [FUNCTION, {"type": "custom", "name": "c"}]}, None),
            ({"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}, None),
            ({"n": 2}, None),
            (
                {
                    "input": [
                        {"role": "user", "content": "hi"},
                        {"type": "reasoning", "summary": []},
                        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                        {"type": "function_call_output", "call_id": "c", "output": "1"},
                        {
                            "type": "message",
                            "role": "assistant",
                            "content": [{"type": "output_text", "text": "x"}],
                        },
                    ]
                },
                None,
            ),
        ],
    )
    def test_local_reason(self, fields: dict[str, Any], reason: LocalReason | None) -> None:
        """State of one engine, tools that it runs itself and what is not text stay on it. An
        unknown option (``n`` is none of this API) is the engine's to ignore."""
        assert response(**fields).local_reason is reason

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"input": None}, "input"),
            ({"input": 1}, "input"),
            ({"input": ["hi"]}, "input[0]"),
            ({"input": [{"content": "hi"}]}, "input[0].role"),
            ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"max_output_tokens": "9"}, "max_output_tokens"),
            ({"background": 1}, "background"),
            ({"store": "yes"}, "store"),
            ({"tools": {}}, "tools"),
            ({"previous_response_id": 1}, "previous_response_id"),
            ({"stream": "true"}, "stream"),
        ],
    )
    def test_refusals(self, fields: dict[str, Any], param: str) -> None:
        """The error names the field at fault."""
        with pytest.raises(InvalidRequest) as caught:
            response(**fields)
        assert caught.value.param == param

    def test_prefill(self) -> None:
        """One token under this API's name for it, kept in no store; the rest as it was."""
        request = response(
            stream=True, max_output_tokens=50, tools=[FUNCTION], enable_response_messages=True
        )
        sent = json.loads(prefill_body(request))
        assert sent.pop("kv_transfer_params")["do_remote_decode"] is True
        assert sent == {
            **RESPONSE,
            "tools": [FUNCTION],
            "max_output_tokens": 1,
            "store": False,
            "stream": False,
        }
        assert request.body["max_output_tokens"] == 50


class TestMessages:
    def test_reads_one(self) -> None:
        """A plain message may be handed over; ``max_tokens`` is its limit."""
        request = message(system="s", stream=True)
        assert (request.local_reason, request.max_new_tokens, request.stream) == (None, 8, True)
        assert request.body == {**MESSAGE, "system": "s", "stream": True}

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            (blocks({"type": "image", "source": {}}), LocalReason.MEDIA),
            (blocks({"type": "document"}), LocalReason.MEDIA),
            (blocks({"text": "no type"}), LocalReason.MEDIA),
            (
                blocks({"type": "tool_result", "content": [{"type": "image"}]}),
                LocalReason.MEDIA,
            ),
            (blocks({"type": "tool_use", "name": "f"}), LocalReason.UNSTABLE_PROMPT),
            ({"system": [{"type": "image"}]}, LocalReason.MEDIA),
            ({"tool_choice": {"type": "tool", "name": "f"}}, LocalReason.FORCED_TOOL),
            ({"tool_choice": {"type": "any"}}, None),
            ({"thinking": {"type": "enabled", "budget_tokens": 7}}, None),
            ({"thinking": {"type": "adaptive"}}, None),
            ({"system": [{"type": "text", "text": "s", "cache_control": {}}]}, None),
            (
                blocks(
                    {"type": "text", "text": "x"},
                    {"type": "tool_result", "tool_use_id": "t", "content": "1"},
                    {"type": "tool_result", "content": [{"type": "text", "text": "1"}]},
                ),
                None,
            ),
            (
                blocks(
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "redacted_thinking", "data": "d"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {}},
                    role="assistant",
                ),
                None,
            ),
        ],
    )
    def test_local_reason(self, fields: dict[str, Any], reason: LocalReason | None) -> None:
        """Images stay on one engine, and what prefill's one token or clock would spoil."""
        assert message(**fields).local_reason is reason

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"max_tokens": None}, "max_tokens"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 1.0}, "max_tokens"),
            ({"messages": []}, "messages"),
            ({"messages": ["hi"]}, "messages[0]"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
            ({"messages": [{"content": "x"}]}, "messages[0].role"),
            ({"system": 1}, "system"),
            ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
            ({"thinking": {"type": "enabled", "budget_tokens": 8}}, "thinking.budget_tokens"),
            ({"thinking": True}, "thinking"),
            ({"tool_choice": "auto"}, "tool_choice"),
        ],
    )
    def test_refusals(self, fields: dict[str, Any], param: str) -> None:
        """What decode would refuse and prefill would not is refused before any block is pinned."""
        with pytest.raises(InvalidRequest) as caught:
            message(**fields)
        assert caught.value.param == param

    def test_prefill(self) -> None:
        """One token, no stream; no field that the Anthropic API does not have."""
        sent = json.loads(prefill_body(message(stream=True, stop_sequences=["x"])))
        assert sent.pop("kv_transfer_params")["do_remote_decode"] is True
        assert sent == {**MESSAGE, "max_tokens": 1, "stop_sequences": ["x"], "stream": False}


@pytest.mark.parametrize("make", [response, message])
def test_transfer_parameters_are_stripped(make: Any) -> None:
    """In these APIs as in the others."""
    request = make(
        kv_transfer_params={"remote_host": "h"},
        ec_transfer_params={"a": 1},
        vllm_xargs={"kv_transfer_params": "x"},
    )
    assert request.stripped
    assert b"transfer_params" not in decode_body(request, None)
    sent = json.loads(decode_body(request, {"remote_host": "p"}))
    assert sent["kv_transfer_params"] == {"remote_host": "p"}


class TestPassthrough:
    @pytest.mark.parametrize("endpoint", PASSED_THROUGH)
    def test_the_body_stays(self, endpoint: Endpoint) -> None:
        """All but transfer parameters goes on as it came, null as well."""
        raw = b'{"model":"m","input":["a",1],"user":null,"kv_transfer_params":{"remote_host":"h"}}'
        request = parse_passthrough(endpoint, raw)
        assert (request.endpoint, request.model, request.stripped) == (endpoint, "m", True)
        assert request.body == b'{"model":"m","input":["a",1],"user":null}'

    @pytest.mark.parametrize("raw", [b"{}", b'{"model":1}', b"[]", b"{", b'{"model":""}'])
    def test_refusals(self, raw: bytes) -> None:
        """Without a model nobody knows where to send it."""
        with pytest.raises(InvalidRequest):
            parse_passthrough(Endpoint.EMBEDDINGS, raw)

    def test_each_endpoint_has_one_way(self) -> None:
        """Every endpoint is generating or passed through; the wrong parser is a bug of ours."""
        assert {*GENERATING, *PASSED_THROUGH} == set(Endpoint)
        with pytest.raises(OurFault):
            parse_passthrough(Endpoint.CHAT, b"{}")
        with pytest.raises(OurFault):
            parse_request(Endpoint.TOKENIZE, b"{}")
