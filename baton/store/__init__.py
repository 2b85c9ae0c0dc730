"""What routers and workers share: which of them are alive, and what the routers agree on.

One Protocol and two stores behind it, so that a single router needs no Redis and several routers
see the same pool. It refuses to decide anything: it holds records and forgets them when their time
is up; what a record means is up to its reader.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from baton.clock import Clock
from baton.errors import SettingsError
from baton.store.base import (
    MAX_DOCUMENT_BYTES,
    MAX_ROUTERS,
    MAX_TTL_S,
    MAX_WORKERS,
    NO_DOCUMENT,
    STATE,
    Document,
    Look,
    Store,
)
from baton.store.memory import MemoryStore
from baton.store.redis import RedisStore
from baton.store.redis_url import SCHEMES, is_redis_url

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "MAX_ROUTERS",
    "MAX_TTL_S",
    "MAX_WORKERS",
    "NO_DOCUMENT",
    "STATE",
    "Document",
    "Look",
    "MemoryStore",
    "RedisStore",
    "Store",
    "is_redis_url",
    "open_store",
]


def open_store(url: str, clock: Clock) -> Store:
    """The store that ``url`` names: ``memory://``, or a Redis in one of the forms of docs/redis.md.

    Nothing is connected yet: a Redis that is down shows at the first operation, because routers
    and Redis start in any order.

    Raises:
        SettingsError: the scheme is unknown, or the rest of the URL cannot be used.
    """
    # The URL may hold a password: no message below repeats more of it than its scheme.
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme == "memory":
        if url != "memory://":
            raise SettingsError("the store URL for this process's memory is memory://, no more")
        return MemoryStore(clock)
    if is_redis_url(url):
        return RedisStore.from_url(url, clock=clock)
    raise SettingsError(
        f"no store for the scheme {scheme!r}; supported are memory:// (one router), and for "
        f"several routers redis://HOST:PORT/DB and its kin: {', '.join(SCHEMES)}"
    )
