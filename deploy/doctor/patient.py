"""The machine that is examined, and what it is wanted for."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.engine import Device
from deploy.doctor.machine import Machine
from kvtransfer.probe import SECRET_ENV
from profiles import ServingProfile, TransferSpec, Transport
from profiles.worker_plan import ucx_transports

AGENT_S = 60.0
"""For making one agent: libraries come from a cold disk at first."""


@dataclass(eq=False)
class Patient:
    """What checks of a machine get.

    Attributes:
        machine: to be asked.
        device: what engines compute on here.
        profile: what should be served; None where nobody said.
        home: Baton's folder.
        secret: what both ends of a pull prove to each other; the cluster token between machines.
        peer: host and port of a ``baton doctor serve``, or None.
        stale: compiled modules that are older than their sources; None where nothing is compiled.
        running: what Baton itself runs here, in words; empty for nothing.
        forced: whether the device was set by ``BATON_DEVICE``.
    """

    machine: Machine
    device: Device
    profile: ServingProfile | None
    home: Path
    secret: str
    peer: tuple[str, int] | None = None
    stale: Callable[[], list[str] | None] = lambda: None
    running: str = ""
    forced: bool = False
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _agent: Mapping[str, Any] | None = field(default=None, init=False)

    @property
    def gpus(self) -> list[str]:
        """NVIDIA devices that the driver has."""
        return self.machine.names("/proc/driver/nvidia/gpus")

    @property
    def rdma(self) -> bool:
        """Whether the profile insists on RDMA."""
        return self.profile is not None and self.transport is Transport.RDMA

    @property
    def transport(self) -> Transport:
        """The profile's; ``auto`` where nobody said."""
        return self.profile.spec.transfer.transport if self.profile else Transport.AUTO

    @property
    def ranks(self) -> int:
        """The most devices that one worker of the profile has on one machine."""
        if self.profile is None:
            return 1
        pools = self.profile.spec.pools.by_role.values()
        return max((pool.devices // pool.nodes for pool in pools), default=1)

    @property
    def floor(self) -> float | None:
        """Bandwidth that a pair of the profile must reach, in bytes per second."""
        if self.profile is None or self.profile.spec.transfer.floor_mib_per_s is None:
            return None
        return self.profile.spec.transfer.floor_mib_per_s * 1024**2

    def ucx(self, transport: Transport | None = None) -> Mapping[str, str]:
        """The environment by which Baton tells UCX the transport; the profile's without one."""
        value = ucx_transports(TransferSpec(transport=transport or self.transport), self.device)
        return {} if value is None else {"UCX_TLS": value}

    async def agent(self) -> Mapping[str, Any]:
        """What ``kvtransfer.probe`` says of a NIXL agent; asked once, whoever asks first."""
        async with self._asking:
            if self._agent is None:
                self._agent = await self.probe(["agent"], env=self.ucx(), limit_s=AGENT_S)
            return self._agent

    @property
    def cuda(self) -> list[str]:
        """The flag by which a probe moves GPU memory, where engines compute on GPUs."""
        return ["--cuda"] if self.device is Device.CUDA and self.gpus else []

    @staticmethod
    def probe_argv(*arguments: str) -> list[str]:
        """The command of a probe."""
        return [sys.executable, "-m", "kvtransfer.probe", *arguments]

    async def probe(
        self, arguments: list[str], *, env: Mapping[str, str], limit_s: float
    ) -> Mapping[str, Any]:
        """Runs ``kvtransfer.probe``; its answer, or one with an ``error``."""
        ran = await self.machine.run(
            self.probe_argv(*arguments),
            env={**env, SECRET_ENV: self.secret},
            limit_s=limit_s,
        )
        return answer(ran.out, ran.err, ran.status)


def answer(out: str, err: str, status: int | None) -> Mapping[str, Any]:
    """The last line of a probe's answer that is an object; what happened instead as ``error``."""
    for line in reversed(out.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    said = err.strip().splitlines()
    how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
    return {"error": f"it ended with {how}" + (f": {said[-1][:300]}" if said else "")}
