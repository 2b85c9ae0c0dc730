"""Which workers may take a seat at all: each filter gives a set of workers that pass.

``HARD`` ones hold always. ``SOFT`` ones are wishes that a decision may give up when nobody
fulfils them; what it does then is written in ``router.policy.plan``. Both are functions of a
query and a seat, so that an explanation can show the verdict of each on each worker.
The match of a pair is a relation between two workers and lives in ``Query.partners``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.policy.query import Query


class Seat(enum.StrEnum):
    """What a worker is wanted for."""

    PREFILL = "prefill"
    """The first leg of a handoff."""
    DECODE = "decode"
    """The second leg of a handoff."""
    WHOLE = "whole"
    """A request without a handoff."""


Filter = Callable[["Query", Seat], int]


def role(query: Query, seat: Seat) -> int:
    """Prefill workers prefill, decode workers decode; whole requests go to decode or standard."""
    return query.fleet.seats[seat]


def model(query: Query, seat: Seat) -> int:
    """The name asked for is the worker's model or one of its adapters."""
    return 0 if query.name is None else query.name.workers


def health(query: Query, seat: Seat) -> int:
    """READY, nothing else."""
    return query.fleet.ready


def breaker(query: Query, seat: Seat) -> int:
    """Its breaker lets traffic through."""
    return query.everyone_but(query.snapshot.closed)


def avoid(query: Query, seat: Seat) -> int:
    """It has not failed this very request."""
    return query.everyone_but(query.ask.avoid)


def limits(query: Query, seat: Seat) -> int:
    """The prompt fits for certain, with the answer asked for, or with one token for prefill."""
    bounds = query.ask.prompt_tokens
    if bounds is None:
        return query.fleet.everyone
    if bounds.upper is None:
        return 0
    answer = 1 if seat is Seat.PREFILL else query.ask.answer_tokens
    return query.fleet.at_least(bounds.upper + answer)


def prefill_budget(query: Query, seat: Seat) -> int:
    """A decode worker that prefills already does not take more than the rules allow at a time.

    One that prefills nothing takes a prompt of any length: it would wait for ever otherwise.
    """
    budget = query.rules.decode_prefill_tokens
    if budget is None or seat is not Seat.WHOLE:
        return query.fleet.everyone
    bounds = query.ask.prompt_tokens
    prompt_tokens = 0 if bounds is None else bounds.lower
    full = 0
    for slot, tokens in query.snapshot.traffic.decode_prefilling.items():
        # Of most it is clear without asking what they have cached of the prompt.
        if tokens > budget or (
            tokens + prompt_tokens > budget and tokens + (query.uncached(slot) or 0) > budget
        ):
            full |= 1 << slot
    return query.fleet.everyone & ~full


def prefill_queue(query: Query, seat: Seat) -> int:
    """A prefill worker has fewer requests waiting than the rules allow: by its own word, or by
    our legs beyond its slots, whichever is more."""
    if seat is not Seat.PREFILL:
        return query.fleet.everyone
    return query.fleet.everyone & ~query.snapshot.traffic.full_queues


STANDING: dict[str, Filter] = {"role": role, "model": model, "health": health}
"""The hard ones that say the same of a name and a seat for as long as a fleet lasts."""

MOMENTARY: dict[str, Filter] = {"breaker": breaker, "avoid": avoid}
"""The hard ones that may say something else of each request."""

HARD: dict[str, Filter] = STANDING | MOMENTARY

SOFT: dict[str, Filter] = {
    "limits": limits,
    "prefill_budget": prefill_budget,
    "prefill_queue": prefill_queue,
}
