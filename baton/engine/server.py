"""Keeps one vLLM server alive: starts it, proves that it generates, watches it, restarts it.

A worker is ready only after a real generation, since an engine's health endpoint says nothing of
its model. What this module does not do: talk to routers, or know what a profile is.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from baton.clock import Clock, SystemClock
from baton.engine.facts import kv_transport, stated_version
from baton.engine.spec import EngineSpec, command, environment
from baton.errors import EngineStartError
from baton.process import Backoff, Child
from baton.types import EngineId, Load, WorkerState

_POLL_S = 0.25
_WATCH_S = 1.0
_ANSWER_S = 2.0
"""For a health or metrics page; a healthy engine takes milliseconds."""
_PROBE_TIMEOUT_S = 120.0
"""The first generation on a busy small machine may compile or page in; later ones take less."""

_HOPELESS_FAILURES = 5
"""Engines in a row that never generated. The pauses between them add up to 15 s: long enough for a
port or memory of the one before to come free."""

_NO_ENGINE = EngineId("")
_NO_LOAD = Load()

MakeSpec = Callable[[EngineId, Path], EngineSpec]


@dataclasses.dataclass(frozen=True, slots=True)
class EngineHealth:
    """What the supervisor knows of its engine now.

    Attributes:
        state: STARTING, WARMING or READY; draining is the worker's business.
        engine_id: id of the current run, empty before the first.
        load: read from the engine's metrics about once a second.
        load_read_s: when, on the monotonic clock.
        max_model_len: tokens of prompt plus answer, as the engine says; 0 before it is up.
        restarts: how often it had to be started again.
        last_error: why the last run ended, or None.
        kv_events_url: where the current run publishes its KV events; empty when it does not.
        transport: what the current run's KV travels over; empty when UCX decides.
        version: vLLM's; empty before it is up.
    """

    state: WorkerState = WorkerState.STARTING
    engine_id: EngineId = _NO_ENGINE
    load: Load = _NO_LOAD
    load_read_s: float = 0.0
    max_model_len: int = 0
    restarts: int = 0
    last_error: str | None = None
    kv_events_url: str = ""
    transport: str = ""
    version: str = ""


class Engine:
    """Supervises one engine.

    Args:
        name: for logs.
        make_spec: builds the spec of a run from a fresh engine id and a private folder.
        on_change: called after every change of state; must not block.
        clock: for the back-off.
        start_timeout_s: from the process's start to a healthy answer; loading a large model
            takes many minutes, so the bound is there only for an engine that never comes.
        silent_after_s: without an answer for so long the engine is no longer called ready.
        hung_after_s: without an answer for so long it is killed and started again.
        stop_grace_s: from SIGTERM to SIGKILL.
        only_run: the engine id of the one run there will be, or None to start engines one after
            the other under fresh ids. An engine that spans nodes cannot be started again on one
            of them alone; it is ended at the first sign that a part of it is dead.
    """

    def __init__(
        self,
        name: str,
        make_spec: MakeSpec,
        *,
        on_change: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
        start_timeout_s: float = 1800.0,
        silent_after_s: float = 3.0,
        hung_after_s: float = 60.0,
        stop_grace_s: float = 15.0,
        only_run: EngineId | None = None,
    ) -> None:
        self.health = EngineHealth()
        self._name = name
        self._make_spec = make_spec
        self._on_change = on_change
        self._clock = clock or SystemClock()
        self._start_timeout_s = start_timeout_s
        self._silent_after_s = silent_after_s
        self._hung_after_s = hung_after_s
        self._stop_grace_s = stop_grace_s
        self._only_run = only_run
        self._log = logging.getLogger(f"baton.engine.{name}")
        self._backoff = Backoff()
        self._child: Child | None = None
        self._failures = 0
        self._unready_s = self._clock.monotonic_s()

    @property
    def pid(self) -> int | None:
        """Pid of the API server process, which is its process group as well."""
        return self._child.pid if self._child else None

    def update(self, **changes: object) -> None:
        """Replaces fields of ``health`` and reports a change of state."""
        before = self.health
        if changes.get("state") is WorkerState.READY:
            self._failures, self._unready_s = 0, self._clock.monotonic_s()
        self.health = dataclasses.replace(before, **changes)  # type: ignore[arg-type]
        if (before.state, before.engine_id) != (self.health.state, self.health.engine_id):
            self._log.info("engine is %s", self.health.state)
            self._on_change()

    def hopeless(self) -> bool:
        """Whether engines fail again and again, none of them ready in between: several in a row, or
        for as long as a single one may take to start. It goes on trying all the same."""
        unready_s = self._clock.monotonic_s() - self._unready_s
        return self._failures >= _HOPELESS_FAILURES or (
            self._failures > 0 and unready_s > self._start_timeout_s
        )

    def kill(self) -> None:
        """Ends the engine at once: for one that has lost a part of itself, whose orderly end would
        wait for that part. ``run`` then notices that it ended.

        SIGKILL to its first process only. The others die with it, by the plug-in, and the one that
        takes shared memory away is left the moment that it needs.
        """
        child = self._child
        if child is not None and child.pid is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)

    async def run(self, stop: asyncio.Event) -> None:
        """Runs engines one after the other until ``stop`` is set; then leaves none running.

        With ``only_run`` it also ends when that run has; ``health.last_error`` says why.
        """
        remove_stale_run_dirs()
        async with aiohttp.ClientSession() as http:
            while not stop.is_set():
                began_s = self._clock.monotonic_s()
                error = await self._one_run(http, stop)
                if stop.is_set():
                    return
                if self._only_run is not None:
                    self.update(state=WorkerState.STARTING, load=Load(), last_error=error)
                    return
                self._failures += 1
                pause_s = self._backoff.next_delay_s(self._clock.monotonic_s() - began_s)
                self.update(
                    state=WorkerState.STARTING,
                    load=Load(),
                    restarts=self.health.restarts + 1,
                    last_error=error,
                )
                self._log.error("%s; starting it again in %.1f s", error, pause_s)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause_s)

    async def _one_run(self, http: aiohttp.ClientSession, stop: asyncio.Event) -> str:
        """One engine from start to end. Returns why it ended, in words."""
        engine_id = self._only_run or EngineId(uuid.uuid4().hex)
        run_dir = Path(tempfile.mkdtemp(prefix=f"{run_dir_prefix()}{os.getpid()}-"))
        spec = self._make_spec(engine_id, run_dir)
        env = environment(spec, os.environ)
        child = Child(
            self._name,
            command(spec),
            env,
            on_line=self._log_line,
        )
        self._child = child
        try:
            await child.start()
            self.update(
                state=WorkerState.STARTING,
                engine_id=engine_id,
                load=Load(),
                kv_events_url=spec.kv_events_url,
                transport=kv_transport(env.get("UCX_TLS")),
            )
            died = asyncio.create_task(child.wait(), name=f"wait-{self._name}")
            watch = asyncio.create_task(self._watch(http, spec), name=f"watch-{self._name}")
            stopping = asyncio.create_task(stop.wait(), name=f"stop-{self._name}")
            tasks = {died, watch, stopping}
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    return "stopped"
                if died.done():
                    last = child.tail[-1] if child.tail else "no output"
                    return f"the engine ended with status {died.result()} ({last})"
                if self._only_run is not None:
                    self.kill()
                return str(watch.exception())
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            # Shielded: an engine must be gone even when the supervisor is being cancelled.
            await asyncio.shield(child.stop(grace_s=self._stop_grace_s))
            shutil.rmtree(run_dir, ignore_errors=True)

    async def _watch(self, http: aiohttp.ClientSession, spec: EngineSpec) -> None:
        """Waits for health, proves a generation, then reads the load until the engine is hung.

        Raises:
            EngineStartError: not healthy within the time limit, no generation, or hung.
        """
        if spec.headless:
            # It has nothing that answers: how it is, only its leader can tell.
            await asyncio.get_running_loop().create_future()
        deadline_s = self._clock.monotonic_s() + self._start_timeout_s
        while await _get(http, f"{spec.local_url}/health", timeout_s=_ANSWER_S) is None:
            if self._clock.monotonic_s() > deadline_s:
                raise EngineStartError(
                    f"the engine was not healthy after {self._start_timeout_s:.0f} s"
                )
            await asyncio.sleep(_POLL_S)
        self.update(state=WorkerState.WARMING)
        await self._generate(http, spec)
        max_model_len = await self._max_model_len(http, spec)
        version = await _get(
            http, f"{spec.local_url}/version", timeout_s=_ANSWER_S, headers=_authorized(spec)
        )
        self.update(
            state=WorkerState.READY, max_model_len=max_model_len, version=stated_version(version)
        )
        heard_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(_WATCH_S)
            text = await _get(http, f"{spec.local_url}/metrics", timeout_s=_ANSWER_S)
            now_s = self._clock.monotonic_s()
            if text is not None:
                heard_s = now_s
                if self.health.state is not WorkerState.READY:
                    await self._generate(http, spec)
                self.update(state=WorkerState.READY, load=parse_load(text), load_read_s=now_s)
            elif self._only_run is not None and await _is_closed(spec):
                # vLLM closes its port when its engine is dead, and then takes seconds to leave.
                raise EngineStartError("the engine closed its port")
            elif now_s - heard_s > self._hung_after_s:
                raise EngineStartError(f"the engine gave no answer for {self._hung_after_s:.0f} s")
            elif now_s - heard_s > self._silent_after_s:
                self.update(state=WorkerState.WARMING)

    async def _generate(self, http: aiohttp.ClientSession, spec: EngineSpec) -> None:
        body = {
            "model": spec.served_name,
            "prompt": "Ready, steady,",
            "max_tokens": 2,
            "min_tokens": 1,
            "temperature": 0,
        }
        try:
            async with http.post(
                f"{spec.local_url}/v1/completions",
                json=body,
                headers=_authorized(spec),
                timeout=aiohttp.ClientTimeout(total=_PROBE_TIMEOUT_S),
            ) as response:
                answer = await response.json()
                if response.status != 200 or answer["usage"]["completion_tokens"] < 1:
                    raise EngineStartError(f"the engine's first generation failed: {answer}")
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise EngineStartError(f"the engine's first generation failed: {error!r}") from error

    async def _max_model_len(self, http: aiohttp.ClientSession, spec: EngineSpec) -> int:
        url = f"{spec.local_url}/v1/models"
        text = await _get(http, url, timeout_s=10.0, headers=_authorized(spec))
        try:
            return int(json.loads(text or "")["data"][0]["max_model_len"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EngineStartError("the engine does not say its max_model_len") from error

    def _log_line(self, line: str) -> None:
        self._log.log(_line_level(line), "%s", line)


def _authorized(spec: EngineSpec) -> dict[str, str]:
    return {"Authorization": f"Bearer {spec.api_key}"}


async def _get(
    http: aiohttp.ClientSession,
    url: str,
    *,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
) -> str | None:
    """The body of a 200, or None for anything else."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with http.get(url, timeout=timeout, headers=headers) as response:
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


async def _is_closed(spec: EngineSpec) -> bool:
    """Whether nobody listens on the engine's port, at any of its addresses; a busy engine still
    does."""
    url = urlsplit(spec.local_url)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_ANSWER_S):
            found = await loop.getaddrinfo(url.hostname, url.port, type=socket.SOCK_STREAM)
            for address in {each[4][0] for each in found}:
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection(str(address), url.port)
                    writer.close()
                    return False
    except (OSError, TimeoutError):
        return False
    return True


_GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
}


def parse_load(metrics_text: str) -> Load:
    """Sums the three gauges of a worker's load over all engines of a vLLM ``/metrics`` page.

    A plain scan: a full parse of the page costs about 10 ms, each second, on each worker.
    """
    sums = {"running": 0.0, "waiting": 0.0, "kv_usage": 0.0}
    for line in metrics_text.splitlines():
        name = line.partition("{")[0]
        field = _GAUGES.get(name)
        if field is not None:
            sums[field] += float(line.rpartition(" ")[2])
    return Load(
        running=int(sums["running"]), waiting=int(sums["waiting"]), kv_usage=sums["kv_usage"]
    )


_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")


def _line_level(line: str) -> int:
    """The level that vLLM gave a line; its INFO is our DEBUG, since it speaks a lot."""
    found = _LEVEL.search(line[:80])
    if found is None:
        return logging.DEBUG
    level = logging.getLevelName(found.group(1))
    return level if isinstance(level, int) and level > logging.INFO else logging.DEBUG


def run_dir_prefix() -> str:
    """How run folders of this host begin; a pid and something random follow.

    The host is part of it because containers that share a temporary folder do not share pids. It
    is short because a socket's path may have about 100 characters in all.
    """
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    return f"baton-{host}-"


def remove_stale_run_dirs() -> None:
    """Removes run folders of this host whose owner is dead: a killed supervisor could not."""
    prefix = run_dir_prefix()
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*-*"):
        owner = folder.name.removeprefix(prefix).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
