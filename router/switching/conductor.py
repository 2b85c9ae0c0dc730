"""Follows what the routers agree on, and moves a switch on where this router owns it.

After each look at the store, twice a second: what is agreed is served; the own switch is moved one
step; a switch whose owner is silent is taken over; what a source proposes is begun; and the others
are told how things are here. Every change of what is agreed is a pure function of
``profiles.switching``, written by compare-and-swap, and done anew on what is there then if another
router was faster.

While the store is away nothing is agreed on: a switch stands still, requests go on as they are.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from baton.errors import BatonError, InvalidRequest, StoreUnavailable, TooManyRequests
from baton.store import STATE, Document, Look
from baton.types import RouterRecord, WorkerId, WorkerRecord, WorkerState
from profiles import ServingProfile
from profiles.switching import (
    OWNER_SILENT_S,
    Change,
    Fit,
    Phase,
    Seen,
    Shadow,
    State,
    Switch,
    SwitchRefused,
    Terms,
    back,
    begin,
    decode,
    difference,
    encode,
    first,
    fit,
    missing,
    notes,
    profile_of,
    refuse,
    roll_back,
    skip,
    step,
    take_over,
    terms_of,
)
from router.pool import ROUTER_TTL_S
from router.serving import Serving
from router.switching.arms import Arms, Evidence
from router.switching.proposals import Proposals
from router.switching.shadow import compare

if TYPE_CHECKING:
    from router.state import RouterState

_STORE_S = 3.0
"""For what is written to the store at the end."""
_AWAY_S = 3.0
"""Between two looks at the store, after which it was away."""
_SURE_S = 1.5
"""Once it is back, until all that the others have to tell is here."""
_NEW_S = 1.0
"""That a router which comes new waits at a store that has nothing, before it says what counts: one
that knows says so at once."""
_TRIES = 20
"""Of one change; each means that another router was faster meanwhile."""

log = logging.getLogger("baton.router.switch")

Move = Callable[[State], State]


class Checked(msgspec.Struct, frozen=True):
    """What is known of a profile before a switch to it begins.

    Attributes:
        fit: whether the workers fit it.
        missing: what has to come before it could serve.
        changes: what differs from the active profile.
        shadow: what it would make of the last requests.
    """

    fit: Fit
    missing: tuple[str, ...]
    changes: tuple[Change, ...]
    shadow: Shadow


class Conductor:
    """One per router process; made with its state.

    Attributes:
        agreed: what the routers agree on, as this one knows it.
        revision: the store's number of it; 0 before there is any.
        proposals: what comes from the profiles' source.
        node: the machine.
    """

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self.node = socket.gethostname()
        self.agreed = first(state.profile)
        self.revision = 0
        self.proposals = Proposals(state.settings, state.clock, lambda: self._wake.set())
        self._arms = Arms()
        self._evidence = Evidence()
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self._look = Look()
        self._unfollowed = ""
        self._phase: tuple[int, int, float] = (0, 0, 0.0)
        self._heard: tuple[int, int, float] = (0, 0, 0.0)
        self._reported: set[int] | None = None
        self._tried = ""
        self._value = b""
        self._looked_s = 0.0
        self._sure_s = 0.0
        self._new_s: float | None = None

    async def start(self) -> None:
        """Agrees with those that are there, or is the first; after the first look at the store."""
        await self.proposals.start()
        wanted = self.proposals.begins_with
        if wanted is not None and wanted.version != self.agreed.active.version:
            self.agreed = first(wanted)
            self._follow()
        if self.proposals.wanted is not None:
            self.agreed = msgspec.structs.replace(self.agreed, proposal=self.proposals.digest)
        try:
            await self._beat()
        except StoreUnavailable as error:
            log.warning("nothing is agreed on with other routers yet: %s", error.message)
        started = self._state.settings.profile
        if self.agreed.active.version != started.version and wanted is None:
            log.warning(
                "started with profile %s, version %s; the routers agree on %s, version %s, which "
                "counts: `baton profile switch %s` changes it",
                *(started.name, started.version),
                *(self.agreed.active.name, self.agreed.active.version),
                started.name,
            )

    async def run(self) -> None:
        """Works after each look at the store, for ever; to be run as a task and cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._beat()
            except StoreUnavailable:
                pass  # the pool has said so, and says when it is back
            except Exception:
                log.exception("the switch of profiles could not be seen to")

    async def close(self) -> None:
        """Has the others know that this router is gone."""
        await self.proposals.close()
        try:
            async with asyncio.timeout(_STORE_S):
                await self._state.store.remove_router(self._state.router_id)
        except (TimeoutError, BatonError) as error:
            log.debug("not signed off: %s", error)

    def hear(self, look: Look) -> None:
        """The store was read."""
        now_s = self._now_s()
        away_s = now_s - self._looked_s
        if self._looked_s and away_s > _AWAY_S:
            # Nothing went on meanwhile: neither the phase's time, nor the owner's silence.
            self._phase = (*self._phase[:2], self._phase[2] + away_s)
            self._heard = (*self._heard[:2], self._heard[2] + away_s)
            self._sure_s = now_s + _SURE_S
        if look.epoch != self._look.epoch:
            self._sure_s = now_s + _SURE_S
        self._looked_s = now_s
        self._look = look
        self._wake.set()

    # --- for operators ---

    async def switch(self, profile: ServingProfile, terms: Terms, *, by: str = "operator") -> int:
        """Begins a switch; returns its number.

        Raises:
            SwitchRefused: one is on, or the profile is active already.
            InvalidRequest: the workers do not fit the profile; the refusal is in the history.
            StoreUnavailable: nothing can be agreed on now.
        """
        found = self.fit(profile)
        if found.problems:
            reason = "\n".join(found.problems)
            await self._change(lambda s: refuse(s, profile, by=by, reason=reason, at_s=_wall_s()))
            raise InvalidRequest(f"profile {profile.name} does not fit:\n{reason}", param="profile")
        await self._change(
            lambda state: begin(
                state,
                profile,
                router=self._state.router_id,
                by=by,
                terms=terms,
                notes=self._notes(profile, found),
            )
        )
        return self.agreed.number

    async def skip(self, phase: Phase | None = None) -> None:
        """Ends the phase that a switch is in, as far as this router knows.

        Args:
            phase: the one that is meant; None for whichever it is.

        Raises:
            SwitchRefused: no switch is on, or it has gone on meanwhile.
            StoreUnavailable: nothing can be agreed on now.
        """
        asked = _mark(self.agreed.switch)
        await self._catch_up()

        def move(state: State) -> State:
            on = state.switch
            elsewhere = asked is not None and _mark(on) != asked
            if elsewhere or (phase is not None and on is not None and on.phase is not phase):
                raise SwitchRefused("the switch has gone on meanwhile; look again")
            return skip(state, _wall_s(), phase_s=self._phase_s())

        await self._change(move)

    async def roll_back(self, number: int | None = None) -> None:
        """Ends the switch that is on; or else goes back to the profile that was active before.

        Args:
            number: the switch that is meant; None for the one that is on, if there is one.

        Raises:
            SwitchRefused: there is nothing to go back to, or the switch is over.
        """
        on = self.agreed.switch
        await self._catch_up()
        on = self.agreed.switch if on is None else on
        meant = on.number if number is None and on is not None else number

        def move(state: State) -> State:
            if meant is not None and (state.switch is None or state.switch.number != meant):
                raise SwitchRefused(f"switch {meant} is over; the history says how it ended")
            if state.switch is None:
                return back(state, self._state.router_id)
            return roll_back(
                state, "An operator rolled it back.", _wall_s(), phase_s=self._phase_s()
            )

        await self._change(move)

    async def check(self, profile: ServingProfile) -> Checked:
        """What a switch to the profile would meet; nothing is changed."""
        state = self._state
        serving = Serving(profile, state.settings.share, state.counts)
        try:
            shadow = await compare(
                list(state.dispatcher.recent),
                state.pool,
                state.servings.current,
                serving,
                lambda: state.pool.picture(serving),
            )
        finally:
            serving.leave()
        return Checked(
            self.fit(profile),
            self._missing(profile),
            difference(state.profile, profile),
            shadow,
        )

    @property
    def phase_s(self) -> float | None:
        """How long the switch that is on has been in its phase, in seconds, as seen from here."""
        return None if self.agreed.switch is None else self._phase_s()

    def fit(self, profile: ServingProfile) -> Fit:
        """Whether the registered workers can serve it."""
        return fit(profile, self._look.workers, self._look.assigned)

    # --- the beat ---

    async def _beat(self) -> None:
        async with self._lock:
            await self._agree()
            self._take_up_arms()
            await self._tell_routers()
            switch = self.agreed.switch
            if switch is None:
                await self._propose()
            elif switch.owner == self._state.router_id:
                if switch.phase is not Phase.CANARY or self._now_s() >= self._sure_s:
                    await self._move(switch)
            elif self._is_silent(switch):
                log.warning("switch %d: its router is silent, taking over", switch.number)
                await self._swap(lambda state: self._taken_over(state, switch))
        await self._state.follow_prefix()
        self.proposals.tell(self.agreed, self._leads())

    async def _agree(self) -> None:
        """Takes over what is in the store; writes down what is known where the store has nothing:
        it is new, or it lost what it had."""
        document = self._look.state
        known = (self.revision, self._value)
        if document.revision and (document.revision, document.value) == known:
            return
        if document.revision <= self.revision:
            # Read before this router's own last change; or the store has lost it.
            document = await self._state.store.document(STATE)
        await self._reconcile(document)

    async def _reconcile(self, document: Document) -> None:
        """Of what is in the store and what is known here the newer one counts."""
        if document.revision == 0:
            now_s = self._now_s()
            self._new_s = now_s if self._new_s is None else self._new_s
            if self.revision or now_s - self._new_s >= _NEW_S:
                await self._restore(0)
        elif document.value == self._value:
            self.revision = document.revision
        elif document.revision < self.revision and _is_older(document.value, self.agreed):
            # Another router has written it again, and had missed the end.
            await self._restore(document.revision)
        else:
            self._take(document.revision, document.value)

    async def _restore(self, expected: int) -> None:
        """Writes what this router knows into a store that has lost it, or never had it."""
        value = encode(self.agreed)
        revision = await self._state.store.swap(STATE, expected, value)
        if revision is not None:
            if self.revision:
                log.warning("the store had lost what the routers agree on; written again")
            self.revision, self._value = revision, value

    async def _catch_up(self) -> None:
        """Knows what is agreed on now, and not half a second ago."""
        document = await self._state.store.document(STATE)
        async with self._lock:
            if document.revision > self.revision:
                self._take(document.revision, document.value)

    def _take(self, revision: int, value: bytes) -> None:
        try:
            agreed = decode(value)
        except msgspec.DecodeError as error:
            if self._unfollowed != str(error):
                self._unfollowed = str(error)
                log.error("what the routers agree on cannot be read, going on as before: %s", error)
            return
        self.revision, self._value = revision, value
        self.agreed = agreed
        self._follow()

    def _follow(self) -> None:
        """Serves by what is agreed."""
        agreed, switch = self.agreed, self.agreed.switch
        self._report(agreed)
        servings = self._state.servings
        # One of a router of another release, say, cannot be served here; what is served stays.
        current = self._serving(agreed.active.version) or servings.current
        candidate = None if switch is None else self._serving(switch.new.version)
        if (current, candidate) != (servings.current, servings.candidate):
            if servings.current is not current:
                log.info("profile %s, version %s, is active", current.name, current.version)
            self._state.arrange(current, candidate)
        servings.slo = current.profile.spec.slo
        if switch is None:
            return
        self._mark(switch)
        if candidate is None:
            return
        servings.number = switch.number
        servings.share = switch.terms.share if switch.phase is Phase.CANARY else 0.0
        if not servings.slo.model_dump(exclude_none=True):
            # Both sides are held against the same level: the one that was promised, if any was.
            servings.slo = candidate.profile.spec.slo

    def _mark(self, switch: Switch) -> None:
        """Notes when a phase began, and when its owner was heard of last."""
        mark = (switch.number, switch.phase_number)
        if self._phase[:2] != mark:
            self._phase = (*mark, self._now_s())
            log.info("switch %d to %s: %s", switch.number, switch.new.name, switch.phase)
            # What follows need not wait for the next look.
            self._wake.set()
        if self._heard[:2] != (switch.number, switch.beat):
            self._heard = (switch.number, switch.beat, self._now_s())

    def _serving(self, version: str) -> Serving | None:
        """The profile of a version in this router; None if it cannot be read here."""
        state = self._state
        found = state.servings.find(version)
        if found is None:
            try:
                profile = profile_of(self.agreed, version)
            except BatonError as error:
                if self._unfollowed != error.message:
                    self._unfollowed = error.message
                    log.error("an agreed profile cannot be served here: %s", error.message)
                return None
            found = Serving(profile, state.settings.share, state.counts, version=version)
        return found

    def _report(self, agreed: State) -> None:
        """Says in the log how switches ended."""
        first_time = self._reported is None
        told = self._reported or set()
        for report in agreed.history:
            if report.number not in told and not first_time:
                bad = report.outcome is not Phase.COMMITTED
                log.log(
                    logging.WARNING if bad else logging.INFO,
                    "switch %d from %s to %s: %s: %s",
                    report.number,
                    *(report.old.name, report.new.name),
                    report.outcome,
                    report.reason,
                )
                self._state.metrics.switches.add((str(report.outcome),))
        self._reported = {report.number for report in agreed.history}

    def _take_up_arms(self) -> None:
        """Begins to count for a canary that has begun."""
        servings, switch = self._state.servings, self.agreed.switch
        if switch is None or switch.phase is not Phase.CANARY or servings.candidate is None:
            self._arms.note(servings.current, servings.slo, self._now_s())
        elif self._arms.number != switch.number:
            self._arms.begin(switch.number, servings.current, servings.candidate)

    async def _tell_routers(self) -> None:
        state, arms = self._state, self._arms
        counts, current = state.counts, state.servings.current
        answering = dict(counts.answering)
        prefilling = {w: n - answering.get(w, 0) for w, n in counts.legs.items()}
        record = RouterRecord(
            id=state.router_id,
            node=self.node,
            profile=current.name,
            profile_version=current.version,
            seen=self.revision,
            prefilling={worker: count for worker, count in prefilling.items() if count},
            answering=answering,
            handoffs=state.ledger.open_count,
            stranded_bytes=dict(state.ledger.stranded_bytes()),
            switch=arms.number,
            tallies=arms.tallies(),
            before=arms.before,
            tenants=state.limits.uses(),
        )
        try:
            await state.store.put_router(record, ttl_s=ROUTER_TTL_S)
        except TooManyRequests as error:
            log.warning("other routers do not know of this one: %s", error.message)

    def _leads(self) -> bool:
        """Whether this router speaks for all where one has to: the first by its id."""
        own = self._state.router_id
        told = [record.id for record in self._look.routers]
        # Right after an outage the others have not told yet.
        return own in told and own == min(told) and self._now_s() >= self._sure_s

    # --- moving a switch on ---

    async def _move(self, switch: Switch) -> None:
        seen = await self._see(switch)

        def move(state: State) -> State:
            on = state.switch
            if on is None or (on.number, on.owner) != (switch.number, self._state.router_id):
                raise SwitchRefused("the switch is over, or another router has it")
            if on.phase_number != switch.phase_number:
                return state
            return step(state, seen, at_s=_wall_s())

        try:
            await self._swap(move)
        except SwitchRefused as refused:
            log.info("switch %d: %s", switch.number, refused.message)

    async def _see(self, switch: Switch) -> Seen:
        """What the next step is judged by."""
        state, servings = self._state, self._state.servings
        candidate = servings.candidate
        if switch.phase is Phase.PREPARE:
            if candidate is None:
                unable = "the router that makes the switch cannot serve the profile"
                return Seen(phase_s=self._phase_s(), missing=(unable,))
            return Seen(phase_s=self._phase_s(), missing=self._missing(candidate.profile))
        if switch.phase is Phase.SHADOW:
            if candidate is None:
                return Seen(phase_s=self._phase_s())
            shadow = await compare(
                list(state.dispatcher.recent), state.pool, servings.current, candidate
            )
            return Seen(phase_s=self._phase_s(), shadow=shadow)
        self._evidence.hear(switch, self._arms, state.router_id, state.pool.others)
        return Seen(
            phase_s=self._phase_s(),
            tallies=self._evidence.tallies(),
            before=self._evidence.before(),
            told=dict(self._evidence.told),
            told_before=dict(self._evidence.told_before),
        )

    def _missing(self, profile: ServingProfile) -> tuple[str, ...]:
        state = self._state
        servings, care = state.servings, state.care
        views = care.pairs.views()
        checked = care.rules.warm_pairs

        def pair_ok(prefill: WorkerId, decode: WorkerId) -> bool:
            view = views.get((prefill, decode))
            return view is not None and view.usable

        candidate = servings.candidate
        return missing(
            profile,
            state.pool.seen_by(candidate) if candidate else self._look.workers,
            self._is_usable,
            {} if candidate else self._look.assigned,
            pair_ok if candidate and checked else None,
        )

    def _is_usable(self, record: WorkerRecord) -> bool:
        return record.state is WorkerState.READY and not self._state.pool.is_closed(record.id)

    def _notes(self, profile: ServingProfile, found: Fit) -> tuple[str, ...]:
        told = [*found.notes]
        told += notes(profile, self._look.workers, self._is_usable, self._look.assigned)
        routing, active = profile.spec.routing, self._state.settings.profile.spec.routing
        if routing.prefix_blocks != active.prefix_blocks:
            told.append("spec.routing.prefix_blocks takes effect when a router starts")
        return tuple(dict.fromkeys(told))

    def _is_silent(self, switch: Switch) -> bool:
        number, beat, since_s = self._heard
        if (number, beat) != (switch.number, switch.beat):
            return False
        return self._now_s() - since_s > OWNER_SILENT_S

    def _taken_over(self, state: State, silent: Switch) -> State:
        on = state.switch
        if on is None or (on.number, on.beat) != (silent.number, silent.beat):
            return state
        return take_over(state, self._state.router_id)

    def _phase_s(self) -> float:
        return self._now_s() - self._phase[2]

    async def _propose(self) -> None:
        """Begins what the source wants, unless that was tried before."""
        agreed, wanted = self.agreed, self.proposals.wanted
        digest = self.proposals.digest
        if digest != self._tried:
            # What is wanted has changed: what was tried before may be wanted again.
            self._tried = ""
        # One router speaks for all: sources of several are not always of one mind at one moment.
        if wanted is None or digest in (agreed.proposal, self._tried) or not self._leads():
            return
        if wanted.version == agreed.active.version:
            # Noted, so that an operator's switch to another one is not taken back.
            await self._swap(lambda state: msgspec.structs.replace(state, proposal=digest))
            self._tried = digest
            return
        by = self.proposals.where
        found = self.fit(wanted)
        try:
            if found.problems:
                reason = "\n".join(found.problems)
                await self._swap(
                    lambda state: refuse(
                        state, wanted, by=by, reason=reason, at_s=_wall_s(), proposal=digest
                    )
                )
                self._tried = digest
                return
            await self._swap(
                lambda state: begin(
                    state,
                    wanted,
                    router=self._state.router_id,
                    by=by,
                    terms=terms_of(wanted),
                    proposal=digest,
                    notes=self._notes(wanted, found),
                )
            )
            self._tried = digest
        except InvalidRequest as error:
            # Too large for the store, say: it would be no smaller at the next beat.
            self._tried = digest
            log.error("%s wants %s, which cannot be agreed on: %s", by, wanted.name, error.message)
        except SwitchRefused as refused:
            log.info("%s wants %s: %s", by, wanted.name, refused.message)

    # --- writing ---

    async def _change(self, move: Move) -> None:
        """A change that somebody asked for."""
        async with self._lock:
            await self._swap(move)

    async def _swap(self, move: Move) -> None:
        """Writes what a move makes of what is agreed, with the lock held.

        Raises:
            SwitchRefused: the move cannot be made of what is there.
            StoreUnavailable: nothing is known to be written.
        """
        store = self._state.store
        for _ in range(_TRIES):
            moved = move(self.agreed)
            if moved is self.agreed:
                return
            value = encode(moved)
            revision = await store.swap(STATE, self.revision, value)
            if revision is not None:
                self._take(revision, value)
                return
            await self._reconcile(await store.document(STATE))
        raise StoreUnavailable("other routers change what is agreed faster than this one can")

    def _now_s(self) -> float:
        return self._state.clock.monotonic_s()


def _mark(switch: Switch | None) -> tuple[int, int] | None:
    return None if switch is None else (switch.number, switch.phase_number)


def _is_older(value: bytes, agreed: State) -> bool:
    """Whether a document was written before what is known here."""
    try:
        return _age(decode(value)) < _age(agreed)
    except msgspec.DecodeError:
        return False


def _age(state: State) -> tuple[int, bool, int, int]:
    switch = state.switch
    if switch is None:
        return (state.number, True, 0, 0)
    return (state.number, False, switch.phase_number, switch.beat)


def _wall_s() -> float:
    return time.time()


__all__ = ["Checked", "Conductor"]
