"""Where engines announce what their prefix caches hold, and how routers get there.

A worker starts its engine with one address and puts the same address into its record; both sides
derive the rest from it here. Nothing connects or listens in this module.

Engines have to bind, since several routers subscribe to each. vLLM's publisher binds only what
contains ``*`` or ``::`` or is a local socket, and connects to every other address
(``ZmqEventPublisher._is_bind_endpoint``, vLLM 0.32). So a concrete IPv4 address is written as its
IPv6 form, which ZeroMQ takes for the IPv4 address that it is; only for a host name is nothing left
but all interfaces.

What is announced is the token ids of all prompts and answers, to whoever can reach the address,
without authentication. It is off unless the profile asks for it. On one machine it is a socket in
the engine's own folder, which only the same user may enter; between machines it belongs on a
network that clients cannot reach.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

TOPIC: Final = "kv"
"""One publisher per address, so the topic need not say who speaks."""

REPLAY_BATCHES: Final = 1000
"""Batches of events that an engine keeps for routers that come late or lost some. vLLM's own
10,000 may be some hundred MiB; more than 1,000 at a time would pass the replay socket's high-water
mark and be dropped without a word."""


def socket_url(run_dir: Path) -> str:
    """The address of an engine that only this machine has to reach, in its private folder."""
    return f"ipc://{run_dir / 'kv-events'}"


def tcp_url(host: str, port: int) -> str:
    """The address of an engine that other machines reach at ``host`` (IPv4 address or name).

    ``port + 1`` belongs to it as well, for the replay.
    """
    return f"tcp://{host}:{port}"


def replay_url(url: str) -> str:
    """Where missed batches are asked for, from the address of the live ones.

    Raises:
        ValueError: neither a socket's path nor a TCP address with a port.
    """
    if url.startswith("ipc://"):
        return f"{url}-replay"
    host, port = _host_and_port(url)
    return f"tcp://{host}:{port + 1}"


def publisher_config(url: str) -> dict[str, object]:
    """vLLM's ``--kv-events-config`` for an engine with this address.

    Raises:
        ValueError: neither a socket's path nor a TCP address with a port.
    """
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": _bound(url),
        "replay_endpoint": _bound(replay_url(url)),
        "buffer_steps": REPLAY_BATCHES,
        "topic": TOPIC,
    }


def _bound(url: str) -> str:
    if url.startswith("ipc://"):
        return url
    host, port = _host_and_port(url)
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return f"tcp://*:{port}"
    return f"tcp://[::ffff:{host}]:{port}"


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port:
        raise ValueError(f"not an address of KV events: {url!r}")
    return parts.hostname, parts.port
