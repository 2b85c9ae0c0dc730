"""Addresses of a group's members: names resolved, and each one's own as the others reach it.

The ranks of an engine get IP addresses only, because not all of what binds or dials them resolves
names (ZMQ's bind does not).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import socket
import struct
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from baton.errors import SettingsError, WorkerUnreachable

_GET_ADDRESS = 0x8915
"""Linux's SIOCGIFADDR: an interface's IPv4 address (netdevice(7))."""
_IPV6_ADDRESSES = Path("/proc/net/if_inet6")
_INTERFACE_REQUEST_BYTES = 256
_NAME_BYTES = 15
_RESOLVE_S = 5.0
"""For one name; whoever asks tries again. A system's resolver may take half a minute."""

_Found = list[tuple[Any, ...]]


async def resolve(host: str) -> str:
    """An IP address of ``host``, an IPv4 one if there is one.

    Raises:
        WorkerUnreachable: the name does not resolve, now.
    """
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await _look_up(host)
    except TimeoutError as error:
        raise WorkerUnreachable(
            f"the name {host} does not resolve: no answer within {_RESOLVE_S:g} s"
        ) from error
    except (OSError, UnicodeError) as error:
        raise WorkerUnreachable(f"the name {host} does not resolve: {error}") from error
    addresses = sorted(found, key=lambda each: each[0] != socket.AF_INET)
    if not addresses:
        raise WorkerUnreachable(f"the name {host} has no address")
    return str(addresses[0][4][0])


async def _look_up(host: str) -> _Found:
    """In a thread that nobody has to wait for: a process can end while a resolver hangs, which it
    could not with the loop's own threads."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[_Found] = loop.create_future()

    def tell(result: _Found | None, error: Exception | None) -> None:
        if found.done():
            return
        if result is not None:
            found.set_result(result)
        else:
            found.set_exception(error or OSError("no answer"))

    def ask() -> None:
        result: _Found | None = None
        failure: Exception | None = None
        try:
            result = list(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except Exception as error:
            failure = error
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=ask, name=f"resolve-{host}", daemon=True).start()
    return await found


def check_listens(host: str, leader: str) -> None:
    """Whether a member that listens on ``host`` can be reached as a group's member has to be.

    Args:
        host: the worker's ``--host``.
        leader: the IP address that followers reach the leader at.

    Raises:
        SettingsError: it listens on loopback, and the group is not on loopback.
    """
    if is_loopback(host) and not is_loopback(leader):
        raise SettingsError(
            f"this member of a group listens on {host}, which other machines cannot reach, and its "
            f"leader is at {leader}: start all members with --host 0.0.0.0 (BATON_HOST)"
        )


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address of loopback, or its usual name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


async def advertised_address(advertise_url: str) -> str | None:
    """The IP address in a worker's own URL; None where it is loopback or a wildcard, which is what
    a worker has that was not told its address.

    Raises:
        WorkerUnreachable: it is a name that does not resolve.
    """
    host = urlsplit(advertise_url).hostname
    if host is None:
        return None
    address = await resolve(host)
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return None if parsed.is_loopback or parsed.is_unspecified else address


def address_towards(peer: str) -> str:
    """This machine's address on the way to the IP address ``peer``. Nothing is sent.

    Raises:
        WorkerUnreachable: there is no way.
    """
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Of a datagram socket, connecting only looks the route up; any port will do.
            probe.connect((peer, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise WorkerUnreachable(f"no way to {peer}: {error}") from error


def interface_of(address: str) -> str:
    """The network interface with this IP address (Linux); empty where it is not found."""
    if ":" in address:
        return _ipv6_interface(address)
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{_INTERFACE_REQUEST_BYTES}s", name.encode()[:_NAME_BYTES])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _GET_ADDRESS, request)
                # A sockaddr_in follows the 16 bytes of the name: family and port, then the address.
                if answer[20:24] == wanted:
                    return name
    return ""


def _ipv6_interface(address: str) -> str:
    wanted = ipaddress.ip_address(address.partition("%")[0]).packed.hex()
    with contextlib.suppress(OSError):
        for line in _IPV6_ADDRESSES.read_text().splitlines():
            fields = line.split()
            if fields and fields[0] == wanted:
                return fields[-1]
    return ""
