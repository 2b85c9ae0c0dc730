"""``python -m benchmarks.router.worker``: the mock workers, all in one fast process.

Not ``benchmarks.mock``: that one makes delays and writes down what it did, which costs it more per
request than some of the routers measured here. This one answers at once, from bytes that stand
ready, and knows one thing the other does not: the handoff (see ``book``). One process listens on
one port per worker, so that prefill and decode share the book.

A stream's tokens come ``gap`` seconds apart, the first at once.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import signal
import sys
import time
from typing import cast

import httptools
import msgspec
import uvloop

from baton.process import die_with_parent
from benchmarks.mock.alarm import Alarm
from benchmarks.router import answers
from benchmarks.router.answers import Asked, BadRequest
from benchmarks.router.book import Book
from benchmarks.router.text import TokenCounter

LISTENING = "mock workers: "
BOOK_PATH = "/bench/book"
"""Where any worker shows the book's counts."""

_MAX_BODY_BYTES = 16 * 1024 * 1024
_GENERATE = {b"/v1/completions": False, b"/v1/chat/completions": True}
_HEAD = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def engine_id(role: str, number: int) -> str:
    """What NIXL calls worker ``number`` of a role."""
    return f"bench-{role}-{number}"


class Workers:
    """What all workers of the process share."""

    def __init__(self, gap_s: float) -> None:
        self.gap_s = gap_s
        self.book = Book()
        self.counter = TokenCounter()
        self.alarm = Alarm(asyncio.get_running_loop())
        self.answered = 0


class _Connection(asyncio.Protocol):
    """One connection to one worker; one request at a time."""

    def __init__(self, workers: Workers, role: str, engine: bytes) -> None:
        self._workers = workers
        self._role = role
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self._path = b""
        self._transport: asyncio.Transport | None = None
        self._stream: _Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._stream = None

    def pause_writing(self) -> None:
        # A router that does not read for so long has a fault; nothing is kept for it.
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._put(b"400 Bad Request", b"text/plain", b"not HTTP/1.1")
            if self._transport is not None:
                self._transport.close()

    # --- httptools ---

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= _MAX_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        size, self._size = self._size, 0
        try:
            if size > _MAX_BODY_BYTES:
                raise BadRequest("the body is too large")
            self._answer(self._path.partition(b"?")[0], body)
        except (BadRequest, msgspec.DecodeError) as error:
            said = {"error": {"message": str(error), "type": "mock", "param": None, "code": 400}}
            self._put(b"400 Bad Request", b"application/json", msgspec.json.encode(said))
        if not self._parser.should_keep_alive() and not self._stream and self._transport:
            self._transport.close()

    # --- answers ---

    def _answer(self, path: bytes, body: bytes) -> None:
        workers = self._workers
        chat = _GENERATE.get(path)
        if chat is not None:
            self._generate(answers.read_request(body, chat, workers.counter))
        elif path == b"/tokenize":
            self._json(answers.tokenize_answer(body, workers.counter))
        elif path == BOOK_PATH.encode():
            self._json(msgspec.json.encode(workers.book.counts))
        elif (page := answers.PAGES.get(path)) is not None:
            self._put(b"200 OK", page[0].encode(), page[1])
        else:
            self._put(b"404 Not Found", b"application/json", b'{"detail":"Not Found"}')

    def _generate(self, asked: Asked) -> None:
        workers = self._workers
        transfer = workers.book.answer(
            self._role, self._engine, asked.transfer, asked.prompt_tokens, asked.tokens
        )
        workers.answered += 1
        name = b"%b-%016x" % (b"chatcmpl" if asked.chat else b"cmpl", workers.answered)
        if asked.stream:
            self._stream = _Stream(self, workers, asked, name)
            self._stream.begin()
        else:
            self._json(answers.whole_answer(asked, name, transfer))

    def _json(self, body: bytes) -> None:
        self._put(b"200 OK", b"application/json", body)

    def _put(self, status: bytes, kind: bytes, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(_HEAD % (status, kind, len(body), body))

    # --- streams ---

    def write(self, stream: _Stream, data: bytes) -> bool:
        """Writes for a stream; False if its client has gone."""
        if self._transport is None or self._stream is not stream:
            return False
        self._transport.write(data)
        return True

    def ended(self) -> None:
        """The stream is over."""
        self._stream = None


class _Stream:
    """One answer in events."""

    __slots__ = ("_asked", "_at", "_connection", "_event", "_name", "_next_s", "_workers")

    def __init__(
        self, connection: _Connection, workers: Workers, asked: Asked, name: bytes
    ) -> None:
        self._connection = connection
        self._workers = workers
        self._asked = asked
        self._name = name
        self._at = 0
        self._next_s = time.monotonic()
        # Without logprobs all tokens but the last look alike.
        self._event = None if asked.top is not None else _chunk(self._token(0))

    def begin(self) -> None:
        """Head, role and first token."""
        role = answers.first_event(self._asked, self._name)
        self._connection.write(self, _STREAM_HEAD + (_chunk(role) if role else b""))
        self._go_on()

    def _go_on(self) -> None:
        asked, gap_s = self._asked, self._workers.gap_s
        while True:
            last = self._at == asked.tokens - 1
            data = _chunk(self._token(self._at)) if last or self._event is None else self._event
            if last:
                usage = answers.usage_event(asked, self._name)
                data += (_chunk(usage) if usage else b"") + _chunk(answers.DONE) + b"0\r\n\r\n"
            if not self._connection.write(self, data):
                return
            if last:
                self._connection.ended()
                return
            self._at += 1
            # From the request's arrival, so that a late wake-up is made good by the next token.
            self._next_s += gap_s
            if gap_s > 0:
                self._workers.alarm.at(self._next_s, self._go_on)
                return

    def _token(self, at: int) -> bytes:
        return answers.token_event(self._asked, self._name, at)


def _chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    workers = Workers(options.gap)
    servers, urls = [], []
    for place, role in enumerate(options.roles):
        engine = engine_id(role, options.roles[:place].count(role)).encode()
        make = functools.partial(_Connection, workers, role, engine)
        server = await loop.create_server(make, "127.0.0.1", 0, backlog=1024)
        servers.append(server)
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    sys.stdout.write(LISTENING + " ".join(urls) + "\n")
    sys.stdout.flush()
    # What stands now is never garbage; a collection in the middle of a block would be a delay.
    gc.collect()
    gc.freeze()
    await stopping.wait()
    for server in servers:
        server.close()
    workers.alarm.close()


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router.worker")
    parser.add_argument("--gap", type=float, default=0.01, help="seconds between streamed tokens")
    parser.add_argument(
        "roles", nargs="+", choices=("prefill", "decode", "standard"), help="one worker each"
    )
    options = parser.parse_args(argv)
    die_with_parent(signal.SIGTERM)
    uvloop.run(_serve(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
