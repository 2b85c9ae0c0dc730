"""Decisions about where a request runs: pure functions of a snapshot.

No I/O, no clock, no randomness of its own: what is needed comes in as arguments, so that the
simulator and the tests drive the very code that routes traffic.

``compile_fleet`` arranges the workers after each look at the registry, ``Traffic`` counts what the
router has on them, a ``Snapshot`` adds what concerns one request. ``plan`` decides, ``plan_again``
decides after a fault, ``explain`` tells why. ``PrefixIndex``, ``PairBook`` and ``Estimates`` are
what a router remembers between decisions: plain bounded books that others fill. ``RoutingRules``
is what a profile may choose; the plug-ins it names stand in ``DECIDERS``, ``SCORERS``, ``PICKERS``,
and the filters, which are not for choice, in ``router.policy.filters``.
"""

from router.policy.bounds import TokenBounds
from router.policy.cost import Estimates, LineView
from router.policy.deciders import DECIDERS
from router.policy.explain import Explanation, WorkerVerdict, explain
from router.policy.fleet import Fleet, compile_fleet
from router.policy.pairs import PairBook, PairKey, PairView
from router.policy.pickers import PICKERS
from router.policy.plan import avoiding, plan, plan_again, plan_local
from router.policy.prefix import PrefixIndex, PrefixMatch
from router.policy.rules import DEFAULT_SCORERS, DEGRADE_STEPS, RoutingRules
from router.policy.scorers import SCORERS, stable_hash
from router.policy.slots import Slots
from router.policy.snapshot import Snapshot
from router.policy.terms import (
    Ask,
    Fail,
    Fault,
    Handoff,
    Lean,
    Local,
    NextPlan,
    Plan,
    Prediction,
    Reason,
    Refusal,
    Refuse,
    Wait,
    WorkerView,
)
from router.policy.traffic import Counts, Traffic

__all__ = [
    "DECIDERS",
    "DEFAULT_SCORERS",
    "DEGRADE_STEPS",
    "PICKERS",
    "SCORERS",
    "Ask",
    "Counts",
    "Estimates",
    "Explanation",
    "Fail",
    "Fault",
    "Fleet",
    "Handoff",
    "Lean",
    "LineView",
    "Local",
    "NextPlan",
    "PairBook",
    "PairKey",
    "PairView",
    "Plan",
    "Prediction",
    "PrefixIndex",
    "PrefixMatch",
    "Reason",
    "Refusal",
    "Refuse",
    "RoutingRules",
    "Slots",
    "Snapshot",
    "TokenBounds",
    "Traffic",
    "Wait",
    "WorkerVerdict",
    "WorkerView",
    "avoiding",
    "compile_fleet",
    "explain",
    "plan",
    "plan_again",
    "plan_local",
    "stable_hash",
]
