"""Whole routers over one store, moved on by hand: time passes, and who looks does, when told to.

Everything is real but the store's troubles, the source of profiles, and the traffic, of which only
what is counted is put in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import msgspec
import pytest

from baton.clock import Clock, VirtualClock
from baton.errors import StoreUnavailable
from baton.store import Document, Look, MemoryStore
from baton.types import KvGeometry, Role, RouterRecord, WorkerId, WorkerRecord, WorkerState
from profiles import ServingProfile
from profiles.sources import Bundle, Told
from profiles.switching import Phase, State, terms_of
from router.serving import Serving
from router.settings import RouterSettings
from router.state import RouterState
from tests.fakes.worker_records import worker_record
from tests.unit.router.serving_profiles import disaggregated, standard

BEAT_S = 0.5
_GEOMETRY = KvGeometry(
    layers=2, kv_heads=2, head_size=16, dtype="float32", block_size=64, bytes_per_token=512
)
_TURNS = 30
"""Of the event loop, in which all that is to be done after a look is done."""

X = standard(name="x")
"""What routers start with."""
MISFIT = standard(name="misfit", more="  transfer: {block_size: 128}\n")
"""No worker fits it."""


def handing_over(tokens: int, *, share: float = 0.0, terms: str = "") -> ServingProfile:
    """Profile ``y<tokens>``, which hands over; without a rehearsal, and without a canary unless
    there is a share. ``terms`` are further entries of ``switch``."""
    more = f"  switch: {{shadow: false, canary_share: {share}{terms}}}\n"
    return disaggregated(tokens, name=f"y{tokens}", more=more)


def worker(
    name: str, role: Role = Role.DECODE, state: WorkerState = WorkerState.READY
) -> WorkerRecord:
    """One that fits all these profiles but ``MISFIT``."""
    return worker_record(name, role=role, state=state, model="served", geometry=_GEOMETRY)


PAIR = (worker("d"), worker("p", Role.PREFILL))


class Store(MemoryStore):
    """One that can be away, can lose everything, and lets something happen before a write.

    Attributes:
        away: whether it is.
        meanwhile: awaited once, right before the next write to a document.
        slow: whether others get their turn in each call.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.away = self.slow = False
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        self._epoch = 1

    def forget(self) -> None:
        """Starts anew with nothing, like a Redis without persistence."""
        MemoryStore.__init__(self, self._clock)
        self._epoch += 1

    async def _reach(self) -> None:
        if self.slow:
            await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("away")

    async def look(self) -> Look:
        await self._reach()
        return msgspec.structs.replace(await super().look(), epoch=str(self._epoch))

    async def document(self, name: str) -> Document:
        await self._reach()
        return await super().document(name)

    async def swap(self, name: str, expected: int, value: bytes) -> int | None:
        await self._reach()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return await super().swap(name, expected, value)

    async def put_router(self, record: RouterRecord, *, ttl_s: float) -> None:
        await self._reach()
        await super().put_router(record, ttl_s=ttl_s)

    async def close(self) -> None:
        """It is the others' too."""


class Source:
    """A place that profiles come from."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._bundle = Bundle()
        self._changed = asyncio.Event()

    def wants(self, profile: ServingProfile) -> None:
        """Says which profile is to be active."""
        texts = {profile.name: profile.model_dump_json(by_alias=True)}
        self.says(Bundle(texts=texts, active=profile.name))

    def says(self, bundle: Bundle) -> None:
        """Holds this from now on."""
        self._bundle = bundle
        self._changed.set()

    @property
    def events(self) -> list[str]:
        """What was told to have happened, the outcome only."""
        return [told.event.split(".")[0] for told in self.told if told.event]

    def describe(self) -> str:
        return "a source"

    async def read(self) -> Bundle:
        return self._bundle

    async def changes(self) -> AsyncIterator[Bundle]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield self._bundle

    async def tell(self, told: Told) -> None:
        self.told.append(told)

    async def close(self) -> None:
        pass


class Router:
    """One of them. It has its turn in ``Cluster.look`` only."""

    def __init__(self, settings: RouterSettings, clock: VirtualClock, source: Source) -> None:
        self.state = RouterState(settings, clock=clock)
        self.source = source
        self.conductor = self.state.conductor
        self.servings = self.state.servings
        self.task: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Starts, and follows what is agreed from now on."""
        await self.state.pool.refresh()
        await self.conductor.start()
        self.task = asyncio.create_task(self.conductor.run(), name="conductor")

    async def leave(self) -> None:
        """Dies: nobody hears of it."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    async def switch(self, profile: ServingProfile) -> int:
        """Begins a switch on the profile's own terms."""
        return await self.conductor.switch(profile, terms_of(profile))

    @property
    def agreed(self) -> State:
        return self.conductor.agreed

    @property
    def active(self) -> str:
        """The profile that it serves by."""
        return self.servings.current.name

    @property
    def phase(self) -> Phase | None:
        return None if self.agreed.switch is None else self.agreed.switch.phase

    @property
    def ends(self) -> list[tuple[int, str, str]]:
        """The history: number, profile, outcome."""
        return [(r.number, r.new.name, str(r.outcome)) for r in self.agreed.history]

    @property
    def candidate(self) -> Serving:
        candidate = self.servings.candidate
        assert candidate is not None
        return candidate

    def counted(self, outcome: Phase) -> float:
        """Ends of switches in its metrics."""
        line = f'baton_profile_switches_total{{outcome="{outcome}"}} '
        page = self.state.metrics.render("")[0].decode()
        return float(next(li for li in page.splitlines() if li.startswith(line)).split()[1])


class Cluster:
    """A store with a pair of workers, and routers, the smallest id first.

    Attributes:
        routers: all that were made; they ``join`` when told to.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = VirtualClock()
        self.store = Store(self.clock)
        self.routers: list[Router] = []
        self._patch = monkeypatch

    async def put(self, *workers: WorkerRecord) -> None:
        """They register, for as long as a test lasts."""
        for record in workers:
            await self.store.put_worker(record, ttl_s=3600)

    def make(
        self,
        count: int,
        *profiles: ServingProfile,
        sources: bool = False,
        at_start: ServingProfile | None = None,
    ) -> list[Router]:
        """Routers that start with these profiles, or with ``X``; with a source each that wants
        that profile, or one that is for the start only."""
        self._patch.setattr("router.state.open_store", lambda url, clock: self.store)
        made = []
        for profile in profiles or (X,) * count:
            source = Source()
            source.wants(at_start or profile)
            opened: Callable[..., Source] = partial(_opened, source)
            self._patch.setattr("router.switching.proposals.open_source", opened)
            settings = RouterSettings(
                profile,
                "token",
                profiles="here" if sources or at_start else None,
                profiles_at_start=at_start is not None,
            )
            made.append(Router(settings, self.clock, source))
        if not profiles:
            made.sort(key=lambda router: router.state.router_id)
        self.routers += made
        return made

    async def started(self, count: int, *, sources: bool = False) -> list[Router]:
        """Routers over a pair of workers that know of each other and agree on ``X``."""
        await self.put(*PAIR)
        made = self.make(count, sources=sources)
        for router in made:
            await router.join()
        await self.go(1, *made)
        return made

    async def look(self, *routers: Router) -> None:
        """They look at the store in this order, and then do what follows from it."""
        for router in routers:
            await router.state.pool.refresh()
        await settle()

    async def go(self, seconds: float, *routers: Router) -> None:
        """So much time passes, in which they look twice a second."""
        for _ in range(round(seconds / BEAT_S)):
            self.clock.advance(BEAT_S)
            for router in routers:
                await self.look(router)

    async def close(self) -> None:
        self.store.away = False
        for router in self.routers:
            await router.leave()
            await router.state.close()


def _opened(source: Source, ref: str, clock: VirtualClock) -> Source:
    return source


async def settle() -> None:
    """Lets all tasks do what they can."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def serve(serving: Serving, good: int = 0, bad: int = 0) -> None:
    """Requests end under a profile."""
    serving.requests += good + bad
    serving.errors += bad


def usable(router: Router) -> list[WorkerId]:
    """Workers that get requests under the active profile and answer them."""
    pool = router.state.pool
    return [r.id for r in pool.seated() if pool.is_usable(r) and r.role is not Role.PREFILL]
