"""Checks of the machine itself: memory, limits, RDMA devices, clock, ports, Baton's own folder.

Each says what it saw with its figures. What is no fault where nobody needs it (RDMA on a laptop, a
clock on a single machine) is told as such and not as a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from baton.secrets import FILE_NAME
from deploy.doctor.findings import Check, Said, note, ok, problem, warning
from deploy.doctor.patient import Patient

_MIB, _GIB = 1024**2, 1024**3

WORKER_GIB = 1.5
"""What a small CPU worker takes, with a margin: 1.2 GiB were measured with 64 MiB of KV."""
SHM = "/dev/shm"  # noqa: S108 - the kernel's, looked at only
SHM_GPU = _GIB
"""Containers get 64 MiB unless told otherwise; the devices of a worker talk through it."""
SHM_CPU = 128 * _MIB
FILES = 4096
MEMLOCK = _GIB
"""RDMA pins what it moves: the KV cache is gibibytes, so less than this cannot be meant."""
CLOCK_S = 1.0
_IPC_LOCK = 1 << 14
_PORTS = {8000: "router", 8001: "admin API", 8100: "first worker", 5600: "NIXL handshakes"}


async def memory(patient: Patient) -> Iterable[Said]:
    """Whether there is memory for a worker, by the machine and by the container's limit."""
    available = _field(patient.machine.text("/proc/meminfo"), "MemAvailable")
    if available is None:
        return [note("memory: /proc/meminfo does not say")]
    limit, used = _memory_limit(patient)
    if limit is not None and limit - used < available:
        available, of = limit - used, f" left of the container's {_size(limit)}"
    else:
        total = _field(patient.machine.text("/proc/meminfo"), "MemTotal") or available
        of = f" free of {_size(total)}"
    seen = f"{_size(available)}{of}"
    if available < WORKER_GIB * _GIB:
        return [
            warning(
                f"{seen}; a small CPU worker takes {WORKER_GIB} GiB",
                "end what else runs, or raise the container's memory limit",
            )
        ]
    return [ok(seen)]


async def cores(patient: Patient) -> Iterable[Said]:
    """Cores that engines and router share."""
    count: float = patient.machine.cores()
    quota = (patient.machine.text("/sys/fs/cgroup/cpu.max") or "max").split()
    seen = f"{count:g} cores"
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        allowed = int(quota[0]) / int(quota[1])
        if allowed < count:
            count, seen = allowed, f"{allowed:g} of {count:g} cores by the container's limit"
    if count < 2:
        return [
            warning(
                f"{seen}: a prefill and a decode worker will take turns",
                "give the machine or the container two cores at least",
            )
        ]
    return [ok(seen)]


async def shm(patient: Patient) -> Iterable[Said]:
    """Size of /dev/shm, through which ranks of a worker and UCX on one host talk."""
    room = patient.machine.room(SHM)
    if room is None:
        return [problem(f"{SHM} is not there", "mount a tmpfs there; engines need shared memory")]
    total, free = room
    seen = f"{SHM}: {_size(free)} free of {_size(total)}"
    todo = (
        "in a container: --shm-size 1g or more; in a pod: an emptyDir with medium Memory at "
        "/dev/shm, as `baton deploy render` makes it"
    )
    if total < (SHM_GPU if patient.gpus else SHM_CPU):
        if patient.ranks > 1:
            return [problem(f"{seen}, too little for {patient.ranks} devices a worker", todo)]
        return [warning(seen, todo)]
    return [ok(seen)]


async def limits(patient: Patient) -> Iterable[Said]:
    """Open files, and locked memory where RDMA is."""
    machine = patient.machine
    said: list[Said] = []
    files = machine.limit("nofile")
    shown = "unlimited" if files is None else str(files)
    if files is not None and files < FILES:
        said.append(
            warning(
                f"open files: {shown}; each stream of a router takes two",
                f"ulimit -n {16 * FILES} (LimitNOFILE= in a systemd unit)",
            )
        )
    else:
        said.append(ok(f"open files: {shown}"))
    locked = machine.limit("memlock")
    shown = "unlimited" if locked is None else _size(locked)
    status = machine.text("/proc/self/status") or ""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    free_of_it = found is not None and bool(int(found[1], 16) & _IPC_LOCK)
    if not rdma_devices(patient):
        said.append(ok(f"locked memory: {shown}, of no matter without RDMA"))
    elif locked is None or free_of_it:
        said.append(ok(f"locked memory: {'unlimited' if locked is None else 'by IPC_LOCK'}"))
    elif locked < MEMLOCK:
        said.append(
            (problem if patient.rdma else warning)(
                f"locked memory: {shown}; RDMA pins the whole KV cache, and registering it fails",
                "ulimit -l unlimited (LimitMEMLOCK=infinity for the container runtime), or the "
                "capability IPC_LOCK for a pod that runs as root",
            )
        )
    else:
        said.append(ok(f"locked memory: {shown}"))
    return said


def rdma_devices(patient: Patient) -> list[str]:
    """RDMA adapters, as the kernel lists them."""
    return patient.machine.names("/sys/class/infiniband")


async def rdma(patient: Patient) -> Iterable[Said]:
    """RDMA adapters: link, speed, addresses, and whether we may use them."""
    machine = patient.machine
    devices = rdma_devices(patient)
    if not devices:
        if patient.rdma:
            return [
                problem(
                    "no RDMA device, and the profile's transfer.transport is rdma",
                    "in a pod: the RDMA resource of the site; on a machine: the adapter's driver "
                    "(`rdma link` shows devices); or transport: auto",
                )
            ]
        return [ok("no RDMA device; KV travels over TCP between machines")]
    said: list[Said] = []
    usable = False
    for device in devices:
        for port in machine.names(f"/sys/class/infiniband/{device}/ports"):
            good, words = _port(patient, device, port)
            usable = usable or good is None
            said.append(ok(words) if good is None else warning(words, good))
    if not any(name.startswith("uverbs") for name in machine.names("/dev/infiniband")):
        said.append(
            (problem if patient.rdma else warning)(
                f"{', '.join(devices)} seen, but /dev/infiniband has no uverbs: no process here "
                "can use them",
                "in a pod: ask for the RDMA resource of the site; in a container: "
                "--device /dev/infiniband",
            )
        )
    elif patient.rdma and not usable:
        said.append(
            problem("no RDMA port is usable, and the profile asks for rdma", "see the lines above")
        )
    return said


def _port(patient: Patient, device: str, port: str) -> tuple[str | None, str]:
    """What is to be done for a port (None: nothing), and what was seen."""
    machine, at = patient.machine, f"/sys/class/infiniband/{device}/ports/{port}"

    def value(name: str) -> str:
        return (machine.text(f"{at}/{name}") or "").strip()

    state, link = value("state").partition(":")[2].strip(), value("link_layer")
    indexes = [
        index
        for index in machine.names(f"{at}/gids")
        if (machine.text(f"{at}/gids/{index}") or "").strip().replace(":", "").strip("0")
    ]
    seen = f"{device}:{port} {state or 'state unknown'}, {value('rate') or 'rate unknown'}, {link}"
    if state != "ACTIVE":
        return "bring its link up: cable, switch port, `ip link set ... up`", seen
    if link == "Ethernet":
        kinds = {(machine.text(f"{at}/gid_attrs/types/{index}") or "").strip() for index in indexes}
        if not indexes:
            return "give its network interface an IP address, from which RoCE makes a GID", (
                f"{seen} without a GID"
            )
        if "RoCE v2" not in kinds:
            return "enable RoCE v2 on the adapter; RoCE v1 is not routed between subnets", (
                f"{seen} without RoCE v2"
            )
    return None, f"{seen}, {len(indexes)} GIDs"


async def gpudirect(patient: Patient) -> Iterable[Said]:
    """Whether an RDMA adapter can read a GPU's memory by itself."""
    machine = patient.machine
    if not patient.gpus or not rdma_devices(patient):
        return []
    modules = {line.split(" ", 1)[0] for line in (machine.text("/proc/modules") or "").splitlines()}
    if "nvidia_peermem" in modules:
        return [ok("nvidia_peermem is loaded: RDMA reads GPU memory by itself")]
    driver = machine.text("/proc/driver/nvidia/version") or ""
    kernel = re.match(r"(\d+)\.(\d+)", machine.text("/proc/sys/kernel/osrelease") or "")
    recent = kernel is not None and (int(kernel[1]), int(kernel[2])) >= (5, 12)
    if recent and "Open Kernel Module" in driver:
        return [ok("open GPU kernel modules: RDMA reads GPU memory through DMA-BUF")]
    return [
        warning(
            "neither nvidia_peermem nor DMA-BUF (open GPU kernel modules on Linux 5.12 or later): "
            "KV takes the way through host memory",
            "modprobe nvidia_peermem on the node (GPU operator: driver.rdma.enabled=true)",
        )
    ]


async def amx(patient: Patient) -> Iterable[Said]:
    """Whether engines on CPU may use the AMX tiles that vLLM uses without asking."""
    if patient.gpus or "amx_tile" not in (patient.machine.text("/proc/cpuinfo") or ""):
        return []
    if patient.machine.may_use_amx():
        return [ok("AMX: the kernel grants it to those who ask, and Baton's engines ask")]
    return [
        problem(
            "AMX: the CPU has it, and the kernel does not grant it: engines die with SIGILL",
            "use Linux 5.16 or later, and let the seccomp profile pass arch_prctl",
        )
    ]


async def clock(patient: Patient) -> Iterable[Said]:
    """Whether something keeps the clock."""
    state = patient.machine.clock()
    if state is None:
        return [note("clock: the kernel does not say whether anybody keeps it")]
    if not state.synchronised:
        return [
            note(
                "clock: nothing in this kernel keeps it (a hypervisor may); of no matter on a "
                "single machine",
                "before you join machines: run chrony or systemd-timesyncd, and compare with "
                "--peer",
            )
        ]
    if state.error_s > CLOCK_S:
        return [
            warning(
                f"clock: kept, but it may be {state.error_s:.1f} s off",
                "look at the time service's sources: chronyc sources, timedatectl timesync-status",
            )
        ]
    return [ok(f"clock: kept, at most {1000 * state.error_s:.0f} ms off")]


async def ports(patient: Patient) -> Iterable[Said]:
    """Whether the ports that `baton up` begins with are free."""
    taken = [port for port in _PORTS if not patient.machine.port_free(port)]
    if not taken:
        return [ok("ports 8000, 8001, 8100 and 5600 are free")]
    names = ", ".join(f"{port} ({_PORTS[port]})" for port in taken)
    if patient.running:
        return [ok(f"ports {names} are taken; {patient.running}")]
    return [
        note(
            f"ports {names} are taken by other programs",
            "nothing for `baton up`, which takes the next ones; separate processes need --port",
        )
    ]


async def home(patient: Patient) -> Iterable[Said]:
    """Baton's folder, its room, and who may read the cluster token."""
    machine, folder = patient.machine, str(patient.home)
    if not machine.writable(folder):
        return [
            problem(f"{folder} cannot be written to", "chown it, or name another with BATON_HOME")
        ]
    said: list[Said] = []
    token = f"{folder}/{FILE_NAME}"
    mode = machine.mode(token)
    if mode is not None and mode & 0o077:
        said.append(
            problem(
                f"{token} can be read by others (mode {mode:04o}); workers and routers refuse it",
                f"chmod 600 {token}",
            )
        )
    room = machine.room(folder) or machine.room(str(patient.home.parent))
    if room is not None and room[1] < _GIB:
        said.append(
            warning(f"{folder}: {_size(room[1])} free", "make room: logs and models lie there")
        )
    if said:
        return said
    return [
        ok(
            f"{folder} can be written to"
            + (", its token is ours alone" if mode is not None else "")
        )
    ]


async def compiled(patient: Patient) -> Iterable[Said]:
    """Whether the router's compiled modules are those of its sources."""
    stale = patient.stale()
    if stale is None:
        return [note("the router runs as plain Python", "`make compiled` in a checkout, for speed")]
    if stale:
        some = ", ".join(stale[:3]) + (", ..." if len(stale) > 3 else "")
        return [
            warning(
                f"{len(stale)} compiled modules are older than their sources ({some}); the old "
                "code runs",
                "make compiled",
            )
        ]
    return [ok("the router's hot modules are compiled, from the sources that are there")]


_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def _memory_limit(patient: Patient) -> tuple[int | None, int]:
    """The container's limit and what it uses, in bytes; cgroups of both versions. File pages that
    the kernel would give up count as free, as the kubelet counts them."""
    for folder, limit, used, cached in _CGROUPS:
        text = (patient.machine.text(f"{folder}/{limit}") or "").strip()
        if not text.isdigit():
            continue
        now = (patient.machine.text(f"{folder}/{used}") or "0").strip()
        stat = patient.machine.text(f"{folder}/memory.stat") or ""
        found = re.search(rf"^{cached} (\d+)$", stat, re.MULTILINE)
        taken = (int(now) if now.isdigit() else 0) - (int(found[1]) if found else 0)
        return int(text), max(0, taken)
    return None, 0


def _field(text: str | None, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", text or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.0f} MiB"


HOST_CHECKS: tuple[Check[Patient], ...] = (
    Check("cores", "cores that processes may use", cores),
    Check("memory", "memory that is free", memory),
    Check("shm", "shared memory", shm),
    Check("limits", "open files and locked memory", limits),
    Check("rdma", "RDMA devices", rdma),
    Check("gpudirect", "RDMA from GPU memory", gpudirect),
    Check("amx", "permission for AMX", amx),
    Check("clock", "who keeps the clock", clock),
    Check("ports", "ports that Baton begins with", ports),
    Check("home", "Baton's folder and token", home),
    Check("compiled", "the router's compiled modules", compiled),
)
