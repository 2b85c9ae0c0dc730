"""The router's picture of the workers, one for each profile that serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Any

import msgspec
import pytest

from baton.clock import VirtualClock
from baton.errors import StoreUnavailable
from baton.store import STATE, Look
from baton.store.memory import MemoryStore
from baton.types import (
    Adapter,
    Limits,
    Load,
    Role,
    RouterId,
    RouterRecord,
    WorkerId,
    WorkerRecord,
    WorkerState,
)
from profiles import PrefixKnowledge, ServingProfile
from router.flow import UNKNOWN, Capacity
from router.policy import (
    Ask,
    Counts,
    Handoff,
    Local,
    PrefixIndex,
    Snapshot,
    TokenBounds,
    plan,
)
from router.pool import WorkerPool
from router.prefix import PrefixRouting
from router.serving import Serving, Servings
from tests.fakes.virtual_loop import run_virtual
from tests.fakes.worker_records import worker_record
from tests.unit.router.serving_profiles import disaggregated, serving, standard

D, E, P = WorkerId("d"), WorkerId("e"), WorkerId("p")
OURS = RouterId("ours")


class Store(MemoryStore):
    """A store that can be away, or broken."""

    fails: Exception | None = None
    epoch = 1

    async def look(self) -> Look:
        if self.fails is not None:
            raise self.fails
        return msgspec.structs.replace(await super().look(), epoch=str(self.epoch))

    def forget(self) -> None:
        """Starts anew with nothing, like a Redis without persistence."""
        MemoryStore.__init__(self, self._clock)
        self.epoch += 1


def _no_prefix(index: PrefixIndex) -> PrefixRouting:
    return PrefixRouting(
        index, PrefixKnowledge.OFF, prompt_bytes=lambda request: b"", block_size=32
    )


class Picture:
    """A pool over a store, with a clock; hands over prompts of 100 tokens or more."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = Store(self.clock)
        self.blocked: frozenset[WorkerId] = frozenset()
        self.stranded: dict[WorkerId, int] = {}
        self.counts = Counts()
        self.servings = Servings(self.serving(disaggregated(100)))
        self.pool = WorkerPool(
            self.store,
            self.clock,
            self.servings,
            self.counts,
            router_id=OURS,
            make_prefix=_no_prefix,
            max_prefix_blocks=1000,
            blocked=lambda: self.blocked,
            stranded=lambda: self.stranded,
        )

    def serving(self, profile: ServingProfile) -> Serving:
        """A profile over the same counts."""
        return serving(profile, self.counts)

    def arrange(self, current: Serving, candidate: Serving | None = None) -> None:
        """Has requests served by these from now on."""
        self.servings.arrange(current, candidate)
        self.pool.rearrange()

    async def hear(self, router_id: str, ttl_s: float = 60.0, **told: Any) -> None:
        """A router tells the others."""
        record = RouterRecord(RouterId(router_id), **told)
        await self.store.put_router(record, ttl_s=ttl_s)
        await self.pool.refresh()

    def snapshot(self) -> Snapshot:
        return self.pool.snapshot(self.servings.current)

    def plan(self, by: Serving | None = None, tokens: int = 50) -> str:
        """Where a prompt goes: the ids of its workers."""
        by = by or self.servings.current
        ask = Ask("tiny", TokenBounds(tokens, tokens))
        found = plan(ask, self.pool.snapshot(by), random.Random(1))
        if isinstance(found, Handoff):
            return f"{found.prefill.id} {found.decode.id}"
        return found.worker.id if isinstance(found, Local) else found.refusal

    async def put(self, record: WorkerRecord, ttl_s: float = 60.0) -> None:
        await self.store.put_worker(record, ttl_s=ttl_s)
        await self.pool.refresh()

    @property
    def ids(self) -> list[str]:
        return [record.id for record in self.pool.records()]

    @property
    def usable_now(self) -> list[str]:
        """Those that get requests under the active profile."""
        return [r.id for r in self.pool.seated() if self.pool.is_usable(r)]

    @property
    def usable(self) -> list[str]:
        return [r.id for r in self.pool.records() if self.pool.is_usable(r)]


@pytest.fixture
def picture() -> Picture:
    return Picture()


async def test_workers_come_and_go(picture: Picture) -> None:
    """The picture is that of the last reading; a heartbeat that stops is an end."""
    await picture.put(worker_record("d"))
    await picture.put(worker_record("p", role=Role.PREFILL), ttl_s=5)
    assert picture.ids == ["d", "p"]
    record = picture.pool.record(D)
    assert record is not None
    assert record.role is Role.DECODE
    picture.clock.advance(6)
    assert picture.ids == ["d", "p"]
    await picture.pool.refresh()
    assert picture.ids == ["d"]
    assert picture.pool.record(WorkerId("p")) is None


async def test_legs(picture: Picture) -> None:
    """Legs are counted while they are open, whatever ends them, registered or not."""
    await picture.put(worker_record("d"))
    with picture.pool.leg(D), picture.pool.leg(D), picture.pool.leg(WorkerId("gone")):
        assert picture.pool.legs(D) == 2
    with pytest.raises(ValueError, match="x"), picture.pool.leg(D):
        raise ValueError("x")
    assert picture.pool.legs(D) == 0


async def test_prompts_in_prefill(picture: Picture) -> None:
    """Prompt tokens are counted until they are computed or their leg ends, and once."""
    await picture.put(worker_record("d"))
    pool = picture.pool
    with pool.prefilling_on(D, 100) as first, pool.prefilling_on(D, 50) as second:
        assert (first.ahead, second.ahead) == (0, 100)
        assert pool.prefilling(D) == 150
        first.over()
        first.over()
        assert pool.prefilling(D) == 50
    assert pool.prefilling(D) == 0
    with pytest.raises(ValueError, match="x"), pool.prefilling_on(D, 7):
        raise ValueError("x")
    assert pool.prefilling(D) == 0


async def test_a_blocked_worker_takes_nothing(picture: Picture) -> None:
    """A breaker's word counts at once, without a look at the registry."""
    await picture.put(worker_record("d"))
    picture.blocked = frozenset({D})
    assert picture.usable == []
    assert picture.snapshot().closed == {D}
    assert picture.pool.ready_by_role() == {}
    picture.blocked = frozenset()
    assert picture.usable == ["d"]


async def test_a_cordoned_worker_takes_nothing(
    picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    """What an operator drains is out for all routers that read the same store, until undone."""
    caplog.set_level(logging.INFO, logger="baton.router.pool")
    await picture.put(worker_record("d"))
    await picture.store.cordon(D)
    await picture.pool.refresh()
    assert picture.pool.is_cordoned(D)
    assert picture.usable == []
    picture.blocked = frozenset({WorkerId("other")})
    assert picture.snapshot().closed == {D, "other"}
    assert [picture.pool.is_closed(name) for name in (D, WorkerId("other"), E)] == [1, 1, 0]
    await picture.store.uncordon(D)
    await picture.pool.refresh()
    assert picture.usable == ["d"]
    assert [r.getMessage() for r in caplog.records][1:] == [
        "worker d is drained: it gets nothing new",
        "worker d takes requests again",
    ]


async def test_capacity(picture: Picture) -> None:
    """The slots of usable workers that answer; the profile's own model is known without any."""
    pool = picture.pool
    assert pool.capacity("served") == Capacity(0, ready=False)
    assert pool.capacity("other") == UNKNOWN
    await picture.put(worker_record("p", role=Role.PREFILL, model="other"))
    assert pool.capacity("other") == Capacity(0, ready=False)
    limits = Limits(max_model_len=100, slots=4)
    await picture.put(worker_record("d", model="other", limits=limits))
    await picture.put(worker_record("e", model="other", limits=limits))
    assert pool.capacity("other") == Capacity(8, ready=True)
    picture.blocked = frozenset({D})
    assert pool.capacity("other") == Capacity(4, ready=True)


async def test_names(picture: Picture) -> None:
    """An adapter stands for its base, with its content; a base's own name wins."""
    adapters = (Adapter("tuned", "sha256:1"), Adapter("base", "sha256:2"))
    await picture.put(worker_record("d", model="base", adapters=adapters))
    assert picture.pool.base_of("tuned") == ("base", "tuned@sha256:1")
    assert picture.pool.base_of("base") == ("base", "")
    assert picture.pool.base_of("unknown") == ("unknown", "")


async def test_who_is_asked_about_prompts(picture: Picture) -> None:
    """The least busy decode worker; prefill only when there is no other; nobody unusable."""
    pool = picture.pool
    model = worker_record("d").model
    assert pool.teller(model) is None
    await picture.put(worker_record("p", role=Role.PREFILL))
    assert _id(pool.teller(model)) == "p"
    await picture.put(worker_record("d", load=Load(running=2)))
    await picture.put(worker_record("e"))
    assert _id(pool.teller(model)) == "e"
    await picture.put(worker_record("e", state=WorkerState.DRAINING))
    assert _id(pool.teller(model)) == "d"
    assert pool.teller("unknown") is None


def _id(record: WorkerRecord | None) -> str | None:
    return None if record is None else record.id


async def test_listeners_hear_of_each_reading(picture: Picture) -> None:
    """After the picture is whole, changed or not; not while the store is away."""
    heard: list[list[str]] = []
    picture.pool.listen(lambda look: heard.append([r.id for r in look.workers]))
    await picture.put(worker_record("d"))
    await picture.pool.refresh()
    picture.store.fails = StoreUnavailable("away")
    await picture.pool.refresh()
    assert heard == [["d"], ["d"]]


async def test_a_store_that_is_away(picture: Picture, caplog: pytest.LogCaptureFixture) -> None:
    """The last picture serves on; the loss and the return are logged once each."""
    caplog.set_level(logging.INFO, logger="baton.router.pool")
    await picture.put(worker_record("d"))
    caplog.clear()
    picture.store.fails = StoreUnavailable("away")
    for _ in range(3):
        await picture.pool.refresh()
    assert picture.usable == ["d"]
    assert picture.pool.is_lost
    picture.store.fails = None
    for _ in range(3):
        await picture.pool.refresh()
    assert not picture.pool.is_lost
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize("again", [0, 2])
@pytest.mark.parametrize("away", [True, False])
async def test_a_store_that_comes_back_empty(
    picture: Picture, caplog: pytest.LogCaptureFixture, away: bool, again: int
) -> None:
    """Whether it was seen to be away or not, and written again by others, as often as before, or
    not yet: workers stay until they have had the time to tell it again; those that have not by
    then are gone. What each says meanwhile counts."""
    caplog.set_level(logging.INFO, logger="baton.router.pool")
    await picture.store.swap(STATE, 0, b"agreed")
    await picture.put(worker_record("d"))
    await picture.put(worker_record("e"))
    # No worker changes, but what is agreed does.
    await picture.store.swap(STATE, 1, b"agreed again")
    await picture.pool.refresh()
    caplog.clear()
    if away:
        picture.store.fails = StoreUnavailable("away")
        await picture.pool.refresh()
        picture.store.fails = None
    picture.store.forget()
    for revision in range(again):
        await picture.store.swap(STATE, revision, b"agreed anew")
    await picture.pool.refresh()
    assert picture.usable == ["d", "e"]
    picture.clock.advance(4.9)
    await picture.put(worker_record("d", state=WorkerState.DRAINING))
    assert picture.ids == ["d", "e"]
    assert picture.usable == ["e"]
    picture.clock.advance(0.1)
    await picture.pool.refresh()
    assert picture.ids == ["d"]
    said = "the store is back" if away else "the store has lost what it had"
    assert [r.getMessage() for r in caplog.records].count(said) == 1


async def test_who_came_back_and_left_is_gone(picture: Picture) -> None:
    """A worker that has told the emptied store again, and then signed off, is used no more."""
    await picture.put(worker_record("d"))
    await picture.put(worker_record("e"))
    picture.store.forget()
    await picture.put(worker_record("d"))
    assert picture.ids == ["d", "e"]
    await picture.store.remove_worker(D)
    await picture.pool.refresh()
    assert picture.ids == ["e"]


async def test_counts(picture: Picture) -> None:
    """Workers by role and state, those that left included in none."""
    await picture.put(worker_record("d"))
    await picture.put(worker_record("d2", state=WorkerState.WARMING))
    assert picture.pool.counts() == {("decode", "ready"): 1, ("decode", "warming"): 1}
    await picture.store.remove_worker(D)
    await picture.pool.refresh()
    assert picture.pool.counts() == {("decode", "warming"): 1}


async def test_changes_are_logged_once(picture: Picture, caplog: pytest.LogCaptureFixture) -> None:
    """A worker's coming, its changes and its going; not each heartbeat."""
    caplog.set_level(logging.INFO, logger="baton.router.pool")
    for state in (WorkerState.WARMING, WorkerState.READY, WorkerState.READY):
        await picture.put(worker_record("d", state=state))
    await picture.store.remove_worker(D)
    await picture.pool.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        "worker d (decode) is warming",
        "worker d (decode) is ready",
        "worker d is gone",
    ]


# --- several profiles ----------------------------------------------------------------------------


async def pair(picture: Picture) -> None:
    """A prefill worker and a decode worker."""
    await picture.put(worker_record("p", role=Role.PREFILL))
    await picture.put(worker_record("d"))


async def test_each_profile_decides_by_its_own_rules(picture: Picture) -> None:
    """The same workers, the same counts, two thresholds."""
    await pair(picture)
    current, candidate = picture.servings.current, picture.serving(disaggregated(10))
    picture.arrange(current, candidate)
    assert picture.plan(current) == "d"
    assert picture.plan(candidate) == "p d"
    picture.arrange(candidate, None)
    # An old one decides on for what it has, on workers that come later too.
    await picture.store.remove_worker(D)
    await picture.put(worker_record("e"))
    assert picture.plan(current) == "e"
    assert picture.plan(candidate) == "p e"


async def test_work_counts_under_every_profile(picture: Picture) -> None:
    """Whatever profile sent it there: the other one avoids the busy worker too."""
    await picture.put(worker_record("d"))
    await picture.put(worker_record("e"))
    current, candidate = picture.servings.current, picture.serving(standard())
    picture.arrange(current, candidate)
    for busy, idle in ((D, "e"), (E, "d")):
        with picture.pool.leg(busy), picture.pool.leg(busy):
            assert picture.plan(current) == picture.plan(candidate) == idle
    assert picture.counts.legs == picture.counts.answering == {}


async def test_legs_of_other_routers_count(picture: Picture) -> None:
    """Both kinds of their legs, until they say otherwise or say nothing any more; our own record
    says nothing new, and what is ours to show stays ours."""
    await picture.put(worker_record("d"))
    await picture.put(worker_record("e"))
    await picture.hear("ours", answering={E: 100})
    await picture.hear("other", answering={D: 1})
    await picture.hear("third", prefilling={D: 2})
    assert [record.id for record in picture.pool.others] == ["other", "third"]
    assert picture.counts.on(D) == 3
    assert picture.counts.on(E) == 0
    assert picture.pool.legs(D) == 0
    assert picture.plan() == "e"
    await picture.hear("third", ttl_s=5, answering={E: 7})
    assert picture.plan() == "d"
    picture.clock.advance(6)
    await picture.pool.refresh()
    assert (picture.counts.on(D), picture.counts.on(E)) == (1, 0)


async def test_the_only_other_router_goes(picture: Picture) -> None:
    """Nothing of it is left, although nothing else has changed since before it came."""
    await picture.put(worker_record("d"))
    await picture.hear("other", ttl_s=5, answering={D: 1})
    assert picture.counts.on(D) == 1
    picture.clock.advance(6)
    await picture.pool.refresh()
    assert picture.pool.others == ()
    assert picture.counts.on(D) == 0


async def test_what_has_not_changed_is_not_made_again(picture: Picture) -> None:
    """Readings, heartbeats that say the same and other routers' records leave the compiled fleets
    as they are; a worker that changes does not."""
    await pair(picture)
    picture.arrange(picture.servings.current, picture.serving(disaggregated(10)))
    fleets = [made.fleet for made in picture.servings.all()]

    def same() -> list[bool]:
        now = [made.fleet for made in picture.servings.all()]
        return [fleet is before for fleet, before in zip(now, fleets, strict=True)]

    await picture.pool.refresh()
    await picture.put(worker_record("d"))
    await picture.hear("other", answering={D: 1})
    with picture.pool.leg(D):
        await picture.pool.refresh()
    assert same() == [True, True]
    assert picture.counts.on(D) == 1
    await picture.put(worker_record("d", load=Load(running=1)))
    assert same() == [False, False]


async def test_a_picture_left_half_made_is_made_anew(picture: Picture) -> None:
    """What fails in the middle of a reading does not stay for ever."""
    await pair(picture)
    candidate = picture.serving(disaggregated(10))
    candidate.pools = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        picture.arrange(picture.servings.current, candidate)
    candidate.pools = candidate.profile.spec.pools
    await picture.pool.refresh()
    assert picture.plan(candidate) == "p d"


async def test_workers_as_the_active_profile_uses_them(picture: Picture) -> None:
    """Records say what workers said; ``seated`` says what they are used for."""
    await pair(picture)
    assert picture.pool.seated() == picture.pool.records()
    picture.arrange(picture.serving(standard()))
    assert [r.role for r in picture.pool.records()] == [Role.DECODE, Role.PREFILL]
    assert [r.role for r in picture.pool.seated()] == [Role.STANDARD, Role.STANDARD]
    assert picture.pool.ready_by_role() == {Role.STANDARD: 2}
    assert picture.pool.counts() == {(Role.STANDARD, WorkerState.READY): 2}
    assert picture.pool.capacity("tiny") == Capacity(16, ready=True)
    # Pairs stay known for the way back.
    assert [r.role for r in picture.pool.pairing()] == [Role.DECODE, Role.PREFILL]


async def test_pairs_of_a_candidate(picture: Picture) -> None:
    """They are checked before the profile is the active one."""
    await pair(picture)
    await picture.put(worker_record("e"))
    await picture.store.assign(E, Role.PREFILL)
    await picture.pool.refresh()
    picture.arrange(picture.serving(standard()), picture.serving(disaggregated(10)))
    roles = {record.id: record.role for record in picture.pool.pairing()}
    assert roles == {D: Role.DECODE, E: Role.PREFILL, P: Role.PREFILL}


async def test_without_handoffs_there_are_no_pairs() -> None:
    """A router that never had a profile with them pairs nobody."""
    picture = Picture()
    picture.arrange(picture.serving(standard()))
    await pair(picture)
    assert {record.role for record in picture.pool.pairing()} == {Role.STANDARD}


@pytest.mark.parametrize("whose", ["ours", "stranded", "other", "other stranded"])
async def test_prefill_work_anywhere_holds_a_worker_back(picture: Picture, whose: str) -> None:
    """Our legs, blocks that are held there for nobody, and both of other routers: only when none
    is left does the worker answer whole requests."""
    await pair(picture)
    with contextlib.ExitStack() as work:
        if whose == "ours":
            work.enter_context(picture.pool.leg(P, answering=False))
        elif whose == "stranded":
            picture.stranded = {P: 4096}
        elif whose == "other":
            await picture.hear("other", prefilling={P: 1})
        else:
            await picture.hear("other", stranded_bytes={P: 4096})
        picture.arrange(picture.serving(standard()))
        await picture.pool.refresh()
        assert picture.pool.turning == {P}
        assert picture.usable_now == [D]
    picture.stranded = {}
    await picture.hear("other")
    assert picture.pool.turning == frozenset()
    assert picture.usable_now == [D, P]


@pytest.mark.parametrize("ours", [True, False])
async def test_answers_hold_a_prefill_worker_back(picture: Picture, ours: bool) -> None:
    """On the way back; its neighbour that goes from whole requests to decoding is not held."""
    await pair(picture)
    handing_over = picture.servings.current
    picture.arrange(picture.serving(standard()))
    with contextlib.ExitStack() as work:
        if ours:
            for worker_id in (P, D):
                work.enter_context(picture.pool.leg(worker_id))
        else:
            await picture.hear("other", answering={P: 1, D: 1})
        picture.arrange(handing_over)
        assert picture.pool.turning == {P}
        assert picture.plan(tokens=500) == "d"
    await picture.hear("other")
    assert picture.pool.turning == frozenset()
    assert picture.plan(tokens=500) == "p d"


async def test_a_picture_for_a_profile_that_serves_nobody(picture: Picture) -> None:
    """It decides as it would if it were the active one, and nothing changes for those that are."""
    candidate = picture.serving(standard())
    picture.pool.picture(candidate)
    assert picture.plan(candidate) == "unknown_model"  # nothing was read yet
    await pair(picture)
    before = picture.servings.current.fleet
    picture.pool.picture(candidate)
    with picture.pool.leg(D):
        assert picture.plan(candidate, tokens=500) == "p"
        assert picture.plan(tokens=500) == "p d"
    assert picture.servings.all() == [picture.servings.current]
    assert picture.servings.current.fleet is before
    assert picture.pool.ready_by_role() == {Role.PREFILL: 1, Role.DECODE: 1}
    # Work of the other kind holds nobody back here: it will have ended by then.
    with picture.pool.leg(P, answering=False), picture.pool.leg(D), picture.pool.leg(D):
        picture.pool.picture(candidate)
        assert picture.plan(candidate) == "p"


async def test_workers_as_any_profile_may_use_them(picture: Picture) -> None:
    """Now, while others may still use them: a canary's standard profile has no prefill worker."""
    candidate = picture.serving(standard())
    assert picture.pool.seen_by(candidate) == ()
    await pair(picture)
    picture.arrange(picture.servings.current, candidate)
    seen = {record.id: (record.role, record.state) for record in picture.pool.seen_by(candidate)}
    assert seen == {
        D: (Role.STANDARD, WorkerState.READY),
        P: (Role.STANDARD, WorkerState.DRAINING),
    }


async def test_an_assignment_counts_at_the_next_reading(picture: Picture) -> None:
    """What an operator says of a worker, all routers do."""
    await pair(picture)
    await picture.put(worker_record("e"))
    await picture.store.assign(E, Role.PREFILL)
    await picture.pool.refresh()
    assert picture.pool.ready_by_role() == {Role.PREFILL: 2, Role.DECODE: 1}
    await picture.store.assign(E, None)
    await picture.pool.refresh()
    assert picture.pool.ready_by_role() == {Role.PREFILL: 1, Role.DECODE: 2}


def test_looking_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Even something unforeseen does not end the task that keeps the picture fresh."""

    async def main() -> None:
        picture = Picture()
        task = asyncio.create_task(picture.pool.keep_fresh())
        picture.store.fails = RuntimeError("unforeseen")
        await asyncio.sleep(3)
        assert picture.ids == []
        picture.store.fails = None
        await picture.store.put_worker(worker_record("d"), ttl_s=60)
        await asyncio.sleep(1)
        assert picture.ids == ["d"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(main())
    assert "unforeseen" in caplog.text
