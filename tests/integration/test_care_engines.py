"""The care of handoffs over real HTTP, with fake engines at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from baton.clock import SystemClock
from baton.errors import PeerFault, WorkerTimeout, WorkerUnreachable
from baton.types import RequestId, Role, WorkerId
from router.care import Care, CareRules, Finished, Orphan, Outcome, PairState
from router.care.breakers import Breakers
from router.care.handoffs import OFFER
from router.wire.client import Upstream
from tests.fakes.engine import KEY, MODEL, FakeEngine, Fleet, Refused, Trouble
from tests.fakes.engine_faults import Seen
from tests.fakes.engine_job import Job
from tests.fakes.engine_wire import Reply
from tests.fakes.waiting import until

PATIENCE_S = 20.0
PROMPT = list(range(10, 110))


class CareEngine(FakeEngine):
    """A fake engine that also gives log probabilities, counts what it pulled, and frees prefill's
    blocks when it refuses a request that carries their parameters, if it knows prefill."""

    def __init__(self, fleet: Fleet, name: str, role: Role, **more: Any) -> None:
        super().__init__(fleet, name, role, **more)
        self.knows: set[str] = set()
        self.pulls = 0
        self.released = 0

    async def _generate(self, seen: Seen, reply: Reply) -> None:
        try:
            await super()._generate(seen, reply)
        except Refused:
            params = seen.body.get("kv_transfer_params") or {}
            if params.get("do_remote_prefill") and params["remote_engine_id"] in self.knows:
                offers = self.fleet.engines[params["remote_engine_id"]].kv.offers
                if offers.pop(params["remote_request_id"], None) is not None:
                    self.released += 1
            raise

    async def _pull(self, job: Job) -> Any:
        wrong = await super()._pull(job)
        self.knows.add(job.params["remote_engine_id"])
        self.pulls += 1
        return wrong

    async def _whole(self, job: Job, answer_id: str, *rest: Any) -> None:
        *_, reply = rest
        send = reply.json

        async def with_logprobs(status: int, body: Any) -> None:
            if status == 200 and "choices" in body and not job.chat:
                token = body["choices"][0]["text"].split()[0]
                logprob = -0.5 - (sum(token.encode()) % 50) / 100
                body["choices"][0]["logprobs"] = {
                    "tokens": [token],
                    "token_logprobs": [logprob],
                    "top_logprobs": [{token: logprob, "another": -6.0}],
                }
            await send(status, body)

        reply.json = with_logprobs
        await super()._whole(job, answer_id, *rest)

    def _metrics(self) -> str:
        lines = [
            f"vllm:nixl_xfer_time_seconds_count {self.pulls}",
            f"vllm:nixl_xfer_time_seconds_sum {self.pulls * 0.001}",
            f"vllm:nixl_bytes_transferred_sum {self.pulls * 1e6}",
        ]
        return super()._metrics() + "\n".join(lines) + "\n"


class Stage:
    """Engines, a client, and the care of both."""

    def __init__(self, rules: CareRules) -> None:
        self.fleet = Fleet()
        self.upstream = Upstream(KEY, connect_s=5.0)
        self.clock = SystemClock()
        self.care = Care(self.upstream, rules, self.clock, random.Random(1))
        self.engines: list[CareEngine] = []

    async def add(self, name: str, role: Role, **more: Any) -> CareEngine:
        engine = CareEngine(self.fleet, name, role, **more)
        await engine.start()
        self.engines.append(engine)
        return engine

    def update(self, **changes: Any) -> None:
        self.care.update([engine.record(**changes) for engine in self.engines])

    def states(self) -> list[PairState]:
        return [row.state for row in self.care.pairs.table()]

    async def reach(self, state: PairState) -> None:
        await until(lambda: self.states() == [state], timeout_s=PATIENCE_S, what=state)

    async def offer(self, prefill: CareEngine) -> dict[str, Any]:
        """A prefill leg of a client's; the parameters of its answer."""
        answer = await self.upstream.ask(
            prefill.record(),
            "/v1/completions",
            prefill_body(),
            RequestId("r-1"),
            timeout_s=PATIENCE_S,
        )
        params = msgspec.json.decode(answer.body)["kv_transfer_params"]
        assert isinstance(params, dict)
        return params


def prefill_body() -> bytes:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    return msgspec.json.encode({**body, "kv_transfer_params": OFFER})


@contextlib.asynccontextmanager
async def staged(rules: CareRules | None = None) -> AsyncIterator[Stage]:
    stage = Stage(rules or CareRules())
    stage.care.start()
    try:
        yield stage
    finally:
        await stage.care.close()
        await stage.upstream.close()
        for engine in stage.engines:
            engine.thaw()
            await engine.server.stop()


async def test_a_pair_of_engines() -> None:
    """Checked, warmed and measured at join; no engine saw doubtful KV, none holds blocks."""
    async with staged() as stage:
        prefill = await stage.add("p", Role.PREFILL)
        decode = await stage.add("d", Role.DECODE)
        stage.update()
        await stage.reach(PairState.READY)
        (row,) = stage.care.pairs.table()
        assert row.exact
        assert row.bandwidth_bytes_per_s == pytest.approx(1e9)
        assert decode.pulls == 2
        assert decode.corruptions == []
        assert prefill.kv.held(stage.clock.monotonic_s()) == []


async def test_other_weights_under_the_same_digest() -> None:
    """Whatever the records say, the dummy handoffs begin otherwise: the pair is quarantined."""
    async with staged() as stage:
        await stage.add("p", Role.PREFILL)
        await stage.add("d", Role.DECODE, weights="weights-2")
        stage.update(model_digest="sha256:said-to-be-equal")
        await stage.reach(PairState.QUARANTINED)
        assert not next(iter(stage.care.pairs.views().values())).usable


async def test_a_pair_that_goes_bad_is_found_by_the_canary() -> None:
    """Ready at join, corrupt later: the replay of a finished request shows it."""
    async with staged(CareRules(canary_rate=1.0)) as stage:
        prefill = await stage.add("p", Role.PREFILL)
        decode = await stage.add("d", Role.DECODE)
        stage.update()
        await stage.reach(PairState.READY)
        finished = Finished(
            request_id=RequestId("r-1"),
            path="/v1/completions",
            body={"model": MODEL, "prompt": PROMPT, "temperature": 0, "stream": True},
            prefill_body=prefill_body(),
            prompt_tokens=len(PROMPT),
            prefill=prefill.record(),
            decode=decode.record(),
        )
        assert stage.care.canary.replay(finished)
        counts = stage.care.canary.counts
        await until(lambda: counts.ok == 1, timeout_s=PATIENCE_S)
        assert stage.states() == [PairState.READY]
        prefill.kv.weights = "weights-2"
        assert stage.care.canary.replay(finished)
        await until(lambda: counts.mismatched == 1, timeout_s=PATIENCE_S)
        assert stage.states() == [PairState.QUARANTINED]
        assert counts.unknown == 0


@pytest.mark.parametrize("warm", [True, False])
async def test_an_orphan_is_given_back(warm: bool) -> None:
    """At once, and long before its lease: by a refusal where the engines know each other, by a
    pull where they do not."""
    async with staged(CareRules(warm_pairs=warm)) as stage:
        prefill = await stage.add("p", Role.PREFILL)
        decode = await stage.add("d", Role.DECODE)
        stage.update()
        await stage.reach(PairState.READY)
        pulls = decode.pulls
        params = await stage.offer(prefill)
        assert len(prefill.kv.held(stage.clock.monotonic_s())) == 1
        ends: list[Outcome] = []
        stage.care.reclaimer.reclaim(
            Orphan(
                request_id=RequestId("r-1"),
                path="/v1/completions",
                body={"model": MODEL, "prompt": PROMPT, "stream": True},
                params=params,
                prefill=prefill.record(),
                decode=decode.record(),
                expires_s=stage.clock.monotonic_s() + 30.0,
                on_end=ends.append,
            )
        )
        await until(lambda: ends, timeout_s=PATIENCE_S)
        assert ends == [Outcome.RELEASED]
        assert prefill.kv.held(stage.clock.monotonic_s()) == []
        assert (decode.released, decode.pulls - pulls) == ((1, 0) if warm else (0, 1))
        assert decode.corruptions == []


# --- breakers ---


async def fail(stage: Stage, engine: CareEngine, request: str) -> PeerFault:
    """A leg that fails; what the router would report."""
    try:
        await stage.upstream.ask(
            engine.record(),
            "/v1/completions",
            msgspec.json.encode({"model": MODEL, "prompt": PROMPT, "max_tokens": 1}),
            RequestId(request),
            timeout_s=0.2,
        )
    except PeerFault as fault:
        return fault
    raise AssertionError("it answered")


async def test_a_killed_worker() -> None:
    """Out at the first refused connection, back when it answers again."""
    async with staged() as stage:
        engine = await stage.add("d", Role.DECODE)
        stage.update()
        record = engine.record()
        await engine.kill()
        fault = await fail(stage, engine, "r-1")
        assert isinstance(fault, WorkerUnreachable)
        stage.care.breakers.fault(record, RequestId("r-1"), fault)
        assert stage.care.breakers.blocked_ids == {"d"}
        # Only the engine's server is back, under the same id: the probe has to find it out.
        await engine.server.start()
        engine.alive = True
        await until(lambda: not stage.care.breakers.blocked_ids, timeout_s=PATIENCE_S)


async def test_a_hung_worker() -> None:
    """Three requests time out, the probe does too; after it has thawed, it is back."""
    async with staged() as stage:
        engine = await stage.add("d", Role.DECODE)
        breakers = Breakers(stage.upstream, stage.clock, random.Random(1), probe_timeout_s=0.3)
        breakers.update([engine.record()])
        engine.freeze()
        for number in range(3):
            fault = await fail(stage, engine, f"r-{number}")
            assert isinstance(fault, WorkerTimeout)
            breakers.fault(engine.record(), RequestId(f"r-{number}"), fault)
        await until(lambda: breakers.blocked_ids == {WorkerId("d")}, timeout_s=PATIENCE_S)
        engine.thaw()
        await until(lambda: not breakers.blocked_ids, timeout_s=PATIENCE_S)
        await breakers.close()


async def test_failed_answers_of_a_sound_worker() -> None:
    """Three requests in a row fail on it; the probe finds it sound, and it never was out."""
    async with staged() as stage:
        engine = await stage.add("d", Role.DECODE)
        stage.update()
        engine.inject(Trouble.STATUS, times=3)
        for number in range(3):
            answer = await stage.upstream.ask(
                engine.record(),
                "/v1/completions",
                msgspec.json.encode({"model": MODEL, "prompt": PROMPT}),
                RequestId(f"r-{number}"),
                timeout_s=PATIENCE_S,
            )
            assert answer.status == 500
            fault = PeerFault("it answered 500")
            stage.care.breakers.fault(engine.record(), RequestId(f"r-{number}"), fault)
        await until(lambda: stage.care.breakers.counts.absolved == 1, timeout_s=PATIENCE_S)
        assert stage.care.breakers.counts.opened == 0


async def test_close_with_everything_under_way() -> None:
    """A check, a reclaim and a probe that hang: all are cut, and their connections closed."""
    async with staged() as stage:
        prefill = await stage.add("p", Role.PREFILL)
        decode = await stage.add("d", Role.DECODE)
        params = await stage.offer(prefill)
        decode.freeze()
        stage.update()
        breakers = stage.care.breakers
        for number in range(3):
            fault = WorkerTimeout("late")
            breakers.fault(decode.record(), RequestId(f"r-{number}"), fault)
        stage.care.reclaimer.reclaim(
            Orphan(
                request_id=RequestId("r-1"),
                path="/v1/completions",
                body={"model": MODEL, "prompt": PROMPT},
                params=params,
                prefill=prefill.record(),
                decode=decode.record(),
                expires_s=stage.clock.monotonic_s() + 30.0,
            )
        )
        await until(lambda: len(decode.seen) >= 3, timeout_s=PATIENCE_S)
        await stage.care.close()
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not {n for n in names if n.startswith(("pairs-", "breaker-", "reclaim", "canary"))}
        decode.thaw()
