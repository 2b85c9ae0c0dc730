"""Switching profiles in a running router: nobody is lost, nobody sees two, bad ones are refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from baton.telemetry import ACCESS_LOGGER, process_context
from baton.types import Role, Tally
from profiles import parse_profile
from tests.fakes.broken_profiles import broken_profiles
from tests.fakes.engine import MODEL, Leg
from tests.fakes.engine_faults import Trouble
from tests.fakes.kubernetes_api import FakeKubernetes
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    COMPLETIONS,
    LONG,
    PROFILE,
    SHORT,
    Answer,
    Cluster,
    cluster,
    right_text,
)

STANDARD = f"""\
apiVersion: baton/v1
kind: ServingProfile
metadata:
  name: plain
spec:
  mode: standard
  model: {{source: demo, served_name: {MODEL}, max_model_len: 2048}}
  pools:
    standard: {{accelerator: cpu}}
  transfer: {{block_size: 32, lease_s: 30, warm_pairs: false}}
  deadlines: {{connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3}}
  limits: {{in_flight: 32, body_bytes: 65536, drain_s: 1}}
  flow: {{worker_wait_s: 0, slots_factor: 10}}
  routing: {{prefix: "off"}}
  switch: {{prepare_s: 5, canary_share: 0}}
"""
BACK = PROFILE + "  switch: {prepare_s: 5, canary_share: 0}\n"
V_OLD = parse_profile(PROFILE, source="old").version
V_STANDARD = parse_profile(STANDARD, source="standard").version
V_BACK = parse_profile(BACK, source="back").version


async def ask_switch(c: Cluster, text: str, **more: Any) -> Answer:
    """Asks for a switch."""
    body = {"text": text, "origin": "test.yaml", **more}
    return await c.admin("POST", "/admin/switch", json=body)


async def report(c: Cluster) -> dict[str, Any]:
    """How things are."""
    found: dict[str, Any] = (await c.admin("GET", "/admin/switch")).json
    return found


async def switched(c: Cluster, text: str, **more: Any) -> dict[str, Any]:
    """Switches, waits for the end, and returns its report."""
    answer = await ask_switch(c, text, **more)
    assert answer.status == 202, answer
    await until(lambda: c.state.conductor.agreed.switch is None, timeout_s=20, what="over")
    last: dict[str, Any] = (await report(c))["last"]
    return last


def version_of(answer: Answer) -> str:
    """What an answer says it was served under."""
    return answer.headers["x-baton-profile-version"]


class Asking:
    """Requests to several routers, one after the other from several clients."""

    def __init__(self, routers: list[Cluster], clients: int = 4) -> None:
        self._routers = routers
        self._clients = clients
        self.answers: list[tuple[float, str, Answer]] = []
        self.stop = False

    async def _client(self, number: int) -> None:
        turn = number
        while not self.stop:
            turn += 1
            prompt = LONG + str(turn) if turn % 2 else SHORT + str(turn)
            sent_s = time.monotonic()
            router = self._routers[turn % len(self._routers)]
            answer = await router.complete(prompt, stream=turn % 3 == 0)
            self.answers.append((sent_s, prompt, answer))
            await asyncio.sleep(0.005)

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(number))
            try:
                yield
            finally:
                self.stop = True

    def check(self, versions: set[str]) -> None:
        """None failed, none was wrong, each was served under one of the versions."""
        assert self.answers
        for _, prompt, answer in self.answers:
            assert answer.status == 200, answer
            assert answer.text == right_text(prompt)
            if version_of(answer) == V_STANDARD:
                assert answer.path == "local"
        assert {version_of(answer) for *_, answer in self.answers} == versions


async def test_there_and_back_under_load() -> None:
    """Disaggregated to standard and back: every request is right, under exactly one version; the
    prefill worker serves whole requests in between, and prefills again afterwards."""
    async with cluster() as c:
        load = Asking([c])
        async with load.going():
            await asyncio.sleep(0.2)
            there = await switched(c, STANDARD)
            await until(lambda: any(not s.body.get("kv_transfer_params") for s in c.p.requests()))
            back = await switched(c, BACK)
            await asyncio.sleep(0.3)
        assert (there["outcome"], back["outcome"]) == ("committed", "committed")
        load.check({V_OLD, V_STANDARD, V_BACK})
        assert load.answers[-1][2].headers["x-baton-profile-version"] == V_BACK
        told = await report(c)
        assert told["active"]["version"] == V_BACK
        assert told["previous"]["version"] == V_STANDARD
        assert told["switch"] is None
        history = (await c.admin("GET", "/admin/history")).json["history"]
        assert [r["number"] for r in history] == [1, 2]
        assert await c.metric("baton_profile_switches_total", outcome="committed") == 2
        assert await c.metric("baton_profile_info", version=V_BACK, state="active") == 1
        assert len(c.state.servings.all()) <= 3


async def test_requests_in_flight_end_under_their_own_profile() -> None:
    """A stream that began before the switch ends as it began; later ones are under the new one."""
    async with cluster() as c:
        c.d.token_s = 0.05
        stream = asyncio.create_task(c.complete(SHORT, stream=True, max_tokens=50))
        await until(lambda: c.d.running == 1)
        assert (await switched(c, STANDARD))["outcome"] == "committed"
        later = await c.complete(SHORT, max_tokens=2)
        assert not stream.done()
        answer = await stream
        assert (version_of(answer), version_of(later)) == (V_OLD, V_STANDARD)
        assert answer.status == 200
        await until(lambda: len(c.state.servings.all()) == 1, what="the old one is let go")


async def test_a_canary_is_sticky_and_takes_its_share() -> None:
    """The same id is served by the same profile; all ids together by the share."""
    async with cluster() as c:
        assert (await ask_switch(c, STANDARD, canary_share=0.3, hold_s=600, canary_s=600)).status
        conductor = c.state.conductor
        await until(lambda: _phase(c) == "canary")
        seen: dict[int, set[str]] = {}
        for _ in range(2):
            for number in range(60):
                answer = await c.call(
                    "POST",
                    COMPLETIONS,
                    json={"model": MODEL, "prompt": SHORT, "max_tokens": 2},
                    headers={"x-request-id": f"client-{number}"},
                )
                seen.setdefault(number, set()).add(version_of(answer))
        assert all(len(versions) == 1 for versions in seen.values())
        share = sum(versions == {V_STANDARD} for versions in seen.values()) / 60
        assert 0.1 < share < 0.55
        await until(lambda: conductor.agreed.switch is not None and conductor.agreed.switch.tallies)
        told = (await report(c))["switch"]
        assert set(told["tallies"]) <= {V_OLD, V_STANDARD}
        assert await c.metric("baton_profile_switch_phase", phase="canary") == 1
        # An operator has seen enough.
        assert (await c.admin("POST", "/admin/switch/skip")).status == 202
        await until(lambda: conductor.agreed.switch is None)
        last = (await report(c))["last"]
        assert last["outcome"] == "committed"
        assert "operator" in last["reason"]


def _phase(c: Cluster) -> str:
    switch = c.state.conductor.agreed.switch
    return "" if switch is None else str(switch.phase)


async def test_an_operator_rolls_back() -> None:
    """During a canary everything is as before at once; after a switch it is a switch back."""
    async with cluster() as c:
        await ask_switch(c, STANDARD, canary_share=0.5, hold_s=600, canary_s=600)
        await until(lambda: _phase(c) == "canary")
        assert (await c.admin("POST", "/admin/rollback")).status == 202
        assert (await report(c))["last"]["outcome"] == "rolled_back"
        assert {version_of(await c.complete(SHORT)) for _ in range(10)} == {V_OLD}
        assert (await c.admin("POST", "/admin/rollback")).status == 409
        assert (await switched(c, STANDARD))["outcome"] == "committed"
        assert (await c.admin("POST", "/admin/rollback")).status == 202
        await until(lambda: c.state.conductor.agreed.switch is None)
        assert (await report(c))["active"]["version"] == V_OLD
        assert version_of(await c.complete(SHORT)) == V_OLD


async def test_a_pool_of_zero_is_rolled_back() -> None:
    """A profile whose pools are not there is not waited for beyond its limit; the report names
    what is missing, and nobody was served by it."""
    async with cluster(profile=STANDARD, prefills=0) as c:
        load = Asking([c])
        async with load.going():
            last = await switched(c, BACK, prepare_s=1.0)
        assert last["outcome"] == "rolled_back"
        assert "spec.pools.prefill" in last["reason"]
        load.check({V_STANDARD})


async def test_a_canary_that_errs_is_rolled_back() -> None:
    """Errors under the new profile only: it is rolled back by itself, with figures."""
    # Prefill's first leg fails always, and the new profile does not forgive it.
    strict = BACK.replace("threshold_tokens: 64", "threshold_tokens: 1")
    strict += "  degrade: {steps: []}\n"
    async with cluster(profile=STANDARD, decodes=2) as c:
        # (Workers that were started as standard are decode workers for it, and p0 prefills.)
        c.p.inject(Trouble.STATUS, Leg.PREFILL, times=10_000)
        answers: list[Answer] = []

        async def clients() -> None:
            while True:
                answers.append(await c.complete(SHORT))

        tasks = [asyncio.create_task(clients()) for _ in range(4)]
        c.expected_errors.append("")
        last = await switched(
            c, strict, canary_share=0.3, hold_s=20, canary_s=20, min_requests=5, skip=["shadow"]
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert last["outcome"] == "rolled_back"
        assert "of" in last["reason"]
        assert "%" in last["reason"]
        assert {version_of(a) for a in answers if a.status == 200} >= {V_STANDARD}
        assert version_of(await c.complete(SHORT)) == V_STANDARD


async def test_limits_of_the_clients_say_nothing_of_a_profile() -> None:
    """What ends at a time that its client named is no error of the profile's, answered or not."""
    async with cluster() as c:
        c.d.token_s = 0.2
        for stream in (False, True):
            answer = await c.call(
                "POST",
                COMPLETIONS,
                json={"model": MODEL, "prompt": SHORT, "max_tokens": 8, "stream": stream},
                headers={"x-baton-timeout-s": "0.5"},
            )
            assert (answer.status == 504) is not stream
        assert c.state.servings.current.tally() == Tally()
        c.d.token_s = 0.0
        assert (await c.complete(SHORT, stream=True)).status == 200
        assert c.state.servings.current.tally().requests == 1


async def test_two_hundred_broken_profiles() -> None:
    """Each is refused with the field at fault, and the old profile goes on."""
    async with cluster() as c:
        for broken in broken_profiles(200, seed=7):
            answer = await ask_switch(c, broken.text)
            assert answer.status == 400, (broken, answer)
            assert "test.yaml" in answer.error["message"]
        assert version_of(await c.complete(LONG)) == V_OLD
        assert c.state.conductor.agreed.number == 0


async def test_what_cannot_begin() -> None:
    """Unknown names, the active profile, a second switch, workers of another model, bad terms."""
    async with cluster() as c:
        answer = await c.admin("POST", "/admin/switch", json={"profile": "nobody"})
        assert answer.status == 404
        assert "disaggregated" in answer.error["message"]
        assert (await ask_switch(c, PROFILE)).status == 409
        other = await ask_switch(c, STANDARD.replace(f"served_name: {MODEL}", "served_name: x"))
        assert other.status == 400
        assert MODEL in other.error["message"]
        assert (await report(c))["last"]["outcome"] == "refused"
        for bad in ({"hold_s": -1}, {"skip": ["committed"]}, {"nonsense": 1}, {"profile": "x"}):
            assert (await ask_switch(c, STANDARD, **bad)).status == 400
        await ask_switch(c, STANDARD, canary_share=0.5, hold_s=600, canary_s=600)
        assert (await ask_switch(c, BACK)).status == 409
        await c.admin("POST", "/admin/rollback")


async def test_check_only() -> None:
    """What a switch would do is said without doing it: fields, fit, the last requests' ways."""
    async with cluster() as c:
        for prompt in (LONG, SHORT, LONG + "x"):
            assert (await c.complete(prompt)).status == 200
        told = (await ask_switch(c, STANDARD, check_only=True)).json
        assert told["fits"] is True
        assert "spec.mode" in [change["path"] for change in told["changes"]]
        assert told["shadow"]["requests"] == 3
        assert told["shadow"]["changed"] == {"disaggregated -> local": 2}
        assert c.state.conductor.agreed.number == 0
        assert len(c.state.counts._followers) == 1


async def test_a_folder_of_profiles(tmp_path: Path) -> None:
    """What the folder names is made active by a switch; a bad text never replaces a good one, and
    is told in the log, the metric and the admin API with file, path, line and reason."""
    (tmp_path / "test.yaml").write_text(BACK)
    (tmp_path / "plain.yaml").write_text(STANDARD)
    (tmp_path / "active").write_text("test")
    async with cluster(profiles=str(tmp_path)) as c:
        assert (await report(c))["active"]["version"] == V_BACK
        (tmp_path / "active").write_text("active: plain\n")
        await until(lambda: c.state.profile.name == "plain", timeout_s=10)
        assert version_of(await c.complete(LONG)) == V_STANDARD
        c.expected_errors.append("refused: ")
        (tmp_path / "plain.yaml").write_text(STANDARD.replace("idle_s: 0.5", "idle_s: never"))
        await until(lambda: bool(c.state.conductor.proposals.problems), timeout_s=10)
        text, name = (await report(c))["source"]["problems"]
        assert "plain.yaml:11: spec.deadlines.idle_s" in text
        assert "active" in name
        assert await c.metric("baton_profile_source_problems") == 2
        assert version_of(await c.complete(LONG)) == V_STANDARD
        rows = (await c.admin("GET", "/admin/profiles")).json["profiles"]
        assert {row["name"]: row["from"] for row in rows if row["active"]} == {"plain": "source"}
        (tmp_path / "plain.yaml").write_text(STANDARD)
        await until(lambda: not c.state.conductor.proposals.problems, timeout_s=10)
        shown = (await c.admin("GET", "/admin/profiles/plain")).json
        assert shown["version"] == V_STANDARD
        assert shown["document"]["spec"]["mode"] == "standard"


async def test_the_version_is_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    """Headers, explanation, errors, metrics and log lines name the version, those of no request
    that of the active profile."""
    caplog.set_level(logging.INFO, logger=ACCESS_LOGGER)
    async with cluster() as c:
        answer = await c.call(
            "POST",
            COMPLETIONS,
            json={"model": MODEL, "prompt": LONG, "max_tokens": 2},
            headers={"x-baton-explain": "1"},
        )
        assert version_of(answer) == V_OLD
        assert json.loads(answer.headers["x-baton-explain"])["profile_version"] == V_OLD
        assert version_of(await c.post(COMPLETIONS, model=MODEL)) == V_OLD
        for name in (
            "baton_requests_total",
            "baton_decisions_total",
            "baton_request_duration_seconds_count",
        ):
            assert await c.metric(name, profile_version=V_OLD) >= 1
        lines = [record for record in caplog.records if record.name == ACCESS_LOGGER]
        assert {record.__dict__["profile_version"] for record in lines} == {V_OLD}
        assert process_context["profile_version"] == V_OLD
        await switched(c, STANDARD)
        assert process_context["profile_version"] == V_STANDARD


async def test_a_worker_changes_roles_only_when_its_old_work_has_ended() -> None:
    """A worker that answers a stream does not prefill before that has ended."""
    async with cluster(profile=STANDARD, decodes=1) as c:
        # p0 was started for prefill and serves whole requests under the standard profile.
        c.p.token_s = 0.05
        running = asyncio.create_task(c.complete(SHORT, stream=True, max_tokens=30))
        other = asyncio.create_task(c.complete(SHORT + "2", stream=True, max_tokens=30))
        await until(lambda: c.p.running == 1, what="one of two streams is at p0")
        answer = await ask_switch(c, BACK)
        assert answer.status == 202
        await until(lambda: bool(c.state.pool.turning))
        assert _phase(c) == "prepare"
        seats = {r.id: r for r in c.state.pool.seated()}
        assert str(seats[c.p.record().id].state) == "draining"
        assert (await running).status == (await other).status == 200
        await until(lambda: c.state.conductor.agreed.switch is None)
        assert (await report(c))["last"]["outcome"] == "committed"
        assert (await c.complete(LONG)).path == "disaggregated"
        assert {r.id: r.role for r in c.state.pool.seated()}[c.p.record().id] is Role.PREFILL


async def test_a_configmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the Kubernetes API: what it names is switched to; what is wrong stands in the status
    ConfigMap and in an Event, with key, line and reason, and changes nothing."""
    async with FakeKubernetes() as cluster_api:
        monkeypatch.setenv("KUBECONFIG", str(cluster_api.kubeconfig(tmp_path)))
        data = {"test.yaml": BACK, "plain.yaml": STANDARD, "active": "test"}
        cluster_api.put("configmaps", "serving", "profiles", {"data": data})
        async with cluster(profiles="configmap:serving/profiles") as c:
            assert c.state.profile.version == V_BACK
            data["active"] = "plain"
            cluster_api.put("configmaps", "serving", "profiles", {"data": data})
            await until(lambda: c.state.profile.version == V_STANDARD, timeout_s=10)
            c.expected_errors.append("refused: ")
            data["plain.yaml"] = STANDARD.replace("prepare_s: 5", "prepare_s: soon")
            cluster_api.put("configmaps", "serving", "profiles", {"data": data})

            def status() -> str:
                found = cluster_api.get("configmaps", "serving", "profiles-status") or {}
                return str(found.get("data"))

            await until(lambda: "spec.switch.prepare_s" in status(), timeout_s=10, what="status")
            assert "plain.yaml:15" in status()
            assert V_STANDARD in status()

            def said(reason: str) -> str:
                events = cluster_api.all("events", "serving")
                return "\n".join(e["message"] for e in events if e["reason"] == reason)

            await until(lambda: "spec.switch.prepare_s" in said("ProfileRefused"))
            assert "committed" in said("ProfileSwitched")
            assert version_of(await c.complete(LONG)) == V_STANDARD
