"""NIXL as ``baton doctor`` tries it: an agent of its own, and a pull between two processes.

Always a process of its own, ``python -m kvtransfer.probe``: UCX writes where it likes, waits as
long as it likes and may crash, none of which should happen to whoever asks. It answers with one
line of JSON on stdout; everything that libraries print goes to stderr. NIXL is imported by the
function that makes an agent and by nothing else, so that what is read from logs can be tested
without it.

What is pulled is random and checked afterwards: a transport that is fast and wrong is no transport.
Both ends of a pull prove that they know the same secret (``BATON_PROBE_SECRET``) before NIXL reads
a byte of the other's; there is no pull without one.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import hashlib
import hmac
import json
import mmap
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from baton.process import die_with_parent

SECRET_ENV = "BATON_PROBE_SECRET"  # noqa: S105 - the name of a variable
SIZE_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 64 * 1024
"""As KV blocks are: one descriptor each, and none of them neighbours' on arrival."""
ROUNDS = 5
"""Measured pulls, after one that pays for the connection."""
SOCKET_S = 15.0
"""For each line of the conversation."""
PULL_S = 60.0
"""For one pull: 64 MiB at 1 MiB/s."""

_REST_US = 1000
"""The profile's default ``progress_delay_us``."""
_MAX_LINE = 1024 * 1024
_LOG = re.compile(r"UCX\s+(WARN|ERROR|FATAL)\s+(.*)")
_VERSION = re.compile(r"UCX\s+INFO\s+Version (\S+)")
_DEVICE = re.compile(r"([+-]) (\S+)")


@dataclass(frozen=True, slots=True)
class UcxSight:
    """What a log of UCX says.

    Attributes:
        version: UCX's; empty if it does not say.
        transports: transport to its devices, those that are enabled.
        disabled: those that are there and switched off by ``UCX_TLS``.
        reads_over: what large reads go over, such as ``cma/memory``; empty if it does not say.
        complaints: its warnings and errors, each once.
    """

    version: str
    transports: Mapping[str, list[str]]
    disabled: Mapping[str, list[str]]
    reads_over: str
    complaints: list[str]


def read_ucx_log(text: str) -> UcxSight:
    """Reads what UCX writes at level ``debug`` (the table of transports) or with
    ``UCX_PROTO_INFO`` (the table of what reads go over). Pure; lines that it does not know are
    passed over."""
    version, complaints, reads_over = "", [], ""
    enabled: dict[str, list[str]] = {}
    disabled: dict[str, list[str]] = {}
    transport, in_table, in_reads = "", False, False
    for line in text.splitlines():
        if found := _VERSION.search(line):
            version = found[1]
        if (found := _LOG.search(line)) and found[2].strip() not in complaints:
            complaints.append(found[2].strip())
        cells = [cell.strip() for cell in line.partition("|")[2].split("|")] if "|" in line else []
        if not cells:
            continue
        if cells[0].startswith("Available Transports"):
            in_table = True
        elif cells[0].startswith("Legend"):
            in_table = False
        elif in_table and len(cells) >= 4 and cells[2] != "Transport":
            transport = cells[2] or transport
            for mark, device in _DEVICE.findall(cells[3]):
                into = disabled if transport.startswith("- ") or mark == "-" else enabled
                into.setdefault(transport[2:], []).append(device)
        elif cells[0].startswith("remote memory read by ucp_get"):
            in_reads = True
        elif in_reads and len(cells) >= 3 and cells[0].endswith("..inf"):
            reads_over, in_reads = cells[2] or reads_over, False
    return UcxSight(version, enabled, disabled, reads_over, complaints[:10])


# --- an agent ---


def look_at_agent() -> dict[str, Any]:
    """Makes an agent with the UCX backend, as engines do, and says what UCX saw."""
    with _ucx_log(UCX_LOG_LEVEL="debug") as log:
        began = time.monotonic()
        error = ""
        try:
            agent = _agent("baton-doctor", progress=True)
            backends = sorted(agent.get_backend_mem_types("UCX"))
        except Exception as failure:
            # Whatever the bindings raise, it is what we were asked for.
            error, backends = _words(failure), []
        took_s = time.monotonic() - began
        sight = _read(log)
    return {"error": error, "took_s": round(took_s, 3), "memory": backends, **asdict(sight)}


def _agent(name: str, *, progress: bool) -> Any:
    """An agent with the UCX backend; its progress thread rests between two rounds, as those of our
    engines do (``kvtransfer.connector`` says how and why, and cannot be imported without vLLM)."""
    from nixl import _api

    base: Any = _api.nixlBind.nixlAgentConfig
    delay: Any = base.pthrDelay

    def rest(self: Any, _value: int) -> None:
        delay.__set__(self, _REST_US)

    patient = type("PatientConfig", (base,), {"pthrDelay": property(delay.__get__, rest)})
    binding: Any = types.SimpleNamespace(**vars(_api.nixlBind))
    binding.nixlAgentConfig = patient
    _api.nixlBind = binding
    settings = _api.nixl_agent_config(enable_prog_thread=progress, backends=["UCX"])
    return _api.nixl_agent(name, settings)


@contextlib.contextmanager
def _ucx_log(**settings: str) -> Iterator[Path]:
    """A file that UCX logs to; to be set before its library is loaded."""
    with tempfile.TemporaryDirectory(prefix="baton-probe-") as folder:
        path = Path(folder) / "ucx.log"
        path.touch()
        os.environ.update({"UCX_LOG_FILE": str(path), **settings})
        yield path


def _read(log: Path) -> UcxSight:
    # UCX keeps the last lines in its own buffer until the process ends.
    ctypes.CDLL(None).fflush(None)
    return read_ucx_log(log.read_text("utf-8", "replace"))


# --- a pull ---


class Memory:
    """The bytes that are pulled, in a GPU's memory or in the host's.

    Args:
        cuda: on the first GPU.
        content: what it holds at first; zeros without.
    """

    def __init__(self, *, cuda: bool, content: bytes = b"") -> None:
        self.kind = "VRAM" if cuda else "DRAM"
        self._tensor: Any = None
        if cuda:
            import torch

            self._tensor = torch.zeros(SIZE_BYTES, dtype=torch.uint8, device="cuda")
            if content:
                source = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                self._tensor.copy_(source)
            torch.cuda.synchronize()
            self.address = int(self._tensor.data_ptr())
            return
        self._map = mmap.mmap(-1, SIZE_BYTES)
        self._map[: len(content)] = content
        self._view = (ctypes.c_char * SIZE_BYTES).from_buffer(self._map)
        self.address = ctypes.addressof(self._view)

    def register(self, agent: Any) -> None:
        """Makes it known to an agent."""
        agent.register_memory([(self.address, SIZE_BYTES, 0, "")], self.kind)

    def pieces(self) -> list[tuple[int, int, int]]:
        """Descriptors: address, bytes, device."""
        return pieces(self.address)

    def checksum(self) -> int:
        """Of all its bytes."""
        if self._tensor is not None:
            return zlib.crc32(self._tensor.cpu().numpy().tobytes())
        return zlib.crc32(self._map)


def pieces(address: int) -> list[tuple[int, int, int]]:
    """Descriptors of the bytes at ``address``."""
    return [(address + at, PIECE_BYTES, 0) for at in range(0, SIZE_BYTES, PIECE_BYTES)]


def serve(
    address: tuple[str, int], *, cuda: bool, limit_s: float, once: bool, say: IO[str]
) -> None:
    """Offers random bytes to whoever knows the secret, one at a time, until ``limit_s`` is over, or
    one was served if ``once``.

    Says ``{"port": ...}`` when it listens.
    """
    agent = _agent(f"baton-doctor-{secrets.token_hex(4)}", progress=True)
    memory = Memory(cuda=cuda, content=secrets.token_bytes(SIZE_BYTES))
    memory.register(agent)
    offer = {
        "metadata": base64.b64encode(agent.get_agent_metadata()).decode(),
        "address": memory.address,
        "kind": memory.kind,
        "checksum": memory.checksum(),
    }
    ends = time.monotonic() + limit_s
    with socket.create_server(address) as listener:
        _say(say, {"port": listener.getsockname()[1], "memory": memory.kind})
        while (left := ends - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                return
            with connection, contextlib.suppress(OSError, ValueError):
                # A stranger, or one that left: the next one, please.
                if _offer(connection, offer) and once:
                    return


def _offer(connection: socket.socket, offer: Mapping[str, Any]) -> bool:
    """Whether it was taken by one who knows the secret."""
    connection.settimeout(SOCKET_S)
    lines = connection.makefile("rb")
    nonce = secrets.token_hex(16)
    _send(connection, {"nonce": nonce})
    asked = _line(lines)
    if not hmac.compare_digest(str(asked.get("mac")), _mac(nonce, "pull")):
        _send(connection, {"error": "wrong secret"})
        return False
    body = json.dumps({**offer, "time": time.time()})
    _send(connection, {"body": body, "mac": _mac(str(asked.get("nonce")), body)})
    connection.settimeout((ROUNDS + 1) * PULL_S)
    # Until it has closed: its pulls ask nothing of us but to be there.
    lines.readline(_MAX_LINE)
    return True


def pull(address: tuple[str, int], *, cuda: bool, patience_s: float) -> dict[str, Any]:
    """Pulls from a ``serve`` that listens within ``patience_s``, and says how fast.

    Raises:
        OSError: nobody there.
        RuntimeError: another secret, bytes that differ, a transfer that failed or hung.
    """
    with _ucx_log(UCX_LOG_LEVEL="info", UCX_PROTO_INFO="y") as log:
        with _connected(address, patience_s) as connection:
            offer, offset_s, trip_s = _ask(connection)
            agent = _agent(f"baton-doctor-{secrets.token_hex(4)}", progress=False)
            memory = Memory(cuda=cuda)
            memory.register(agent)
            began = time.monotonic()
            peer = agent.add_remote_agent(base64.b64decode(offer["metadata"]))
            here = agent.get_xfer_descs(memory.pieces(), memory.kind)
            there = agent.get_xfer_descs(pieces(int(offer["address"])), str(offer["kind"]))
            handle = agent.initialize_xfer("READ", here, there, peer)
            _transfer(agent, handle)
            first_s = time.monotonic() - began
            times = [_transfer(agent, handle) for _ in range(ROUNDS)]
            handle.release()
        if memory.checksum() != offer["checksum"]:
            raise RuntimeError("the bytes that arrived are not those that were sent")
        sight = _read(log)
    return {
        "bytes_per_s": SIZE_BYTES / sorted(times)[ROUNDS // 2],
        "best_bytes_per_s": SIZE_BYTES / min(times),
        "first_s": round(first_s, 4),
        "over": sight.reads_over,
        "from_memory": offer["kind"],
        "to_memory": memory.kind,
        "clock_offset_s": round(offset_s, 4),
        "round_trip_s": round(trip_s, 4),
        "complaints": sight.complaints,
    }


def _connected(address: tuple[str, int], patience_s: float) -> socket.socket:
    """A connection, as soon as somebody listens."""
    ends = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_connection(address, timeout=SOCKET_S)
        except ConnectionRefusedError:
            if time.monotonic() >= ends:
                raise
            time.sleep(0.05)


def _ask(connection: socket.socket) -> tuple[dict[str, Any], float, float]:
    """What is offered, the peer's clock against ours, and how long its answer took."""
    lines = connection.makefile("rb")
    nonce = secrets.token_hex(16)
    greeting = _line(lines)
    began, sent = time.monotonic(), time.time()
    _send(connection, {"mac": _mac(str(greeting.get("nonce")), "pull"), "nonce": nonce})
    answer = _line(lines)
    trip_s = time.monotonic() - began
    body = str(answer.get("body", ""))
    if not hmac.compare_digest(str(answer.get("mac")), _mac(nonce, body)):
        raise RuntimeError(
            "the other side has another secret; both need the same cluster token"
            if "error" in answer or "mac" in answer
            else "whoever answers there is no `baton doctor serve`"
        )
    offer: dict[str, Any] = json.loads(body)
    return offer, float(offer["time"]) - (sent + trip_s / 2), trip_s


def _transfer(agent: Any, handle: Any) -> float:
    began = time.perf_counter()
    state = agent.transfer(handle)
    while state == "PROC":
        if time.perf_counter() - began > PULL_S:
            raise RuntimeError(f"a pull of {SIZE_BYTES >> 20} MiB was not over after {PULL_S:g} s")
        state = agent.check_xfer_state(handle)
    if state != "DONE":
        raise RuntimeError(f"NIXL ended a pull in state {state}")
    return time.perf_counter() - began


def _mac(nonce: str, text: str) -> str:
    key = os.environ[SECRET_ENV].encode()
    return hmac.new(key, f"{nonce}\n{text}".encode(), hashlib.sha256).hexdigest()


def _send(connection: socket.socket, content: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(content).encode() + b"\n")


def _line(lines: IO[bytes]) -> dict[str, Any]:
    content = json.loads(lines.readline(_MAX_LINE))
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _say(say: IO[str], content: Mapping[str, Any]) -> None:
    say.write(json.dumps(content) + "\n")
    say.flush()


def _words(failure: BaseException) -> str:
    text = str(failure)
    return f"{type(failure).__name__}: {text}" if text else type(failure).__name__


def main() -> None:
    """``agent`` | ``serve HOST PORT`` | ``pull HOST PORT``, with ``--cuda`` and ``--limit``."""
    parser = argparse.ArgumentParser(prog="python -m kvtransfer.probe")
    parser.add_argument("what", choices=("agent", "serve", "pull"))
    parser.add_argument("host", nargs="?", default="127.0.0.1")
    parser.add_argument("port", nargs="?", type=int, default=0)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--patience", type=float, default=0.0)
    options = parser.parse_args()
    die_with_parent(signal.SIGKILL)
    # What libraries print must not get between us and whoever reads our answer.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as say:
        os.dup2(2, 1)
        if options.what != "agent" and not os.environ.get(SECRET_ENV):
            parser.error(f"{SECRET_ENV} is not set")
        try:
            if options.what == "serve":
                address = (options.host, options.port)
                serve(address, cuda=options.cuda, limit_s=options.limit, once=options.once, say=say)
            elif options.what == "pull":
                address = (options.host, options.port)
                _say(say, pull(address, cuda=options.cuda, patience_s=options.patience))
            else:
                _say(say, look_at_agent())
        except Exception as failure:
            # Told in our answer, where it is looked for.
            _say(say, {"error": _words(failure)})
            sys.exit(1)


if __name__ == "__main__":
    main()
