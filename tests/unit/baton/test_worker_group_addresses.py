"""Addresses of a group's members, on this machine's own."""

from __future__ import annotations

import socket

import pytest

from baton.errors import WorkerUnreachable
from baton.worker.addresses import (
    address_towards,
    advertised_address,
    interface_of,
    resolve,
)


async def test_names_become_addresses() -> None:
    """An IP address stays what it is; of a name, an IPv4 address where it has one."""
    assert await resolve("127.0.0.1") == "127.0.0.1"
    assert await resolve("::1") == "::1"
    assert await resolve("localhost") == "127.0.0.1"


@pytest.mark.parametrize("name", ["", "a" * 64 + ".invalid", "x..y"])
async def test_names_that_do_not_resolve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later try may succeed: the name of a new pod takes a while."""

    def fails(*args: object, **kwargs: object) -> object:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(WorkerUnreachable, match="does not resolve") as error:
        await resolve(name)
    assert error.value.retry_can_help


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://10.1.2.3:8100", "10.1.2.3"),
        ("http://[fd00::3]:8100", "fd00::3"),
        ("http://127.0.0.1:8100", None),
        ("http://localhost:8100", None),
        ("http://[::1]:8100", None),
        ("http://0.0.0.0:8100", None),
        ("http://[::]:8100", None),
        ("nonsense", None),
    ],
)
async def test_the_advertised_address(url: str, expected: str | None) -> None:
    """What a worker was told of itself; the defaults of one that was told nothing do not count."""
    assert await advertised_address(url) == expected


def test_the_way_to_a_peer() -> None:
    """To loopback one goes over loopback."""
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("127.0.0.9") == "127.0.0.1"
    with pytest.raises(WorkerUnreachable, match="no way to"):
        address_towards("255.255.255.255")


def test_interfaces() -> None:
    """Found by their address, or not at all."""
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") == ""
    assert interface_of("2001:db8::77") == ""
