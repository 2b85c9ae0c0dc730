"""Keys: made, hashed, found by what a request shows; priorities that are only lowered."""

from __future__ import annotations

import re

import pytest

from baton.errors import InvalidRequest, NotAuthorized
from router.tenants import KeyRing, Tenant, TenantSpec, effective_priority, hash_key, new_key
from router.tenants.keys import CACHE_ENTRIES

A, B, NOBODYS = new_key(), new_key(), new_key()


def ring() -> KeyRing:
    return KeyRing(
        {"a": TenantSpec(key_hashes=[hash_key(A)]), "b": TenantSpec(key_hashes=[hash_key(B)])}
    )


def test_new_keys() -> None:
    """Have 256 random bits and their prefix."""
    assert len({new_key() for _ in range(100)}) == 100
    assert all(re.fullmatch(r"bt-[A-Za-z0-9_-]{43}", new_key()) for _ in range(20))


def test_a_hash() -> None:
    """Is SHA-256, so that other programs can make one."""
    assert hash_key("abc") == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("prefix", ["Bearer ", "bearer ", "BEARER  ", " Bearer "])
def test_the_bearer(prefix: str) -> None:
    """Is found, however the scheme is written, the first time and from the cache."""
    keys = ring()
    for _ in range(2):
        assert keys.find((prefix + A).encode()).name == "a"
        assert keys.find((prefix + B).encode()).name == "b"


def test_x_api_key() -> None:
    """Counts where there is no Authorization, and only there."""
    keys = ring()
    for _ in range(2):
        assert keys.find(None, A.encode()).name == "a"
        assert keys.find(f"Bearer {B}".encode(), A.encode()).name == "b"
        with pytest.raises(NotAuthorized):
            keys.find(f"Bearer {NOBODYS}".encode(), A.encode())
        with pytest.raises(NotAuthorized):
            keys.find(A.encode())


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer sk-something",
        b"Basic " + A.encode(),
        b"Bearer " + A.encode() + b"x",
        b"Bearer " + A.encode()[:-1],
        b"Bearer " + A.encode().upper(),
        b"Bearer " + A.encode() + b" " + A.encode(),
        b"Bearer \xff\xfe",
        b"Bearer " + NOBODYS.encode(),
        b"Bearer " + b"x" * 100_000,
        b"Bearer " + hash_key(A).encode(),
    ],
)
def test_what_is_no_key(header: bytes) -> None:
    """401 with OpenAI's code, and the message does not repeat it."""
    with pytest.raises(NotAuthorized) as caught:
        ring().find(header)
    assert caught.value.status == 401
    error = caught.value.to_openai()["error"]
    assert error["code"] == "invalid_api_key"
    assert error["message"] == "Incorrect API key provided."


def test_no_header_at_all() -> None:
    """Is told what to send."""
    with pytest.raises(NotAuthorized, match="Authorization: Bearer"):
        ring().find(None)


def test_the_cache_is_bounded() -> None:
    """By real keys as well; wrong ones never enter."""
    many = [new_key() for _ in range(50)]
    keys = KeyRing({"a": TenantSpec(key_hashes=[hash_key(key) for key in many])})
    for _ in range(CACHE_ENTRIES // 25):
        for key in many:
            keys.find(f"Bearer {key}{' ' * (_ % 100)}".encode())
    assert 0 < len(keys._cache) <= CACHE_ENTRIES
    before = dict(keys._cache)
    for _ in range(100):
        with pytest.raises(NotAuthorized):
            keys.find(f"Bearer {new_key()}".encode())
    assert keys._cache == before


@pytest.mark.parametrize(
    ("own", "header", "expected"),
    [
        (5, None, 5),
        (5, b"3", 3),
        (5, b" -2 ", -2),
        (5, b"9", 5),
        (-3, b"0", -3),
        (0, b"-999999", -100),
        (0, b"+0", 0),
    ],
)
def test_a_client_lowers_its_priority(own: int, header: bytes | None, expected: int) -> None:
    """And never raises it."""
    assert effective_priority(Tenant("t", priority=own), header) == expected


@pytest.mark.parametrize("header", [b"", b"high", b"1.5", b"9" * 50, b"\xd9\xa3"])
def test_a_priority_that_is_no_number(header: bytes) -> None:
    """400."""
    with pytest.raises(InvalidRequest):
        effective_priority(Tenant("t"), header)
