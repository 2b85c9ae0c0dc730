"""Real routers, workers and engines for the end-to-end tests, started and ended as processes.

Everything listens on loopback at free ports. What a stack started is gone when it is closed, and
``close`` fails if it is not.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from baton import settings

MODEL = "test-llama"
THRESHOLD = 256
BLOCK = 32
LEASE_S = 10

PROFILE = f"""\
apiVersion: baton/v1
kind: ServingProfile
metadata:
  name: e2e
  description: Small engines and short deadlines.
spec:
  mode: disaggregated
  model: {{source: demo, served_name: {MODEL}, max_model_len: 4096}}
  classify: {{threshold_tokens: {THRESHOLD}}}
  pools:
    prefill: {{accelerator: cpu, max_num_seqs: 16, cpu_kv_cache_mib: 64, enforce_eager: true,
      engine_args: {{tool-call-parser: hermes, enable-auto-tool-choice: true}}}}
    decode: {{accelerator: cpu, max_num_seqs: 16, cpu_kv_cache_mib: 64, enforce_eager: true,
      engine_args: {{tool-call-parser: hermes, enable-auto-tool-choice: true}}}}
  transfer: {{block_size: {BLOCK}, lease_s: {LEASE_S}, canary_rate: 0}}
  deadlines: {{connect_s: 2, prefill_s: 10, first_token_s: 30, idle_s: 10, total_s: 90}}
  limits: {{in_flight: 64, drain_s: 30}}
"""


# Below the ports that the system gives to outgoing connections (from 32,768 on Linux): an engine
# binds its ports only after a while, and such a connection would have taken them meanwhile.
_ports = itertools.count(20_000 + os.getpid() % 100 * 100, 10)


def free_port() -> int:
    """A port that nobody listens on now, and with it the next few: workers count up from one."""
    return settings.free_port("127.0.0.1", next(_ports), tries=10)


def wait_until(what: str, condition: Callable[[], bool], *, timeout_s: float) -> float:
    """Polls until true; returns the seconds it took. Fails with ``what`` when time is over."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - began


@dataclass
class Server:
    """One process of ours and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    url: str
    argv: list[str]
    admin_url: str = ""

    def text(self) -> str:
        """Everything it logged so far."""
        return self.log.read_text("utf-8", "replace")


@dataclass
class Stack:
    """A set of servers over one home folder and one model."""

    home: Path
    model: Path
    servers: dict[str, Server] = field(default_factory=dict)
    seen_pids: set[int] = field(default_factory=set)

    @property
    def profile(self) -> Path:
        path = self.home / "e2e.yaml"
        if not path.exists():
            path.write_text(PROFILE)
        return path

    @property
    def token(self) -> str:
        return (self.home / "cluster-token").read_text().strip()

    @property
    def cluster_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def url(self, name: str) -> str:
        return self.servers[name].url

    def start_router(self, *args: str, name: str = "router") -> Server:
        """Starts a router and waits until it answers."""
        port, admin_port = free_port(), free_port()
        server = self._start(
            name,
            [
                *("-m", "router", "--port", str(port), "--admin-port", str(admin_port)),
                *self._common(),
                *args,
            ],
            f"http://127.0.0.1:{port}",
        )
        server.admin_url = f"http://127.0.0.1:{admin_port}"
        wait_until(f"{name} answers", lambda: self._answers(server, "/healthz"), timeout_s=30)
        return server

    def start_worker(self, role: str, *args: str, registry: str, name: str | None = None) -> Server:
        """Starts a worker; ``wait_ready`` waits for it."""
        port = free_port()
        return self._start(
            name or role,
            [
                *("-m", role, "--port", str(port), "--side-channel-port", str(free_port())),
                *("--registry", registry, "--worker-id", name or role),
                *self._common(),
                *args,
            ],
            f"http://127.0.0.1:{port}",
        )

    def _common(self) -> list[str]:
        return [
            *("--profile", str(self.profile), "--model", str(self.model)),
            *("--served-name", MODEL, "--home", str(self.home)),
        ]

    def _start(self, name: str, args: list[str], url: str) -> Server:
        log = self.home / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, *args],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "BATON_HOME": str(self.home), "BATON_DEVICE": "cpu"},
            )
        server = self.servers[name] = Server(name, process, log, url, args)
        return server

    def restart_router(self, name: str = "router") -> None:
        """Starts a router that was killed again, as it was, and waits until it answers."""
        before = self.servers[name]
        assert before.process.poll() is not None
        after = self._start(name, before.argv, before.url)
        after.admin_url = before.admin_url
        wait_until(f"{name} answers", lambda: self._answers(after, "/healthz"), timeout_s=30)

    def _answers(self, server: Server, path: str) -> bool:
        assert server.process.poll() is None, f"{server.name} ended:\n{server.text()[-3000:]}"
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(server.url + path, timeout=2).status_code == 200
        return False

    def status(self, router: str = "router") -> dict[str, Any]:
        """The router's admin status."""
        response = httpx.get(
            self.url(router) + "/admin/status", headers=self.cluster_headers, timeout=5
        )
        response.raise_for_status()
        result: dict[str, Any] = response.json()
        return result

    def admin(self, path: str, router: str = "router") -> dict[str, Any]:
        """What the router's admin port says of ``path``, such as ``handoffs``."""
        token = (self.home / "admin-token").read_text().strip()
        response = httpx.get(
            f"{self.servers[router].admin_url}/admin/{path}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=5,
        )
        response.raise_for_status()
        result: dict[str, Any] = response.json()
        return result

    def worker(self, name: str, router: str = "router") -> dict[str, Any] | None:
        """A worker's record, or None."""
        for entry in self.status(router)["workers"]:
            if entry["record"]["id"] == name:
                record: dict[str, Any] = entry["record"]
                return record
        return None

    def is_ready(self, *names: str, router: str = "router") -> bool:
        """Whether the router counts all of these as ready, and their pairs with ready workers."""
        for name in names:
            server = self.servers[name]
            assert server.process.poll() is None, f"{name} ended:\n{server.text()[-3000:]}"
        states = {
            e["record"]["id"]: e["record"]["state"] == "ready" and not e["suspect"]
            for e in self.status(router)["workers"]
        }
        if not all(states.get(name, False) for name in names):
            return False
        # A router uses a pair only once it has checked it itself.
        pairs = self.admin("pairs", router)["pairs"]
        return all(
            pair["state"] == "ready"
            for pair in pairs
            if {pair["prefill"], pair["decode"]} & {*names}
            and states.get(pair["prefill"])
            and states.get(pair["decode"])
        )

    def wait_ready(self, *names: str, router: str = "router", timeout_s: float = 150) -> float:
        took = wait_until(
            f"{names} ready",
            lambda: self.is_ready(*names, router=router),
            timeout_s=timeout_s,
        )
        self.remember()
        return took

    def engine_pid(self, name: str) -> int:
        """Pid of a worker's API server, which leads the engine's process group."""
        for child in psutil.Process(self.servers[name].process.pid).children():
            if "baton.engine.launch" in " ".join(child.cmdline()):
                return int(child.pid)
        raise AssertionError(f"{name} has no engine")

    def signal_engine(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to every process of a worker's engine."""
        os.killpg(self.engine_pid(name), number)

    def engine_metric(self, name: str, metric: str) -> float:
        """Sum of all samples of a metric on a worker's engine, asked directly."""
        page = httpx.get(self.url(name) + "/metrics", timeout=10).text
        return sum(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.partition("{")[0] == metric
        )

    def remember(self) -> None:
        """Notes all processes below the servers, to look for them after the end."""
        for server in self.servers.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(server.process.pid)
                self.seen_pids |= {parent.pid, *(c.pid for c in parent.children(recursive=True))}

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops one server; returns its exit status."""
        server = self.servers.pop(name)
        if server.process.poll() is None:
            self.remember()
            server.process.send_signal(number)
        try:
            return server.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait(timeout=10)
            raise AssertionError(f"{name} did not stop:\n{server.text()[-3000:]}") from None

    def close(self) -> None:
        """Stops everything and checks that nothing is left."""
        self.remember()
        problems = []
        # Workers first: they tell the router that they leave.
        for name in sorted(self.servers, key=lambda n: n.startswith("router")):
            try:
                self.stop(name)
            except AssertionError as error:
                problems.append(str(error))
        left = [pid for pid in self.seen_pids if is_alive(pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left:
            problems.append(f"processes left behind: {left}")
        assert not problems, "\n".join(problems)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.contextmanager
def open_stack(home: Path, model: Path) -> Iterator[Stack]:
    """A stack that is closed, and checked, whatever happens."""
    home.mkdir(parents=True, exist_ok=True)
    stack = Stack(home, model)
    try:
        yield stack
    except BaseException:
        for server in stack.servers.values():
            print(f"--- end of {server.log}\n{server.text()[-4000:]}", file=sys.stderr)
        raise
    finally:
        stack.close()


def first_logprob_of_stream(lines: list[str]) -> float:
    """The first token's logprob of a streamed completion's events."""
    for line in lines:
        if line.startswith("data: {"):
            choice = json.loads(line[6:])["choices"][0]
            if choice.get("logprobs"):
                return float(choice["logprobs"]["token_logprobs"][0])
    raise AssertionError("no logprob in the stream")
