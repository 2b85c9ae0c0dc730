"""What every store must do, written once; ``test_store_contract.py`` runs it against each.

A subclass provides the fixture ``subject``. The suite knows a store by its Protocol only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
import pytest

from baton.errors import InvalidRequest, StoreUnavailable, TooManyRequests
from baton.store import MAX_TTL_S, Store
from baton.types import Load, WorkerId, WorkerRecord, WorkerState
from tests.fakes.worker_records import worker_record

LONG_S = 60.0


class StoreFactory(Protocol):
    """Opens one more store on the same state, where the kind of store has shared state."""

    def __call__(self, *, max_workers: int = ...) -> Store: ...


@dataclass(frozen=True)
class Subject:
    """One kind of store under test.

    ``ttl_s`` is short enough to wait for, and ``pass_time`` makes the store's clock go on.
    """

    open: StoreFactory
    ttl_s: float
    pass_time: Callable[[float], Awaitable[None]]


class NewerRecord(WorkerRecord, frozen=True):
    """A record as a later version may write it."""

    region: str = "eu"
    hints: tuple[str, ...] = ("near", "fast")


def ids(records: tuple[WorkerRecord, ...]) -> list[str]:
    """The ids, in the order of the answer."""
    return [record.id for record in records]


class StoreContract:
    """The tests; a subclass per kind of store."""

    async def test_an_empty_store_lists_nothing(self, subject: Subject) -> None:
        """Before any worker registers there is none."""
        assert await subject.open().workers() == ()

    async def test_what_is_put_is_listed_whole(self, subject: Subject) -> None:
        """Every field of a record comes back as it was."""
        store = subject.open()
        record = worker_record("w-1", load=Load(running=2, waiting=1, kv_usage=0.25), node="ü")
        await store.put_worker(record, ttl_s=LONG_S)
        assert await store.workers() == (record,)

    async def test_workers_are_sorted_by_id(self, subject: Subject) -> None:
        """The order is that of the ids, whatever the order of registration or expiry."""
        store = subject.open()
        for worker_id, ttl_s in (("b", 60.0), ("ä", 30.0), ("a", 90.0), ("B", 20.0), ("a-1", 50.0)):
            await store.put_worker(worker_record(worker_id), ttl_s=ttl_s)
        assert ids(await store.workers()) == ["B", "a", "a-1", "b", "ä"]

    async def test_putting_again_replaces(self, subject: Subject) -> None:
        """One entry per id, the latest."""
        store = subject.open()
        await store.put_worker(worker_record("w-1", state=WorkerState.WARMING), ttl_s=LONG_S)
        latest = worker_record("w-1", state=WorkerState.READY)
        await store.put_worker(latest, ttl_s=LONG_S)
        assert await store.workers() == (latest,)

    async def test_removing_forgets_at_once(self, subject: Subject) -> None:
        """The one worker is gone, others stay."""
        store = subject.open()
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        await store.put_worker(worker_record("w-2"), ttl_s=LONG_S)
        await store.remove_worker(WorkerId("w-1"))
        assert ids(await store.workers()) == ["w-2"]

    async def test_removing_what_is_not_there_does_nothing(self, subject: Subject) -> None:
        """A second removal, and one of a worker never seen, are no errors."""
        store = subject.open()
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        for worker_id in ("w-1", "w-1", "never"):
            await store.remove_worker(WorkerId(worker_id))
        assert await store.workers() == ()

    async def test_a_removed_worker_can_come_back(self, subject: Subject) -> None:
        """Removal leaves no mark."""
        store = subject.open()
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        await store.remove_worker(WorkerId("w-1"))
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        assert ids(await store.workers()) == ["w-1"]

    async def test_cordons(self, subject: Subject) -> None:
        """A cordon is kept, over heartbeats too, until it is lifted or the worker leaves."""
        store = subject.open()
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        for worker_id in ("w-1", "w-1", "ü"):
            await store.cordon(WorkerId(worker_id))
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        assert await store.cordoned() == {"w-1", "ü"}
        await store.uncordon(WorkerId("ü"))
        await store.uncordon(WorkerId("never"))
        assert await store.cordoned() == {"w-1"}
        await store.remove_worker(WorkerId("w-1"))
        assert await store.cordoned() == frozenset()

    async def test_cordons_are_bounded(self, subject: Subject) -> None:
        """No more of them than there may be workers; one that is there can be set again."""
        store = subject.open(max_workers=1)
        await store.cordon(WorkerId("a"))
        await store.cordon(WorkerId("a"))
        with pytest.raises(TooManyRequests):
            await store.cordon(WorkerId("b"))

    async def test_a_silent_worker_is_forgotten(self, subject: Subject) -> None:
        """After its time to live a worker is not listed; one with more time is."""
        store = subject.open()
        await store.put_worker(worker_record("silent"), ttl_s=subject.ttl_s)
        await store.put_worker(worker_record("patient"), ttl_s=LONG_S)
        await subject.pass_time(subject.ttl_s)
        assert ids(await store.workers()) == ["patient"]

    async def test_heartbeats_keep_a_worker(self, subject: Subject) -> None:
        """A worker that puts itself again in time outlives many times to live."""
        store = subject.open()
        await store.put_worker(worker_record("silent"), ttl_s=subject.ttl_s)
        for _ in range(40):
            await store.put_worker(worker_record("beating"), ttl_s=subject.ttl_s)
            listed = ids(await store.workers())
            assert "beating" in listed
            if "silent" not in listed:
                break
            await subject.pass_time(subject.ttl_s / 8)
        assert "silent" not in listed

    async def test_the_latest_time_to_live_counts(self, subject: Subject) -> None:
        """A heartbeat with a shorter time shortens what is left of a longer one."""
        store = subject.open()
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        await store.put_worker(worker_record("w-1"), ttl_s=subject.ttl_s)
        await subject.pass_time(subject.ttl_s)
        assert await store.workers() == ()

    @pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf"), MAX_TTL_S + 1])
    async def test_a_time_to_live_has_bounds(self, subject: Subject, ttl_s: float) -> None:
        """A worker cannot register for ever, nor for no time; nothing is changed."""
        store = subject.open()
        with pytest.raises(InvalidRequest, match="time to live"):
            await store.put_worker(worker_record("w-1"), ttl_s=ttl_s)
        assert await store.workers() == ()

    async def test_a_thousand_workers(self, subject: Subject) -> None:
        """All of a large pool are kept and listed in order."""
        store = subject.open()
        names = [f"w-{number:04}" for number in range(1000)]
        for first in range(0, len(names), 50):
            await asyncio.gather(
                *(
                    store.put_worker(worker_record(name), ttl_s=LONG_S)
                    for name in reversed(names[first : first + 50])
                )
            )
        assert ids(await store.workers()) == names

    async def test_concurrent_writers_of_one_worker(self, subject: Subject) -> None:
        """Of many writes at once one whole record is left, and the order of one writer holds."""
        store = subject.open()

        async def write(node: str) -> None:
            for running in range(5):
                record = worker_record("w-1", node=node, load=Load(running=running))
                await store.put_worker(record, ttl_s=LONG_S)

        await asyncio.gather(*(write(f"node-{number}") for number in range(8)))
        (left,) = await store.workers()
        assert left.load.running == 4
        assert left == worker_record("w-1", node=left.node, load=Load(running=4))

    async def test_the_registry_is_bounded(self, subject: Subject) -> None:
        """At the bound a new worker is refused, a known one is not, and leaving makes room."""
        store = subject.open(max_workers=2)
        await store.put_worker(worker_record("a"), ttl_s=LONG_S)
        await store.put_worker(worker_record("b"), ttl_s=subject.ttl_s)
        with pytest.raises(TooManyRequests, match="bound of 2 workers"):
            await store.put_worker(worker_record("c"), ttl_s=LONG_S)
        await store.put_worker(worker_record("a", node="moved"), ttl_s=LONG_S)
        assert [record.node for record in await store.workers()] == ["moved", "node-1"]
        await store.remove_worker(WorkerId("a"))
        await store.put_worker(worker_record("c"), ttl_s=LONG_S)
        await subject.pass_time(subject.ttl_s)
        await store.put_worker(worker_record("d"), ttl_s=LONG_S)
        assert ids(await store.workers()) == ["c", "d"]

    async def test_the_bound_holds_under_concurrency(self, subject: Subject) -> None:
        """Checking the bound and adding are one step: as many get in as there is room for."""
        store = subject.open(max_workers=10)
        results = await asyncio.gather(
            *(store.put_worker(worker_record(f"w-{n}"), ttl_s=LONG_S) for n in range(50)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, TooManyRequests) for result in results) == 40
        assert len(await store.workers()) == 10

    async def test_fields_of_a_newer_version_do_no_harm(self, subject: Subject) -> None:
        """A record with fields that we do not know is listed with those that we do."""
        store = subject.open()
        known = worker_record("w-1")
        await store.put_worker(NewerRecord(**msgspec.structs.asdict(known)), ttl_s=LONG_S)
        (listed,) = await store.workers()
        assert msgspec.convert(msgspec.to_builtins(listed), WorkerRecord) == known

    async def test_a_closed_store_says_so(self, subject: Subject) -> None:
        """Closing twice is fine; using a closed store is an error that the caller can handle."""
        store = subject.open()
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.remove_worker(WorkerId("w-1"))
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.workers()

    async def test_it_says_where_the_state_is(self, subject: Subject) -> None:
        """People can tell one store from another."""
        assert subject.open().describe()
