"""Sends one request and writes down when what came back; every failure becomes a record.

The clock is read once for each piece that the network delivers, before anything is decoded. A
connection is reused only after its answer was read to the end; one that was given up in the middle
is closed. There is no bound on requests in flight but the number of sockets that the system gives
us: where that is reached the request fails as ``client_limit``, it never waits unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from yarl import URL

from benchmarks.load.bodies import path_of
from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.load.sse import DONE, Answer, BadAnswer, Events, Usage, decode, error_text, shorten
from benchmarks.records import RequestRecord
from benchmarks.target import Target

_KEEP_ALIVE_S = 4.0
"""Below the five seconds after which uvicorn, and so vLLM and the router, close an idle connection:
a request that crosses with the closing would fail through no fault of the server."""
_TAIL_S = 0.5
"""How long the end of a body is waited for after ``[DONE]``, to reuse the connection."""
_SPARE_FILES = 128
_MOST_FILES = 1 << 16
_MAX_ERROR_BYTES = 64 * 1024
_MAX_WHOLE_BYTES = 64 * 1024 * 1024


class Client:
    """HTTP to one target; to be made by ``open_client``.

    Args:
        http: the session.
        target: the endpoint.
        most: requests in flight at a time.
        now: seconds since the start of the run.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        target: ResolvedTarget,
        *,
        most: int,
        now: Callable[[], float],
    ) -> None:
        self._http = http
        self._target = target
        self._url = URL(target.url + path_of(target.api))
        self._now = now
        self._free = most

    async def send(self, body: bytes, record: RequestRecord, *, keep_text: bool) -> str:
        """Sends ``body`` and fills in the record; returns the answer's text if it is to be kept,
        else an empty one. Raises nothing but ``CancelledError``, with the record filled in.
        """
        attempt = _Attempt(record, self._now, keep_text)
        if self._free <= 0:
            attempt.fail("client_limit", "no more sockets; use more processes or a higher ulimit")
            record.end_s = self._now()
            return ""
        self._free -= 1
        try:
            await self._exchange(body, attempt)
        except asyncio.CancelledError:
            attempt.fail("cancelled")
            raise
        except TimeoutError as error:
            early = isinstance(error, aiohttp.ConnectionTimeoutError)
            attempt.fail("connect" if early else "timeout", str(error))
        except aiohttp.ClientConnectorError as error:
            attempt.fail("connect", str(error))
        except (
            aiohttp.ClientPayloadError,
            aiohttp.ClientOSError,
            aiohttp.ServerDisconnectedError,
            ConnectionError,
        ) as error:
            attempt.fail("stream_cut" if record.status else "disconnect", str(error))
        except (aiohttp.ClientError, BadAnswer, OSError, ValueError) as error:
            attempt.fail("bad_answer", str(error))
        finally:
            self._free += 1
            if record.end_s is None:
                record.end_s = self._now()
        return "".join(attempt.text)

    async def _exchange(self, body: bytes, attempt: _Attempt) -> None:
        record = attempt.record
        request = self._http.post(
            self._url, data=_Body(body), allow_redirects=False, trace_request_ctx=attempt
        )
        async with request as response:
            record.headers_s = self._now()
            record.status = response.status
            headers = response.headers
            record.path = headers.get("x-baton-path")
            record.reason = headers.get("x-baton-reason")
            record.worker = headers.get("x-baton-worker")
            if response.status != 200:
                said = await _read(response.content, _MAX_ERROR_BYTES, cut=True)
                attempt.fail(f"http_{response.status}", error_text(said))
            elif not self._target.stream:
                whole = await _read(response.content, _MAX_WHOLE_BYTES, cut=False)
                record.end_s = self._now()
                attempt.take_whole(decode(whole))
            elif not headers.get("content-type", "").startswith("text/event-stream"):
                said = await _read(response.content, _MAX_ERROR_BYTES, cut=True)
                attempt.fail("bad_answer", f"not a stream: {shorten(said)}")
            else:
                await self._read_stream(response, attempt)

    async def _read_stream(self, response: aiohttp.ClientResponse, attempt: _Attempt) -> None:
        content, events, now = response.content, Events(), self._now
        while received := await content.readany():
            at_s = now()
            for payload in events.feed(received):
                if payload == DONE:
                    attempt.record.end_s = at_s
                    attempt.finish(done=True)
                    await _rest(response)
                    return
                attempt.take_chunk(decode(payload), at_s)
                if attempt.record.error is not None:
                    attempt.record.end_s = at_s
                    response.close()
                    return
        attempt.record.end_s = now()
        attempt.finish(done=False)


class _Attempt:
    """What one request has brought so far."""

    __slots__ = ("keep_text", "now", "opening_s", "record", "text")

    def __init__(self, record: RequestRecord, now: Callable[[], float], keep_text: bool) -> None:
        self.record = record
        self.now = now
        self.keep_text = keep_text
        self.text: list[str] = []
        self.opening_s = 0.0

    def fail(self, reason: str, detail: str = "") -> None:
        """The first failure counts."""
        if self.record.error is None:
            self.record.error = reason
            self.record.detail = shorten(detail) or None

    def take_chunk(self, answer: Answer, at_s: float) -> None:
        record = self.record
        if (failure := answer.failure) is not None:
            self.fail("error_event", failure)
            return
        if answer.usage is not None:
            self._take_usage(answer.usage)
        if not answer.choices:
            return
        choice = answer.choices[0]
        if choice.has_content():
            if record.first_content_s is None:
                record.first_content_s = at_s
            record.last_content_s = at_s
            record.chunks += 1
            record.chunks_s.append(at_s)
            if self.keep_text:
                self.text.append(choice.content())
        if choice.finish_reason is not None:
            record.finish_reason = choice.finish_reason

    def take_whole(self, answer: Answer) -> None:
        """A whole answer has no first content: when it was made is not known."""
        if (failure := answer.failure) is not None:
            self.fail("error_event", failure)
            return
        if answer.usage is not None:
            self._take_usage(answer.usage)
        if not answer.choices:
            self.fail("empty", "no choices")
            return
        choice = answer.choices[0]
        self.record.finish_reason = choice.finish_reason
        if self.keep_text:
            self.text.append(choice.content())
        if not choice.has_content() and not self.record.output_tokens:
            self.fail("empty")

    def finish(self, *, done: bool) -> None:
        """The stream is over; ``done`` if it said so itself."""
        record = self.record
        if not done and record.finish_reason is None:
            self.fail("stream_cut", "the stream ended without a finish reason and without [DONE]")
        elif record.first_content_s is None and not record.output_tokens:
            self.fail("empty")

    def _take_usage(self, usage: Usage) -> None:
        record = self.record
        record.prompt_tokens = usage.prompt_tokens
        record.output_tokens = usage.completion_tokens
        record.cached_tokens = usage.cached_tokens


class _Body(Payload):
    """Bytes as they are. aiohttp's own warns of every body over 1 MiB; a long prompt is one."""

    _value: bytes

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type="application/json")
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await writer.write(self._value)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        await writer.write(self._value)


async def _read(content: aiohttp.StreamReader, most: int, *, cut: bool) -> bytes:
    """The body, or its first ``most`` bytes.

    Raises:
        BadAnswer: it is longer, and may not be cut.
    """
    found = bytearray()
    while received := await content.readany():
        found += received
        if len(found) > most:
            if not cut:
                raise BadAnswer(f"an answer of more than {most} bytes")
            break
    return bytes(found[:most])


async def _rest(response: aiohttp.ClientResponse) -> None:
    """Reads what follows ``[DONE]``, which is the end; else the connection is not used again."""
    try:
        async with asyncio.timeout(_TAIL_S):
            while await response.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError, OSError):
        response.close()


def _tracing() -> aiohttp.TraceConfig:
    """Tells each attempt when its bytes went out, and how long opening a connection took."""

    async def opening(_: object, context: SimpleNamespace, __: object) -> None:
        attempt: _Attempt = context.trace_request_ctx
        attempt.opening_s = attempt.now()

    async def opened(_: object, context: SimpleNamespace, __: object) -> None:
        attempt: _Attempt = context.trace_request_ctx
        attempt.record.connect_s = attempt.now() - attempt.opening_s

    async def writing(_: object, context: SimpleNamespace, __: object) -> None:
        attempt: _Attempt = context.trace_request_ctx
        if attempt.record.sent_s is None:
            attempt.record.sent_s = attempt.now()

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_start.append(opening)
    tracing.on_connection_create_end.append(opened)
    tracing.on_request_chunk_sent.append(writing)
    return tracing


def raise_file_limit() -> int:
    """Raises this process's limit of open files as far as allowed; returns how many requests may
    be in flight under it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _MOST_FILES if hard == unlimited else min(hard, _MOST_FILES)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, (wanted if soft == unlimited else soft) - _SPARE_FILES)


def http_session(
    target: ResolvedTarget | Target, *, tracing: aiohttp.TraceConfig | None = None
) -> aiohttp.ClientSession:
    """A session for a target: its key, its timeouts, no proxies, no cookies, no bound."""
    headers = {
        "Accept": "text/event-stream, application/json",
        # Compression would hold chunks back.
        "Accept-Encoding": "identity",
        "User-Agent": "baton-bench",
    }
    if target.api_key is not None:
        headers["Authorization"] = f"Bearer {target.api_key}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(
            total=target.timeout_s, sock_connect=target.connect_timeout_s
        ),
        trace_configs=[] if tracing is None else [tracing],
        trust_env=False,
    )


@contextlib.asynccontextmanager
async def open_client(
    target: ResolvedTarget, *, zero_s: Callable[[], float]
) -> AsyncIterator[Client]:
    """A client whose times are monotonic seconds after ``zero_s()``."""

    def now() -> float:
        return time.monotonic() - zero_s()

    async with http_session(target, tracing=_tracing()) as http:
        yield Client(http, target, most=raise_file_limit(), now=now)
