"""``baton explain``, ``drain``, ``pairs``, ``handoffs`` and ``status`` against a real router."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from baton.cli.app import app
from tests.fakes.engine import KEY, MODEL
from tests.integration.router_cluster import ADMIN_KEY, LONG, Cluster, cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without anything, and the tokens in the environment."""
    monkeypatch.setenv("BATON_ADMIN_TOKEN", ADMIN_KEY)
    monkeypatch.setenv("BATON_CLUSTER_TOKEN", KEY)
    return tmp_path


async def run(c: Cluster, home: Path, *arguments: str, stdin: str | None = None) -> Result:
    """One command about the cluster's router."""
    assert c.server.admin is not None
    where = ["--router", c.url] if arguments[0] == "status" else ["--admin", c.server.admin.url]
    argv = [*arguments, "--home", str(home), *where]
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, argv, input=stdin))


async def test_explain_says_what_then_happens(home: Path) -> None:
    """The same path and workers as the request then takes, and every worker's verdict."""
    async with cluster(decodes=2) as c:
        body = {"model": MODEL, "prompt": LONG, "max_tokens": 8}
        told = await run(c, home, "explain", "-", "--json", stdin=json.dumps(body))
        assert told.exit_code == 0, told.stderr
        explained = json.loads(told.stdout)
        answer = await c.complete(LONG)
        assert (answer.path, answer.reason) == (explained["path"], explained["reason"])
        assert {row["worker"] for row in explained["workers"]} == {"p0", "d0", "d1"}
        shown = await run(c, home, "explain", "-", stdin=json.dumps(body))
        assert "p0 hands over to d" in shown.stdout
        nobody = json.dumps({**body, "model": 3})
        refused = await run(c, home, "explain", "-", stdin=nobody)
        assert refused.exit_code == 2
        assert "model" in refused.stderr


async def test_a_worker_is_drained_and_put_back(home: Path) -> None:
    """While it drains requests go elsewhere, and the status says so; --undo ends it."""
    async with cluster(decodes=2) as c:
        done = await run(c, home, "drain", "d0", "--wait", "--timeout", "30")
        assert (done.exit_code, done.stdout) == (0, "d0 is drained: it can be stopped\n")
        for _ in range(4):
            assert (await c.complete("short")).status == 200
        assert not c.decodes[0].requests()
        status = await run(c, home, "status")
        assert status.exit_code == 0
        assert "ready (drained)" in status.stdout
        undone = await run(c, home, "drain", "d0", "--undo")
        assert (undone.exit_code, undone.stdout) == (0, "d0 takes requests again\n")
        missing = await run(c, home, "drain", "nobody")
        assert missing.exit_code == 2
        assert "'nobody'" in missing.stderr


async def test_tables_of_pairs_and_handoffs(home: Path) -> None:
    """Each pair has a row; a handoff that is under way is shown, and gone when it is over."""
    patient = ("first_token_s: 1, idle_s: 0.5, total_s: 3", "first_token_s: 20, total_s: 60")
    async with cluster(replace=[patient]) as c:
        c.d.token_s = 1.0
        async with c.open(stream=True) as response:
            assert response.status == 200
            shown = await run(c, home, "handoffs")
            assert shown.stdout.startswith("1 open, 0 stranded")
            assert "p0" in shown.stdout
            c.d.token_s = 0
            await response.read()
        shown = await run(c, home, "handoffs", "--json")
        assert json.loads(shown.stdout)["open"] == []
        rows = json.loads((await run(c, home, "pairs", "--json")).stdout)["pairs"]
        assert [(row["prefill"], row["decode"]) for row in rows] == [("p0", "d0")]
        assert "p0" in (await run(c, home, "pairs")).stdout
