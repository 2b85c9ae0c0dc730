"""Redis URLs: taken apart with care, because they carry passwords."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import Connection, SSLConnection

from baton.errors import SettingsError
from baton.store.redis_url import parse_redis_url


def test_the_parts() -> None:
    """Host, port, database, user and password come out decoded."""
    address = parse_redis_url("redis://me:p%40ss%2F@cache.local:6380/3")
    assert (address.host, address.port, address.db) == ("cache.local", 6380, 3)
    assert (address.username, address.password) == ("me", "p@ss/")
    assert address.connection_class is Connection
    assert "ssl_cert_reqs" not in address.connection_options()


def test_the_defaults() -> None:
    """Port 6379, database 0, nobody in particular."""
    address = parse_redis_url("redis://cache/")
    assert (address.port, address.db, address.username, address.password) == (6379, 0, None, None)


def test_tls_checks_the_server() -> None:
    """``rediss://`` means TLS with the certificate and the name checked; files can be named."""
    address = parse_redis_url("rediss://cache?ssl_ca_certs=%2Fetc%2Fca.pem")
    assert address.connection_class is SSLConnection
    options = address.connection_options()
    assert options["ssl_cert_reqs"] == "required"
    assert options["ssl_check_hostname"] is True
    assert options["ssl_ca_certs"] == "/etc/ca.pem"


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis:///0",
        "redis:cache",
        "redis://cache:0",
        "redis://cache:99999",
        "redis://cache:port",
        "redis://cache/one",
        "redis://cache/-1",
        "redis://cache#0",
        "redis://[::1",
        "http://cache",
        "redis://:s3cr/et@cache",
        "redis://:s3cr#et@cache",
        "redis://:s3cr?et@cache",
        "redis://cache?socket_timeout=900",
        "redis://cache?ssl_ca_certs=/etc/ca.pem",
        "rediss://cache?ssl_cert_reqs=none",
        "rediss://:s3cret@cache?socket_timeout=900",
    ],
)
def test_what_is_refused(url: str) -> None:
    """Bad forms, and options that would undo our bounds or checks; secrets are not repeated."""
    with pytest.raises(SettingsError) as caught:
        parse_redis_url(url)
    assert "s3cr" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_it_shows_no_credentials() -> None:
    """Neither the description nor the repr holds user or password."""
    address = parse_redis_url("redis://someone:s3cret@cache")
    assert address.describe() == "redis://cache:6379/0"
    assert repr(address) == "RedisAddress(redis://cache:6379/0)"
