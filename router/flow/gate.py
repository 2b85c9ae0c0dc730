"""The gate before the engines: lets requests out as fast as engines have places for them.

A request that finds nobody waiting and a free place goes through without a task switch. The others
stand in the fair queue until a place comes free, their time is up, or there is no worker for too
long (the waiting room of a pool that starts). It knows models by name and how many slots they have;
which worker serves a request is not its business, and neither are limits per minute.

All decisions are made in plain functions between awaits; the one await is the waiting itself.
Whoever waits has a future, and whatever ends the wait sets its result: None for a place that is
already charged, or the error. A place granted to a task that is cancelled before it hears of it is
given back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from baton.clock import Clock
from baton.errors import BatonError, DeadlineExceeded, ModelNotFound, NoWorker, TooManyRequests
from router.flow.queue import FairQueue
from router.flow.rules import Capacity, FlowRules, GateSnapshot, Ticket, Turned, retry_after_s
from router.flow.shares import Account, Lane, Waiting

_RATE_WINDOW_S = 1.0
"""Seconds over which releases are counted before the drain rate is brought up to date."""

_MUCH = 1 / 3
"""Of the slots: a tenant that holds less leaves no reserve."""

_UNKNOWN_RETRY_S = 1.0
"""Retry-After while no request has ended yet, so that nothing is known of how fast they do."""

_MIN_TIMER_S = 0.001
"""A timer that comes early, by the granularity of clocks, must not spin."""


@dataclass(slots=True, eq=False)
class _Waiter(Waiting):
    """A waiting request and whom to wake."""

    done: asyncio.Future[BatonError | None] = field(kw_only=True)
    deadline_s: float | None = field(kw_only=True)


@dataclass(slots=True, eq=False)
class _Model:
    """A lane and what its workers can take.

    Attributes:
        slots: this process's part of the engine slots.
        limit, shared_limit: see :meth:`FlowRules.limits`.
        empty_since_s: since when no worker is ready; None while one is.
        released, rate_per_s: for the estimate behind Retry-After.
    """

    lane: Lane
    slots: int = 0
    limit: int = 0
    shared_limit: int = 0
    known: bool = True
    empty_since_s: float | None = None
    released: int = 0
    rate_per_s: float = 0.0

    def room(self, account: Account) -> bool:
        """Whether a request of this account may go out now."""
        out = self.lane.out
        if out >= self.limit:
            return False
        if out < self.shared_limit:
            return True
        # Places beyond the slots are for who holds less than its share, and never for what may be
        # shed; a tenant that is alone has them all.
        if not account.over_share(0 if account.band.priority < 0 else self.slots):
            return True
        if out >= self.slots:
            return False
        # Slots in reserve stay free only from a tenant that holds much, and only while somebody
        # may come for them: among many small tenants a slot comes free soon enough.
        much = account.out >= self.slots * _MUCH
        return not (much and self.lane.keeps_for_others(account, self.slots))


class Pass:
    """A place at the engines. Give it back with ``release`` or by leaving its ``with`` block.

    Attributes:
        waited_s: seconds in the queue; 0 for the fast path.
    """

    __slots__ = ("_account", "_gate", "_model", "_tokens", "waited_s")

    def __init__(
        self, gate: Gate, model: _Model, account: Account, tokens: float, waited_s: float
    ) -> None:
        self.waited_s = waited_s
        self._gate: Gate | None = gate
        self._model = model
        self._account = account
        self._tokens = tokens

    def release(self, used_tokens: float | None = None) -> None:
        """Gives the place to the next; may be repeated.

        Args:
            used_tokens: prompt and answer as they really were, where known: the tenant's share is
                put right by the difference.
        """
        gate, self._gate = self._gate, None
        if gate is not None:
            gate._release(self._model, self._account, self._tokens, used_tokens)

    def __enter__(self) -> Pass:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Gate:
    """All requests of one router process pass here.

    Args:
        rules: bounds.
        capacity: what the pool can do for a model; asked when a model is first seen and at every
            ``kick``, never per request.
        clock: deadlines and waits are on its monotonic clock.
        share: this process's part of the slots, where several routers share the workers.
    """

    def __init__(
        self,
        rules: FlowRules,
        capacity: Callable[[str], Capacity],
        clock: Clock,
        *,
        share: float = 1.0,
    ) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError("share must be more than 0 and at most 1")
        self.rules = rules
        self._capacity = capacity
        self._clock = clock
        self._share = share
        self._queue = FairQueue(rules.queue)
        self._models: dict[str, _Model] = {}
        self._out = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = math.inf
        self._measured_s = clock.monotonic_s()
        self._admitted = 0
        self._turned = dict.fromkeys(Turned, 0)
        self._closed = False

    @property
    def held(self) -> int:
        """Requests that wait or are out."""
        return self._out + self._queue.count

    def try_admit(self, ticket: Ticket) -> Pass | None:
        """A pass at once, or None when the request has to wait or be turned away.

        Raises:
            ModelNotFound: nobody serves the model, nor would.
        """
        model = self._models.get(ticket.model) or self._open(ticket.model)
        lane = model.lane
        if lane.waiting or self._out + self._queue.count >= self.rules.in_flight or self._closed:
            return None
        now_s = self._clock.monotonic_s()
        if ticket.deadline_s is not None and ticket.deadline_s <= now_s:
            return None
        account = lane.account(ticket.tenant, ticket.priority, ticket.weight, now_s)
        if not model.room(account):
            return None
        account.wake()
        account.take(ticket.tokens)
        self._out += 1
        self._admitted += 1
        return Pass(self, model, account, ticket.tokens, 0.0)

    async def admit(self, ticket: Ticket) -> Pass:
        """Waits for a place.

        Use it as ``with await gate.admit(ticket) as place:``.

        Raises:
            ModelNotFound: nobody serves the model, nor would.
            TooManyRequests: the queue is full, or the request made room for another, or waited for
                ``queue_ttl_s``; with ``retry_after_s``.
            NoWorker: no worker was ready for ``worker_wait_s``, or the router stops.
            DeadlineExceeded: the client's deadline passed.
        """
        place = self.try_admit(ticket)
        return place if place is not None else await self._wait(ticket)

    async def _wait(self, ticket: Ticket) -> Pass:
        model = self._models[ticket.model]
        waiter = self._join(ticket, model)
        try:
            error = await waiter.done
        except asyncio.CancelledError:
            if waiter.done.done() and not waiter.done.cancelled() and not waiter.done.result():
                # The place came in the same turn of the loop as the cancellation.
                self._release(model, waiter.account, waiter.tokens, 0.0)
            self._queue.remove(waiter)
            # It may have stood before others that now fit.
            self._pump(model)
            raise
        if error is not None:
            raise error
        waited_s = self._clock.monotonic_s() - waiter.enqueued_s
        return Pass(self, model, waiter.account, waiter.tokens, waited_s)

    def _join(self, ticket: Ticket, model: _Model) -> _Waiter:
        """Puts a request into the queue, and out of it whom it displaces."""
        rules = self.rules
        now_s = self._clock.monotonic_s()
        if self._closed:
            raise self._turn(Turned.NO_WORKER, model)
        if ticket.deadline_s is not None and ticket.deadline_s <= now_s:
            raise self._turn(Turned.DEADLINE, model)
        if model.empty_since_s is not None and rules.worker_wait_s <= 0:
            raise self._turn(Turned.NO_WORKER, model)
        expires_s = now_s + rules.queue_ttl_s
        if model.empty_since_s is not None:
            expires_s = max(expires_s, now_s + rules.worker_wait_s)
        if ticket.deadline_s is not None:
            expires_s = min(expires_s, ticket.deadline_s)
        waiter = _Waiter(
            model.lane.account(ticket.tenant, ticket.priority, ticket.weight, now_s),
            ticket.tokens,
            now_s,
            expires_s,
            done=asyncio.get_running_loop().create_future(),
            deadline_s=ticket.deadline_s,
        )
        out = self._queue.push(waiter, rules.in_flight - self._out)
        if out is waiter:
            raise self._turn(Turned.FULL, model)
        if out is not None:
            self._end(out, Turned.SHED)
        self._pump(model)
        self._arm()
        return waiter

    def kick(self) -> None:
        """Asks for all capacities anew and lets out who fits now.

        Call it whenever the pool has changed, and every second or so: it also keeps the drain rate
        and forgets tenants and models that are gone.
        """
        now_s = self._clock.monotonic_s()
        elapsed_s = now_s - self._measured_s
        measure = elapsed_s >= _RATE_WINDOW_S
        if measure:
            self._measured_s = now_s
        for name, model in list(self._models.items()):
            if measure:
                rate = model.released / elapsed_s
                model.rate_per_s = 0.7 * model.rate_per_s + 0.3 * rate if model.rate_per_s else rate
                model.released = 0
                model.lane.forget(now_s - self.rules.memory_s)
            self._refresh(model, self._capacity(name), now_s)
            if not model.known and not model.lane.out and not model.lane.waiting:
                del self._models[name]
                self._queue.drop(name)
            else:
                self._pump(model)
        self._arm()

    def follow(self, rules: FlowRules) -> None:
        """Other bounds from now on. Who waits already keeps the time that it was given."""
        self.rules = rules
        self._queue.bound = rules.queue
        self.kick()

    def close(self) -> None:
        """Turns away all that wait, and whatever comes later; passes stay good."""
        self._closed = True
        for model in self._models.values():
            for item in list(model.lane.items()):
                self._queue.remove(item)
                self._end(item, Turned.NO_WORKER)
        self._arm()

    def snapshot(self) -> GateSnapshot:
        """Numbers of this moment."""
        oldest_s = self._queue.oldest_s()
        models = self._models.items()
        return GateSnapshot(
            waiting_by_band=self._queue.depth_by_band(),
            oldest_age_s=0.0 if oldest_s is None else self._clock.monotonic_s() - oldest_s,
            waiting_by_model={name: model.lane.waiting for name, model in models},
            out_by_model={name: model.lane.out for name, model in models},
            limit_by_model={name: model.limit for name, model in models},
            admitted=self._admitted,
            turned=dict(self._turned),
        )

    def _open(self, name: str) -> _Model:
        """A model that is seen for the first time; only known ones are kept, so that made-up names
        take no memory."""
        capacity = self._capacity(name)
        if not capacity.known:
            raise ModelNotFound(f"The model {name!r} does not exist.", param="model")
        model = self._models[name] = _Model(self._queue.lane(name))
        self._refresh(model, capacity, self._clock.monotonic_s())
        return model

    def _refresh(self, model: _Model, capacity: Capacity, now_s: float) -> None:
        slots = math.ceil(capacity.slots * self._share) if capacity.ready else 0
        model.known = capacity.known
        model.slots = slots
        model.limit, model.shared_limit = self.rules.limits(slots)
        if capacity.ready:
            model.empty_since_s = None
        elif model.empty_since_s is None:
            model.empty_since_s = now_s

    def _release(self, model: _Model, account: Account, tokens: float, used: float | None) -> None:
        account.give_back(tokens, used)
        self._out -= 1
        model.released += 1
        if model.lane.waiting:
            self._pump(model)

    def _pump(self, model: _Model) -> None:
        """Lets out whoever's turn it is, as long as there is room."""
        while (waiter := self._queue.peek(model.lane)) is not None:
            assert isinstance(waiter, _Waiter)
            if waiter.done.done():
                # Its task is cancelled and has not run yet.
                self._queue.remove(waiter)
                continue
            if not model.room(waiter.account):
                return
            self._queue.pop(model.lane)
            self._out += 1
            self._admitted += 1
            waiter.done.set_result(None)

    def _end(self, item: Waiting, why: Turned) -> None:
        """Tells a request that has left the queue that it is turned away."""
        assert isinstance(item, _Waiter)
        if not item.done.done():
            # A result, not an exception: a task that is cancelled at this moment never fetches it.
            item.done.set_result(self._turn(why, self._models[item.account.band.lane.model]))

    def _turn(self, why: Turned, model: _Model) -> BatonError:
        """Counts a request that is turned away, and says why."""
        self._turned[why] += 1
        rules = self.rules
        name = model.lane.model
        if why is Turned.DEADLINE:
            return DeadlineExceeded("The deadline passed before the request could start.")
        if why is Turned.NO_WORKER:
            return NoWorker(
                f"No worker is ready for the model {name!r}.",
                retry_after_s=retry_after_s(0, 0.0, rules.worker_wait_s),
            )
        retry_s = retry_after_s(model.lane.waiting, model.rate_per_s, _UNKNOWN_RETRY_S)
        said = {
            Turned.FULL: "Too many requests are waiting; this one found no room in the queue.",
            Turned.SHED: "The request made room in the queue for one that goes before it.",
            Turned.EXPIRED: f"The request waited {rules.queue_ttl_s:g} seconds for a place.",
        }
        return TooManyRequests(
            f"{said[why]} Try again in {retry_s:g} seconds.", retry_after_s=retry_s
        )

    def _tick(self) -> None:
        """Ends the waits whose time is over."""
        self._timer = None
        self._timer_due_s = math.inf
        now_s = self._clock.monotonic_s()
        for item in self._queue.expire(now_s):
            assert isinstance(item, _Waiter)
            model = self._models[item.account.band.lane.model]
            if item.deadline_s is not None and item.deadline_s <= now_s:
                why = Turned.DEADLINE
            else:
                why = Turned.EXPIRED if model.empty_since_s is None else Turned.NO_WORKER
            self._end(item, why)
            self._pump(model)
        for model in self._models.values():
            since_s = model.empty_since_s
            if since_s is None or not model.lane.waiting:
                continue
            for item in list(model.lane.items()):
                if max(since_s, item.enqueued_s) + self.rules.worker_wait_s <= now_s:
                    self._queue.remove(item)
                    self._end(item, Turned.NO_WORKER)
        self._arm()

    def _arm(self) -> None:
        """Sets the timer for the next wait that ends, if it is not set for that already."""
        due_s = self._next_due_s()
        if self._timer is not None:
            if self._timer_due_s <= due_s < math.inf:
                return  # It comes early enough, and sets itself anew.
            self._timer.cancel()
            self._timer = None
        self._timer_due_s = due_s
        if due_s < math.inf:
            delay_s = max(_MIN_TIMER_S, due_s - self._clock.monotonic_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _next_due_s(self) -> float:
        due_s = self._queue.next_expiry_s()
        if due_s is None:
            return math.inf
        for model in self._models.values():
            if model.empty_since_s is not None and model.lane.waiting:
                oldest_s = min(item.enqueued_s for item in model.lane.items())
                due_s = min(due_s, max(model.empty_since_s, oldest_s) + self.rules.worker_wait_s)
        return due_s
