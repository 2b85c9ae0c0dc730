"""What every store must do, written once; ``test_store_contract.py`` runs it against each.

A subclass provides the fixture ``subject``. The suite knows a store by its Protocol only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
import pytest

from baton.errors import InvalidRequest, StoreUnavailable, TooManyRequests
from baton.store import (
    MAX_DOCUMENT_BYTES,
    MAX_ROUTERS,
    MAX_TTL_S,
    NO_DOCUMENT,
    STATE,
    Document,
    Look,
    Store,
)
from baton.types import Load, Role, RouterId, RouterRecord, WorkerId, WorkerRecord, WorkerState
from tests.fakes.worker_records import worker_record

LONG_S = 60.0


class StoreFactory(Protocol):
    """Opens one more store on the same state, where the kind of store has shared state."""

    def __call__(self, *, max_workers: int = ...) -> Store: ...


@dataclass(frozen=True)
class Subject:
    """One kind of store under test.

    ``ttl_s`` is short enough to wait for, and ``pass_time`` makes the store's clock go on;
    ``shared`` says whether stores that are opened see each other's state.
    """

    open: StoreFactory
    ttl_s: float
    pass_time: Callable[[float], Awaitable[None]]
    shared: bool

    def several(self, count: int) -> list[Store]:
        """So many stores on one state, or one store so many times."""
        if self.shared:
            return [self.open() for _ in range(count)]
        return [self.open()] * count


class NewerRecord(WorkerRecord, frozen=True):
    """A record as a later version may write it."""

    region: str = "eu"
    hints: tuple[str, ...] = ("near", "fast")


def ids(records: tuple[WorkerRecord, ...]) -> list[str]:
    """The ids, in the order of the answer."""
    return [record.id for record in records]


def router(router_id: str, **fields: object) -> RouterRecord:
    """A router's record."""
    return msgspec.convert({"id": router_id, **fields}, RouterRecord)


def kept(before: Look, after: Look) -> dict[str, bool]:
    """Of each part of a look, whether it is the same object as before."""
    names = ("workers", "cordoned", "assigned", "routers", "state")
    return {name: getattr(before, name) is getattr(after, name) for name in names}


def changed(before: Look, after: Look) -> list[str]:
    """The parts that are not the same objects."""
    return [name for name, same in kept(before, after).items() if not same]


def content(look: Look) -> Look:
    """All of it but the name of the store's data, which is nobody's to foretell."""
    return msgspec.structs.replace(look, epoch="")


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
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.look()
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.swap(STATE, 0, b"x")

    async def test_it_says_where_the_state_is(self, subject: Subject) -> None:
        """People can tell one store from another."""
        assert subject.open().describe()

    # --- what routers share ---

    async def test_an_empty_store_shows_nothing(self, subject: Subject) -> None:
        """The first look at an empty store is the default one, and so is the second."""
        store = subject.open()
        assert content(await store.look()) == Look()
        assert await store.look() is await store.look()

    async def test_a_look_shows_everything(self, subject: Subject) -> None:
        """All that others wrote is there, in order, and whole."""
        one, other = subject.several(2)
        for worker_id in ("b", "ä", "a"):
            await one.put_worker(worker_record(worker_id), ttl_s=LONG_S)
        told = router("r-2", seen=3, answering={"a": 2}, tallies={"v1": {"requests": 7}})
        await one.put_router(told, ttl_s=LONG_S)
        await other.put_router(router("r-1"), ttl_s=LONG_S)
        await one.cordon(WorkerId("a"))
        await one.assign(WorkerId("ä"), Role.PREFILL)
        assert await one.swap(STATE, 0, b"\x00\xff") == 1
        assert content(await other.look()) == Look(
            workers=tuple(worker_record(name) for name in ("a", "b", "ä")),
            cordoned=frozenset({WorkerId("a")}),
            assigned={WorkerId("ä"): Role.PREFILL},
            routers=(router("r-1"), told),
            state=Document(1, b"\x00\xff"),
        )

    async def test_only_what_changes_is_new(self, subject: Subject) -> None:
        """Parts that have not changed are the same objects; what was shown does not change."""
        store, writer = subject.several(2)
        await writer.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        await writer.put_router(router("r-1"), ttl_s=LONG_S)
        first = await store.look()

        async def step(change: Awaitable[object], *parts: str) -> None:
            before = await store.look()
            workers, cordoned = before.workers, set(before.cordoned)
            await change
            after = await store.look()
            assert changed(before, after) == list(parts)
            assert (before.workers, set(before.cordoned)) == (workers, cordoned)
            assert (after is before) == (not parts)

        w_1, moved = WorkerId("w-1"), worker_record("w-1", node="moved")
        await step(writer.put_worker(worker_record("w-1"), ttl_s=LONG_S))
        await step(writer.put_worker(moved, ttl_s=LONG_S), "workers")
        await step(writer.put_worker(worker_record("w-2"), ttl_s=LONG_S), "workers")
        await step(writer.cordon(w_1), "cordoned")
        await step(writer.cordon(w_1))
        await step(writer.assign(w_1, Role.DECODE), "assigned")
        await step(writer.assign(w_1, Role.DECODE))
        await step(writer.put_router(router("r-1"), ttl_s=LONG_S))
        await step(writer.put_router(router("r-1", seen=1), ttl_s=LONG_S), "routers")
        await step(writer.swap(STATE, 0, b"one"), "state")
        await step(writer.swap(STATE, 0, b"late"))
        await step(writer.swap("another", 0, b"text"))
        await step(writer.swap(STATE, 1, b"two"), "state")
        await step(writer.uncordon(w_1), "cordoned")
        await step(writer.uncordon(w_1))
        await step(writer.assign(w_1, None), "assigned")
        await step(writer.assign(w_1, None))
        await step(writer.remove_worker(WorkerId("never")))
        await step(writer.remove_worker(w_1), "workers")
        await step(writer.remove_router(RouterId("r-1")), "routers")
        await step(writer.remove_router(RouterId("r-1")))
        assert content(first) == Look(workers=(worker_record("w-1"),), routers=(router("r-1"),))

    @pytest.mark.parametrize("seed", [1, 2, 3])
    async def test_looks_agree_with_listings(self, subject: Subject, seed: int) -> None:
        """Whatever happens between them, looks show what a full listing shows, seldom or often."""
        draw = random.Random(seed)
        often, seldom, writer, lister = subject.several(4)
        names = [f"w-{number}" for number in range(6)]
        assigned: dict[WorkerId, Role] = {}
        routers: dict[str, RouterRecord] = {}
        state = NO_DOCUMENT
        last: dict[Store, Look] = {}
        for number in range(120):
            name = WorkerId(draw.choice(names))
            match draw.choice(
                ["put", "put", "brief", "go", "cordon", "lift", "role", "tell", "text"]
            ):
                case "put":
                    record = worker_record(name, load=Load(running=draw.randrange(3)))
                    await writer.put_worker(record, ttl_s=LONG_S)
                case "brief":
                    await writer.put_worker(worker_record(name, node="brief"), ttl_s=0.02)
                    await subject.pass_time(draw.choice([0.0, 0.02]))
                case "go":
                    await writer.remove_worker(name)
                    assigned.pop(name, None)
                case "cordon":
                    await writer.cordon(name)
                case "lift":
                    await writer.uncordon(name)
                case "role":
                    role = draw.choice([None, *Role])
                    await writer.assign(name, role)
                    assigned.pop(name, None)
                    if role is not None:
                        assigned[name] = role
                case "tell":
                    told = router(f"r-{draw.randrange(3)}", seen=draw.randrange(2))
                    if draw.random() < 0.3:
                        await writer.remove_router(told.id)
                        routers.pop(told.id, None)
                    else:
                        await writer.put_router(told, ttl_s=LONG_S)
                        routers[told.id] = told
                case "text":
                    value = str(number).encode()
                    state = Document(await writer.swap(STATE, state.revision, value) or 0, value)
            for looker in (often, seldom):
                if looker is seldom and draw.random() < 0.8:
                    continue
                while True:
                    # A brief worker may end between a look and a listing; then both come again.
                    listed = await lister.workers()
                    look = await looker.look()
                    before = last.get(looker, look)
                    for part, same in kept(before, look).items():
                        assert same == (getattr(before, part) == getattr(look, part)), part
                    last[looker] = look
                    if listed == await lister.workers():
                        break
                assert content(look) == Look(
                    workers=listed,
                    cordoned=await lister.cordoned(),
                    assigned=assigned,
                    routers=tuple(routers[router_id] for router_id in sorted(routers)),
                    state=state,
                )

    async def test_looks_at_the_same_time(self, subject: Subject) -> None:
        """Several of one store, while others write, show whole pictures; the last one all of it."""
        store, writer = subject.several(2)

        async def write(number: int) -> None:
            await writer.put_worker(worker_record(f"w-{number:02}"), ttl_s=LONG_S)

        results = await asyncio.gather(
            *(coroutine for n in range(30) for coroutine in (write(n), store.look()))
        )
        counts = [len(look.workers) for look in results if look is not None]
        assert counts == sorted(counts)
        assert (await store.look()).workers == await store.workers()
        assert len((await store.look()).workers) == 30

    async def test_assignments_end_with_the_worker(self, subject: Subject) -> None:
        """A role is kept over heartbeats and without a record, until it is taken back or the worker
        is removed."""
        store = subject.open()
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        for worker_id, role in (("w-1", Role.DECODE), ("w-1", Role.PREFILL), ("ü", Role.STANDARD)):
            await store.assign(WorkerId(worker_id), role)
        await store.put_worker(worker_record("w-1"), ttl_s=LONG_S)
        assert (await store.look()).assigned == {"w-1": Role.PREFILL, "ü": Role.STANDARD}
        await store.assign(WorkerId("ü"), None)
        await store.assign(WorkerId("never"), None)
        assert (await store.look()).assigned == {"w-1": Role.PREFILL}
        await store.cordon(WorkerId("w-1"))
        await store.remove_worker(WorkerId("w-1"))
        assert content(await store.look()) == Look()

    async def test_assignments_are_bounded(self, subject: Subject) -> None:
        """No more of them than there may be workers; one that is there can be changed."""
        store = subject.open(max_workers=1)
        await store.assign(WorkerId("a"), Role.DECODE)
        await store.assign(WorkerId("a"), Role.PREFILL)
        with pytest.raises(TooManyRequests):
            await store.assign(WorkerId("b"), Role.DECODE)
        await store.assign(WorkerId("b"), None)
        assert (await store.look()).assigned == {"a": Role.PREFILL}

    async def test_silent_routers_and_workers_leave_the_picture(self, subject: Subject) -> None:
        """Whoever does not tell again within its time is gone, with nobody removing it."""
        store = subject.open()
        await store.put_worker(worker_record("silent"), ttl_s=subject.ttl_s)
        await store.put_worker(worker_record("patient"), ttl_s=LONG_S)
        await store.put_router(router("silent"), ttl_s=subject.ttl_s)
        await store.put_router(router("patient"), ttl_s=LONG_S)
        before = await store.look()
        assert ids(before.workers) == [record.id for record in before.routers]
        await subject.pass_time(subject.ttl_s)
        after = await store.look()
        assert ids(after.workers) == [record.id for record in after.routers] == ["patient"]

    async def test_a_router_has_bounds(self, subject: Subject) -> None:
        """A time to live like a worker's, and a number of others."""
        store = subject.open()
        for ttl_s in (0.0, float("nan"), MAX_TTL_S + 1):
            with pytest.raises(InvalidRequest, match="time to live"):
                await store.put_router(router("r"), ttl_s=ttl_s)
        for number in range(MAX_ROUTERS):
            await store.put_router(router(f"r-{number}"), ttl_s=LONG_S)
        with pytest.raises(TooManyRequests):
            await store.put_router(router("one-more"), ttl_s=LONG_S)
        await store.put_router(router("r-0", seen=1), ttl_s=LONG_S)
        assert len((await store.look()).routers) == MAX_ROUTERS

    async def test_documents(self, subject: Subject) -> None:
        """Each counts its own changes from 1; there is none before the first."""
        store, other = subject.several(2)
        assert await store.document("a") == NO_DOCUMENT
        assert await store.swap("a", 1, b"too early") is None
        assert await store.swap("a", 0, b"one") == 1
        assert await other.swap("a", 0, b"late") is None
        assert await other.swap("a", 1, b"") == 2
        assert await store.swap("b", 0, b"b") == 1
        assert await store.document("a") == Document(2, b"")
        assert (await store.look()).state == NO_DOCUMENT

    async def test_one_swap_wins(self, subject: Subject) -> None:
        """Of many that know the same revision exactly one goes through, and its text is there."""
        stores = subject.several(4)
        for revision in range(5):
            values = [f"{revision} {number}".encode() for number in range(20)]
            results = await asyncio.gather(
                *(stores[n % 4].swap(STATE, revision, value) for n, value in enumerate(values))
            )
            (won,) = [value for value, new in zip(values, results, strict=True) if new is not None]
            assert set(results) == {None, revision + 1}
            looks = [await store.look() for store in stores]
            assert {look.state for look in looks} == {Document(revision + 1, won)}

    async def test_documents_are_bounded(self, subject: Subject) -> None:
        """One of the largest size is kept whole, a larger one is refused and changes nothing."""
        store = subject.open()
        with pytest.raises(InvalidRequest, match="bytes"):
            await store.swap(STATE, 0, bytes(MAX_DOCUMENT_BYTES + 1))
        assert await store.swap(STATE, 0, bytes(MAX_DOCUMENT_BYTES)) == 1
        assert len((await store.look()).state.value) == MAX_DOCUMENT_BYTES
