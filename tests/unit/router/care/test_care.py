"""The parts wired to each other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from baton.types import EngineId, RequestId, Role
from router.care import Care, CareRules, Orphan, Outcome, PairState
from tests.fakes.virtual_loop import run_virtual
from tests.fakes.waiting import until
from tests.unit.router.care.workers import UNREACHABLE, FakeCluster, LoopClock

Story = Callable[[FakeCluster, Care], Awaitable[None]]


def live(story: Story, rules: CareRules | None = None) -> None:
    async def main() -> None:
        cluster = FakeCluster()
        care = Care(cluster, rules or CareRules(), LoopClock(), random.Random(1))
        care.start()
        try:
            await story(cluster, care)
        finally:
            await care.close()
        assert cluster.in_flight == 0

    run_virtual(main())


def ready(care: Care) -> bool:
    return {row.state for row in care.pairs.table()} == {PairState.READY}


def test_an_orphan_whose_decode_worker_died() -> None:
    """Another one that knows prefill gives its blocks back."""

    async def story(cluster: FakeCluster, care: Care) -> None:
        prefill, decode = cluster.pair()
        second = cluster.add("d2", Role.DECODE)
        care.update(cluster.records)
        await until(lambda: ready(care), timeout_s=30.0)
        known = len(decode.generations)
        decode.fault = UNREACHABLE
        care.breakers.fault(decode.record, RequestId("r"), UNREACHABLE)
        ends: list[Outcome] = []
        for _ in range(2):
            prefill.offers["left"] = [1]
            care.reclaimer.reclaim(
                Orphan(
                    request_id=RequestId("r"),
                    path="/v1/completions",
                    body={},
                    params={
                        "do_remote_prefill": True,
                        "remote_engine_id": prefill.record.engine_id,
                        "remote_request_id": "left",
                    },
                    prefill=prefill.record,
                    decode=decode.record,
                    expires_s=asyncio.get_running_loop().time() + 30,
                    on_end=ends.append,
                )
            )
            await care.drain(5.0)
            if len(ends) == 1:
                assert ends == [Outcome.RELEASED]
                assert second.told == ["left"]
                assert len(decode.generations) == known, "its breaker is open"
                # With another engine on prefill's side there is nothing left to give back.
                changed = msgspec.structs.replace(prefill.record, engine_id=EngineId("p-2"))
                asked = len(second.asked) + len(decode.asked)
                care.update((changed, decode.record, second.record))
        assert ends == [Outcome.RELEASED, Outcome.LEFT]
        assert len(second.asked) + len(decode.asked) == asked

    live(story)


def test_an_orphan_that_only_its_own_decode_worker_may_give_back() -> None:
    """Where that one may be pulling still, no other tells prefill that nobody will."""

    async def story(cluster: FakeCluster, care: Care) -> None:
        prefill, decode = cluster.pair()
        second = cluster.add("d2", Role.DECODE)
        care.update(cluster.records)
        await until(lambda: ready(care), timeout_s=30.0)
        ends: list[Outcome] = []

        async def give_back() -> None:
            prefill.offers["left"] = [1]
            care.reclaimer.reclaim(
                Orphan(
                    request_id=RequestId("r"),
                    path="/v1/completions",
                    body={},
                    params={
                        "do_remote_prefill": True,
                        "remote_engine_id": prefill.record.engine_id,
                        "remote_request_id": "left",
                    },
                    prefill=prefill.record,
                    decode=decode.record,
                    expires_s=asyncio.get_running_loop().time() + 30,
                    may_pull=False,
                    any_decode=False,
                    on_end=ends.append,
                )
            )
            await care.drain(5.0)

        await give_back()
        restarted = msgspec.structs.replace(decode.record, engine_id=EngineId("d-2"))
        care.update((prefill.record, restarted, second.record))
        await give_back()
        assert ends == [Outcome.RELEASED, Outcome.LEFT]
        assert decode.told == ["left"]
        assert second.told == []

    live(story)


def test_pairs_of_a_blocked_worker_wait() -> None:
    """No dummy handoff is sent to a worker whose breaker is open; afterwards they are."""

    async def story(cluster: FakeCluster, care: Care) -> None:
        prefill, decode = cluster.pair()
        care.update(cluster.records)
        decode.fault = UNREACHABLE
        care.breakers.fault(decode.record, RequestId("r"), UNREACHABLE)
        await asyncio.sleep(60)
        assert prefill.asked == []
        decode.fault = None
        await until(lambda: ready(care), timeout_s=30.0)

    live(story)


def test_workers_that_are_no_ends_of_pairs() -> None:
    """Their breakers are kept like all others', though the profile of the pairs does not know
    them; in the pairs, workers have the roles that they have there, and only there."""

    async def story(cluster: FakeCluster, care: Care) -> None:
        whole = cluster.add("s", Role.STANDARD)
        cluster.pair()
        second = cluster.add("s2", Role.STANDARD)
        whole.fault = UNREACHABLE
        paired = [
            msgspec.structs.replace(record, role=Role.DECODE) if record is second.record else record
            for record in cluster.records
            if record is not whole.record
        ]
        care.update(cluster.records, paired)
        care.breakers.fault(whole.record, RequestId("r"), UNREACHABLE)
        for _ in range(3):
            care.update(cluster.records, paired)
            assert care.breakers.blocked_ids == {"s"}
        assert {key[1] for key in care.pairs.views()} == {"d", "s2"}
        whole.fault = None
        await until(lambda: not care.breakers.blocked_ids, timeout_s=60.0)

    live(story, CareRules(warm_pairs=False))


def test_close_without_start() -> None:
    """Nothing is left over, whatever was begun."""

    async def main() -> None:
        cluster = FakeCluster()
        care = Care(cluster, CareRules(), LoopClock(), random.Random(1))
        cluster.pair()
        care.update(cluster.records)
        await care.close()

    run_virtual(main())
