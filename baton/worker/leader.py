"""The leader of a group: it serves for all, registers for all, and ends when one of them is lost.

Its engine starts once every follower is there, and is never started again in place: the other
ranks would still belong to the one before. The group ends instead, with ``GROUP_LOST``, and
whatever runs it (a LeaderWorkerSet) makes a new one.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from pathlib import Path

from baton.clock import Clock, SystemClock
from baton.engine import Engine, EngineSpec
from baton.errors import WorkerUnreachable
from baton.registrar import Registrar
from baton.stopping import unless_stopped
from baton.types import EngineId
from baton.worker.addresses import advertised_address, check_listens, is_loopback, resolve
from baton.worker.group import GROUP_LOST, GroupPlace
from baton.worker.health import HealthServer, Problem, Vitals
from baton.worker.members import OVER, Answer, Beat, Phase, Roster, Timing
from baton.worker.options import WorkerOptions, WorkerPlan
from baton.worker.ranks import ranked_spec, setup_digest
from baton.worker.stops import Stops
from baton.worker.worker import Worker

_TICK_S = 0.2
_NAME_TRIES_S = 120.0
"""For the leader's own name to resolve; a new pod's takes some seconds."""

log = logging.getLogger("baton.worker.group")


class Leader:
    """Member 0 of a group.

    Args:
        options: what the process was told; ``options.group`` is its place.
        plan: what its role makes of that.
        registrar: where to register; closed at the end.
        stops: how it is asked to end.
        timing: how long members may be silent.
        clock: for records and silence.
    """

    def __init__(
        self,
        options: WorkerOptions,
        plan: WorkerPlan,
        registrar: Registrar,
        stops: Stops,
        *,
        timing: Timing | None = None,
        clock: Clock | None = None,
    ) -> None:
        assert options.group is not None
        self._place: GroupPlace = options.group
        self._options = options
        self._plan = plan
        self._registrar = registrar
        self._stops = stops
        self._timing = timing or Timing()
        self._clock = clock or SystemClock()
        self._run_id = EngineId(uuid.uuid4().hex)
        self._may_start = asyncio.Event()
        self._may_leave = asyncio.Event()
        self._address = ""
        self._refused = ""
        self.roster = Roster(
            self._place.size,
            setup_digest(plan),
            self._place.name,
            now_s=self._clock.monotonic_s(),
            timing=self._timing,
        )
        self.engine = Engine(
            f"{plan.role}",
            self._make_spec,
            on_change=lambda: self.worker.tell(),
            clock=self._clock,
            only_run=self._run_id,
        )
        self.worker = Worker(
            options,
            plan,
            registrar,
            clock=self._clock,
            engine=self.engine,
            may_start=self._may_start,
        )

    async def run(self) -> int:
        """Leads until the group is over. Returns the exit status.

        Raises:
            NotAuthorized: the registry refuses the cluster token.
            SettingsError: the health server's port is taken, or followers cannot reach it.
            WorkerUnreachable: its own name does not resolve.
        """
        try:
            address = await unless_stopped(self._own_address(), self._stops.drain)
            if address is None:
                log.info("leaving: asked to stop before the group started")
                return 0
            self._address = address
            vitals = Vitals(
                dead=self._dead,
                unready=self.worker.unready,
                drain=self._drain,
                hear=self.hear,
            )
            options = self._options
            async with HealthServer(options.host, options.health_port, options.token, vitals):
                return await self._lead()
        finally:
            await self._registrar.close()

    def hear(self, beat: Beat) -> Answer | str:
        """A follower's beat: the answer, or why it is refused."""
        if self._stops.now.is_set():
            # Before its goodbye, which is then no loss.
            self.roster.end()
        self.roster.leaving = self._stops.leave.is_set()
        if beat.group == self._place.name and beat.run not in ("", self._run_id):
            # Of an earlier life of this group: by our run it sees that it has to go.
            return self._answer()
        refusal = self.roster.hear(beat, self._clock.monotonic_s())
        if refusal:
            if refusal != self._refused:
                # It tries again each second.
                log.warning("refused a beat: %s", refusal)
            self._refused = refusal
            return refusal
        return self._answer()

    def _answer(self) -> Answer:
        return Answer(
            run=self._run_id,
            phase=self.roster.phase,
            ready=not self.worker.unready(),
            master_address=self._address,
            master_port=self._place.rendezvous_port,
            reason=self.roster.reason,
        )

    async def _lead(self) -> int:
        stops = self._stops
        life = asyncio.create_task(
            self.worker.run(stops.drain, stops.now, self._may_leave), name="worker"
        )
        watch = asyncio.create_task(self._watch(), name="roster")
        try:
            await asyncio.wait({life, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            else:
                self.roster.engine_ended(f"the leader's engine: {self._why_ended(life)}")
            if self.roster.phase is Phase.LOST:
                log.error("the group is lost: %s", self.roster.reason)
                self.engine.kill()
            if self.roster.phase is Phase.LOST or not self.worker.drained.is_set():
                # Over before the drain is: nothing is left to wait for.
                stops.at_once()
            self._may_leave.set()
            await self._until_told()
            await life
        finally:
            for task in (life, watch):
                task.cancel()
            await asyncio.gather(life, watch, return_exceptions=True)
        return GROUP_LOST if self.roster.phase is Phase.LOST else 0

    async def _watch(self) -> None:
        """Until the group is over, and in good order also until the followers know."""
        said_s = self._clock.monotonic_s()
        while self.roster.phase not in OVER:
            before = self.roster.phase
            self._look()
            if before is Phase.GATHERING and self.roster.phase is Phase.RUNNING:
                log.info("all %d members are there, the engine starts", self._place.size)
                self._may_start.set()
            now_s = self._clock.monotonic_s()
            if self.roster.phase is Phase.GATHERING and now_s - said_s > self._timing.progress_s:
                said_s = now_s
                log.info("waiting for followers %s", ", ".join(map(str, self.roster.missing)))
            await asyncio.sleep(_TICK_S)
        if self.roster.phase is Phase.ENDED:
            await self._until_told()

    def _look(self) -> None:
        self.roster.tick(self._clock.monotonic_s())
        if self.roster.drain_wanted:
            self._stops.drain.set()
        if self.worker.drained.is_set():
            self.roster.drained()
            if self._stops.leave.is_set():
                self.roster.end()

    async def _until_told(self) -> None:
        ends_s = self._clock.monotonic_s() + self._timing.tell_s
        while True:
            if self.roster.all_told or self._clock.monotonic_s() > ends_s:
                return
            await asyncio.sleep(_TICK_S / 4)

    def _why_ended(self, life: asyncio.Task[None]) -> str:
        if not life.cancelled() and (error := life.exception()) is not None:
            return str(error)
        return self.engine.health.last_error or "it ended"

    def _dead(self) -> Problem | None:
        lost = self.roster.phase is Phase.LOST
        return Problem("the group is lost", self.roster.reason) if lost else None

    async def _drain(self) -> Problem | None:
        self._stops.drain.set()
        await self.worker.drained.wait()
        return self._dead()

    def _make_spec(self, engine_id: EngineId, run_dir: Path) -> EngineSpec:
        address, port = self._address, self._place.rendezvous_port
        return ranked_spec(
            self._plan.make_spec(engine_id, run_dir), self._place, address, port, address
        )

    async def _own_address(self) -> str:
        """Where followers' ranks find this node's: what it advertises, else what its own name
        resolves to.

        Raises:
            WorkerUnreachable: the name does not resolve.
            SettingsError: the followers cannot reach what this member listens on.
        """
        host = self._options.host
        until_s = self._clock.monotonic_s() + _NAME_TRIES_S
        while True:
            try:
                if is_loopback(host):
                    check_listens(host, await resolve(self._place.leader))
                advertised = await advertised_address(self._options.advertise_url)
                return advertised or await resolve(self._place.leader)
            except WorkerUnreachable as error:
                if self._clock.monotonic_s() > until_s:
                    raise
                log.info("%s; trying again", error.message)
                await asyncio.sleep(1.0)
