"""The contract that every store keeps; one suite of tests runs against all of them.

The registry is soft state: a worker writes itself down again with every heartbeat, so a store may
lose everything and be right again a heartbeat later. That is why there is no update, no lock and
no history here.
"""

from __future__ import annotations

import math
from typing import Protocol

from baton.errors import InvalidRequest
from baton.types import WorkerId, WorkerRecord

MAX_WORKERS = 4096
"""Workers; far above any pool that one router could feed, low enough to list in milliseconds."""

MAX_TTL_S = 3600.0
"""Seconds; a longer time to live would keep a dead worker in the pool for as long."""


class Store(Protocol):
    """The worker registry.

    Every method may raise :class:`baton.errors.StoreUnavailable`: the store cannot be reached, or
    was closed.
    """

    async def put_worker(self, record: WorkerRecord, *, ttl_s: float) -> None:
        """Inserts the worker, or replaces what is known of it.

        Args:
            record: what the worker says of itself; its ``id`` is the key.
            ttl_s: seconds after which it is forgotten, from this call on, by the store's clock.

        Raises:
            InvalidRequest: ``ttl_s`` is not in (0, MAX_TTL_S].
            TooManyRequests: the worker is new and the registry is at its bound.
        """
        ...

    async def remove_worker(self, worker_id: WorkerId) -> None:
        """Forgets the worker at once; nothing happens if it is not known."""
        ...

    async def workers(self) -> tuple[WorkerRecord, ...]:
        """The live workers, sorted by id. Records that cannot be read are left out."""
        ...

    async def cordon(self, worker_id: WorkerId) -> None:
        """Asks all routers to send the worker nothing new, until ``uncordon`` or its removal.

        Raises:
            TooManyRequests: as many are cordoned as there may be workers.
        """
        ...

    async def uncordon(self, worker_id: WorkerId) -> None:
        """Takes a cordon back; nothing happens if there is none."""
        ...

    async def cordoned(self) -> frozenset[WorkerId]:
        """Ids of the workers under a cordon, registered now or not."""
        ...

    async def close(self) -> None:
        """Lets go of connections. Never raises; may be called again."""
        ...

    def describe(self) -> str:
        """Where the state is kept, for people; holds no credentials."""
        ...


def checked_ttl_s(ttl_s: float) -> float:
    """``ttl_s`` itself, if a store can keep it.

    Raises:
        InvalidRequest: not a number, not positive, or over ``MAX_TTL_S``.
    """
    if not (math.isfinite(ttl_s) and 0 < ttl_s <= MAX_TTL_S):
        raise InvalidRequest(
            f"a worker's time to live is over 0 and at most {MAX_TTL_S:g} seconds, not {ttl_s!r}",
            param="ttl_s",
        )
    return ttl_s


def registry_full(max_workers: int) -> str:
    """The message for a new worker at the bound, the same from every store."""
    return f"the registry is at its bound of {max_workers} workers; this new one was not added"
