"""The commands for a router's admin API: what they ask, what they show, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from baton.cli import drain as drain_module
from baton.cli.app import app
from baton.cli.console import show_bytes, show_s
from baton.cli.runfile import RunNote, write_note

TOKEN = "an-admin-token-of-good-length"

PAIRS: dict[str, Any] = {
    "pairs": [
        {
            "prefill": "p-1",
            "decode": "d-1",
            "state": "ready",
            "reason": "",
            "bandwidth_bytes_per_s": 3 * 2**29,
            "exact": True,
            "setup_s": 0.0125,
            "age_s": 75.5,
        },
        {
            "prefill": "p-2",
            "decode": "d-1",
            "state": "quarantined",
            "reason": "[red]canary mismatch",
            "bandwidth_bytes_per_s": 2**20,
            "exact": False,
            "setup_s": None,
            "age_s": 1.0,
        },
    ]
}

HANDOFFS: dict[str, Any] = {
    "open": [
        {
            "request_id": "baton-1",
            "state": "offered",
            "prefill": "p-1",
            "decode": "d-1",
            "prompt_tokens": 900,
            "kv_bytes": 2**20,
            "reason": None,
            "age_s": 0.05,
            "lease_left_s": 29.5,
            "process": 2,
        }
    ],
    "stranded": [
        {
            "request_id": "baton-2",
            "state": "aborted",
            "prefill": "p-1",
            "decode": "d-1",
            "prompt_tokens": 10,
            "kv_bytes": 512,
            "reason": "client_gone",
            "age_s": 3.0,
            "lease_left_s": 1.0,
            "process": 1,
        }
    ],
    "stranded_bytes": {"p-1": 512},
}

EXPLAINED: dict[str, Any] = {
    "path": "disaggregated",
    "reason": "long_prompt",
    "prefill": "p-1",
    "decode": "d-1",
    "prompt_tokens": "900",
    "uncached_tokens": 850,
    "decider": "cost",
    "threshold_tokens": 256,
    "predicted": {
        "local_queue_s": 0.0,
        "local_prefill_s": 0.5,
        "remote_queue_s": None,
        "remote_prefill_s": None,
        "remote_fixed_s": None,
        "remote_move_s": None,
    },
    "predicted_local_s": 0.5,
    "predicted_remote_s": None,
    "why_no_handoff": "",
    "workers": [
        {
            "worker": "d-1",
            "role": "decode",
            "seat": "whole",
            "candidate": True,
            "failed": [],
            "scores": {"prefix": 0.25, "load": 1.0},
            "total": 1.5,
            "cached_tokens": 50,
            "in_flight": 3,
            "prefilling_tokens": 0,
        },
        {
            "worker": "d-2",
            "role": "decode",
            "seat": "whole",
            "candidate": False,
            "failed": ["health", "breaker"],
            "scores": {"prefix": 0.0},
            "total": 0.0,
            "cached_tokens": 0,
            "in_flight": 0,
            "prefilling_tokens": 0,
        },
    ],
    "model": {"base": "tiny", "adapter": None},
    "profile": {"name": "mine", "version": "abc", "decider": "cost"},
}


@dataclass
class FakeAdmin:
    """An admin API that answers as told and notes what it was asked."""

    url: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    """By method and path; a list is answered one by one, the last for ever."""
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": {"message": "no token"}}, status=401)
        key = f"{request.method} {request.path}"
        self.seen.append((key, dict(request.query), await request.read()))
        answer = self.answers.get(key)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, web.Response):
            return answer
        if answer is None:
            message = f"There is no {request.path} here."
            return web.json_response({"error": {"message": message}}, status=404)
        return web.json_response(answer)


@contextlib.asynccontextmanager
async def fake_admin(**answers: Any) -> AsyncIterator[FakeAdmin]:
    """A running one."""
    fake = FakeAdmin(answers=answers)
    server = web.Application()
    server.router.add_route("*", "/{rest:.*}", fake.answer)
    runner = web.AppRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    fake.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    try:
        yield fake
    finally:
        await runner.cleanup()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with an admin token, and nothing in the environment that would win over it."""
    for name in ("BATON_ADMIN_TOKEN", "BATON_ADMIN_TOKEN_FILE", "BATON_ADMIN_URL", "BATON_HOME"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "admin-token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    return tmp_path


async def run(home: Path, *arguments: str, stdin: str | None = None) -> Result:
    """One command, in a thread, since what answers it lives in this loop."""

    def invoke() -> Result:
        return CliRunner().invoke(
            app, [*arguments, "--home", str(home)], input=stdin, prog_name="baton"
        )

    return await asyncio.to_thread(invoke)


def squeezed(text: str) -> list[str]:
    """Lines without the padding of tables."""
    return [" ".join(line.split()) for line in text.splitlines()]


async def test_pairs(home: Path) -> None:
    """What is not used comes first; a bandwidth that is a bound says so; markup is plain text."""
    async with fake_admin(**{"GET /admin/pairs": PAIRS}) as fake:
        shown = await run(home, "pairs", "--admin", fake.url)
        as_json = await run(home, "pairs", "--admin", fake.url + "/", "--json")
    assert shown.exit_code == 0
    assert squeezed(shown.stdout) == [
        "prefill decode state bandwidth set-up for reason",
        "p-2 d-1 quarantined >= 1.0 MiB/s 1.00 s [red]canary mismatch",
        "p-1 d-1 ready 1.5 GiB/s 12.5 ms 75.50 s",
    ]
    assert json.loads(as_json.stdout) == PAIRS


async def test_no_pairs(home: Path) -> None:
    """Are said to be none."""
    async with fake_admin(**{"GET /admin/pairs": {"pairs": []}}) as fake:
        shown = await run(home, "pairs", "--admin", fake.url)
    assert shown.stdout.startswith("no pairs")


async def test_handoffs(home: Path) -> None:
    """Open ones, stranded ones, and what is held for nobody; of several processes, whose."""
    async with fake_admin(**{"GET /admin/handoffs": HANDOFFS}) as fake:
        shown = await run(home, "handoffs", "--admin", fake.url)
        as_json = await run(home, "handoffs", "--admin", fake.url, "--json")
    assert squeezed(shown.stdout) == [
        "1 open, 1 stranded",
        "",
        "handoff state from to tokens KV age lease left reason process",
        "baton-1 offered p-1 d-1 900 1.0 MiB 50.0 ms 29.50 s 2",
        "baton-2 aborted (stranded) p-1 d-1 10 512 B 3.00 s 1.00 s client_gone 1",
        "p-1 may hold 512 B for nobody",
    ]
    assert json.loads(as_json.stdout) == HANDOFFS


@pytest.mark.parametrize(
    ("body", "endpoint"),
    [
        ({"messages": []}, "/v1/chat/completions"),
        ({"prompt": "x"}, "/v1/completions"),
        ({"input": "x"}, "/v1/responses"),
    ],
)
async def test_explain(home: Path, body: dict[str, Any], endpoint: str) -> None:
    """The body goes as it is, with the endpoint that its fields are for; decision, prediction and
    verdicts are shown."""
    async with fake_admin(**{"POST /admin/explain": EXPLAINED}) as fake:
        shown = await run(home, "explain", "-", "--admin", fake.url, stdin=json.dumps(body))
        assert shown.exit_code == 0, shown.stderr
        assert fake.seen == [
            ("POST /admin/explain", {"endpoint": endpoint}, json.dumps(body).encode())
        ]
    lines = squeezed(shown.stdout)
    assert lines[:6] == [
        "path disaggregated, because long_prompt",
        "workers p-1 hands over to d-1",
        "model tiny",
        "tokens 900, 850 of them not cached",
        "decider cost (threshold 256 tokens)",
        "local 0.50 s to the first token (queue 0.0 ms, prefill 0.50 s)",
    ]
    assert "worker role for candidate failed load prefix total cached in flight" in lines
    assert "d-1 decode whole yes 1.00 0.25 1.50 50 3" in lines
    assert "d-2 decode whole no health, breaker 0.00 0.00 0 0" in lines


async def test_explain_a_file_for_an_endpoint(home: Path) -> None:
    """A file is read, the endpoint that was named is passed on, JSON comes out as it came."""
    (home / "body.json").write_text('{"messages": []}')
    async with fake_admin(**{"POST /admin/explain": EXPLAINED}) as fake:
        shown = await run(
            home, "explain", str(home / "body.json"), "--endpoint", "/v1/messages",
            "--admin", fake.url, "--json",
        )  # fmt: skip
        assert fake.seen[0][1] == {"endpoint": "/v1/messages"}
    assert json.loads(shown.stdout) == EXPLAINED


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[1]", "is no JSON object"), ("{}", "say with --endpoint")],
)
async def test_explain_what_is_no_request(home: Path, text: str, message: str) -> None:
    """Nobody is asked; status 2."""
    result = await run(home, "explain", "-", "--admin", "http://127.0.0.1:1", stdin=text)
    assert result.exit_code == 2
    assert message in result.stderr


async def test_explain_a_file_that_is_not_there(home: Path) -> None:
    """Status 2, and its name."""
    result = await run(home, "explain", str(home / "none.json"))
    assert result.exit_code == 2
    assert "none.json: No such file" in result.stderr


def state(**more: Any) -> dict[str, Any]:
    """How far a drain is."""
    return {
        "worker": "d-1",
        "registered": True,
        "cordoned": True,
        "drained": False,
        "legs": 0,
        "stranded_bytes": 0,
        **more,
    }


DRAIN = "/admin/workers/d-1/drain"


async def test_drain(home: Path) -> None:
    """Without --wait it says what is left and comes back."""
    async with fake_admin(**{f"POST {DRAIN}": state(legs=2)}) as fake:
        result = await run(home, "drain", "d-1", "--admin", fake.url)
    assert result.exit_code == 0
    assert result.stdout == "d-1 gets nothing new; it still has 2 requests\n"


async def test_drain_and_wait(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress goes to stderr, each state once; status 0 when the worker is free."""
    monkeypatch.setattr(drain_module, "_POLL_S", 0)
    answers = {
        f"POST {DRAIN}": state(legs=2, stranded_bytes=2**20),
        f"GET {DRAIN}": [state(legs=1), state(legs=1), state(), state(drained=True)],
    }
    async with fake_admin(**answers) as fake:
        result = await run(home, "drain", "d-1", "--wait", "--admin", fake.url)
    assert result.exit_code == 0
    assert result.stdout == "d-1 is drained: it can be stopped\n"
    assert result.stderr.splitlines() == [
        "waiting for 2 requests and 1.0 MiB of KV that nobody pulled yet",
        "waiting for 1 request",
        "waiting for what the worker itself reports as running",
    ]


@pytest.mark.parametrize(
    ("last", "status", "says"),
    [
        (state(registered=False, cordoned=False), 0, "has left"),
        (state(cordoned=False), 3, "took the drain back"),
    ],
)
async def test_drains_that_end_otherwise(
    home: Path, monkeypatch: pytest.MonkeyPatch, last: dict[str, Any], status: int, says: str
) -> None:
    """A worker that leaves is what was wanted; one that somebody puts back is not."""
    monkeypatch.setattr(drain_module, "_POLL_S", 0)
    async with fake_admin(**{f"POST {DRAIN}": state(legs=1), f"GET {DRAIN}": last}) as fake:
        result = await run(home, "drain", "d-1", "--wait", "--admin", fake.url)
    assert result.exit_code == status
    assert says in result.stdout + result.stderr


async def test_drain_gives_up(home: Path) -> None:
    """Status 3 after --timeout; the drain itself goes on."""
    async with fake_admin(**{f"POST {DRAIN}": state(legs=1)}) as fake:
        result = await run(
            home, "drain", "d-1", "--wait", "--timeout", "0", "--admin", fake.url, "--json"
        )
        assert [key for key, *_ in fake.seen] == [f"POST {DRAIN}"]
    assert result.exit_code == 3
    assert "the drain goes on" in result.stderr
    assert json.loads(result.stdout) == state(legs=1)


async def test_drain_is_taken_back(home: Path) -> None:
    """With --undo; there is nothing to wait for then."""
    async with fake_admin(**{f"DELETE {DRAIN}": state(cordoned=False)}) as fake:
        result = await run(home, "drain", "d-1", "--undo", "--admin", fake.url)
        both = await run(home, "drain", "d-1", "--undo", "--wait", "--admin", fake.url)
        assert len(fake.seen) == 1
    assert (result.exit_code, result.stdout) == (0, "d-1 takes requests again\n")
    assert both.exit_code == 2


async def test_a_worker_that_is_not_there(home: Path) -> None:
    """The router's own words, and status 2."""
    refusal = web.json_response(
        {"error": {"message": "No worker 'd-1' is registered."}}, status=404
    )
    async with fake_admin(**{f"POST {DRAIN}": refusal}) as fake:
        result = await run(home, "drain", "d-1", "--admin", fake.url)
    assert result.exit_code == 2
    assert result.stderr == "baton: No worker 'd-1' is registered.\n"


async def test_the_admin_api_of_baton_up_is_found(home: Path) -> None:
    """By its note."""
    async with fake_admin(**{"GET /admin/pairs": PAIRS}) as fake:
        note = RunNote(
            "http://127.0.0.1:1", 1, 2, "cpu-demo", "v", "demo", 1.0, "ready", (), fake.url
        )
        write_note(home, note)
        result = await run(home, "pairs")
    assert result.exit_code == 0


async def test_no_router(home: Path) -> None:
    """Nothing started here, nothing listening there, something else there, another's token: each
    is status 1 and says what to do."""
    nothing = await run(home, "pairs")
    assert nothing.exit_code == 1
    assert "run `baton up`" in nothing.stderr
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    away = await run(home, "handoffs", "--admin", closed)
    assert away.exit_code == 1
    assert f"no admin API at {closed}: nothing listens there" in away.stderr
    async with fake_admin() as fake:
        other = await run(home, "handoffs", "--admin", fake.url)
        (home / "admin-token").write_text("another-token-of-good-length")
        refused = await run(home, "handoffs", "--admin", fake.url)
    assert other.exit_code == 1
    assert "is it an admin API?" in other.stderr
    assert refused.exit_code == 1
    assert "it refuses our admin token. Use the router's own token" in refused.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "ftp://x", "http://"])
async def test_a_url_that_is_none(home: Path, url: str) -> None:
    """Status 2, before anybody gets the token."""
    result = await run(home, "pairs", "--admin", url)
    assert result.exit_code == 2
    assert "is no URL of an admin API" in result.stderr


def test_no_token_is_made(home: Path) -> None:
    """One made up here would be refused: the missing one is asked for instead."""
    (home / "admin-token").unlink()
    result = asyncio.run(run(home, "pairs", "--admin", "http://127.0.0.1:1"))
    assert result.exit_code == 2
    assert "there is no admin token" in result.stderr
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**52, "4096.0 TiB"),
     (None, ""), ("x", "")],
)  # fmt: skip
def test_bytes_for_people(count: object, text: str) -> None:
    """In the unit that fits; nothing for what is no number."""
    assert show_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.01234, "12.3 ms"), (2, "2.00 s"), (None, "")])
def test_seconds_for_people(seconds: object, text: str) -> None:
    """Milliseconds below a tenth of a second."""
    assert show_s(seconds) == text
