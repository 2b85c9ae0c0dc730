"""The official client libraries raise at the error event that the router ends a stream with."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import httpx2
import msgspec
import openai
import pytest

from baton.errors import NoWorker, StreamBroken
from router import sse
from router.api import Dialect, Endpoint, error_body

BROKEN = StreamBroken("the answer broke off")


def answering(status: int, kind: str, body: bytes) -> httpx2.Client:
    """An HTTP client without a network, to which every request is answered so."""
    return httpx2.Client(
        transport=httpx2.MockTransport(
            lambda request: httpx2.Response(status, headers={"content-type": kind}, content=body)
        )
    )


@pytest.fixture
def openai_client(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with answering(*request.param) as http:
        yield openai.OpenAI(
            api_key="k", base_url="http://router/v1", http_client=http, max_retries=0
        )


@pytest.fixture
def anthropic_client(request: pytest.FixtureRequest) -> Iterator[anthropic.Anthropic]:
    with answering(*request.param) as http:
        yield anthropic.Anthropic(
            api_key="k", base_url="http://router", http_client=http, max_retries=0
        )


def event(kind: str, **fields: object) -> bytes:
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
}
CHAT = b"data: " + msgspec.json.encode(CHUNK) + b"\n\n"
TEXT = {"output_index": 0, "content_index": 0, "item_id": "i", "logprobs": [], "delta": "a"}
RESPONSE = event("response.output_text.delta", sequence_number=4, **TEXT)
MESSAGE = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})
STREAM = "text/event-stream"


@pytest.mark.parametrize(
    "openai_client", [(200, STREAM, CHAT + sse.error_event(BROKEN))], indirect=True
)
def test_chat(openai_client: openai.OpenAI) -> None:
    """A chat: what came is given out, then the error is raised."""
    stream = openai_client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], stream=True
    )
    assert next(stream).choices[0].delta.content == "a"
    with pytest.raises(openai.APIError, match="the answer broke off") as caught:
        next(stream)
    assert caught.value.code == "stream_broken"


@pytest.mark.parametrize(
    "openai_client",
    [(200, STREAM, RESPONSE + sse.error_event(BROKEN, Dialect.RESPONSES, RESPONSE))],
    indirect=True,
)
def test_response(openai_client: openai.OpenAI) -> None:
    """A response."""
    stream = openai_client.responses.create(model="m", input="x", stream=True)
    first = next(stream)
    assert first.type == "response.output_text.delta"
    with pytest.raises(openai.APIError, match="the answer broke off"):
        next(stream)


@pytest.mark.parametrize(
    "anthropic_client",
    [(200, STREAM, MESSAGE + sse.error_event(BROKEN, Dialect.MESSAGES))],
    indirect=True,
)
def test_message(anthropic_client: anthropic.Anthropic) -> None:
    """An Anthropic message."""
    stream = anthropic_client.messages.create(
        model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}], stream=True
    )
    assert next(stream).type == "content_block_delta"
    with pytest.raises(anthropic.APIStatusError, match="the answer broke off"):
        next(stream)


JSON = "application/json"


@pytest.mark.parametrize(
    "openai_client",
    [(503, JSON, error_body(Endpoint.RESPONSES, NoWorker("none is ready")))],
    indirect=True,
)
def test_a_whole_error(openai_client: openai.OpenAI) -> None:
    """Code and type are where the library looks for them."""
    with pytest.raises(openai.InternalServerError, match="none is ready") as caught:
        openai_client.responses.create(model="m", input="x")
    assert caught.value.code == "no_worker_available"


@pytest.mark.parametrize(
    "anthropic_client",
    [(503, JSON, error_body(Endpoint.MESSAGES, NoWorker("none is ready")))],
    indirect=True,
)
def test_a_whole_anthropic_error(anthropic_client: anthropic.Anthropic) -> None:
    """So is Anthropic's type."""
    with pytest.raises(anthropic.APIStatusError, match="none is ready") as caught:
        anthropic_client.messages.create(
            model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.type == "overloaded_error"
