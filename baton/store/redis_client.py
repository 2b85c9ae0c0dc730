"""Opens clients of a Redis: one process, behind Sentinels, or a Cluster, all bounded alike.

One place for it, so that whoever keeps something in Redis can be given any of the three. It refuses
the client library's defaults where they are unbounded, and connects to nothing yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError

from baton.store.redis_url import Kind, RedisAddress

RETRIES = 2
"""Tries after the first: one for a connection that died while idle, one for a failover. Whatever is
sent has to stand being done twice."""

CLIENT_ERRORS = (RedisError, RedisClusterException, OSError)
"""What a client may raise; the one of a Cluster without reachable nodes is no ``RedisError``."""


def open_client(
    address: RedisAddress,
    *,
    connect_timeout_s: float,
    op_timeout_s: float,
    max_connections: int,
) -> Any:
    """A client of ``redis.asyncio`` that answers in bytes; its ``aclose`` lets go of everything.

    Callers beyond the bound wait for a free connection, ``connect_timeout_s`` at most. Commands to
    a Cluster go one at a time: scripts would anyway, and the library's client closes connections
    under other callers when it looks for its nodes anew.

    Args:
        address: where, and how to be let in.
        connect_timeout_s: seconds for one connection.
        op_timeout_s: seconds for one answer.
        max_connections: at a time.
    """
    # RESP2: all that scripts need, and it spares the handshakes of RESP3's extras.
    common: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": op_timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.05), RETRIES),
    }
    if address.kind is Kind.SENTINEL:
        return _sentinel(address, common, connect_timeout_s, max_connections)
    if address.kind is Kind.CLUSTER:
        return _cluster(address, common, max_connections)
    return Redis.from_pool(
        BlockingConnectionPool(
            connection_class=address.connection_class,
            max_connections=max_connections,
            timeout=connect_timeout_s,
            host=address.host,
            port=address.port,
            **address.connection_options(),
            **common,
        )
    )


@contextlib.contextmanager
def heed_cancellation() -> Iterator[None]:
    """Ends with ``CancelledError`` if the task was cancelled within.

    The client writes under ``asyncio.wait_for``, which before Python 3.12 swallows a cancellation
    that comes together with the end of the write; a task that is to end would go on for ever.
    """
    task = asyncio.current_task()
    cancels = 0 if task is None else task.cancelling()
    try:
        yield
    finally:
        if task is not None and task.cancelling() > cancels:
            raise asyncio.CancelledError


async def drop_connections(client: Any) -> None:
    """Has the client connect anew for its next command, and look where the master is now.

    A Cluster's client finds that out by itself.
    """
    if isinstance(client, Redis):
        await client.connection_pool.disconnect(inuse_connections=False)


def refuses_us(error: Exception) -> bool:
    """Whether it is about credentials; a Cluster's client hides that in the cause."""
    return isinstance(error, AuthenticationError) or isinstance(
        error.__cause__, AuthenticationError
    )


class _MasterClient(Redis):
    """Closes the clients of the Sentinels with its own connections."""

    watchers: Any = None

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Lets go of all connections."""
        try:
            await super().aclose(close_connection_pool)
        finally:
            await self.watchers.aclose()


class _MasterPool(SentinelConnectionPool, BlockingConnectionPool):
    """Looks up the master for each connection that it opens, and has callers wait at its bound."""

    async def get_master_address(self) -> tuple[str, int]:
        """Where the master is now, as the first Sentinel says that knows."""
        try:
            host, port = await cast("Any", super()).get_master_address()
        except MasterNotFoundError:
            host = None
        if host is None:
            # The library's text shows its clients whole, of some versions with their passwords.
            raise MasterNotFoundError(
                f"no Sentinel answers that knows a working master {self.service_name!r}"
            )
        return host, port


_master_pool: Any = _MasterPool  # the library leaves its Sentinel untyped
_watchers: Any = Sentinel


def _sentinel(
    address: RedisAddress, common: dict[str, Any], connect_timeout_s: float, max_connections: int
) -> Any:
    # All of them can be asked within the time for one connection: the first may be the dead one.
    each_s = connect_timeout_s / max(2, len(address.nodes))
    watchers = _watchers(
        address.nodes,
        sentinel_kwargs={
            "protocol": 2,
            "socket_timeout": each_s,
            "socket_connect_timeout": each_s,
            "retry": Retry(NoBackoff(), 1),
            # Each connection to the master that is being opened asks over one of its own.
            "max_connections": max_connections,
            "ssl": address.tls,
            **address.sentinel_options(),
        },
    )
    client: Any = _MasterClient.from_pool(
        _master_pool(
            address.service,
            watchers,
            connection_class=(
                SentinelManagedSSLConnection if address.tls else SentinelManagedConnection
            ),
            max_connections=max_connections,
            timeout=connect_timeout_s,
            **address.connection_options(),
            **common,
        )
    )
    client.watchers = watchers
    return client


class _OneAtATime(RedisCluster):
    """See :func:`open_client`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._turn = asyncio.Lock()

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """One command, when those before it are done."""
        async with self._turn:
            return await super().execute_command(*args, **kwargs)


def _cluster(address: RedisAddress, common: dict[str, Any], max_connections: int) -> RedisCluster:
    return _OneAtATime(
        startup_nodes=[ClusterNode(host, port) for host, port in address.nodes],
        # Our keys lie in one slot: what is amiss elsewhere is no reason to refuse.
        require_full_coverage=False,
        # What is in the URL stays the way in, when all nodes have moved.
        dynamic_startup_nodes=False,
        max_connections=max_connections,
        ssl=address.tls,
        **address.connection_options(),
        **common,
    )
