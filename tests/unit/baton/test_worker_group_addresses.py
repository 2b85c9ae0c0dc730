"""Addresses of a group's members, on this machine's own."""

from __future__ import annotations

import socket
import threading

import pytest

from baton.errors import SettingsError, WorkerUnreachable
from baton.worker import addresses
from baton.worker.addresses import (
    address_towards,
    advertised_address,
    check_listens,
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


async def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for: neither by whoever asks nor by the process's end."""
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: answers.wait(10) and [])
    monkeypatch.setattr(addresses, "_RESOLVE_S", 0.01)
    try:
        with pytest.raises(WorkerUnreachable, match="no answer within"):
            await resolve("leader")
        hanging = [each for each in threading.enumerate() if each.name == "resolve-leader"]
        assert [each.daemon for each in hanging] == [True]
    finally:
        answers.set()
        for each in threading.enumerate():
            if each.name == "resolve-leader":
                each.join(5)


@pytest.mark.parametrize(
    ("host", "leader", "fine"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("localhost", "::1", True),
        ("0.0.0.0", "10.0.0.1", True),
        ("10.0.0.2", "10.0.0.1", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("localhost", "fd00::1", False),
    ],
)
def test_a_member_that_nobody_reaches(host: str, leader: str, fine: bool) -> None:
    """Listening on loopback goes with a leader on loopback only."""
    if fine:
        check_listens(host, leader)
    else:
        with pytest.raises(SettingsError, match=r"--host 0\.0\.0\.0"):
            check_listens(host, leader)


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
