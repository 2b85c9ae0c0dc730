"""Looking at an endpoint before it is measured: what is wrong is said, with what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from baton.errors import TargetError
from benchmarks.load.resolve import base_url, resolve
from benchmarks.target import Api, Target
from tests.unit.benchmarks.load.scripted_server import ScriptedServer


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer().running() as running:
        yield running


@pytest.mark.parametrize("api", list(Api))
@pytest.mark.parametrize("stream", [True, False])
async def test_sound_endpoint(server: ScriptedServer, api: Api, stream: bool) -> None:
    """The only model is found, ``/v1`` is taken off, and the length of a word is measured."""
    server.tokens_per_word = 1.25
    target = Target(url=f"{server.url}/v1/", api=api, stream=stream, api_key="k")
    resolved = await resolve(target)
    assert (resolved.url, resolved.model) == (server.url, "m")
    assert resolved.tokens_per_word == pytest.approx(1.25)
    assert resolved.api_key == "k"
    assert server.headers[0]["authorization"] == "Bearer k"
    texts = {str(body.get("prompt") or body["messages"]) for body in server.requests}
    assert len(texts) == len(server.requests)


async def test_key(server: ScriptedServer) -> None:
    """A refused key."""
    server.key = "right"
    with pytest.raises(TargetError, match="refuses the key"):
        await resolve(Target(url=server.url, api_key="wrong"))
    assert (await resolve(Target(url=server.url, api_key="right"))).model == "m"


async def test_models(server: ScriptedServer) -> None:
    """No model, several, and an unknown one; the choices are named."""
    server.models = ["a", "b"]
    with pytest.raises(TargetError, match=r"several models.*--model: a, b"):
        await resolve(Target(url=server.url))
    with pytest.raises(TargetError, match=r"no model 'c'; it has: a, b"):
        await resolve(Target(url=server.url, model="c"))
    assert (await resolve(Target(url=server.url, model="b"))).model == "b"
    with pytest.raises(TargetError, match=r"no model 'lora', which the workload asks for.*: a, b"):
        await resolve(Target(url=server.url, model="b"), {"a", "lora"})
    assert await resolve(Target(url=server.url, model="b"), {"a"})
    server.models = []
    with pytest.raises(TargetError, match="lists no model"):
        await resolve(Target(url=server.url))


async def test_refused_options(server: ScriptedServer) -> None:
    """An endpoint that takes no ``ignore_eos`` is served with ``--no-force-output``."""
    server.refuses_force = True
    with pytest.raises(TargetError, match=r"ignore_eos.*--no-force-output"):
        await resolve(Target(url=server.url))
    assert await resolve(Target(url=server.url, force_output=False))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("http_503", "answers 503: no worker"),
        ("error_event", "answers with an error: engine died"),
        ("json", "not a stream"),
        ("garbage", "no OpenAI answer"),
        ("disconnect", "broke off"),
        ("hang", "no answer within 0.2 s"),
    ],
)
async def test_faults(server: ScriptedServer, fault: str, message: str) -> None:
    """An endpoint that fails the trial request."""
    server.fault = fault
    timeout_s = 0.2 if fault == "hang" else 10.0
    with pytest.raises(TargetError, match=message):
        await resolve(Target(url=server.url, timeout_s=timeout_s))


async def test_nobody_there() -> None:
    """A port where nothing listens."""
    with pytest.raises(TargetError, match=r"nothing answers at .*is it running"):
        await resolve(Target(url="http://127.0.0.1:9"))


async def test_no_counts(server: ScriptedServer) -> None:
    """Without usage the length of a word stays unknown."""
    server.reports_usage = False
    assert (await resolve(Target(url=server.url))).tokens_per_word is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:8000", "http://a:8000"),
        ("https://a/x/v1/", "https://a/x"),
        ("localhost:8000", None),
        ("http://", None),
        ("http://a:99999", None),
        ("http://user:secret@a", None),
        ("http://a?key=1", None),
    ],
)
def test_urls(url: str, expected: Any) -> None:
    """What is a base URL; one with a password in it is refused, and not repeated."""
    if expected is not None:
        assert base_url(url) == expected
        return
    with pytest.raises(TargetError) as caught:
        base_url(url)
    assert "secret" not in caught.value.message
