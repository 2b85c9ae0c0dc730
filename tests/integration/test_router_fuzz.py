"""A fuzzer on the router's whole public port: no 5xx but 503, no traceback, nothing left behind.

What is sent is drawn from the router's own OpenAPI document (``fuzz_requests``). The requests of
an ordinary run are the same each time; ``BATON_FUZZ_REQUESTS=6000`` draws as many new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from yarl import URL

from baton.types import Role
from router.api import Endpoint
from tests.fakes.byte_tokenizer import write_folder
from tests.fakes.engine import KEY, FakeEngine, Fleet, Refused
from tests.fakes.engine_faults import Seen
from tests.fakes.engine_wire import Reply
from tests.integration.fuzz_requests import Shot, garbage, shots
from tests.integration.router_cluster import SHORT, Answer, Cluster, cluster, right_text, tokens_of

ASKED = os.environ.get("BATON_FUZZ_REQUESTS")
REQUESTS = int(ASKED or 800)
AT_A_TIME = 4
"""Raw connections of one example."""

DRAWING = settings(
    deadline=None,
    database=None,
    derandomize=ASKED is None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
CHANGES = (
    ('routing: {prefix: "off"}', "routing: {prefix: approximate}"),
    ("connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3",
     "connect_s: 5, prefill_s: 30, first_token_s: 30, idle_s: 30, total_s: 60"),
)  # fmt: skip


class StrictEngine(FakeEngine):
    """Refuses, as the real engine's validation does, what the plain fake falls over, and what
    would make a test run out of memory."""

    async def _serve(self, seen: Seen, reply: Reply) -> None:
        body = seen.body
        if isinstance(body, dict) and _more_than(body.get("n"), 16):
            await reply.json(400, Refused(400, "n is too large", "Bad Request").body(seen.path))
            return
        try:
            await super()._serve(seen, reply)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError):
            refused = Refused(400, "the body cannot be understood", "Bad Request")
            await reply.json(refused.status, refused.body(seen.path))


def _more_than(value: object, most: int) -> bool:
    return isinstance(value, int) and value > most


def strict_engine(fleet: Fleet, name: str, role: Role) -> FakeEngine:
    return StrictEngine(fleet, name, role, tokenize=tokens_of)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[asyncio.Runner, Cluster]]:
    """A cluster whose loop is let run by hand: the fuzzer is not a coroutine."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stage = cluster(
            prefills=2, decodes=2, replace=CHANGES, tokenizer=folder, make=strict_engine
        )
        c = runner.run(stage.__aenter__())
        try:
            yield runner, c
        finally:
            runner.run(stage.__aexit__(None, None, None))


def check_error(path: str, method: str, answer: Answer) -> None:
    """Errors have the shape that the endpoint's clients know."""
    assert answer.headers["content-type"].startswith("application/json"), answer
    if method == "HEAD" or (path == "/readyz" and answer.status == 503):
        return
    if path == Endpoint.MESSAGES:
        assert answer.json["type"] == "error", answer
        assert set(answer.json["error"]) >= {"type", "message"}, answer
    else:
        assert answer.error["message"]
    if answer.status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1, answer


def check(shot: Shot, answer: Answer) -> None:
    """What must hold of any answer."""
    assert (
        answer.status < 500 or answer.status == 503 or (answer.status == 504 and shot.has_deadline)
    ), answer
    # No redirects: they would be made of what the client says its host is.
    assert not 300 <= answer.status < 400, answer
    if shot.method == "POST" and shot.path in tuple(Endpoint):
        assert answer.headers["x-request-id"], answer
    if answer.status >= 400:
        check_error(shot.path, shot.method, answer)
    elif answer.headers.get("content-type", "").startswith("text/event-stream"):
        assert answer.body.endswith(b"\n\n"), answer
        if shot.path in (Endpoint.CHAT, Endpoint.COMPLETIONS) and not shot.has_deadline:
            assert answer.stream_error is None, answer


def quiet(c: Cluster) -> None:
    """Nothing was logged as an error."""
    said = [logging.Formatter().format(record) for record in c.complaints.records]
    assert said == []


def test_requests_drawn_from_the_document(tmp_path: Path) -> None:
    """All paths and methods, sound bodies and broken ones, and headers of all kinds."""
    statuses: Counter[tuple[str, int]] = Counter()
    with running(write_folder(tmp_path / "model")) as (runner, c):
        document = runner.run(c.call("GET", "/openapi.json")).json
        assert {str(e) for e in Endpoint} <= set(document["paths"])
        odd = c.d.record(id="w1", url="http://127.0.0.1:9", model="nobodys", engine_id="w1-run-1")
        record = msgspec.to_builtins(odd)

        async def shoot(shot: Shot) -> None:
            url = URL(c.url + shot.target, encoded=True)
            async with c.http.request(
                shot.method, url, data=shot.body, headers=dict(shot.headers), allow_redirects=False
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                answer = Answer(response.status, headers, await response.read())
            statuses["/".join(shot.path.split("/")[:3]), answer.status] += 1
            check(shot, answer)
            quiet(c)

        @settings(DRAWING, max_examples=REQUESTS * 5 // 8)
        @given(shots(document, KEY, record))
        def fuzz(shot: Shot) -> None:
            runner.run(shoot(shot))

        fuzz()
        runner.run(c.settled())
        assert runner.run(c.complete(SHORT)).text == right_text(SHORT)
    show(statuses)
    # The fuzzer gets past the first check: generation succeeds in some way at each endpoint.
    for endpoint in Endpoint:
        if endpoint != Endpoint.EMBEDDINGS:
            assert statuses["/".join(endpoint.split("/")[:3]), 200] > 0, endpoint


def test_bytes_that_may_be_http(tmp_path: Path) -> None:
    """Broken heads, lying lengths, half requests, several in a row, TLS, plain noise."""
    statuses: Counter[tuple[str, int]] = Counter()
    with running(write_folder(tmp_path / "model")) as (runner, c):

        async def talk(said: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", c.server.port)
            heard = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                writer.write(said)
                while True:
                    # Who waits for the rest of a request says nothing: that is no fault.
                    async with asyncio.timeout(0.03):
                        part = await reader.read(65536)
                    heard += part
                    if not part:
                        break
            writer.transport.abort()
            for answer in answers_in(heard):
                statuses["raw", answer.status] += 1
                # 505: another version of HTTP was asked for.
                assert answer.status in (503, 505) or answer.status < 500, answer
                if answer.status >= 400 and answer.body:
                    assert answer.json["error"]["message"], answer
            quiet(c)

        async def all_of(batch: list[bytes]) -> None:
            await asyncio.gather(*(talk(said) for said in batch))

        @settings(DRAWING, max_examples=REQUESTS * 3 // 8 // AT_A_TIME)
        @given(st.lists(garbage(), min_size=AT_A_TIME, max_size=AT_A_TIME))
        def fuzz(batch: list[bytes]) -> None:
            runner.run(all_of(batch))

        fuzz()
        runner.run(c.settled())
        assert runner.run(c.complete(SHORT)).text == right_text(SHORT)
    show(statuses)
    assert statuses["raw", 400] > 0
    assert statuses["raw", 200] > 0


class _Socket(io.BytesIO):
    """What ``http.client`` reads from."""

    def makefile(self, *_: object, **__: object) -> io.BytesIO:
        return self

    def close(self) -> None:
        pass


def answers_in(heard: bytes) -> list[Answer]:
    """The whole answers that were heard, in order; what is no HTTP fails."""
    found, source = [], _Socket(heard)
    while source.tell() < len(heard):
        response = http.client.HTTPResponse(source)  # type: ignore[arg-type]
        try:
            response.begin()
            body = response.read()
        except (http.client.IncompleteRead, http.client.RemoteDisconnected):
            break  # we left before its end, or had a 100 only
        headers = {name.lower(): value for name, value in response.getheaders()}
        found.append(Answer(response.status, headers, body))
    return found


def show(statuses: Counter[tuple[str, int]]) -> None:
    """For a run by hand (``-s``)."""
    if ASKED is not None:
        lines = [f"{path:26} {status}  {n}" for (path, status), n in sorted(statuses.items())]
        print(f"\n{sum(statuses.values())} answers", *lines, sep="\n")
