"""All the care of handoffs behind one object: what the router starts, feeds and closes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from baton.clock import Clock
from baton.types import Role, WorkerRecord, WorkerState
from router.care.breakers import Breakers
from router.care.canary import Canary
from router.care.pairs import OnView, Pairs
from router.care.reclaim import Orphan, Reclaimer
from router.care.rules import CareRules
from router.care.seams import Asker


class Care:
    """Breakers, pair matrix, canary and reclaimer, wired to each other.

    Args:
        asker: the router's client for engines.
        rules: the profile's.
        clock: for durations.
        rng: for everything that is drawn here.
        on_view: see ``Pairs``; for the policy's pair book.
    """

    def __init__(
        self,
        asker: Asker,
        rules: CareRules,
        clock: Clock,
        rng: random.Random,
        *,
        on_view: OnView = lambda _prefill, _decode, _view: None,
    ) -> None:
        self.rules = rules
        self.breakers = Breakers(asker, clock, rng)
        self.pairs = Pairs(
            asker,
            rules,
            clock,
            rng,
            is_blocked=lambda worker_id: worker_id in self.breakers.blocked_ids,
            on_view=on_view,
        )
        self.canary = Canary(asker, rules, clock, rng, self.pairs.quarantine)
        self.reclaimer = Reclaimer(asker, self._decoders, self.pairs.handshaken, clock, rng)
        self._workers: tuple[WorkerRecord, ...] = ()

    def start(self) -> None:
        """Begins to check pairs."""
        self.pairs.start()

    def follow(self, rules: CareRules) -> None:
        """The rules of another profile, from now on."""
        self.rules = self.canary.rules = rules
        self.pairs.follow(rules)

    def update(
        self, records: Sequence[WorkerRecord], pairing: Sequence[WorkerRecord] | None = None
    ) -> None:
        """Takes over what the registry says; after each refresh, also when nothing changed. A
        pair book that is told of views has to know the workers before.

        Args:
            records: all workers.
            pairing: those that can be ends of a pair, in the roles that they have in it; None
                where these are the ones that they say.
        """
        paired = records if pairing is None else pairing
        self._workers = tuple(paired)
        self.breakers.update(records)
        self.pairs.update(paired)

    async def drain(self, timeout_s: float) -> None:
        """Before a stop: lets orphans be given back."""
        await self.reclaimer.drain(timeout_s)

    async def close(self) -> None:
        """Ends everything that runs in the background."""
        await self.reclaimer.close()
        await self.canary.close()
        await self.pairs.close()
        await self.breakers.close()

    def _decoders(self, orphan: Orphan) -> Sequence[WorkerRecord]:
        """Who may give an orphan back: the planned worker first, then those that know prefill.
        Nobody where prefill's engine is another one by now: its blocks went with it."""
        if not any(
            w.id == orphan.prefill.id and w.engine_id == orphan.prefill.engine_id
            for w in self._workers
        ):
            return ()
        views = self.pairs.views()
        able = [
            worker
            for worker in self._workers
            if worker.role is Role.DECODE
            and worker.state in (WorkerState.READY, WorkerState.DRAINING)
            and worker.model == orphan.prefill.model
            and worker.id not in self.breakers.blocked_ids
        ]
        planned = [w for w in able if w.id == orphan.decode.id]
        if not orphan.any_decode:
            return [w for w in planned if w.engine_id == orphan.decode.engine_id]
        others = [
            w
            for w in able
            if w.id != orphan.decode.id
            and (view := views.get((orphan.prefill.id, w.id))) is not None
            and view.usable
        ]
        others.sort(key=lambda w: not self.pairs.handshaken(orphan.prefill.id, w.id))
        return [*planned, *others]
