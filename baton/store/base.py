"""The contract that every store keeps; one suite of tests runs against all of them.

The registry is soft state: a worker writes itself down again with every heartbeat, so a store may
lose everything and be right again a heartbeat later. What routers have to agree on is one document
that is changed by compare-and-swap, which is lock and fencing in one; who has seen the last one can
write it again into a store that lost it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import msgspec

from baton.errors import InvalidRequest
from baton.types import Role, RouterId, RouterRecord, WorkerId, WorkerRecord

MAX_WORKERS = 4096
"""Workers; far above any pool that one router could feed, low enough to list in milliseconds."""

MAX_TTL_S = 3600.0
"""Seconds; a longer time to live would keep a dead worker in the pool for as long."""

MAX_ROUTERS = 256
"""Router processes on one store."""

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
"""Bytes; far above a few profiles and reports, low enough to be sent to every router at once."""

STATE = "state"
"""The document that ``look`` shows: what the routers agree on."""


class Document(msgspec.Struct, frozen=True):
    """A shared text and the number of its changes; a revision of 0 is none."""

    revision: int = 0
    value: bytes = b""


NO_DOCUMENT = Document()


class Look(msgspec.Struct, frozen=True):
    """What a router follows.

    Attributes:
        workers: live, sorted by id; records that cannot be read are left out.
        cordoned: workers that get nothing new.
        assigned: workers that an operator uses in another role than they were started in.
        routers: live, sorted by id, the caller's own too if it told.
        state: the document ``STATE``.
        epoch: another one once the store has lost what it had; empty for one that loses nothing.
    """

    workers: tuple[WorkerRecord, ...] = ()
    cordoned: frozenset[WorkerId] = frozenset()
    assigned: Mapping[WorkerId, Role] = {}
    routers: tuple[RouterRecord, ...] = ()
    state: Document = NO_DOCUMENT
    epoch: str = ""


class Store(Protocol):
    """The worker registry, and what routers share.

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

    async def assign(self, worker_id: WorkerId, role: Role | None) -> None:
        """Has all routers use the worker in another role than it was started in, until its removal;
        None takes that back.

        Raises:
            TooManyRequests: as many are assigned as there may be workers.
        """
        ...

    # --- what routers share ---

    async def put_router(self, record: RouterRecord, *, ttl_s: float) -> None:
        """Tells the others; replaces what this router told before. ``ttl_s`` as of a worker.

        Raises:
            InvalidRequest: as for a worker.
            TooManyRequests: there are MAX_ROUTERS others.
        """
        ...

    async def remove_router(self, router_id: RouterId) -> None:
        """Forgets it at once."""
        ...

    async def document(self, name: str) -> Document:
        """A small shared text; ``NO_DOCUMENT`` where there is none."""
        ...

    async def swap(self, name: str, expected: int, value: bytes) -> int | None:
        """Replaces a document if its revision is still ``expected`` (0: there is none).

        Returns:
            The new revision, one more than the old; None if somebody else was faster.

        Raises:
            InvalidRequest: the text is larger than MAX_DOCUMENT_BYTES.
        """
        ...

    async def look(self) -> Look:
        """All that a router follows, as of one moment and in one round trip.

        Parts that have not changed since this store's last look are the same objects as then.
        """
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
            f"a time to live is over 0 and at most {MAX_TTL_S:g} seconds, not {ttl_s!r}",
            param="ttl_s",
        )
    return ttl_s


def registry_full(max_workers: int) -> str:
    """The message for a new worker at the bound, the same from every store."""
    return f"the registry is at its bound of {max_workers} workers; this new one was not added"


def routers_full() -> str:
    """The message for a new router at the bound, the same from every store."""
    return f"there are {MAX_ROUTERS} routers on this store already; this new one was not added"


def checked_value(value: bytes) -> bytes:
    """``value`` itself, if it may become a document.

    Raises:
        InvalidRequest: it is larger than ``MAX_DOCUMENT_BYTES``.
    """
    if len(value) > MAX_DOCUMENT_BYTES:
        raise InvalidRequest(
            f"a shared document has at most {MAX_DOCUMENT_BYTES} bytes, not {len(value)}",
            param="value",
        )
    return value
