"""The engine's guard lets nothing pass without the cluster token."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest

from baton.engine.guard import ClusterGuard

KEY = "k" * 32


async def statuses(headers: list[tuple[bytes, bytes]], path: str, kind: str = "http") -> list[Any]:
    """What is sent for a request, with the application behind the guard answering 200."""
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("status", message.get("code")))

    scope = {"type": kind, "path": path, "headers": headers}
    await ClusterGuard(application)(scope, receive, send)
    return [status for status in sent if status is not None]


@pytest.mark.parametrize(
    ("headers", "path", "expected"),
    [
        ([], "/v1/completions", [401]),
        ([], "/invocations", [401]),
        ([], "/tokenize", [401]),
        ([], "/healthz", [401]),
        ([], "/health", [200]),
        ([], "/metrics", [200]),
        ([(b"authorization", b"Bearer " + KEY.encode())], "/invocations", [200]),
        ([(b"authorization", b"bearer  " + KEY.encode())], "/v1/models", [200]),
        ([(b"authorization", KEY.encode())], "/v1/models", [401]),
        ([(b"authorization", b"Bearer ")], "/v1/models", [401]),
        ([(b"authorization", b"Basic " + KEY.encode())], "/v1/models", [401]),
        ([(b"x-api-key", KEY.encode())], "/v1/models", [401]),
    ],
)
async def test_only_the_token_opens(
    monkeypatch: pytest.MonkeyPatch,
    headers: list[tuple[bytes, bytes]],
    path: str,
    expected: list[int],
) -> None:
    """Health and metrics are open, everything else wants the token, whatever vLLM itself asks."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    assert await statuses(headers, path) == expected


async def test_websockets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with the token: no engine of ours needs them."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    headers = [(b"authorization", b"Bearer " + KEY.encode())]
    assert await statuses(headers, "/v1/realtime", kind="websocket") == [1008]


def test_no_engine_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that would be open does not start."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(RuntimeError, match="VLLM_API_KEY"):
        ClusterGuard(lambda scope, receive, send: None)  # type: ignore[arg-type, return-value]
