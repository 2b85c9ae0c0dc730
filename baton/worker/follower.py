"""A follower of a group: it runs its node's ranks for as long as its leader wants them.

It registers nothing and serves nobody but its leader's engine. When the leader is lost, or its own
engine ends, it kills what it runs and exits with ``GROUP_LOST``.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from pathlib import Path

import aiohttp
import msgspec

from baton.clock import Clock, SystemClock
from baton.engine import Engine, EngineSpec
from baton.errors import BatonError, NotAuthorized, WorkerUnreachable
from baton.stopping import unless_stopped
from baton.types import EngineId
from baton.worker.addresses import (
    address_towards,
    advertised_address,
    check_listens,
    resolve,
)
from baton.worker.group import GROUP_LOST, GroupPlace
from baton.worker.health import BEAT_PATH, HealthServer, Problem, Vitals
from baton.worker.members import Answer, Beat, Step, Tether, Timing
from baton.worker.options import WorkerOptions, WorkerPlan
from baton.worker.ranks import ranked_spec, setup_digest
from baton.worker.stops import Stops

_LEAVE_MARGIN_S = 30.0
"""On top of the leader's drain limit, before a follower that was asked to stop goes without it: the
leader may have been asked some seconds later."""
_STOP_GRACE_S = 5.0
"""From SIGTERM to SIGKILL: a follower stops its ranks when nothing is in flight any more, and ranks
that wait for others which are gone do not hear of SIGTERM."""

_MAX_ANSWER_BYTES = 16 * 1024
_NO_ANSWER = (WorkerUnreachable, aiohttp.ClientError, OSError, TimeoutError, ValueError)

log = logging.getLogger("baton.worker.group")


class Follower:
    """Member 1 or higher of a group.

    Args:
        options: what the process was told; ``options.group`` is its place.
        plan: what its role makes of that.
        stops: how it is asked to end.
        timing: how often to beat, and how long the leader may be silent.
        clock: for silence.
    """

    def __init__(
        self,
        options: WorkerOptions,
        plan: WorkerPlan,
        stops: Stops,
        *,
        timing: Timing | None = None,
        clock: Clock | None = None,
    ) -> None:
        assert options.group is not None
        self._place: GroupPlace = options.group
        self._options = options
        self._plan = plan
        self._stops = stops
        self._timing = timing or Timing()
        self._clock = clock or SystemClock()
        self._member = uuid.uuid4().hex
        self._setup = setup_digest(plan)
        self._leader_address = ""
        self._answer: Answer | None = None
        self._said = ""
        self._said_s = 0.0
        self._drained = asyncio.Event()
        self._stop_engine = asyncio.Event()
        self._engine_task: asyncio.Task[None] | None = None
        self._own_address = ""
        self.engine: Engine | None = None
        self.tether = Tether(now_s=self._clock.monotonic_s(), timing=self._timing)
        self._dead = ""

    async def run(self) -> int:
        """Follows until the group is over. Returns the exit status.

        Raises:
            SettingsError: the health server's port is taken, or this member listens on loopback
                and the leader is elsewhere.
            NotAuthorized: the leader refuses the token.
        """
        vitals = Vitals(dead=self._why_dead, unready=self._unready, drain=self._drain)
        options = self._options
        async with (
            HealthServer(options.host, options.health_port, options.token, vitals),
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timing.answer_s)
            ) as http,
        ):
            try:
                step = await self._follow(http)
                if step is Step.ABORT:
                    self._dead = self.tether.reason
                    log.error("the group is lost: %s", self.tether.reason)
                    if self.engine is not None:
                        self.engine.kill()
                else:
                    log.info("leaving: %s", self.tether.reason)
                await self._say_bye(http, lost=step is Step.ABORT)
            finally:
                self._drained.set()
                await asyncio.shield(self._end_engine())
        return GROUP_LOST if step is Step.ABORT else 0

    async def _follow(self, http: aiohttp.ClientSession) -> Step:
        """Beats until this member has to go; STOP or ABORT."""
        stops = self._stops
        while True:
            beaten = await unless_stopped(
                self._one_beat(http), stops.now if self.tether.joined else stops.leave
            )
            if beaten is None:
                self.tether.reason = (
                    "asked twice"
                    if self.tether.joined
                    else "asked to stop before the group started"
                )
                return Step.STOP
            step, pause_s = beaten
            if step is Step.START:
                self._start_engine()
            elif step in (Step.STOP, Step.ABORT):
                return step
            if self.tether.drained:
                self._drained.set()
            await self._pause(pause_s)
            if stops.now.is_set():
                self.tether.reason = "asked twice"
                return Step.STOP
            if self._engine_task is not None and self._engine_task.done():
                return self._engine_ended()
            self._hear_stops()

    async def _one_beat(self, http: aiohttp.ClientSession) -> tuple[Step, float]:
        try:
            answer = await self._call(http, self._beat())
        except _NO_ANSWER as error:
            return self._silent(error), self._timing.again_s
        self._answer = answer
        return self.tether.heard(answer, self._clock.monotonic_s()), self._timing.beat_s

    async def _call(self, http: aiohttp.ClientSession, beat: Beat) -> Answer:
        """One beat and its answer.

        Raises:
            WorkerUnreachable: the leader refuses it, or its name does not resolve; once joined,
                also when whatever is at its address refuses the token.
            NotAuthorized: the leader refuses the token.
            SettingsError: this member listens on loopback, and the leader is elsewhere.
            aiohttp.ClientError, OSError, TimeoutError, ValueError: there is no leader to be
                reached, or something else answers.
        """
        if not self.tether.joined and not beat.bye:
            # A new leader has a new address; once joined, there is no other leader for us.
            self._leader_address = await resolve(self._place.leader)
            check_listens(self._options.host, self._leader_address)
            self._own_address = await self._find_own_address()
        host = self._leader_address
        url = f"http://{f'[{host}]' if ':' in host else host}:{self._place.leader_health_port}"
        async with http.post(
            url + BEAT_PATH,
            data=msgspec.json.encode(beat),
            headers={"Authorization": f"Bearer {self._options.token}"},
            allow_redirects=False,
        ) as response:
            body = await _bounded(response)
            if response.status == 401 and not self.tether.joined:
                raise NotAuthorized(
                    "the leader refuses our cluster token; give all members of a group the same "
                    "BATON_CLUSTER_TOKEN"
                )
            if response.status != 200:
                said = body[:300].decode("utf-8", "replace")
                raise WorkerUnreachable(f"the leader answered {response.status}: {said}")
        try:
            return msgspec.json.decode(body, type=Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WorkerUnreachable(f"the leader's answer makes no sense: {error}") from error

    def _silent(self, error: Exception) -> Step:
        now_s = self._clock.monotonic_s()
        why = str(error) or type(error).__name__
        if why != self._said or now_s - self._said_s > self._timing.progress_s:
            self._said, self._said_s = why, now_s
            leader = f"{self._place.leader}:{self._place.leader_health_port}"
            log.info("no leader at %s: %s", leader, why)
        return self.tether.silent(now_s)

    def _beat(self, bye: str = "", *, lost: bool = False) -> Beat:
        return Beat(
            index=self._place.index,
            size=self._place.size,
            member=self._member,
            setup=self._setup,
            group=self._place.name,
            run=self.tether.run,
            drain=self.tether.drain_asked,
            bye=bye,
            lost=lost,
        )

    async def _say_bye(self, http: aiohttp.ClientSession, *, lost: bool) -> None:
        """Tells a leader that is there that this member goes, so that it need not find out."""
        if self._answer is None:
            return
        try:
            await self._call(http, self._beat(bye=self.tether.reason, lost=lost))
        except (BatonError, *_NO_ANSWER):
            log.debug("the leader did not hear our goodbye")

    async def _pause(self, pause_s: float) -> None:
        """Until the next beat, or until something happens here that the leader should know."""
        stops = self._stops
        waits = [asyncio.create_task(stops.now.wait())]
        if not self.tether.drain_asked:
            waits.append(asyncio.create_task(stops.drain.wait()))
        try:
            ends = {*waits, self._engine_task} if self._engine_task is not None else {*waits}
            await asyncio.wait(ends, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _hear_stops(self) -> None:
        if self._stops.leave.is_set():
            limit_s = self._plan.drain_limit_s + _LEAVE_MARGIN_S
            self.tether.leave(self._clock.monotonic_s(), limit_s)
        elif self._stops.drain.is_set():
            self.tether.drain()

    def _engine_ended(self) -> Step:
        assert self.engine is not None
        assert self._engine_task is not None
        failure = self._engine_task.exception()
        self.tether.reason = str(failure or self.engine.health.last_error or "the engine ended")
        # Once drained, the leader may have stopped its ranks before we heard that it would.
        return Step.STOP if self.tether.drained else Step.ABORT

    def _start_engine(self) -> None:
        log.info("all members are there, the engine starts")
        self.engine = Engine(
            f"{self._plan.role}",
            self._make_spec,
            clock=self._clock,
            stop_grace_s=_STOP_GRACE_S,
            only_run=EngineId(self.tether.run),
        )
        self._engine_task = asyncio.create_task(self.engine.run(self._stop_engine), name="engine")

    async def _end_engine(self) -> None:
        self._stop_engine.set()
        if self._engine_task is not None:
            await asyncio.gather(self._engine_task, return_exceptions=True)

    def _make_spec(self, engine_id: EngineId, run_dir: Path) -> EngineSpec:
        assert self._answer is not None
        return ranked_spec(
            self._plan.make_spec(engine_id, run_dir),
            self._place,
            self._answer.master_address,
            self._answer.master_port,
            self._own_address,
        )

    async def _find_own_address(self) -> str:
        advertised = await advertised_address(self._options.advertise_url)
        return advertised or address_towards(self._leader_address)

    def _why_dead(self) -> Problem | None:
        return Problem("the group is lost", self._dead) if self._dead else None

    def _unready(self) -> Problem | None:
        if self._dead:
            return self._why_dead()
        if self.tether.drain_asked or self._stops.drain.is_set():
            return Problem("the worker is draining")
        if not self.tether.joined:
            return Problem("the group is not complete")
        if self.tether.quiet:
            return Problem("the leader does not answer")
        return None if self.tether.ready else Problem("the group's engine has not generated")

    async def _drain(self) -> Problem | None:
        self._stops.drain.set()
        await self._drained.wait()
        return self._why_dead()


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body.

    Raises:
        WorkerUnreachable: it is longer than any answer of a leader.
    """
    body = bytearray()
    async for chunk in response.content.iter_chunked(4096):
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise WorkerUnreachable(f"the leader's answer has more than {_MAX_ANSWER_BYTES} bytes")
    return bytes(body)
