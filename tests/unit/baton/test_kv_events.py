"""Addresses of KV events, as engine and router have to agree on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baton.kv_events import REPLAY_BATCHES, publisher_config, replay_url, socket_url, tcp_url


def bound(url: str) -> tuple[Any, Any]:
    config = publisher_config(url)
    return config["endpoint"], config["replay_endpoint"]


def test_on_one_machine() -> None:
    """Sockets in the engine's private folder; vLLM binds those."""
    url = socket_url(Path("/tmp/baton-1"))
    assert bound(url) == ("ipc:///tmp/baton-1/kv-events", "ipc:///tmp/baton-1/kv-events-replay")
    assert replay_url(url) == "ipc:///tmp/baton-1/kv-events-replay"


def test_at_an_address() -> None:
    """Bound to that address alone, in the spelling that makes vLLM bind instead of connect."""
    url = tcp_url("10.0.0.3", 5700)
    assert bound(url) == ("tcp://[::ffff:10.0.0.3]:5700", "tcp://[::ffff:10.0.0.3]:5701")
    assert (url, replay_url(url)) == ("tcp://10.0.0.3:5700", "tcp://10.0.0.3:5701")


def test_at_a_name() -> None:
    """A name cannot be bound to in any spelling that vLLM binds: all interfaces."""
    assert bound(tcp_url("worker-1.pool", 5700)) == ("tcp://*:5700", "tcp://*:5701")


def test_the_other_settings() -> None:
    """Events on, over ZeroMQ, and a bounded memory of them."""
    config = publisher_config("ipc:///run/kv-events")
    assert config["enable_kv_cache_events"] is True
    assert config["publisher"] == "zmq"
    assert config["buffer_steps"] == REPLAY_BATCHES


@pytest.mark.parametrize(
    "url", ["", "tcp://host", "tcp://:5700", "http://host:1", "inproc://kv", "tcp://host:0", "tcp"]
)
def test_what_is_no_address(url: str) -> None:
    """Nothing else is connected to or bound."""
    with pytest.raises(ValueError, match="KV events"):
        replay_url(url)


def test_a_port_that_is_no_number() -> None:
    """Also a ValueError, whatever the parser calls it."""
    with pytest.raises(ValueError, match=r"(?i)port"):
        replay_url("tcp://host:abc")
