"""Everything a decision may look at, apart from the request itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from baton.types import WorkerId
from router.policy.cost import Estimates
from router.policy.fleet import Fleet, compile_fleet
from router.policy.pairs import PairBook
from router.policy.prefix import PrefixMatch
from router.policy.rules import RoutingRules
from router.policy.terms import WorkerView
from router.policy.traffic import Counts, Traffic


class Snapshot(msgspec.Struct, frozen=True):
    """The state of things at one moment.

    Cheap to make for each request: nothing is copied, so between making a snapshot and deciding on
    it nothing may be awaited.

    Attributes:
        traffic: the workers, and what this router has on them.
        closed: workers whose breaker lets nothing through, or only probes.
        pairs: what the pair matrix found; None when nothing is known of any pair.
        prefix: who has how much of this prompt cached; None when nobody looked.
        estimates: what was measured; None when nothing is.
        leaning: by ``Lean.key``, what the cost decider preferred last.
        now_s: the time, on the clock of ``estimates``.
    """

    traffic: Traffic
    closed: Collection[WorkerId] = ()
    pairs: PairBook | None = None
    prefix: PrefixMatch | None = None
    estimates: Estimates | None = None
    leaning: Mapping[tuple[str, int], bool] = {}
    now_s: float = 0.0

    @property
    def fleet(self) -> Fleet:
        """The workers."""
        return self.traffic.fleet

    @property
    def rules(self) -> RoutingRules:
        """What decides."""
        return self.traffic.fleet.rules

    @classmethod
    def of(cls, views: Iterable[WorkerView], rules: RoutingRules, **more: Any) -> Snapshot:
        """A snapshot of a few workers, compiled on the spot; for tests and simulations."""
        views = tuple(views)
        return cls(
            Traffic(
                compile_fleet((view.record for view in views), rules),
                Counts({view.record.id: view.in_flight for view in views if view.in_flight}),
            ),
            closed=frozenset(view.record.id for view in views if view.suspect),
            **more,
        )
