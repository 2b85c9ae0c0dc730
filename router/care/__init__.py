"""The care that handoffs need beside the requests: breakers, pair matrix, canary, reclaiming."""

from router.care.breaker import BreakerState
from router.care.breakers import BreakerRow, Breakers
from router.care.canary import Canary, Finished
from router.care.care import Care
from router.care.pair import PairRow, PairState
from router.care.pairs import Pairs
from router.care.reclaim import Orphan, Outcome, Reclaimer
from router.care.rules import CareRules
from router.care.seams import Answer, Asker

__all__ = [
    "Answer",
    "Asker",
    "BreakerRow",
    "BreakerState",
    "Breakers",
    "Canary",
    "Care",
    "CareRules",
    "Finished",
    "Orphan",
    "Outcome",
    "PairRow",
    "PairState",
    "Pairs",
    "Reclaimer",
]
