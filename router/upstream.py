"""Legs: HTTP requests from the router to engines, each with deadlines.

Foreign exceptions end here: callers see ``WorkerUnreachable``, ``WorkerTimeout`` and
``WorkerFailed`` only. Cancelling a leg closes its connection, which makes the engine abort.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import aiohttp

from baton.errors import WorkerFailed, WorkerTimeout, WorkerUnreachable
from baton.types import RequestId, WorkerRecord
from profiles import DeadlinesSpec

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A whole answer larger than this is a fault; streams have no such bound, they are passed on."""
_READ_BYTES = 64 * 1024
_WRITE_IN_PIECES_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of an engine."""

    status: int
    content_type: str
    body: bytes


class Upstream:
    """The router's HTTP client for engines.

    Args:
        token: the cluster token, which engines take as their API key.
        deadlines: the profile's.
    """

    def __init__(self, token: str, deadlines: DeadlinesSpec) -> None:
        self._deadlines = deadlines
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"},
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=deadlines.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()

    @contextlib.asynccontextmanager
    async def open(
        self,
        worker: WorkerRecord,
        path: str,
        body: bytes,
        request_id: RequestId,
        *,
        timeout_s: float,
    ) -> AsyncIterator[Leg]:
        """One POST, up to the headers of its answer, within ``timeout_s``.

        Raises:
            WorkerUnreachable: no connection, or it broke before the headers.
            WorkerTimeout: the deadline passed.
        """
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        # aiohttp writes bytes in one go, and warns where that would hold the event loop up.
        data = io.BytesIO(body) if len(body) > _WRITE_IN_PIECES_BYTES else body
        with _translated(worker, "answer", timeout_s):
            async with asyncio.timeout(timeout_s):
                response = await self._session.post(
                    worker.url + path, data=data, headers=headers, allow_redirects=False
                )
        try:
            yield Leg(worker, response)
        finally:
            # Drops the connection unless the answer was read to its end: the engine sees a client
            # that left, and aborts.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def ask(
        self,
        worker: WorkerRecord,
        path: str,
        body: bytes,
        request_id: RequestId,
        *,
        timeout_s: float,
    ) -> Answer:
        """One POST and its whole answer, within ``timeout_s``; raises like ``open``."""
        with _translated(worker, "answer", timeout_s):
            async with asyncio.timeout(timeout_s):
                async with self.open(worker, path, body, request_id, timeout_s=timeout_s) as leg:
                    return await leg.whole(timeout_s=timeout_s)


class Leg:
    """The answer of an engine, while it comes."""

    def __init__(self, worker: WorkerRecord, response: aiohttp.ClientResponse) -> None:
        self.worker = worker
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "application/json")
        self._response = response

    async def read(self, *, timeout_s: float) -> bytes:
        """The next bytes as they came; empty at the end.

        Raises:
            WorkerUnreachable: the connection broke.
            WorkerTimeout: nothing came for ``timeout_s``.
        """
        with _translated(self.worker, "send more", timeout_s):
            async with asyncio.timeout(timeout_s):
                return await self._response.content.readany()

    async def whole(self, *, timeout_s: float) -> Answer:
        """All of it.

        Raises:
            WorkerUnreachable: the connection broke.
            WorkerTimeout: it took longer than ``timeout_s``.
            WorkerFailed: it is larger than the router takes.
        """
        parts = bytearray()
        with _translated(self.worker, "answer", timeout_s):
            async with asyncio.timeout(timeout_s):
                while part := await self._response.content.readany():
                    parts += part
                    if len(parts) > _MAX_ANSWER_BYTES:
                        raise WorkerFailed(
                            f"worker {self.worker.id} sent more than {_MAX_ANSWER_BYTES} bytes"
                        )
        return Answer(self.status, self.content_type, bytes(parts))


@contextlib.contextmanager
def _translated(worker: WorkerRecord, what: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ServerTimeoutError, aiohttp.ConnectionTimeoutError) as error:
        raise WorkerUnreachable(f"worker {worker.id} took no connection in time") from error
    except TimeoutError as error:
        raise WorkerTimeout(f"worker {worker.id} did not {what} within {timeout_s:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise WorkerUnreachable(
            f"worker {worker.id} cannot be reached: {type(error).__name__}"
        ) from error
