"""Redis URLs: taken apart with care, because they carry passwords."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import Connection, SSLConnection

from baton.errors import SettingsError
from baton.store.redis_url import Kind, is_redis_url, parse_redis_url


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
        "redis://a,b/0",
        "redis://cache/0/1",
        "redis://cache?sentinel_password=s3cret",
        "redis+sentinel://a",
        "redis+sentinel://a/",
        "redis+sentinel://a//0",
        "redis+sentinel://a/name/zero",
        "redis+sentinel://a/name/0/1",
        "redis+sentinel://a,/name",
        "redis+sentinel://a,b:0/name",
        "redis+sentinel://a,b:port/name",
        "redis+sentinel://a,[::1/name",
        "redis+sentinel:///name",
        "redis+sentinel://:s3cr/et@a/name",
        "redis+sentinel://a/name?ssl_ca_certs=/etc/ca.pem",
        "redis+sentinel://a/name?sentinel_timeout=900",
        "redis+sentinel://" + ",".join(f"h{n}" for n in range(33)) + "/name",
        "redis+cluster://a/0",
        "redis+cluster://:s3cret@a/1",
        "redis+cluster://a,,b",
        "redis+cluster://a?sentinel_password=s3cret",
        "redis+ring://:s3cret@a",
        "+sentinel://a/name",
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


def test_sentinels() -> None:
    """Several places, the service, and credentials of two kinds."""
    address = parse_redis_url(
        "redis+sentinel://me:p%2Css@a,b.local:1,[::1]:2/my%20master/3"
        "?sentinel_user=watcher&sentinel_password=w%26tch"
    )
    assert address.kind is Kind.SENTINEL
    assert address.nodes == (("a", 26379), ("b.local", 1), ("::1", 2))
    assert (address.service, address.db) == ("my master", 3)
    assert (address.username, address.password) == ("me", "p,ss")
    options = address.sentinel_options()
    assert (options["username"], options["password"]) == ("watcher", "w&tch")
    described = "redis+sentinel://a:26379,b.local:1,[::1]:2/my master/3"
    assert address.describe() == described
    assert repr(address) == f"RedisAddress({described})"
    plain = parse_redis_url("redis+sentinel://:s3cret@a/name")
    assert plain.db == 0
    assert plain.sentinel_options() == {"username": None, "password": None}


def test_a_cluster() -> None:
    """Several nodes, no database; TLS as with one."""
    address = parse_redis_url("rediss+cluster://:pass@a,b:7000/?ssl_ca_certs=/ca.pem")
    assert address.kind is Kind.CLUSTER
    assert address.nodes == (("a", 6379), ("b", 7000))
    assert address.describe() == "rediss+cluster://a:6379,b:7000"
    assert address.connection_options()["ssl_ca_certs"] == "/ca.pem"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("redis://x", True),
        ("REDISS+CLUSTER://x", True),
        ("redis+sentinel://[", True),
        ("/etc/redis", False),
        ("redis", False),
        ("memory://", False),
        ("", False),
    ],
)
def test_what_is_taken_for_one(text: str, is_one: bool) -> None:
    """The scheme decides; what is wrong with the rest is then told."""
    assert is_redis_url(text) == is_one
