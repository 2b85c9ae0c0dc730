"""ASGI middleware inside the engine's API server: nothing without the cluster token.

vLLM asks for its API key under ``/v1`` and a few other prefixes only; ``/invocations`` runs
generations and ``/tokenize`` works without it. Whoever reaches an engine's port could then send
transfer parameters of his own, and read other requests' blocks. Only what probes and Prometheus
ask for stays open.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

OPEN_PATHS = frozenset({"/health", "/metrics"})

_BODY = (
    b'{"error": {"message": "This engine takes requests with the cluster token only.", '
    b'"type": "invalid_request_error", "param": null, "code": "invalid_api_key"}}'
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClusterGuard:
    """Lets requests with ``Authorization: Bearer <VLLM_API_KEY>`` pass, and the open paths.

    Raises:
        RuntimeError: at the start, when no key is set: an engine without one would be open.
    """

    def __init__(self, app: App) -> None:
        key = os.environ.get("VLLM_API_KEY")
        if not key:
            raise RuntimeError("VLLM_API_KEY is not set; Baton starts no engine without a key")
        self._app = app
        self._expected = b"bearer " + key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, or answers 401; websockets are refused, no engine of ours needs them."""
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _BODY})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _may_pass(self, scope: Scope) -> bool:
        if scope["type"] != "http":
            return False
        if scope["path"] in OPEN_PATHS:
            return True
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, token = value.partition(b" ")
                given: bytes = scheme.lower() + b" " + token.strip()
                return hmac.compare_digest(given, self._expected)
        return False
