"""The controller against the fake Kubernetes API, a real router and fake engines, under load."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from baton.types import WorkerId
from deploy.controller import Controller
from deploy.controller.routers import RoutersApi, RoutersAway
from deploy.lws import labels, names
from deploy.lws.build import build_part
from deploy.lws.render import place_of, render
from profiles import resolve_profile
from tests.fakes.engine import MODEL
from tests.fakes.waiting import until
from tests.integration.controller_cluster import (
    NAMESPACE,
    ONE,
    PLURAL,
    TWO,
    World,
    keys_of,
    parsed,
    world,
)
from tests.integration.router_cluster import SHORT

PATIENCE_S = 30.0
LONGER_S = 1.2
"""Than workers that are free are kept, twice."""


@contextlib.asynccontextmanager
async def controlled(w: World, **more: Any) -> AsyncIterator[Controller]:
    """A controller in this process; stopped as by a signal."""
    api, stop = w.kube(), asyncio.Event()
    controller = Controller(w.settings(**more), api)
    task = asyncio.create_task(controller.run(stop))
    try:
        yield controller
    finally:
        stop.set()
        await task
        await api.close()


async def serves(w: World, count: int) -> None:
    """Waits until so many workers serve."""
    await until(lambda: len(w.lws.ready()) >= count, timeout_s=PATIENCE_S)
    await until(lambda: len(w.c.state.pool.records()) >= count, timeout_s=PATIENCE_S)


async def test_another_engine_setting_is_made_before_the_old_is_broken(tmp_path: Path) -> None:
    """Git's pools serve; the wish has another engine setting: new pools come, the routers switch,
    the old pools drain and are scaled to 0; and back, though the groups were killed without a word
    and left their cordons to those that come. No request fails, no group dies with one."""
    async with world(tmp_path) as w:
        w.lws.silent = True
        await serves(w, 3)
        async with controlled(w), w.load.going():
            await w.settled(ONE)
            assert set(w.pools()) == {"baton-prefill", "baton-decode"}
            w.wish(TWO)
            await w.settled(TWO)
            own = {f"baton-{role}-{key}" for role, key in keys_of(TWO).items()}
            assert w.pools() == dict.fromkeys(["baton-prefill", "baton-decode"], 0) | {
                name: 2 if "decode" in name else 1 for name in own
            }
            # What the new pools need stands beside them, and says whose it is.
            budgets = {b["metadata"]["name"] for b in w.api.all("poddisruptionbudgets", NAMESPACE)}
            assert own <= budgets
            await until(lambda: bool(w.events("WishCommitted")), timeout_s=PATIENCE_S)
            await until(lambda: mirrored(w) == "two", timeout_s=PATIENCE_S)
            w.wish(ONE)
            await w.settled(ONE)
            assert w.pools() == {"baton-prefill": 1, "baton-decode": 2}
            await until(lambda: not own & of_ours(w), timeout_s=PATIENCE_S, what="swept")
            await until(lambda: w.status().get("phase") == "steady", timeout_s=PATIENCE_S)
        assert w.load.answered > 50
        assert w.load.versions == {parsed(ONE).version, parsed(TWO).version}
        assert len(w.lws.killed) == 6
        lease = w.api.get("leases", NAMESPACE, "baton-controller")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == "", "it is given back"
        assert set(w.api.calls) - rights() - OPTIONAL == set()


OPTIONAL = {("list", kind) for kind in ("scaledobjects", "resourceclaimtemplates")}
"""Of what a site does not use it need not be allowed to list any."""


def rights() -> set[tuple[str, str]]:
    """Verbs and resources of the Role that the controller has in a cluster."""
    profile = resolve_profile("disaggregated")
    tree = render(profile, sites=[place_of("gke")])
    (role,) = [
        obj
        for obj in build_part(tree, tree.overlays["gke"])
        if (obj["kind"], obj["metadata"]["name"]) == ("Role", "baton-controller")
    ]
    return {
        (verb, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def mirrored(w: World) -> str:
    """The profile that routers would start from."""
    found = w.api.get("configmaps", NAMESPACE, names.ACTIVE) or {}
    return str((found.get("data") or {}).get("active", ""))


def of_ours(w: World) -> set[str]:
    """Names of what the controller made beside pools."""
    return {
        obj["metadata"]["name"]
        for plural in ("configmaps", "poddisruptionbudgets", PLURAL)
        for obj in w.api.all(plural, NAMESPACE)
        if obj["metadata"].get("labels", {}).get(labels.MANAGED_BY) == labels.CONTROLLER_MANAGER
        and labels.POOL in obj["metadata"]["labels"]
    }


async def test_the_first_install_and_a_right_that_is_missing(tmp_path: Path) -> None:
    """Nothing is there but what operators write; the routers began with another profile, for which
    no pool is made. A dry run says what would be done and does nothing. What Kubernetes refuses is
    told, and done once it is allowed."""
    async with world(tmp_path, git=None) as w:
        w.wish(TWO)
        async with by_hand(w) as controller:
            _, made = await controller.preview()
            assert [action.kind for action in made.actions] == ["note", "create", "create"]
            assert w.pools() == {}
            assert w.status() == {}
            assert w.api.all("leases", NAMESPACE) == []
            # Once, as by a job: it acts, and gives the Lease back.
            w.api.deny("patch", PLURAL)
            assert await controller.once() is not None
            assert "not allowed to apply leaderworkersets" in w.events("ActionFailed")[0]
            w.api.allow("patch", PLURAL)
            async with controlled(w, identity="another"):
                await until(lambda: w.status()["holder"] == "another", timeout_s=PATIENCE_S)
                assert await controller.once() is None
                await w.settled(TWO)
                await until(lambda: mirrored(w) == "two", timeout_s=PATIENCE_S)
            assert set(w.pools()) == {f"baton-{role}-{key}" for role, key in keys_of(TWO).items()}
            _, made = await controller.preview()
            assert made.is_steady


@contextlib.asynccontextmanager
async def by_hand(w: World) -> AsyncIterator[Controller]:
    """A controller that does nothing by itself."""
    api = w.kube()
    controller = Controller(w.settings(), api)
    try:
        yield controller
    finally:
        await controller.close()
        await api.close()


async def test_wishes_that_come_to_nothing(tmp_path: Path) -> None:
    """One that the routers refuse is told, its pools go, and it is not tried again; one whose text
    is wrong changes nothing and is told with its line. An operator's rollback stands."""
    strange = TWO.replace(f"served_name: {MODEL}", "served_name: other").replace(": two", ": odd")
    async with world(tmp_path) as w:
        await serves(w, 3)
        w.c.expected_errors.append("")
        async with controlled(w):
            await w.settled(ONE)
            w.wish(strange)
            await until(lambda: bool(w.events("WishRefused")), timeout_s=PATIENCE_S)
            assert "spec.model: no registered worker serves other" in w.events("WishRefused")[0]
            await w.settled(ONE)
            number = w.c.state.conductor.agreed.number
            w.wish(TWO.replace("hold_s: 0.3", "hold_s: soon"))
            await until(lambda: "hold_s" in w.status().get("problems", ""), timeout_s=PATIENCE_S)
            told = "key two.yaml:17: spec.switch.hold_s"
            await until(lambda: told in str(w.events("Refused")), timeout_s=PATIENCE_S)
            assert w.unfinished(ONE) == ""
            assert w.c.state.conductor.agreed.number == number, "neither was asked for again"
            w.wish(TWO)
            own = {f"baton-{role}-{key}" for role, key in keys_of(TWO).items()}
            await until(lambda: own <= set(w.pools()), timeout_s=PATIENCE_S)
            w.wish(TWO.replace("hold_s: 0.3", "hold_s: late"))
            held = "what is wished for is not known (two is named, and cannot be used)"
            await until(lambda: held in w.status()["waits"], timeout_s=PATIENCE_S)
            assert own <= set(w.pools()), "a slip of the pen does not undo what was made"
            w.wish(TWO)
            await w.settled(TWO)
            last = w.c.state.conductor.agreed.history[-1]
            assert last.by.startswith("baton-controller, wish ")
            # What routers start from is no wish of theirs.
            await until(lambda: mirrored(w) == "two", timeout_s=PATIENCE_S)
            assert (await w.c.admin("POST", "/admin/rollback")).status == 202
            found = w.api.get("configmaps", NAMESPACE, names.ACTIVE) or {}
            await w.settled(ONE)
            await until(lambda: mirrored(w) == "one", timeout_s=PATIENCE_S)
            number = w.c.state.conductor.agreed.number
            w.api.put("configmaps", NAMESPACE, names.ACTIVE, {"data": found["data"]})
            await until(lambda: mirrored(w) == "one", timeout_s=PATIENCE_S, what="put right")
            await asyncio.sleep(0.6)  # a router would have proposed it by now
            assert w.c.state.conductor.agreed.number == number
            assert w.status()["wish-outcome"] == "committed"


async def test_a_stream_and_silent_routers_hold_a_drain_up(tmp_path: Path) -> None:
    """A pool with a stream on it is cordoned and stays until that has ended. The controller that
    began this stops meanwhile, and the one that stood by goes on. Then the admin API is gone:
    nothing is scaled away however free it is by now; and once it is back, all comes to its end."""
    async with world(tmp_path) as w, contextlib.AsyncExitStack() as first:
        await serves(w, 3)
        gate = Gate(w.settings().admin_url)
        # A standby looks five times as often as a Lease is long.
        shared: dict[str, Any] = {"lease_s": 5, "admin_url": await first.enter_async_context(gate)}
        controllers = await first.enter_async_context(contextlib.AsyncExitStack())
        await controllers.enter_async_context(controlled(w, identity="first", **shared))
        await until(lambda: w.status().get("holder") == "first", timeout_s=PATIENCE_S)
        async with controlled(w, identity="second", **shared):
            for engine in w.c.prefills:
                engine.token_s = 0.05
            stream = asyncio.create_task(w.c.complete(SHORT, stream=True, max_tokens=900))
            w.wish(TWO)
            await until(lambda: w.c.state.profile.name == "two", timeout_s=PATIENCE_S)
            await controllers.aclose()
            await until(lambda: w.status()["holder"] == "second", timeout_s=PATIENCE_S)
            old = [WorkerId(f"baton-decode-{index}") for index in range(2)]
            cordoned = w.c.state.pool.is_cordoned
            await until(lambda: all(map(cordoned, old)), timeout_s=PATIENCE_S)
            assert not stream.done()
            await asyncio.sleep(LONGER_S)
            assert w.pools()["baton-decode"] == 2, "the stream is still there"
            gate.shut = True
            await until(lambda: w.status()["phase"] == "routers away", timeout_s=PATIENCE_S)
            for engine in w.c.prefills:
                engine.token_s = 0.0
            answer = await stream
            assert answer.status == 200
            assert answer.stream_error is None
            await asyncio.sleep(LONGER_S)
            assert w.pools()["baton-decode"] == 2, "nobody says that it is free"
            gate.shut = False
            await w.settled(TWO)


async def test_a_change_that_routers_are_slow_to_make_is_given_up() -> None:
    """Long before what is asked: by then another controller may have the Lease."""

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.json_response({"workers": []})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hang)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = RoutersApi(f"http://127.0.0.1:{runner.addresses[0][1]}", "token", act_s=0.05)
    try:
        for change in (api.drain("w"), api.undrain("w")):
            with pytest.raises(RoutersAway, match=r"within 0\.05 s"):
                await change
        assert await api.workers() == ()
    finally:
        await api.close()
        await runner.cleanup()


class Gate:
    """Stands before an admin API, and can be shut."""

    def __init__(self, url: str) -> None:
        self.shut = False
        self._url = url
        self._runner: web.AppRunner | None = None

    async def _pass_on(self, request: web.Request) -> web.Response:
        if self.shut:
            return web.Response(status=502)
        headers = {"Authorization": request.headers["Authorization"]}
        body = await request.read()
        async with (
            aiohttp.ClientSession() as http,
            http.request(
                request.method, self._url + request.raw_path, data=body, headers=headers
            ) as answer,
        ):
            return web.Response(
                status=answer.status, body=await answer.read(), content_type="application/json"
            )

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
