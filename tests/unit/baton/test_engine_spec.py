"""From what an engine should be to its command line and environment."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from baton.engine import Device, EngineSpec, GroupRank, command, detect_device, environment
from baton.kv_events import publisher_config
from baton.types import EngineId, Role

SPEC = EngineSpec(
    name="w-1",
    role=Role.PREFILL,
    device=Device.CPU,
    model=Path("/models/tiny"),
    served_name="tiny",
    host="127.0.0.1",
    port=8100,
    api_key="the-cluster-token",
    engine_id=EngineId("run-1"),
    run_dir=Path("/run/w-1"),
    side_channel_host="127.0.0.1",
    side_channel_port=5600,
    block_size=32,
    lease_s=30,
)


def spec(**changes: Any) -> EngineSpec:
    return dataclasses.replace(SPEC, **changes)


def flags(made: EngineSpec) -> dict[str, str | None]:
    """The flags of the command line; None for those without a value."""
    argv = command(made)
    assert argv[:3] == [sys.executable, "-m", "baton.engine.launch"]
    found: dict[str, str | None] = {}
    for part in argv[3:]:
        if part.startswith("--"):
            assert part not in found, f"{part} twice"
            found[part] = None
        else:
            found[list(found)[-1]] = part
    return found


def transfer(made: EngineSpec) -> Any:
    value = flags(made)["--kv-transfer-config"]
    assert value is not None
    return json.loads(value)


def test_the_plain_flags() -> None:
    """What every engine is told; what the spec leaves open is not there."""
    found = flags(SPEC)
    assert found["--model"] == "/models/tiny"
    assert found["--served-model-name"] == "tiny"
    assert found["--host"] == "127.0.0.1"
    assert found["--port"] == "8100"
    assert found["--block-size"] == "32"
    assert found["--tensor-parallel-size"] == "1"
    assert found["--middleware"] == "baton.engine.guard.ClusterGuard"
    for name in ("max-model-len", "max-num-seqs", "max-num-batched-tokens", "enforce-eager"):
        assert f"--{name}" not in found


def test_kv_events_are_published_only_where_asked() -> None:
    """No flag without an address; with one, vLLM is told to publish there."""
    assert "--kv-events-config" not in flags(SPEC)
    value = flags(spec(kv_events_url="tcp://10.0.0.3:5700"))["--kv-events-config"]
    assert value is not None
    assert json.loads(value) == publisher_config("tcp://10.0.0.3:5700")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_model_len": 4096}, {"--max-model-len": "4096"}),
        ({"max_num_seqs": 8}, {"--max-num-seqs": "8"}),
        ({"max_num_batched_tokens": 512}, {"--max-num-batched-tokens": "512"}),
        ({"enforce_eager": True}, {"--enforce-eager": None}),
        ({"enforce_eager": False}, {"--no-enforce-eager": None}),
        ({"dtype": "bfloat16"}, {"--dtype": "bfloat16"}),
        ({"cpu_kv_cache_bytes": 64 << 20}, {"--kv-cache-memory-bytes": str(64 << 20)}),
        ({"extra_args": {"seed": 7}}, {"--seed": "7"}),
        ({"extra_args": {"enable_lora": True}}, {"--enable-lora": None}),
        ({"extra_args": {"async-scheduling": False}}, {"--no-async-scheduling": None}),
        ({"extra_args": {"port": 9}}, {"--port": "9"}),
    ],
)
def test_flags_from_settings(changes: dict[str, Any], expected: dict[str, str | None]) -> None:
    """Each setting becomes its flag; true and false become a flag and its negation."""
    assert expected.items() <= flags(spec(**changes)).items()


@pytest.mark.parametrize("role", list(Role))
def test_the_transfer_config(role: Role) -> None:
    """The connector, its role, and that a failed pull fails the request."""
    config = transfer(spec(role=role, lease_s=12))
    assert config["kv_connector"] == "NixlConnector"
    assert config["kv_role"] == ("kv_producer" if role is Role.PREFILL else "kv_consumer")
    assert config["engine_id"] == "run-1"
    assert config["kv_load_failure_policy"] == "fail"
    assert config["kv_connector_extra_config"]["kv_lease_duration"] == 12
    assert "kv_connector_module_path" not in config


def test_stages_run_without_a_connector() -> None:
    """The connector reads one stage only, and refuses to start as a consumer: a worker whose
    layers are cut into stages hands nothing over."""
    found = flags(spec(tensor_parallel=2, pipeline_parallel=2))
    assert found["--pipeline-parallel-size"] == "2"
    assert "--kv-transfer-config" not in found
    assert "--distributed-executor-backend" not in flags(spec(pipeline_parallel=2))
    assert "--pipeline-parallel-size" not in flags(SPEC)


GROUP = GroupRank(
    nodes=2,
    rank=0,
    master_address="10.0.0.1",
    master_port=29500,
    own_address="10.0.0.1",
    interface="eth0",
)
FOLLOWS = dataclasses.replace(GROUP, rank=1, own_address="10.0.0.2")


def test_a_node_of_several() -> None:
    """Each is told its number and where to meet; nothing else differs, so that all ranks agree."""
    leads = flags(spec(group=GROUP, tensor_parallel=2))
    follows = flags(spec(group=FOLLOWS, tensor_parallel=2))
    assert leads["--nnodes"] == "2"
    assert (leads["--node-rank"], follows["--node-rank"]) == ("0", "1")
    assert (leads["--master-addr"], leads["--master-port"]) == ("10.0.0.1", "29500")
    assert leads["--distributed-executor-backend"] == "mp"
    assert "--headless" not in leads
    assert follows.pop("--headless") is None
    assert leads | {"--node-rank": "1"} == follows


def test_only_further_nodes_are_headless() -> None:
    """Node 0 has the server; an engine of one node has it too."""
    assert [made.headless for made in (SPEC, spec(group=GROUP), spec(group=FOLLOWS))] == [
        False,
        False,
        True,
    ]


def test_the_environment_of_a_node() -> None:
    """Its own address for what vLLM binds, and the interface for gloo unless somebody chose one."""
    env = environment(spec(group=FOLLOWS), {"VLLM_HOST_IP": "192.0.2.1"})
    assert (env["VLLM_HOST_IP"], env["GLOO_SOCKET_IFNAME"]) == ("10.0.0.2", "eth0")
    chosen = environment(spec(group=FOLLOWS), {"GLOO_SOCKET_IFNAME": "ib0"})
    assert chosen["GLOO_SOCKET_IFNAME"] == "ib0"
    unknown = dataclasses.replace(FOLLOWS, interface="")
    assert "GLOO_SOCKET_IFNAME" not in environment(spec(group=unknown), {})
    assert "VLLM_HOST_IP" not in environment(SPEC, {})


def test_our_connector() -> None:
    """Our subclass is loaded by its module under the stock name, with its settings."""
    made = spec(connector_module="kvtransfer.connector", connector_extra={"x": 5})
    config = transfer(made)
    assert config["kv_connector"] == "NixlConnector"
    assert config["kv_connector_module_path"] == "kvtransfer.connector"
    assert config["kv_connector_extra_config"]["x"] == 5


def test_cpu_and_gpu() -> None:
    """What is said to the CPU build only, and to the GPU build only."""
    cpu, gpu = flags(SPEC), flags(spec(device=Device.CUDA, gpu_memory_utilization=0.8))
    assert cpu["--distributed-executor-backend"] == (
        "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    )
    assert "--gpu-memory-utilization" not in cpu
    assert gpu["--gpu-memory-utilization"] == "0.8"
    assert "--distributed-executor-backend" not in gpu
    assert "--kv-cache-memory-bytes" not in gpu
    assert "--distributed-executor-backend" not in flags(spec(tensor_parallel=2))
    assert transfer(SPEC)["kv_buffer_device"] == "cpu"
    assert transfer(SPEC)["kv_connector_extra_config"]["num_threads"] == 1
    assert transfer(spec(device=Device.CUDA))["kv_buffer_device"] == "cuda"
    assert "num_threads" not in transfer(spec(device=Device.CUDA))["kv_connector_extra_config"]


def test_the_key_is_not_on_the_command_line() -> None:
    """Everybody on a machine can read command lines."""
    assert "the-cluster-token" not in " ".join(command(SPEC))
    assert environment(SPEC, {})["VLLM_API_KEY"] == "the-cluster-token"


def test_the_environment() -> None:
    """What the engine gets on top of what is there; whatever it writes goes to its own folder."""
    env = environment(SPEC, {"PATH": "/bin", "TMPDIR": "/elsewhere", "OMP_NUM_THREADS": "64"})
    assert env["PATH"] == "/bin"
    assert env["TMPDIR"] == env["VLLM_RPC_BASE_PATH"] == "/run/w-1"
    assert env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "127.0.0.1"
    assert env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5600"
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert env["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize(
    ("changes", "base", "name", "expected"),
    [
        ({"cpu_threads": 4}, {}, "OMP_NUM_THREADS", "4"),
        ({"ucx_tls": "tcp,self"}, {"UCX_TLS": "rc"}, "UCX_TLS", "tcp,self"),
        ({}, {"UCX_TLS": "rc"}, "UCX_TLS", "rc"),
        ({}, {}, "UCX_LOG_LEVEL", "error"),
        ({}, {"UCX_LOG_LEVEL": "info"}, "UCX_LOG_LEVEL", "info"),
        ({"enforce_eager": True}, {}, "TORCHDYNAMO_DISABLE", "1"),
        ({"enforce_eager": None}, {}, "TORCHDYNAMO_DISABLE", None),
        ({}, {"VLLM_CPU_KVCACHE_SPACE": "4"}, "VLLM_CPU_KVCACHE_SPACE", None),
        ({"device": Device.CUDA}, {"OMP_NUM_THREADS": "64"}, "OMP_NUM_THREADS", "64"),
        ({"device": Device.CUDA, "enforce_eager": True}, {}, "TORCHDYNAMO_DISABLE", None),
        ({"device": Device.CUDA}, {}, "VLLM_CPU_OMP_THREADS_BIND", None),
        ({"device": Device.CUDA}, {"PATH": "/none"}, "VLLM_USE_FLASHINFER_SAMPLER", "0"),
        (
            {"device": Device.CUDA},
            {"VLLM_USE_FLASHINFER_SAMPLER": "1"},
            "VLLM_USE_FLASHINFER_SAMPLER",
            "1",
        ),
        ({}, {}, "VLLM_USE_FLASHINFER_SAMPLER", None),
    ],
)
def test_variables(
    changes: dict[str, Any], base: dict[str, str], name: str, expected: str | None
) -> None:
    """Variables that depend on settings, on the device, or on what was there."""
    assert environment(spec(**changes), base).get(name) == expected


def test_the_environment_that_is_there_is_not_changed() -> None:
    """The base is only read."""
    base = {"VLLM_CPU_KVCACHE_SPACE": "4"}
    environment(SPEC, base)
    assert base == {"VLLM_CPU_KVCACHE_SPACE": "4"}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8100"),
        ("10.1.2.3", "http://10.1.2.3:8100"),
        ("0.0.0.0", "http://127.0.0.1:8100"),
        ("::", "http://[::1]:8100"),
        ("fd00::3", "http://[fd00::3]:8100"),
    ],
)
def test_local_url(host: str, url: str) -> None:
    """A wildcard address is reached over loopback."""
    assert spec(host=host).local_url == url


@pytest.mark.parametrize("device", list(Device))
def test_the_device_can_be_named(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """``BATON_DEVICE`` overrides what is found."""
    monkeypatch.setenv("BATON_DEVICE", device.value)
    assert detect_device() is device
