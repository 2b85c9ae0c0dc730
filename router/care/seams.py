"""What this package needs of the rest of the router."""

from __future__ import annotations

from typing import Protocol

from baton.types import RequestId, WorkerRecord


class Answer(Protocol):
    """A whole answer of an engine."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def body(self) -> bytes:
        """All of it."""
        ...


class Asker(Protocol):
    """The router's HTTP client for engines."""

    async def ask(
        self,
        worker: WorkerRecord,
        path: str,
        body: bytes,
        request_id: RequestId,
        *,
        timeout_s: float,
        method: str = "POST",
    ) -> Answer:
        """One request and its whole answer. Cancelling it closes the connection.

        Raises:
            WorkerUnreachable: no connection, or it broke before the end.
            WorkerTimeout: ``timeout_s`` passed.
            WorkerFailed: the answer is larger than the router takes.
        """
        ...
