"""The router benchmark: its workers over HTTP, its client's eyes, and a whole run."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from benchmarks.router.book import Counts
from benchmarks.router.client import LoadFailed, open_load
from benchmarks.router.figures import lateness_s
from benchmarks.router.fleet import Fleet, open_fleet
from benchmarks.router.records import Mode, Report
from benchmarks.router.text import Prompts

PATH = "/v1/chat/completions"
OFFER = {"do_remote_decode": True, "do_remote_prefill": False}
CHAT: dict[str, Any] = {
    "model": "bench",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 2,
}


@contextlib.asynccontextmanager
async def fleet(gap_s: float = 0.01) -> AsyncIterator[Fleet]:
    async with open_fleet(1, gap_s=gap_s, tokenizer=Path("/none")) as made:
        yield made


async def post(url: str, path: str = PATH, **body: Any) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as http, http.post(url + path, json=body) as answer:
        return answer.status, await answer.read()


def bodies(**more: Any) -> Callable[[], bytes]:
    """Requests, each with another prompt."""
    prompts, numbers = Prompts(1200), itertools.count()
    return lambda: prompts.body(next(numbers), **{"answer_tokens": 4, **more})


# --- the workers ------------------------------------------------------------------------------


async def test_a_handoff_goes_through_and_is_counted() -> None:
    """Prefill offers, decode takes; the second use of the same parameters is seen."""
    async with fleet() as workers:
        p, d = workers.prefill[0], workers.decode[0]
        _, answer = await post(p, **{**CHAT, "max_tokens": 1}, kv_transfer_params=OFFER)
        params = msgspec.json.decode(answer)["kv_transfer_params"]
        status, _ = await post(d, **CHAT, kv_transfer_params=params)
        assert status == 200
        assert await workers.counts() == Counts(offered=1, pulled=1)
        await post(d, **CHAT, kv_transfer_params=params)
        await post(d, **CHAT)
        assert await workers.counts() == Counts(offered=1, pulled=1, unknown=1, whole=1)


async def test_workers_refuse_what_engines_refuse() -> None:
    """Nonsense is 400 and an unknown path 404; the connection's other requests are served."""
    async with fleet() as workers:
        url = workers.standard[0]
        assert (await post(url, model="bench"))[0] == 400
        assert (await post(url, **CHAT, kv_transfer_params=[1]))[0] == 400
        assert (await post(url, "/nothing"))[0] == 404
        assert (await post(url, **CHAT))[0] == 200


async def test_a_chunked_request_is_read() -> None:
    """A router may send a body of unknown length."""

    async def parts() -> AsyncIterator[bytes]:
        raw = msgspec.json.encode(CHAT)
        for start in range(0, len(raw), 20):
            yield raw[start : start + 20]

    async with fleet() as workers, aiohttp.ClientSession() as http:
        async with http.post(workers.standard[0] + PATH, data=parts()) as answer:
            assert answer.status == 200
            assert (await answer.json())["usage"]["completion_tokens"] == 2


# --- the client -------------------------------------------------------------------------------


async def test_a_run_counts_every_answer() -> None:
    """As many as the workers saw, over several connections and runs."""
    async with fleet() as workers, open_load(workers.standard[0], 3) as load:
        first = await load.run(bodies(), 0.0)
        second = await load.run(bodies(), 0.2)
        assert len(first.latencies_s) == 3
        assert len(second.latencies_s) > 3
        assert second.wall_s >= 0.2
        assert first.failures == second.failures == 0
        assert (await workers.counts()).whole == len(first.latencies_s) + len(second.latencies_s)


async def test_streams_bring_all_their_events() -> None:
    """The role, each token and the end; each arrival has its time."""
    tokens, gap_s = 6, 0.02
    async with fleet(gap_s) as workers, open_load(workers.decode[0], 2, streaming=True) as load:
        await load.start_streams(bodies(answer_tokens=tokens, stream=True), gap_s)
        answers, streams = await load.finish_streams()
        assert answers.failures == 0
        assert load.events() == 2 * (tokens + 2)
        assert load.streaming() == 0
        for stream in streams:
            times = [at_s for at_s, _ in stream.arrivals]
            assert times == sorted(times)
            assert times[0] >= stream.sent_s
            assert len(lateness_s(stream.arrivals, gap_s, tokens)) == tokens - 1


Answer = Callable[[asyncio.StreamWriter], None]


@contextlib.asynccontextmanager
async def stub(answer: Answer) -> AsyncIterator[str]:
    """A server that reads a request of any kind and answers in its own way."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


def whole(status: str, body: bytes, headers: str = "") -> Answer:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
    return lambda writer: writer.write(head + body)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (whole("500 Oh", b"broken"), "500: broken"),
        (whole("200 OK", b'{"choices":[]}'), "200: "),
        (lambda writer: writer.close(), "closed without an answer"),
        (lambda writer: writer.write(b"hello\r\n\r\n"), "not HTTP"),
    ],
)
async def test_a_router_that_answers_badly_is_not_measured(answer: Answer, said: str) -> None:
    """What is wrong is said; no latency is taken from it."""
    async with stub(answer) as url, open_load(url, 2) as load:
        with pytest.raises(LoadFailed, match=said):
            await load.run(bodies(), 0.0)


async def test_a_stream_without_an_end_is_a_failure() -> None:
    """A router that cuts a stream behind its last token has lost something."""
    body = b'data: {"finish_reason":"length"}\n\n'
    async with stub(whole("200 OK", body)) as url, open_load(url, 1, streaming=True) as load:
        await load.start_streams(bodies(stream=True), 0.001)
        answers, _ = await load.finish_streams()
        assert answers.failures == 1
        assert "DONE" in answers.detail


async def test_connections_that_are_closed_after_an_answer_are_opened_again() -> None:
    """A router may end a connection; its good answers count."""
    good = whole("200 OK", b'{"finish_reason":"length"}', "Connection: close\r\n")
    async with stub(good) as url, open_load(url, 2) as load:
        answers = await load.run(bodies(), 0.1)
        assert len(answers.latencies_s) > 2
        assert answers.failures == 0


async def test_nobody_there_is_an_error() -> None:
    """Said at once, not measured as zero."""
    async with stub(whole("200 OK", b"")) as url:
        gone = url
    with pytest.raises(LoadFailed, match="takes no connection"):
        async with open_load(gone, 1):
            pass


# --- all of it --------------------------------------------------------------------------------


def test_a_quick_run_measures_ours_and_direct(tmp_path: Path) -> None:
    """In both modes: every cell has a row, ours has its cost and hands over, nothing is left out,
    and the targets that need the peer say that it is missing."""
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.router", "direct", "baton", "--quick"]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = msgspec.json.decode(file.read_bytes(), type=Report)
    assert report.problems == []
    cells = {row.cell.name for row in report.rows}
    assert cells == {f"{mode} {what}" for mode in Mode for what in ("c1", "c16", "sse4")}
    assert len(report.rows) == 2 * len(cells)
    for row in report.rows:
        assert row.failures == 0
        if row.target == "baton":
            assert row.notes == (), "ours did not hand over"
            assert row.cpu_us is not None
            assert row.cpu_us.value > 0
        else:
            assert row.cpu_us is None
        assert 0 <= row.p50_ms <= row.p99_ms
    judged = {verdict.what: verdict.met for verdict in report.verdicts}
    assert judged["p50 added to direct, P/D, concurrency 1"] is not None
    assert judged["CPU per request, P/D, concurrency 16, by vllm-router"] is None
    assert set(report.commands) == {f"{t} {m}" for t in ("direct", "baton") for m in Mode}
    assert "Targets" in done.stdout
