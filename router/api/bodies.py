"""The bodies of the two legs of a request.

It exists because the two must be one prompt to the engines: whatever shapes the prompt stays as
the client wrote it, and only what is about the answer is changed for prefill. It refuses to write
either for a request that must stay on one engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from baton.errors import OurFault
from router.api.endpoints import Endpoint, GenerateRequest

_OFFER: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}

# Gone from the prefill body. Whatever could shape the prompt stays (tools, tool_choice,
# response_format, every template option, suffix, cache_salt), and so does what the engine would
# refuse: prefill is then the one to say 400, before any block is pinned.
_NOT_FOR_PREFILL: Final = (
    "stream_options",  # refused without stream
    "min_tokens",  # refused above max_tokens, which is 1
    "best_of",
    "echo",  # these four would send the prompt back to the router, for nothing
    "return_token_ids",
    "return_prompt_text",
    "enable_response_messages",
)

# One token, thrown away. A response of one token must not be kept in the engine's store.
_FOR_PREFILL: Final[Mapping[Endpoint, dict[str, Any]]] = {
    Endpoint.COMPLETIONS: {"max_tokens": 1, "n": 1},
    Endpoint.CHAT: {"max_tokens": 1, "max_completion_tokens": 1, "n": 1},
    Endpoint.RESPONSES: {"max_output_tokens": 1, "store": False},
    Endpoint.MESSAGES: {"max_tokens": 1},
}

_encode = msgspec.json.Encoder().encode


def prefill_body(request: GenerateRequest) -> bytes:
    """The body of the first leg: one token, thrown away, and the KV kept for decode.

    Raises:
        OurFault: if the request must be served locally.
    """
    if request.local_reason is not None:
        raise OurFault(f"a local request was sent to prefill: {request.local_reason}")
    body = request.body | _FOR_PREFILL[request.endpoint]
    for field in _NOT_FOR_PREFILL:
        if field in body:
            del body[field]
    body["stream"] = False
    body["kv_transfer_params"] = _OFFER
    return _encode(body)


def decode_body(request: GenerateRequest, transfer_params: Mapping[str, Any] | None) -> bytes:
    """The body of the second leg, or of the only one when ``transfer_params`` is None.

    ``transfer_params`` are those that prefill answered with; they go through unchanged.

    Raises:
        OurFault: if the request must be served locally and parameters are given.
    """
    if transfer_params is None:
        return _encode(request.body)
    if request.local_reason is not None:
        raise OurFault(f"a local request was handed over: {request.local_reason}")
    return _encode({**request.body, "kv_transfer_params": transfer_params})
