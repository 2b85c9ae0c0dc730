"""Takes a Redis URL apart, so that nobody else has to hold one: it may carry a password.

Stricter than the client library on purpose: there, any option of a connection can be set from the
URL's query, the timeouts that bound us among them, and a typing error shows as a wrong database or
at the first use. No message here repeats what it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection

from baton.errors import SettingsError

TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Paths to PEM files that the query of a ``rediss://`` URL may name: whom to trust, who we are.
Not checking the server is not among them."""

_FORM = "redis://[[USER]:PASSWORD@]HOST[:PORT][/DB] (rediss:// for TLS)"


@dataclass(frozen=True, slots=True, repr=False)
class RedisAddress:
    """Where a Redis is and how to be let in. Its ``repr`` shows no credentials."""

    host: str
    port: int
    db: int
    tls: bool
    username: str | None = None
    password: str | None = None
    tls_files: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"RedisAddress({self.describe()})"

    def describe(self) -> str:
        """The URL without credentials and options."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    @property
    def connection_class(self) -> type[Connection]:
        """The client library's connection: plain TCP or TLS."""
        return SSLConnection if self.tls else Connection

    def connection_options(self) -> dict[str, Any]:
        """Keyword arguments for ``connection_class``; with TLS the server is always checked."""
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "db": self.db,
            "username": self.username,
            "password": self.password,
        }
        if self.tls:
            options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **self.tls_files}
        return options


def parse_redis_url(url: str) -> RedisAddress:
    """The parts of a ``redis://`` or ``rediss://`` URL; port 6379 and database 0 if not named.

    Raises:
        SettingsError: it has another form, or an option that is not in ``TLS_OPTIONS``.
    """
    problem = None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # Their text may repeat a piece of a password, so the cause is not chained either.
        problem = (
            "host or port cannot be read; write @ : / # ? in a password as %40 %3A %2F %23 %3F"
        )
    if problem:
        raise SettingsError(f"the store URL is not {_FORM}: {problem}")
    if parts.scheme not in ("redis", "rediss"):
        raise SettingsError(f"the store URL is not {_FORM}: its scheme is {parts.scheme!r}")
    if not host or port == 0 or parts.fragment:
        raise SettingsError(f"the store URL is not {_FORM}: a host, a port, or # is amiss")
    db = unquote(parts.path).strip("/") or "0"
    if not (db.isascii() and db.isdecimal()):
        raise SettingsError(f"the store URL is not {_FORM}: the database is a number")
    tls = parts.scheme == "rediss"
    tls_files = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(tls_files) - set(TLS_OPTIONS if tls else ()))
    if unknown:
        allowed = ", ".join(TLS_OPTIONS)
        raise SettingsError(
            f"the store URL has options that are not supported: {', '.join(unknown)}; "
            f"rediss:// takes {allowed}, redis:// takes none"
        )
    return RedisAddress(
        host=unquote(host),
        port=port or 6379,
        db=int(db),
        tls=tls,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls_files=tls_files,
    )
