"""The care of workers, pairs and handoffs, seen from outside: through the whole router."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from baton.clock import Clock
from baton.types import Role, WorkerState
from kvtransfer import HandoffState
from router.care import PairState
from router.ledger import Ledger
from tests.fakes.engine import FakeEngine, Fleet, Leg, Refused, Seen, Trouble
from tests.fakes.engine_kv import DEFAULT_WEIGHTS
from tests.fakes.engine_wire import Reply
from tests.fakes.waiting import until
from tests.integration.router_cluster import (
    LONG,
    SHORT,
    Cluster,
    cluster,
    right_text,
    tokens_of,
)
from tests.integration.test_care_engines import CareEngine

PATIENCE_S = 20.0
FAR = (
    "connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3",
    "connect_s: 20, prefill_s: 60, first_token_s: 60, idle_s: 60, total_s: 120",
)
"""No deadline ends anything."""
WARM = (FAR, ("warm_pairs: false", "warm_pairs: true"))


class Poisoned(CareEngine):
    """Chokes on requests that say so, each time, as it is told; sound for all others."""

    choke = Trouble.STATUS

    async def _generate(self, seen: Seen, reply: Reply) -> None:
        if seen.body.get("user") == "poison":
            if self.choke is Trouble.STATUS:
                raise Refused(500, "choked", "InternalServerError")
            await reply.start(200, "text/event-stream; charset=utf-8")
            if self.choke is Trouble.ERROR_EVENT:
                await reply.send(b'data: {"error": {"message": "choked", "code": 500}}\n\n')
                await reply.send(b"data: [DONE]\n\n")
            await reply.end()
            return
        await super()._generate(seen, reply)


def care_engine(fleet: Fleet, name: str, role: Role) -> FakeEngine:
    return CareEngine(fleet, name, role, tokenize=tokens_of)


def poisoned(trouble: Trouble) -> Callable[[Fleet, str, Role], FakeEngine]:
    def make(fleet: Fleet, name: str, role: Role) -> FakeEngine:
        engine = Poisoned(fleet, name, role, tokenize=tokens_of)
        engine.choke = trouble
        return engine

    return make


def pulls(engine: FakeEngine) -> int:
    """Handoffs that a decode engine has pulled, dummies included."""
    assert isinstance(engine, CareEngine)
    return engine.pulls


def states(c: Cluster) -> dict[tuple[str, str], PairState]:
    return {(row.prefill, row.decode): row.state for row in c.state.care.pairs.table()}


async def reach(c: Cluster, *wanted: PairState) -> None:
    """Waits for the states of all pairs, in the order of their names."""
    await until(
        lambda: [state for _, state in sorted(states(c).items())] == list(wanted),
        timeout_s=PATIENCE_S,
        what=f"{wanted}, not {states(c)}",
    )


# --- pairs --------------------------------------------------------------------------------------


async def test_pairs_are_warmed_before_they_are_used() -> None:
    """A client's request is never the first of a pair: until the dummy handoffs have passed it is
    served by decode alone; a worker that joins later is checked like the first."""
    async with cluster(replace=WARM, make=care_engine, decodes=2, register=False) as c:
        c.p.freeze()
        await c.register(c.p)
        await c.register(c.d)
        await until(lambda: c.p.requests(), timeout_s=PATIENCE_S, what="a dummy handoff")
        answer = await c.complete()
        assert (answer.path, answer.reason) == ("local", "no_usable_pair")
        assert answer.text == right_text()
        c.p.thaw()
        await reach(c, PairState.READY)
        dummies = pulls(c.d)
        assert dummies >= 2
        answer = await c.complete()
        assert (answer.path, answer.text) == ("disaggregated", right_text())
        assert pulls(c.d) == dummies + 1
        await c.register(c.decodes[1])
        await reach(c, PairState.READY, PairState.READY)
        assert pulls(c.decodes[1]) >= 2
        (row, _) = c.state.care.pairs.table()
        assert row.exact
        assert row.bandwidth_bytes_per_s == pytest.approx(1e9)
        assert await c.metric("baton_pair_bandwidth_bytes_per_second", prefill="p0") > 0
        assert c.p.kv.held(0.0) == [], "the dummies' blocks are given back"


async def test_a_pair_that_fails_is_not_used() -> None:
    """Its check fails, so requests go over the other prefill worker; it is tried again, and used
    once it works."""
    async with cluster(replace=WARM, make=care_engine, prefills=2, register=False) as c:
        bad, good = c.prefills
        bad.inject(Trouble.NO_PARAMS, Leg.PREFILL, times=1_000_000)
        for engine in c.engines:
            await c.register(engine)
        await reach(c, PairState.FAILED, PairState.READY)
        checks = len(bad.requests())
        for _ in range(4):
            assert (await c.complete()).path == "disaggregated"
        assert len(bad.requests()) <= checks + 1, "no client's request went there"
        pairs = (await c.admin("GET", "/admin/pairs")).json["pairs"]
        (row,) = [pair for pair in pairs if pair["prefill"] == "p0"]
        assert "offered no blocks" in row["reason"]
        bad.faults.clear()
        await reach(c, PairState.READY, PairState.READY)
        await c.remove(good)
        assert (await c.complete()).path == "disaggregated"


async def test_hung_workers_do_not_keep_others_unchecked() -> None:
    """The checks of two workers hang; when their heartbeats say so, others have their turn, and the
    hung ones are checked when they are back."""
    async with cluster(replace=WARM, make=care_engine, prefills=3, register=False) as c:
        hung = c.prefills[:2]
        for engine in hung:
            engine.freeze()
            await c.register(engine)
        await c.register(c.d)
        await until(lambda: all(e.requests() for e in hung), timeout_s=PATIENCE_S)
        await c.register(c.prefills[2])
        assert states(c)["p2", "d0"] is PairState.UNCHECKED
        for engine in hung:
            await c.register(engine, state=WorkerState.WARMING)
        # Well within the half minute that a check may take.
        await until(lambda: states(c)["p2", "d0"] is PairState.READY, timeout_s=PATIENCE_S)
        assert states(c)["p0", "d0"] is PairState.FAILED
        for engine in hung:
            engine.thaw()
            await c.register(engine)
        await reach(c, *[PairState.READY] * 3)


async def test_workers_that_leave_while_a_pair_is_checked() -> None:
    """A check whose worker goes, drains or is another one by its end changes nothing for others."""
    async with cluster(replace=WARM, make=care_engine, prefills=3, register=False) as c:
        for engine in c.prefills:
            engine.freeze()
        for engine in c.engines:
            await c.register(engine)
        await until(lambda: any(e.requests() for e in c.prefills), timeout_s=PATIENCE_S)
        await c.remove(c.prefills[0])
        await c.register(c.prefills[1], state=WorkerState.DRAINING)
        await c.register(c.prefills[2], engine_id="p2-run-2")
        c.prefills[2].kv.engine_id = "p2-run-2"
        c.fleet.engines["p2-run-2"] = c.prefills[2]
        for engine in c.prefills:
            engine.thaw()
        await until(lambda: states(c).get(("p2", "d0")) is PairState.READY, timeout_s=PATIENCE_S)
        answer = await c.complete()
        assert (answer.path, answer.text) == ("disaggregated", right_text())


async def test_a_slow_pair_is_flagged() -> None:
    """Below the profile's floor it is out of use, and everybody is told why."""
    slow = (*WARM, ("lease_s: 30,", "lease_s: 30, floor_mib_per_s: 5000,"))
    async with cluster(replace=slow, make=care_engine) as c:
        await reach(c, PairState.SLOW)
        answer = await c.complete()
        assert (answer.path, answer.reason) == ("local", "no_usable_pair")
        (row,) = (await c.admin("GET", "/admin/pairs")).json["pairs"]
        assert "the floor is" in row["reason"]
        assert await c.metric("baton_pair_state", state="slow") == 1


async def test_pairs_that_do_not_fit_on_paper() -> None:
    """Other weights or another block size: never used, never even tried."""
    async with cluster(replace=WARM, make=care_engine, register=False) as c:
        await c.register(c.p, model_digest="sha256:other")
        await c.register(c.d)
        await reach(c, PairState.REFUSED)
        answer = await c.complete()
        assert (answer.path, answer.text) == ("local", right_text())
        assert c.p.requests() == []
        (row,) = (await c.admin("GET", "/admin/pairs")).json["pairs"]
        assert "weights" in row["reason"]


async def test_over_tcp_where_the_profile_says_rdma() -> None:
    """A pair that fell back to another transport is refused."""
    rdma = (*WARM, ("lease_s: 30,", "lease_s: 30, transport: rdma,"))
    async with cluster(replace=rdma, make=care_engine, register=False) as c:
        await c.register(c.p, transport="rdma")
        await c.register(c.d, transport="tcp")
        await reach(c, PairState.REFUSED)
        assert (await c.complete()).path == "local"
        await c.register(c.d, transport="rdma")
        await reach(c, PairState.READY)
        assert (await c.complete()).path == "disaggregated"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_canary_finds_corrupt_kv(stream: bool) -> None:
    """A pair that was sound goes bad: the first wrong answer is the last. Later requests are served
    by one engine, rightly, until a person releases the pair."""
    always = (*WARM, ("canary_rate: 0", "canary_rate: 1"))
    async with cluster(replace=always, make=care_engine) as c:
        c.expected_errors = ["pair p0 -> d0 is quarantined: canary"]
        counts = c.state.care.canary.counts
        await reach(c, PairState.READY)
        assert (await c.complete(temperature=0, stream=stream)).text == right_text()
        await until(lambda: counts.ok == 1, timeout_s=PATIENCE_S)
        # What is drawn by lot says nothing: no canary.
        await c.complete(temperature=1, stream=stream)
        assert states(c) == {("p0", "d0"): PairState.READY}
        c.p.kv.weights = "weights-2"
        assert (await c.complete(temperature=0, stream=stream)).text != right_text()
        await reach(c, PairState.QUARANTINED)
        assert (counts.ok, counts.mismatched, counts.unknown) == (1, 1, 0)
        for _ in range(3):
            answer = await c.complete(stream=stream)
            assert (answer.path, answer.reason) == ("local", "no_usable_pair")
            assert answer.text == right_text()
        assert await c.metric("baton_canary_total", result="mismatched") == 1
        # Another heartbeat, or a lapse of one, does not lift it.
        c.p.kv.weights = DEFAULT_WEIGHTS
        await c.remove(c.p)
        await c.register(c.p)
        await reach(c, PairState.QUARANTINED)
        await c.admin("POST", "/admin/pairs/p0/d0/release")
        assert (await c.complete()).path == "disaggregated"
        c.d.corruptions.clear()


# --- workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [Trouble.STATUS, Trouble.ERROR_EVENT, Trouble.SILENT_END])
async def test_a_poison_request(trouble: Trouble) -> None:
    """Sent twenty times, it fails twenty times, on few workers each; no sound worker is taken out
    by it, and the requests beside it are served."""
    async with cluster(prefills=2, decodes=2, replace=(FAR,), make=poisoned(trouble)) as c:
        for number in range(20):
            prompt = LONG if number % 2 else SHORT
            before = sum(len(engine.requests()) for engine in c.engines)
            answer = await c.complete(prompt, stream=True, user="poison")
            assert answer.status == 502
            after = sum(len(engine.requests()) for engine in c.engines)
            # Three tries of at most two legs, and the probes that the suspicion costs.
            assert after - before <= 12
            assert c.state.care.breakers.blocked_ids == frozenset()
            if number % 5 == 0:
                for sound in (LONG, SHORT):
                    assert (await c.complete(sound)).text == right_text(sound)
        counts = c.state.care.breakers.counts
        await until(lambda: c.state.care.breakers.suspicious_ids == frozenset())
        assert counts.opened == 0
        assert c.state.ready_workers() == {"prefill": 2, "decode": 2}


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
async def test_a_killed_worker_is_out_and_comes_back(role: Role) -> None:
    """Whoever finds it dead is served elsewhere, nobody is sent there again, and within seconds of
    its restart it has traffic: as the same engine, found by a probe, or as another one."""
    async with cluster(prefills=2, decodes=2, replace=(FAR,), make=care_engine) as c:
        victim = (c.prefills if role is Role.PREFILL else c.decodes)[0]
        await victim.kill()

        async def some(count: int) -> None:
            for _ in range(count):
                answer = await c.complete()
                assert (answer.status, answer.text) == (200, right_text())

        async def breaker() -> str:
            rows = (await c.admin("GET", "/admin/workers")).json["workers"]
            (state,) = [row["breaker"] for row in rows if row["record"]["id"] == victim.name]
            return str(state)

        # Ties are broken by lot: with forty requests somebody finds it.
        for _ in range(40):
            await some(1)
            if c.state.care.breakers.blocked_ids:
                break
        assert c.state.care.breakers.blocked_ids == {victim.name}
        assert await breaker() in ("open", "half_open")
        failures = await c.metric("baton_leg_failures_total")
        await some(10)
        assert await c.metric("baton_leg_failures_total") == failures
        await victim.server.start()
        victim.alive = True
        await until(lambda: not c.state.care.breakers.blocked_ids, timeout_s=PATIENCE_S)
        assert await breaker() == "closed"
        assert c.state.care.breakers.counts.closed_again == 1
        probes = len(victim.requests())
        for _ in range(40):
            await some(1)
            if len(victim.requests()) > probes:
                break
        assert len(victim.requests()) > probes
        # A new run of the engine has nothing to do with the old one's breaker.
        await victim.kill()
        await victim.start()
        await c.register(victim)
        assert await breaker() == "closed"


@pytest.mark.parametrize("url", ["http://[bad", "http://x:y", "127.0.0.1:80", "http://x/\x01"])
async def test_a_worker_with_an_address_that_is_none(url: str) -> None:
    """It is as good as unreachable: others take over, its breaker opens, no traceback anywhere."""
    async with cluster(decodes=2, register=False) as c:
        await c.register(c.d, url=url)
        assert (await c.complete(SHORT)).status == 502
        assert c.state.care.breakers.blocked_ids == {"d0"}
        await c.register(c.decodes[1])
        for _ in range(4):
            assert (await c.complete(SHORT)).text == right_text(SHORT)


# --- blocks that nobody will pull ---------------------------------------------------------------


@pytest.mark.parametrize("trouble", [Trouble.HANG_BEFORE_HEADERS, Trouble.HANG])
async def test_a_client_that_leaves_before_decode_has_answered(trouble: Trouble) -> None:
    """Decode's leg is closed and the blocks are given back, long before their lease is over."""
    async with cluster(replace=WARM, make=care_engine) as c:
        await reach(c, PairState.READY)
        c.d.inject(trouble, Leg.DECODE)
        legs = len(c.d.requests(Leg.DECODE))
        asking = asyncio.create_task(c.complete(stream=True))
        await until(lambda: len(c.d.requests(Leg.DECODE)) > legs)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await until(lambda: c.d.requests(Leg.DECODE)[legs].aborted)
        await until(lambda: not c.state.ledger.stranded_handoffs(), timeout_s=PATIENCE_S)
        assert c.p.kv.held(c.fleet.clock.monotonic_s()) == []
        assert await c.metric("baton_handoffs_reclaimed_total", how="released") == 1
        assert await c.metric("baton_handoff_stranded_bytes") == 0


class Leap:
    """A clock that is far ahead the first time that it is asked while something is offered."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger, self._clock = ledger, clock
        self.leapt = False

    def monotonic_s(self) -> float:
        offered = any(h.state is HandoffState.OFFERED for h in self._ledger.open_handoffs())
        ahead_s = 1000.0 if offered and not self.leapt else 0.0
        self.leapt = self.leapt or offered
        return self._clock.monotonic_s() + ahead_s

    def wall_s(self) -> float:
        return self._clock.wall_s()


async def test_an_offer_that_is_too_old_is_given_back() -> None:
    """Prefill has answered, and decode is not sent there any more: the blocks are released at once,
    by decode, and the request is served all the same."""
    async with cluster(replace=WARM, make=care_engine) as c:
        await reach(c, PairState.READY)
        clock = Leap(c.state.ledger, c.state.clock)
        c.state.ledger._clock = clock
        answer = await c.complete()
        assert clock.leapt
        assert (answer.status, answer.text) == (200, right_text())
        decode = c.d
        assert isinstance(decode, CareEngine)
        await until(lambda: decode.released == 1, timeout_s=PATIENCE_S)
        await until(lambda: not c.state.ledger.stranded_handoffs(), timeout_s=PATIENCE_S)
        assert c.p.kv.held(c.fleet.clock.monotonic_s()) == []
