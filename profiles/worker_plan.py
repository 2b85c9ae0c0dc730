"""From a serving profile to the worker that one of its pools wants.

The one place where profile fields become engine settings; the roles add what is theirs. It reads
the model's config, and hashes its weights once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from baton.engine import Device, EngineSpec, detect_device
from baton.errors import SettingsError
from baton.kv_events import socket_url, tcp_url
from baton.models import model_digest, read_model_config, resolve_model
from baton.types import EngineId, Load, Role
from baton.worker import WorkerOptions, WorkerPlan
from kvtransfer import geometry_from_config
from profiles.overrides import with_overrides
from profiles.resolve import resolve_profile
from profiles.schema import PoolSpec, ServingProfile, TransferSpec
from profiles.traffic_sections import PrefixKnowledge

_MIB = 1024 * 1024
_DEFAULT_SLOTS = 256
"""Sequences at a time where the profile does not say; said to the engine, so that both agree."""
_CONNECTOR_MODULE = "kvtransfer.connector"


def worker_plan(
    options: WorkerOptions,
    role: Role,
    *,
    drained: Callable[[Load], bool],
    drain_limit_s: Callable[[ServingProfile], float],
) -> WorkerPlan:
    """What a worker of ``role`` has to be under the options' profile.

    Raises:
        ProfileError: the profile is wrong.
        SettingsError: the profile has no pool of this role, or one of another number of nodes, or
            its model is the demo model and no folder was given.
        ModelError: the model's files are missing or of an unsupported kind.
    """
    profile = with_overrides(
        resolve_profile(options.profile),
        model_source=options.model,
        served_name=options.served_name,
    )
    pool = profile.spec.pools.get(role)
    if pool is None:
        raise SettingsError(
            f"profile {profile.metadata.name!r} has no {role} pool (its mode is "
            f"{profile.spec.mode}); choose another profile with --profile"
        )
    _check_nodes(pool, role, profile, options)
    model = profile.spec.model
    if model.source == "demo":
        raise SettingsError(
            "the demo model has to be made first: run `baton up`, or `python -m training.demo` "
            "and pass the folder it prints with --model"
        )
    folder = resolve_model(model.source, home=options.home)
    config = read_model_config(folder)
    device = detect_device()
    transfer = profile.spec.transfer
    dtype = engine_dtype(model.dtype, config)
    slots = pool.max_num_seqs or _DEFAULT_SLOTS

    def make_spec(engine_id: EngineId, run_dir: Path) -> EngineSpec:
        return EngineSpec(
            name=str(options.worker_id),
            role=role,
            device=device,
            model=folder,
            served_name=profile.served_name,
            host=options.host,
            port=options.port,
            api_key=options.token,
            engine_id=engine_id,
            run_dir=run_dir,
            side_channel_host=_side_channel_host(options),
            side_channel_port=options.side_channel_port,
            block_size=transfer.block_size,
            lease_s=transfer.lease_s,
            connector_module=_CONNECTOR_MODULE if transfer.connector == "baton" else None,
            connector_extra=(
                {"baton_progress_delay_us": transfer.progress_delay_us}
                if transfer.connector == "baton"
                else {}
            ),
            ucx_tls=ucx_transports(transfer, device),
            kv_events_url=kv_events_url(profile, options, run_dir),
            dtype=dtype,
            max_model_len=model.max_model_len,
            tensor_parallel=pool.tensor_parallel,
            pipeline_parallel=pool.pipeline_parallel,
            max_num_seqs=slots,
            max_num_batched_tokens=pool.max_num_batched_tokens,
            gpu_memory_utilization=pool.gpu_memory_utilization,
            enforce_eager=eager(pool.enforce_eager, device, compiler=shutil.which("g++")),
            cpu_kv_cache_bytes=pool.cpu_kv_cache_mib * _MIB,
            cpu_threads=options.cpu_threads,
            extra_args=dict(pool.engine_args),
        )

    return WorkerPlan(
        role=role,
        make_spec=make_spec,
        model=profile.served_name,
        model_folder=folder,
        model_digest=model_digest(folder, cache_file=options.home / "digests.json"),
        geometry=geometry_from_config(
            config,
            block_size=transfer.block_size,
            kv_dtype=dtype,
            tensor_parallel=pool.tensor_parallel,
            layout=kv_layout(pool),
        ),
        slots=slots,
        accelerator=pool.accelerator,
        profile=profile.metadata.name,
        profile_version=profile.version,
        drained=drained,
        drain_limit_s=drain_limit_s(profile),
        lease_s=transfer.lease_s,
    )


def _check_nodes(
    pool: PoolSpec, role: Role, profile: ServingProfile, options: WorkerOptions
) -> None:
    """Raises SettingsError unless this worker spans as many nodes as the pool says."""
    nodes = options.group.size if options.group is not None else 1
    if nodes == pool.nodes:
        return
    told = (
        f"this one is of a group of {nodes} (LWS_GROUP_SIZE)"
        if options.group is not None
        else "this one is of no group (LWS_GROUP_SIZE is not set, or 1)"
    )
    raise SettingsError(
        f"a worker of pool {role} of profile {profile.metadata.name!r} spans {pool.nodes} "
        f"node{'s' if pool.nodes > 1 else ''}, but {told}; give the LeaderWorkerSet the size "
        "of the pool's field nodes, or change that field"
    )


def engine_dtype(wanted: str, config: Mapping[str, Any]) -> str:
    """The dtype said to the engine, and with it the KV cache's.

    ``auto`` is the config's own 16-bit type, else bfloat16. It is decided here, and not left to
    each engine, because the two ends of a handoff must agree on it.
    """
    if wanted != "auto":
        return wanted
    own = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return own if own in ("bfloat16", "float16") else "bfloat16"


def kv_layout(pool: PoolSpec) -> str:
    """The layout of a worker's KV blocks, by which routers tell who may hand over to whom.

    Of several pipeline stages it is another one, so that no pair is made with a worker whose
    engine has no connector.
    """
    stages = pool.pipeline_parallel
    return "HND" if stages == 1 else f"HND in {stages} stages"


def eager(wanted: bool | None, device: Device, *, compiler: str | None) -> bool | None:
    """Whether the engine compiles nothing; None leaves it to the engine.

    On CPU the engine's own choice is to compile, with a C++ compiler that a bare machine does not
    have; there it would not start.
    """
    if wanted is None and device is Device.CPU and compiler is None:
        return True
    return wanted


def ucx_transports(transfer: TransferSpec, device: Device) -> str | None:
    """``UCX_TLS`` for the profile's transport; None lets UCX choose.

    On CPU ``auto`` names the transports of one host (cma, shared memory) and TCP: 2 to 4.5 GiB/s
    against 0.6 to 1.4 GiB/s over TCP alone, measured on loopback with 64 KiB pieces.
    """
    on_gpu = device is Device.CUDA
    if transfer.transport == "rdma":
        return "rc,cuda_copy,cuda_ipc,self" if on_gpu else "rc,self"
    if transfer.transport == "tcp":
        return "tcp,cuda_copy,self" if on_gpu else "tcp,self"
    return None if on_gpu else "cma,posix,tcp,self"


def kv_events_url(profile: ServingProfile, options: WorkerOptions, run_dir: Path) -> str:
    """Where an engine publishes its KV events; empty where the profile does not ask for them.

    An engine on loopback has its clients on this machine, where a socket in its private folder is
    reached by the same user only. To other machines it speaks TCP, at the address of handshakes.
    """
    if profile.spec.routing.prefix is not PrefixKnowledge.EXACT:
        return ""
    if options.host == "localhost" or options.host.startswith("127."):
        return socket_url(run_dir)
    return tcp_url(_side_channel_host(options), options.kv_events_port)


def _side_channel_host(options: WorkerOptions) -> str:
    """The address that peers handshake with: the one that routers use, unless it is loopback on
    purpose. Never a wildcard, which no peer could dial."""
    if options.host not in ("0.0.0.0", "::"):
        return options.host
    host = urlsplit(options.advertise_url).hostname
    if host is None or host in ("0.0.0.0", "::"):
        raise SettingsError(
            f"a worker that listens on {options.host} has to be told its own address: "
            "--advertise-url http://ADDRESS:PORT (BATON_ADVERTISE_URL)"
        )
    return host
