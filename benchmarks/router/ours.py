"""How Baton's router is started here: as users start it, with a profile file and workers that
register themselves.

All that is known of its flags, its registry and its profile stands in this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from baton.registrar import HEARTBEAT_S, HttpRegistrar, heartbeat_loop
from baton.secrets import VALUE_ENV
from baton.types import EngineId, KvGeometry, Limits, Role, WorkerId, WorkerRecord, WorkerState
from benchmarks.router.book import BLOCK_TOKENS
from benchmarks.router.fleet import Fleet
from benchmarks.router.records import Mode
from benchmarks.router.text import MODEL
from benchmarks.router.worker import engine_id

THRESHOLD_TOKENS = 64
"""From here on a prompt is handed over; the benchmark's prompts are longer."""

_TOKEN = secrets.token_urlsafe(24)
"""The cluster token of this run."""

_PD_PROFILE = f"""\
apiVersion: baton/v1
kind: ServingProfile
metadata: {{name: router-benchmark-pd}}
spec:
  mode: disaggregated
  model: {{source: demo, served_name: {MODEL}}}
  classify: {{threshold_tokens: {THRESHOLD_TOKENS}}}
  pools:
    prefill: {{accelerator: nvidia-l4}}
    decode: {{accelerator: nvidia-l4}}
  transfer: {{block_size: {BLOCK_TOKENS}}}
"""
_PLAIN_PROFILE = f"""\
apiVersion: baton/v1
kind: ServingProfile
metadata: {{name: router-benchmark}}
spec:
  mode: standard
  model: {{source: demo, served_name: {MODEL}}}
  pools:
    standard: {{accelerator: nvidia-l4}}
"""


def start(
    place: Path | None, mode: Mode, port: int, scratch: Path
) -> tuple[list[str], dict[str, str]]:
    """The command and what it needs of the environment. Writes the profile.

    Everything that is not said here is the default: what is measured has its features on.

    Args:
        place: a Python with Baton in it, or the folder of another checkout; None takes this
            process's own.
        mode: how it is to serve.
        port: where it is to listen, on the loopback.
        scratch: a folder for its files.
    """
    profile = scratch / f"{mode}.yaml"
    profile.write_text(_PD_PROFILE if mode is Mode.PD else _PLAIN_PROFILE)
    env = {VALUE_ENV: _TOKEN}
    if place is not None and place.is_dir():
        # -P leaves out the current folder, which may be a checkout as well.
        argv = [sys.executable, "-P"]
        env["PYTHONPATH"] = str(place.resolve())
    else:
        argv = [str(place or sys.executable)]
    argv += ["-m", "router", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--profile", str(profile), "--store", "memory://", "--home", str(scratch)]
    return argv, env


@contextlib.asynccontextmanager
async def registered(url: str, mode: Mode, fleet: Fleet) -> AsyncIterator[None]:
    """Registers the workers with the router and keeps them known while the block runs.

    Args:
        url: where the router's registry listens.
        mode: whose workers.
        fleet: all workers.
    """
    stop = asyncio.Event()
    registrars, hearts = [], []
    for each in records(mode, fleet):
        registrar = HttpRegistrar(url, _TOKEN)
        registrars.append(registrar)
        # Known before any request is sent.
        await registrar.heartbeat(each)
        hearts.append(asyncio.create_task(_beat(registrar, each, stop), name=f"heart-{each.id}"))
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*hearts, return_exceptions=True)
        for registrar in registrars:
            await registrar.close()


async def _beat(registrar: HttpRegistrar, record: WorkerRecord, stop: asyncio.Event) -> None:
    async def now() -> WorkerRecord:
        return msgspec.structs.replace(record, heartbeat_s=time.time())

    await heartbeat_loop(registrar, now, interval_s=HEARTBEAT_S, stop=stop, wake=asyncio.Event())


def records(mode: Mode, fleet: Fleet) -> list[WorkerRecord]:
    """What the workers of a mode say of themselves."""
    if mode is Mode.PLAIN:
        return [_record(Role.STANDARD, i, url, fleet) for i, url in enumerate(fleet.standard)]
    return [
        *(_record(Role.PREFILL, i, url, fleet) for i, url in enumerate(fleet.prefill)),
        *(_record(Role.DECODE, i, url, fleet) for i, url in enumerate(fleet.decode)),
    ]


def _record(role: Role, number: int, url: str, fleet: Fleet) -> WorkerRecord:
    return WorkerRecord(
        id=WorkerId(f"{role}-{number}"),
        role=role,
        url=url,
        state=WorkerState.READY,
        model=MODEL,
        model_digest="sha256:" + "0" * 64,
        engine_id=EngineId(engine_id(role, number)),
        geometry=KvGeometry(
            layers=32,
            kv_heads=8,
            head_size=128,
            dtype="bfloat16",
            block_size=BLOCK_TOKENS,
            bytes_per_token=131_072,
        ),
        limits=Limits(max_model_len=131_072, slots=256),
        accelerator="cpu",
        node="bench",
        profile="router-benchmark",
        profile_version="1",
        started_s=time.time(),
        heartbeat_s=time.time(),
        tokenizer_path=str(fleet.tokenizer),
        engine_version="0.32.0",
    )
