"""What a probe reads from UCX's logs, and how two ends prove that they know the same secret."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvtransfer import probe

_HEAD = "[1795913925.877653] [vm:2602 :0]   "
_BREAK = _HEAD + "+------------+-----------+-----------+----------------+"
TABLE = "\n".join(
    [
        "[1.0] [vm:1 :0]  ucp_context.c:2753 UCX  INFO  Version 1.23.0 (loaded from /x.so)",
        "[1.0] [vm:1 :0]  sys.c:481  UCX  DEBUG failed to open /a | b",
        _HEAD + "| Available Transports and Devices (ctx: probe)        |",
        _BREAK,
        _HEAD + "| Type       | Component | Transport | Device         |",
        _BREAK,
        _HEAD + "| network    | tcp       | - tcp     | - eth0  - lo   |",
        _HEAD + "|            | mlx5_0    | + rc_mlx5 | + mlx5_0:1     |",
        _HEAD + "|            |           |           | - mlx5_0:2     |",
        _HEAD + "| intra-node | cma       | + cma     | + memory       |",
        _BREAK,
        _HEAD + "| Legend: + = enabled, - = disabled                    |",
        _HEAD + "| tcp       | lo        | + tcp     | + bogus        |",
        "[1.0] [vm:1 :0]  select.c:722  UCX  ERROR   no active messages transport",
        "[1.1] [vm:1 :0]  select.c:722  UCX  ERROR   no active messages transport",
    ]
)
READS = "\n".join(
    [
        _HEAD + "| remote memory write by ucp_put* from host memory to host |",
        _HEAD + "| 0..inf | zero-copy   | posix/memory                      |",
        _HEAD + "| remote memory read by ucp_get*(multi) into host memory   |",
        _HEAD + "|     0..8184 | short    | tcp/lo                          |",
        _HEAD + "|   8185..inf | zero-copy | cma/memory                     |",
        _HEAD + "| 0..inf | zero-copy   | other                             |",
    ]
)


def test_table_of_transports() -> None:
    """Transports with their devices, those in use apart from those that are off."""
    sight = probe.read_ucx_log(TABLE)
    assert sight.version == "1.23.0"
    assert sight.transports == {"rc_mlx5": ["mlx5_0:1"], "cma": ["memory"]}
    assert sight.disabled == {"tcp": ["eth0", "lo"], "rc_mlx5": ["mlx5_0:2"]}
    assert sight.complaints == ["no active messages transport"]


def test_what_reads_go_over() -> None:
    """That of the largest reads, and not what writes or messages take."""
    assert probe.read_ucx_log(READS).reads_over == "cma/memory"
    assert probe.read_ucx_log("nothing of it").reads_over == ""


def test_pieces() -> None:
    """Descriptors cover the whole, one after the other."""
    found = probe.pieces(4096)
    assert sum(size for _, size, _ in found) == probe.SIZE_BYTES
    assert found[0] == (4096, probe.PIECE_BYTES, 0)
    assert found[-1][0] + found[-1][1] == 4096 + probe.SIZE_BYTES


@contextmanager
def offering(offer: dict[str, Any]) -> Iterator[tuple[socket.socket, list[bool]]]:
    """A connection to whom ``offer`` is offered, and whether it was taken."""
    here, there = socket.socketpair()
    taken: list[bool] = []

    def serve() -> None:
        with there:
            taken.append(probe._offer(there, offer))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with here:
            here.settimeout(5)
            yield here, taken
    finally:
        thread.join(5)


def test_same_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows the secret gets the offer, and the other's clock as seen from here."""
    monkeypatch.setenv(probe.SECRET_ENV, "secret")
    with offering({"address": 1}) as (connection, taken):
        offer, offset_s, trip_s = probe._ask(connection)
    assert offer["address"] == 1
    assert abs(offset_s) <= trip_s + 0.5
    assert taken == [True]


def test_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not know it gets nothing of the offer."""
    monkeypatch.setenv(probe.SECRET_ENV, "secret")
    with offering({"address": 1}) as (connection, taken):
        lines = connection.makefile("rb")
        assert set(json.loads(lines.readline())) == {"nonce"}
        connection.sendall(b'{"mac": "0000", "nonce": "1"}\n')
        assert json.loads(lines.readline()) == {"error": "wrong secret"}
        assert lines.readline() == b""
        lines.close()
    assert taken == [False]


def test_impostor(monkeypatch: pytest.MonkeyPatch) -> None:
    """An offer from somebody without the secret is not read."""
    monkeypatch.setenv(probe.SECRET_ENV, "secret")
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b'{"nonce": "1"}\n{"body": "{}", "mac": "0000"}\n')
        with pytest.raises(RuntimeError, match="another secret"):
            probe._ask(here)
