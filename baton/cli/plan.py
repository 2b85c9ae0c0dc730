"""What ``baton up`` starts: one router and the workers of a profile's pools, as commands.

Pure: from a profile, a model folder, ports and devices to argument lists and environments. Whether
ports are free or engines installed is found out elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baton.cli.ports import PortPicker
from baton.errors import SettingsError
from baton.settings import ADMIN_PORT
from baton.types import Role
from profiles import PoolSpec, ServingProfile, with_overrides

WORKER_HOST = "127.0.0.1"
"""Engines listen on loopback only: clients come in through the router."""

_KEPT = frozenset(
    {
        "BATON_ADMIN_TOKEN",
        "BATON_ADMIN_TOKEN_FILE",
        "BATON_CLUSTER_TOKEN",
        "BATON_CLUSTER_TOKEN_FILE",
        "BATON_DEVICE",
        "BATON_NODE_NAME",
    }
)
"""The settings of ours that children inherit. All others are meant for this process: a BATON_PORT
or BATON_ROLE that every child obeyed would be a riddle to whoever set it."""

_MODULES = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.STANDARD: "decode"}

_GPU_SHARE = 0.9
"""What an engine takes of a GPU's memory where the profile does not say: vLLM's default."""
_GPU_WHOLE = 0.95
"""What engines that share a GPU may take together; the rest goes to CUDA contexts."""


@dataclass(frozen=True, slots=True)
class Process:
    """One child.

    Attributes:
        name: ``router``, or ROLE-NUMBER, which is also the worker's id and its log's name.
        role: what a worker does; None for the router.
        argv: the command.
        env: its whole environment.
        url: where it answers, for callers on this machine.
    """

    name: str
    role: Role | None
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    url: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is started.

    Attributes:
        profile: what all of them make of the profile they are given, its version included.
        router: started first and stopped first.
        workers: in the order prefill, decode, standard.
        router_grace_s: seconds from SIGTERM to SIGKILL of the router.
        worker_grace_s: the same of a worker, whose drain waits for answers and offered handoffs.
        admin_url: where the router's admin API answers, for callers on this machine.
    """

    profile: ServingProfile
    router: Process
    workers: tuple[Process, ...]
    router_grace_s: float = 30.0
    worker_grace_s: float = 60.0
    admin_url: str = ""

    @property
    def processes(self) -> tuple[Process, ...]:
        """The router and the workers."""
        return (self.router, *self.workers)


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asked ``baton up`` for; None where they did not.

    Attributes:
        profile_ref: name or absolute path of the profile, as children are to resolve it.
        profile: the same, resolved, with model and served name replaced where that was asked for.
        host: address of the router.
        port, worker_port, side_channel_port: asked for, or None for the defaults.
        home: Baton's folder.
        log_level: of all children.
        cpu_threads: compute threads of one CPU engine.
        gpus: the GPUs of this machine as CUDA_VISIBLE_DEVICES names them; empty leaves the
            choice to the engines.
        admin_port: of the router's admin API; asked for, or None for the default.
    """

    profile_ref: str
    profile: ServingProfile
    host: str
    port: int | None
    worker_port: int | None
    side_channel_port: int | None
    home: Path
    log_level: str
    cpu_threads: int
    gpus: tuple[str, ...] = ()
    admin_port: int | None = None


@dataclass(frozen=True, slots=True)
class WorkerSeat:
    """One worker's name, role, ports and GPUs; ``gpus`` empty for whatever it finds."""

    name: str
    role: Role
    port: int
    side_channel_port: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seating:
    """Where everybody sits: the router's two ports and the workers' seats."""

    port: int
    admin_port: int
    workers: tuple[WorkerSeat, ...]


def seat(wish: Wish, picker: PortPicker, *, defaults: tuple[int, int, int]) -> Seating:
    """Chooses all ports and devices.

    Args:
        wish: what was asked for.
        picker: finds free ports.
        defaults: ports of the router, the first worker and the first side channel; the admin API's
            is looked for from ``ADMIN_PORT`` on.

    Raises:
        SettingsError: a port asked for is taken, the GPUs do not suffice, or a worker spans
            several machines.
    """
    _refuse_groups(wish.profile)
    port = _pick(picker, "the router", wish.host, wish.port, defaults[0], "--port")
    admin_port = _pick(
        picker, "the admin API", WORKER_HOST, wish.admin_port, ADMIN_PORT, "--admin-port"
    )
    wanted = [
        (f"{role}-{number}", role, pool)
        for role, pool in wish.profile.spec.pools.by_role.items()
        for number in range(1, pool.replicas + 1)
    ]
    gpus = assign_gpus([(name, pool) for name, _, pool in wanted], wish.gpus)
    http, side = _Row(wish.worker_port, defaults[1]), _Row(wish.side_channel_port, defaults[2])
    seats = []
    for name, role, pool in wanted:
        http_port = http.take(picker, name, "--worker-port", 1)
        # Each rank answers handshakes on a port of its own.
        side_port = side.take(
            picker, f"the side channel of {name}", "--side-channel-port", pool.devices
        )
        seats.append(WorkerSeat(name, role, http_port, side_port, gpus[name]))
    return Seating(port, admin_port, tuple(seats))


def _refuse_groups(profile: ServingProfile) -> None:
    for role, pool in profile.spec.pools.by_role.items():
        if pool.nodes > 1:
            raise SettingsError(
                f"a worker of pool {role} of profile {profile.name} spans {pool.nodes} machines, "
                "and `baton up` starts workers on this one only: deploy the profile on Kubernetes, "
                "where a LeaderWorkerSet starts the group, or choose another with --profile"
            )


def _pick(
    picker: PortPicker, what: str, host: str, asked: int | None, default: int, flag: str
) -> int:
    wanted = default if asked is None else asked
    return picker.take(what, host, wanted, flag=flag, fixed=asked is not None)


class _Row:
    """Ports that count up from worker to worker."""

    def __init__(self, asked: int | None, default: int) -> None:
        self._fixed = asked is not None
        self._next = default if asked is None else asked

    def take(self, picker: PortPicker, what: str, flag: str, width: int) -> int:
        port = picker.take(what, WORKER_HOST, self._next, flag=flag, fixed=self._fixed, width=width)
        self._next = port + width
        return port


def assign_gpus(
    workers: Sequence[tuple[str, PoolSpec]], gpus: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """GPUs for each worker, in turn; several share one only if their memory shares allow it.

    Raises:
        SettingsError: a worker needs more GPUs than there are, or those that share one would take
            more memory than it has.
    """
    if not gpus:
        return {name: () for name, _ in workers}
    assigned: dict[str, tuple[str, ...]] = {}
    taken = dict.fromkeys(gpus, 0.0)
    turn = 0
    for name, pool in workers:
        if pool.devices > len(gpus):
            raise SettingsError(
                f"{name} needs {pool.devices} GPUs (tensor_parallel times pipeline_parallel) and "
                f"this machine has {len(gpus)}; choose another profile with --profile"
            )
        mine = tuple(gpus[(turn + i) % len(gpus)] for i in range(pool.devices))
        turn += pool.devices
        for gpu in mine:
            taken[gpu] += pool.gpu_memory_utilization or _GPU_SHARE
        assigned[name] = mine
    if any(share > _GPU_WHOLE for share in taken.values()):
        needed = sum(pool.devices for _, pool in workers)
        each = int(100 * _GPU_WHOLE / -(-needed // len(gpus))) / 100
        raise SettingsError(
            f"the profile's {len(workers)} workers want {needed} GPUs and this machine has "
            f"{len(gpus)}: use a profile with fewer workers, or have them share GPUs with "
            f"gpu_memory_utilization: {each:g} or less in each pool"
        )
    return assigned


def make_plan(
    wish: Wish, seating: Seating, model_folder: Path, base_env: Mapping[str, str]
) -> Plan:
    """The commands of the router and all workers.

    Args:
        wish: what was asked for.
        seating: ports and devices.
        model_folder: the model's files; replaces the profile's source in every child alike, under
            the name that the profile gave it, so that all of them mean the same profile.
        base_env: the environment that children build on.
    """
    profile = wish.profile
    common = [
        *("--profile", wish.profile_ref),
        *("--model", str(model_folder)),
        *("--served-name", profile.served_name),
        *("--home", str(wish.home)),
        *("--log-level", wish.log_level),
    ]
    env = child_environment(base_env, wish.home)
    url = f"http://{local_host(wish.host)}:{seating.port}"
    router = Process(
        name="router",
        role=None,
        argv=(
            *(sys.executable, "-m", "router"),
            *common,
            *("--host", wish.host),
            *("--port", str(seating.port)),
            *("--admin-port", str(seating.admin_port)),
            *("--store", "memory://"),
        ),
        env=env,
        url=url,
    )
    workers = tuple(_worker(chair, common, env, wish, url) for chair in seating.workers)
    limits, transfer = profile.spec.limits, profile.spec.transfer
    return Plan(
        profile=with_overrides(
            profile, model_source=str(model_folder), served_name=profile.served_name
        ),
        router=router,
        workers=workers,
        router_grace_s=limits.drain_s + 5.0,
        # Its drain, then the engine's own grace of 15 s.
        worker_grace_s=limits.drain_s + transfer.lease_s + 20.0,
        admin_url=f"http://{WORKER_HOST}:{seating.admin_port}",
    )


def _worker(
    chair: WorkerSeat, common: Sequence[str], env: Mapping[str, str], wish: Wish, registry: str
) -> Process:
    own_env = dict(env)
    if chair.role is Role.STANDARD:
        own_env["BATON_ROLE"] = Role.STANDARD.value
    if chair.gpus:
        own_env["CUDA_VISIBLE_DEVICES"] = ",".join(chair.gpus)
    return Process(
        name=chair.name,
        role=chair.role,
        argv=(
            *(sys.executable, "-m", _MODULES[chair.role]),
            *common,
            *("--host", WORKER_HOST),
            *("--port", str(chair.port)),
            *("--side-channel-port", str(chair.side_channel_port)),
            *("--registry", registry),
            *("--worker-id", chair.name),
            *("--cpu-threads", str(wish.cpu_threads)),
        ),
        env=own_env,
        url=f"http://{WORKER_HOST}:{chair.port}",
    )


def child_environment(base: Mapping[str, str], home: Path) -> dict[str, str]:
    """``base`` without the settings that were meant for ``baton up`` itself."""
    kept = {
        name: value
        for name, value in base.items()
        if not name.startswith("BATON_") or name in _KEPT
    }
    return {**kept, "BATON_HOME": str(home), "PYTHONUNBUFFERED": "1"}


def local_host(host: str) -> str:
    """The address by which this machine reaches a server that listens on ``host``."""
    return WORKER_HOST if host == "0.0.0.0" else host


def cpu_threads_for(workers: int, cores: int) -> int:
    """Compute threads of each CPU engine, so that together they fill the cores and no more."""
    return max(1, cores // max(1, workers))
