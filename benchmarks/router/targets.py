"""The routers that can be measured, and how each is started.

Every router is started as its users start it, with a policy that keeps no state where it has one
(round robin), its default number of threads, and its log at warnings. A router that does not
hand over unless it is told of the workers' connector in another way (smg) is told so: what is
compared is P/D over NIXL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from baton.errors import TargetError
from baton.process import Child
from baton.settings import free_port
from benchmarks.router import ours
from benchmarks.router.figures import DIRECT, OURS
from benchmarks.router.fleet import Fleet
from benchmarks.router.records import Mode

PEERS = ("vllm-router", "smg")
NAMES = (DIRECT, *PEERS, OURS)

_FIRST_PORT = 21_000
_START_S = 40.0
_STOP_S = 1.5
# Nothing is on them when they are stopped; some would wait for a load balancer's sake.
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Choices:
    """Where the routers are, and what else they are told.

    Attributes:
        paths: executable by peer; for ours, a Python or a checkout (see ``ours.start``).
        folders: where peers are looked for before ``PATH``.
        extra: more arguments by target.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    folders: Sequence[Path] = ()
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Running:
    """A target that takes requests.

    Attributes:
        name: the target's.
        url: where requests go.
        child: the router's process; None for ``direct``.
        command: how it was started.
    """

    name: str
    url: str
    child: Child | None = None
    command: str = ""

    @property
    def said(self) -> str:
        """The last lines that it printed."""
        return "" if self.child is None else "\n".join(self.child.tail[-5:])

    @property
    def pid(self) -> int | None:
        """Root of the router's processes."""
        return None if self.child is None else self.child.pid


def find(name: str, choices: Choices) -> Path:
    """The executable of a peer.

    Raises:
        TargetError: it is not installed; the message says how to.
    """
    given = choices.paths.get(name)
    if given is not None:
        found = shutil.which(str(given))
    else:
        folders = [*map(str, choices.folders), *os.get_exec_path()]
        found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        where = f" at {given}" if given else ""
        raise TargetError(
            f"{name} is not installed{where}. Install it into any environment (pip install {name}) "
            f"and name it: --peer-bin DIR, or --path {name}=DIR/{name}"
        )
    return Path(found)


def version(name: str, executable: Path) -> str:
    """The version of a peer, as the Python beside its executable says; empty if it does not."""
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    argv = [str(executable.parent / "python"), "-c", code]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10.0, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def vllm_router_argv(
    executable: Path, mode: Mode, fleet: Fleet, port: int, metrics_port: int
) -> list[str]:
    """vllm-router, over NIXL in P/D mode."""
    argv = [str(executable), "--host", "127.0.0.1", "--port", str(port)]
    if mode is Mode.PD:
        argv += ["--vllm-pd-disaggregation", "--kv-connector", "nixl"]
        for url in fleet.prefill:
            argv += ["--prefill", url]
        for url in fleet.decode:
            argv += ["--decode", url]
    else:
        argv += ["--worker-urls", *fleet.standard]
    argv += ["--policy", "round_robin", "--log-level", "warning"]
    argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
    return [*argv, "--worker-startup-check-interval", "1"]


def smg_argv(executable: Path, mode: Mode, fleet: Fleet, port: int, metrics_port: int) -> list[str]:
    """smg; in P/D mode without workers, which are then told to it with their connector."""
    argv = [str(executable), "launch", "--host", "127.0.0.1", "--port", str(port)]
    if mode is Mode.PD:
        argv += ["--pd-disaggregation"]
    else:
        argv += ["--worker-urls", *fleet.standard]
    argv += ["--policy", "round_robin", "--backend", "vllm", "--log-level", "warn"]
    argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
    return [*argv, "--worker-startup-check-interval", "1"]


def smg_workers(fleet: Fleet) -> list[dict[str, Any]]:
    """Bodies for smg's ``POST /workers``. Its flags ``--prefill`` and ``--decode`` cannot say the
    connector over HTTP, and without it decode gets no transfer parameters."""
    connector = {"runtime_type": "vllm", "kv_connector": "NixlConnector", "kv_role": "kv_both"}
    return [
        {"url": url, "worker_type": kind, **connector}
        for kind, urls in (("prefill", fleet.prefill), ("decode", fleet.decode))
        for url in urls
    ]


@contextlib.asynccontextmanager
async def open_target(
    name: str, mode: Mode, fleet: Fleet, choices: Choices, scratch: Path
) -> AsyncIterator[Running]:
    """Starts a router, waits until it listens, and ends it with the block.

    Args:
        name: one of ``NAMES``.
        mode: how it is to serve.
        fleet: the workers.
        choices: where it is.
        scratch: a folder for its files.

    Raises:
        TargetError: it is not installed, or did not start; the message has what it printed.
    """
    if name == DIRECT:
        yield Running(name, fleet.standard[0] if mode is Mode.PLAIN else fleet.decode[0])
        return
    # Spread by pid, so that two runs on one machine rarely look at the same ports.
    port = free_port("127.0.0.1", _FIRST_PORT + os.getpid() * 7 % 20_000)
    url = f"http://127.0.0.1:{port}"
    env = dict(os.environ)
    async with contextlib.AsyncExitStack() as stack:
        if name == OURS:
            argv, more = ours.start(choices.paths.get(name), mode, port, scratch)
            env |= more
        else:
            build = vllm_router_argv if name == "vllm-router" else smg_argv
            metrics_port = free_port("127.0.0.1", port + 1)
            argv = build(find(name, choices), mode, fleet, port, metrics_port)
        argv += choices.extra.get(name, ())
        child = Child(f"{name}-{mode}", argv, env, on_line=lambda line: None)
        try:
            await child.start()
        except OSError as error:
            raise TargetError(f"{name} cannot be started: {error}") from error
        stack.push_async_callback(child.stop, grace_s=_STOP_S)
        await _until_listening(name, child, port)
        if name == OURS:
            await stack.enter_async_context(ours.registered(url, mode, fleet))
        elif name == "smg" and mode is Mode.PD:
            await _tell_smg(url, fleet)
        told = [f"PYTHONPATH={env['PYTHONPATH']}"] if "-P" in argv[:2] else []
        yield Running(name, url, child, shlex.join([*told, *argv]))


async def _until_listening(name: str, child: Child, port: int) -> None:
    ended = asyncio.create_task(child.wait(), name=f"{name}-ended")
    try:
        for _ in range(round(_START_S / _POLL_S)):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                return
            await asyncio.wait({ended}, timeout=_POLL_S)
            if ended.done():
                break
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
    raise TargetError(f"{name} did not start:\n" + "\n".join(child.tail))


async def _tell_smg(url: str, fleet: Fleet) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_START_S)) as http:
        for worker in smg_workers(fleet):
            try:
                async with http.post(f"{url}/workers", json=worker) as answer:
                    if answer.status // 100 != 2:
                        said = (await answer.text())[:300]
                        raise TargetError(f"smg refuses a worker: {answer.status} {said}")
            except (aiohttp.ClientError, TimeoutError) as error:
                raise TargetError(f"smg takes no workers: {error}") from error
