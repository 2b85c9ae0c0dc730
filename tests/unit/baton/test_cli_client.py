"""What the command line asks of a router: the proof of a path, and a status for people."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from baton.cli import client as client_module
from baton.cli.client import CHAT, COMPLETIONS, Proof, RouterAway, RouterClient, prove
from baton.cli.stack import Sight, StartFailed

TOKEN = "a-token-of-good-length"

REPORT: dict[str, Any] = {
    "version": "0.1.0",
    "profile": {
        "name": "cpu-demo",
        "version": "707fb57397a8",
        "mode": "disaggregated",
        "threshold_tokens": 256,
    },
    "store": "memory",
    "in_flight": 3,
    "workers": [
        {
            "record": {
                "id": "prefill-1",
                "role": "prefill",
                "url": "http://127.0.0.1:8100",
                "state": "ready",
                "model": "demo",
                "load": {"running": 0, "waiting": 0, "kv_usage": 0.0},
            },
            "legs": 0,
            "suspect": True,
        },
        {
            "record": {
                "id": "decode-1",
                "role": "decode",
                "url": "http://127.0.0.1:8101",
                "state": "ready",
                "model": "[bold]demo",
                "load": {"running": 2, "waiting": 1, "kv_usage": 0.25},
            },
            "legs": 3,
            "suspect": False,
        },
    ],
    "handoffs": {
        "open": [
            {
                "request_id": "baton-1",
                "state": "pulled",
                "prefill": "prefill-1",
                "decode": "decode-1",
                "kv_bytes": 1048576,
                "reason": None,
            }
        ],
        "stranded": [
            {
                "request_id": "baton-2",
                "state": "failed",
                "prefill": "prefill-1",
                "decode": "decode-1",
                "kv_bytes": None,
                "reason": "prefill_failed",
            }
        ],
    },
}

Reply = Callable[[str, dict[str, Any]], web.Response]


def answer(path: str, reason: str) -> web.Response:
    """A 200 as the router gives it."""
    return web.json_response({}, headers={"x-baton-path": path, "x-baton-reason": reason})


def refusal(status: int, code: str | None) -> web.Response:
    """An OpenAI error object."""
    return web.json_response({"error": {"message": "no", "code": code}}, status=status)


@contextlib.asynccontextmanager
async def router(
    reply: Reply = lambda *_: answer("local", "short_prompt"),
    *,
    status: Callable[[web.Request], web.Response] | None = None,
) -> AsyncIterator[RouterClient]:
    """A client of a router that answers requests as told."""

    async def generate(request: web.Request) -> web.Response:
        return reply(request.path, await request.json())

    async def report(request: web.Request) -> web.Response:
        assert status is not None
        return status(request)

    app = web.Application()
    app.router.add_post("/v1/{rest:.*}", generate)
    app.router.add_get("/admin/status", report)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        async with RouterClient.open(f"http://127.0.0.1:{port}/", TOKEN) as client:
            yield client
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PAUSE_S", 0)


def words_of(body: dict[str, Any]) -> int:
    """Words of the prompt, which is the least number of its tokens."""
    text = body.get("prompt") or body["messages"][0]["content"]
    return len(str(text).split())


async def test_a_handoff_is_proved() -> None:
    """One request of the threshold's length, answered on the disaggregated path."""
    asked: list[dict[str, Any]] = []

    def reply(path: str, body: dict[str, Any]) -> web.Response:
        assert path == CHAT
        asked.append(body)
        return answer("disaggregated", "long_prompt")

    async with router(reply) as client:
        assert await prove(client, "demo", 256, timeout_s=5) == Proof(CHAT, handed_over=True)
    (body,) = asked
    assert body["model"] == "demo"
    assert words_of(body) == 256


async def test_a_standard_profile_needs_an_answer_only() -> None:
    """Without a threshold there is no handoff to wait for."""
    async with router(lambda *_: answer("local", "standard_profile")) as client:
        assert await prove(client, "m", None, timeout_s=5) == Proof(CHAT, handed_over=False)


async def test_the_proof_is_patient() -> None:
    """Workers that the router does not know yet, or prompts that it cannot count yet."""
    replies = iter(
        [
            refusal(503, "no_worker_available"),
            answer("local", "uncounted_prompt"),
            answer("disaggregated", "long_prompt"),
        ]
    )
    async with router(lambda *_: next(replies)) as client:
        assert (await prove(client, "m", 256, timeout_s=5)).handed_over


async def test_a_prompt_that_counts_as_short_grows() -> None:
    """A tokenizer that makes fewer tokens than words is met with more words."""

    def reply(_: str, body: dict[str, Any]) -> web.Response:
        long = words_of(body) > 300
        return answer("disaggregated" if long else "local", "x" if long else "short_prompt")

    async with router(reply) as client:
        assert (await prove(client, "m", 256, timeout_s=5)).handed_over


async def test_answers_on_the_wrong_path_prove_nothing() -> None:
    """After some tries it is an error that says what came instead."""
    async with router(lambda *_: answer("local", "prefill_failed")) as client:
        with pytest.raises(StartFailed, match=r"through a handoff .* reason prefill_failed"):
            await prove(client, "m", 256, timeout_s=5)


async def test_no_answer_proves_nothing() -> None:
    """A router that is away is an error, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    async with RouterClient.open(url, TOKEN) as client:
        with pytest.raises(StartFailed, match="no answer to a request"):
            await prove(client, "m", None, timeout_s=5)


async def test_a_model_without_a_chat_template() -> None:
    """Is asked for a completion instead, and so are people."""

    def reply(path: str, _: dict[str, Any]) -> web.Response:
        return refusal(400, None) if path == CHAT else answer("disaggregated", "long_prompt")

    async with router(reply) as client:
        assert await prove(client, "m", 9, timeout_s=5) == Proof(COMPLETIONS, handed_over=True)


async def test_a_threshold_that_does_not_fit_the_model() -> None:
    """A handoff cannot happen then: a short answer is taken, and the profile is put in doubt."""

    def reply(_: str, body: dict[str, Any]) -> web.Response:
        if words_of(body) > 100:
            return refusal(400, "context_length_exceeded")
        return answer("local", "short_prompt")

    async with router(reply) as client:
        proof = await prove(client, "m", 5000, timeout_s=5)
    assert not proof.handed_over
    assert "lower the threshold" in proof.note


async def test_sights_come_from_the_status() -> None:
    """The router is asked with the cluster's token, for states and engine ids."""

    def status(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        record = {"id": "decode-1", "state": "warming", "engine_id": "e1"}
        return web.json_response({"workers": [{"record": record}]})

    async with router(status=status) as client:
        assert await client.sights() == {"decode-1": Sight("warming", "e1")}


@pytest.mark.parametrize(
    ("response", "message", "refused"),
    [
        ({"status": 401}, "refuses our cluster token", True),
        ({"status": 404}, "answers 404; is it a Baton router", False),
        ({"status": 302, "headers": {"location": "http://127.0.0.1:1/"}}, "answers 302", False),
        ({"text": "hello", "content_type": "text/html"}, "no sound answer", False),
        ({"text": "[]", "content_type": "application/json"}, "no status report", False),
        ({"text": "{", "content_type": "application/json"}, "no sound answer", False),
    ],
)
async def test_what_is_no_status(response: dict[str, Any], message: str, refused: bool) -> None:
    """Each is an error that says what was found; for the start it is only "not yet"."""
    async with router(status=lambda _: web.Response(**response)) as client:
        with pytest.raises(RouterAway, match=message) as caught:
            await client.status()
        assert caught.value.refused is refused
        assert await client.sights() is None


def test_the_report_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Workers with load, handoffs, profile and what is in flight; markup in names is plain text."""
    from baton.cli.console import print_table
    from baton.cli.status import render

    print_table(*render("http://127.0.0.1:8000", REPORT, serving=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "router     http://127.0.0.1:8000, version 0.1.0, store memory",
        "serving    yes",
        "profile    cpu-demo (disaggregated, version 707fb57397a8, threshold 256 tokens)",
        "in flight  3",
        "handoffs   1 open, 1 stranded",
    ]
    table = [" ".join(line.split()) for line in lines]
    assert "decode-1 decode ready [bold]demo http://127.0.0.1:8101 2 1 25 % 3" in table
    assert "prefill-1 prefill ready (suspect) demo http://127.0.0.1:8100 0 0 0 % 0" in table
    assert "baton-1 pulled prefill-1 decode-1 1048576" in table
    assert "baton-2 failed (stranded) prefill-1 decode-1 prefill_failed" in table


def test_what_operators_have_to_know_of_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    """Its breaker, whether it drains or is drained, and the KV that it may hold for nobody."""
    from baton.cli.console import print_table
    from baton.cli.status import render

    def view(name: str, **more: Any) -> dict[str, Any]:
        return {"record": {"id": name, "role": "prefill", "state": "ready"}, **more}

    workers = [
        view("a", breaker="open", suspect=True, stranded_bytes=0),
        view("b", breaker="closed", cordoned=True, drained=False, stranded_bytes=3 * 2**19),
        view("c", breaker="closed", cordoned=True, drained=True, legs=0),
    ]
    print_table(*render("http://h:1", {"workers": workers}, serving=True))
    table = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "a prefill ready (suspect) open" in table
    assert "b prefill ready (draining) closed 1.5 MiB" in table
    assert "c prefill ready (drained) 0 closed" in table


def test_a_router_of_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """How they are stands under the sums."""
    from baton.cli.console import print_table
    from baton.cli.status import render

    states = ("serving", "silent", "serving")
    rows = [{"process": n, "state": state} for n, state in enumerate(states, 1)]
    print_table(*render("http://h:1", {**REPORT, "processes": rows}, serving=True))
    assert "processes  2 serving, 1 silent" in capsys.readouterr().out.splitlines()


def test_a_report_of_another_version_is_shown_as_far_as_it_goes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fields that are missing or of another shape do not matter."""
    from baton.cli.console import print_table
    from baton.cli.status import render

    reports: list[dict[str, Any]] = [
        {"workers": []},
        {"workers": [3, {"record": None}], "handoffs": 3},
    ]
    for report in reports:
        print_table(*render("http://h:1", report, serving=False))
    assert "no ready worker can answer" in capsys.readouterr().out
