"""Takes a Redis URL apart, so that nobody else has to hold one: it may carry a password.

Stricter than the client library on purpose: there, any option of a connection can be set from the
URL's query, the timeouts that bound us among them, and a typing error shows as a wrong database or
at the first use. No message here repeats what it was given.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection

from baton.errors import SettingsError

TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Paths to PEM files that the query of a ``rediss`` URL may name: whom to trust, who we are.
Not checking the server is not among them."""

SENTINEL_OPTIONS = ("sentinel_user", "sentinel_password")
"""What the query of a Sentinel's URL may hold besides: Sentinels have credentials of their own, or
none, whatever the Redis behind them asks for."""

MAX_NODES = 32
"""Sentinels, or nodes of a Cluster, that a URL may name; a Cluster tells the others itself."""


class Kind(enum.Enum):
    """How to find the process that keeps our keys; the values are parts of the scheme."""

    SINGLE = ""
    SENTINEL = "+sentinel"
    CLUSTER = "+cluster"


SCHEMES = tuple(name + kind.value for kind in Kind for name in ("redis", "rediss"))
"""The schemes that :func:`parse_redis_url` takes; ``rediss`` is TLS."""

_LOGIN = "[[USER]:PASSWORD@]"
_FORMS = {
    Kind.SINGLE: f"redis://{_LOGIN}HOST[:PORT][/DB]",
    Kind.SENTINEL: f"redis+sentinel://{_LOGIN}HOST[:PORT][,HOST[:PORT]...]/SERVICE[/DB]",
    Kind.CLUSTER: f"redis+cluster://{_LOGIN}HOST[:PORT][,HOST[:PORT]...]",
}
_PORTS = {Kind.SINGLE: 6379, Kind.SENTINEL: 26379, Kind.CLUSTER: 6379}


@dataclass(frozen=True, slots=True, repr=False)
class RedisAddress:
    """Where a Redis is and how to be let in. Its ``repr`` shows no credentials.

    Attributes:
        host, port: of the Redis, or of the first Sentinel or node of a Cluster.
        db: the database; 0 in a Cluster.
        tls: whether all connections are encrypted, those to Sentinels too.
        others: hosts and ports of further Sentinels or nodes.
        service: the name by which Sentinels know the master.
    """

    host: str
    port: int
    db: int
    tls: bool
    username: str | None = None
    password: str | None = None
    tls_files: Mapping[str, str] = field(default_factory=dict)
    kind: Kind = Kind.SINGLE
    others: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def __repr__(self) -> str:
        return f"RedisAddress({self.describe()})"

    def describe(self) -> str:
        """The URL without credentials and options."""
        nodes = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes
        )
        path = {
            Kind.SINGLE: f"/{self.db}",
            Kind.SENTINEL: f"/{self.service}/{self.db}",
            Kind.CLUSTER: "",
        }[self.kind]
        return f"{'rediss' if self.tls else 'redis'}{self.kind.value}://{nodes}{path}"

    @property
    def nodes(self) -> tuple[tuple[str, int], ...]:
        """All hosts and ports of the URL."""
        return ((self.host, self.port), *self.others)

    @property
    def connection_class(self) -> type[Connection]:
        """The client library's connection: plain TCP or TLS."""
        return SSLConnection if self.tls else Connection

    def connection_options(self) -> dict[str, Any]:
        """Keyword arguments for connections to a Redis, its place apart; with TLS the server is
        always checked."""
        return {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            **self._tls_options(),
        }

    def sentinel_options(self) -> dict[str, Any]:
        """Keyword arguments for connections to a Sentinel, its place apart."""
        return {
            "username": self.sentinel_username,
            "password": self.sentinel_password,
            **self._tls_options(),
        }

    def _tls_options(self) -> dict[str, Any]:
        if not self.tls:
            return {}
        return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **self.tls_files}


def is_redis_url(text: str) -> bool:
    """Whether the text has one of ``SCHEMES``; whether the rest can be used is another matter."""
    scheme, colon, _ = text.partition(":")
    return bool(colon) and scheme.lower() in SCHEMES


def parse_redis_url(url: str) -> RedisAddress:
    """The parts of a URL with one of ``SCHEMES``, in the forms of docs/redis.md.

    Ports are 6379, of Sentinels 26379, and the database is 0, if not named.

    Raises:
        SettingsError: it has another form, or an option that is not in ``TLS_OPTIONS`` or
            ``SENTINEL_OPTIONS``.
    """
    parts: SplitResult | None
    try:
        parts = urlsplit(url)
    except ValueError:
        # Its text may repeat a piece of a password, so the cause is not chained either.
        parts = None
    scheme = parts.scheme if parts is not None else url.partition("://")[0].lower()
    kind = Kind.SINGLE
    if scheme in SCHEMES:
        kind = Kind("".join(scheme.partition("+")[1:]))
    elif parts is not None:
        raise _amiss(kind, f"its scheme is {scheme!r}")
    nodes = None if parts is None else _nodes(parts, kind)
    if parts is None or nodes is None:
        raise _amiss(
            kind,
            "host or port cannot be read; write @ : / # ? , in a password as "
            "%40 %3A %2F %23 %3F %2C",
        )
    if not all(host and port for host, port in nodes) or parts.fragment:
        raise _amiss(kind, "a host, a port, or # is amiss")
    if len(nodes) > (1 if kind is Kind.SINGLE else MAX_NODES):
        raise _amiss(kind, "it names too many hosts")
    service, db = _path(parts, kind)
    tls = scheme.startswith("rediss")
    options = _options(parts, kind, tls=tls)
    (host, port), *others = nodes
    return RedisAddress(
        host=host,
        port=port,
        db=db,
        tls=tls,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls_files={name: value for name, value in options.items() if name in TLS_OPTIONS},
        kind=kind,
        others=tuple(others),
        service=service,
        sentinel_username=options.get("sentinel_user"),
        sentinel_password=options.get("sentinel_password"),
    )


def _amiss(kind: Kind, problem: str) -> SettingsError:
    form = _FORMS[kind]
    return SettingsError(f"the store URL is not {form} (rediss for TLS): {problem}")


def _nodes(parts: SplitResult, kind: Kind) -> list[tuple[str, int]] | None:
    """Hosts and ports, "" and 0 where they are amiss; None if they cannot be read."""
    found: list[tuple[str, int]] = []
    for place in parts.netloc.rpartition("@")[2].split(","):
        try:
            node = urlsplit(f"//{place}")
            port = node.port
        except ValueError:
            return None
        found.append((unquote(node.hostname or ""), _PORTS[kind] if port is None else port))
    return found


def _path(parts: SplitResult, kind: Kind) -> tuple[str, int]:
    """The service, "" where there is none, and the database."""
    path = parts.path.removeprefix("/").removesuffix("/")
    pieces = [unquote(piece) for piece in path.split("/")]
    service, problem = "", "the database is a number"
    if kind is Kind.SENTINEL:
        service, *pieces = pieces
        if not service:
            raise _amiss(kind, "the name of the service is missing")
    elif kind is Kind.CLUSTER:
        problem = "a Cluster has no databases and no path"
        if pieces != [""]:
            raise _amiss(kind, problem)
    db = (pieces or ["0"])[0] or "0"
    if len(pieces) > 1 or not (db.isascii() and db.isdecimal()):
        raise _amiss(kind, problem)
    return service, int(db)


def _options(parts: SplitResult, kind: Kind, *, tls: bool) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    allowed = (*(TLS_OPTIONS if tls else ()), *(SENTINEL_OPTIONS if kind is Kind.SENTINEL else ()))
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        # Not named: it may be a piece of a password with a ? in it.
        raise SettingsError(
            "the store URL has options that are not supported (a ? in a password is %3F); "
            f"rediss takes {', '.join(TLS_OPTIONS)}, Sentinels take {', '.join(SENTINEL_OPTIONS)}"
        )
    return options
