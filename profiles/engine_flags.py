"""Which vLLM flags a profile may pass through, and why not the others.

``engine_args`` is the way to flags that Baton has no field for. A flag that Baton sets itself would
win over Baton's value silently (the engine takes the last one), and some of them lead to wrong
text with HTTP 200: two pools with different block sizes, or a prefill pool on another model. So
those are refused, with the field to use instead. Nothing here knows whether a flag exists: that
is the engine's answer at its start.
"""

from __future__ import annotations

import re

NAME_PATTERN = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*(\.[A-Za-z0-9_]+)*$"
"""Long flag names without dashes in front; vLLM's dotted form reaches into a JSON option."""

_IDENTITY = "the name that clients ask for is the same in all pools"
_LISTEN = "each worker chooses its own address"
_GROUP = "ranks and nodes are laid out by what starts the worker"
_TLS = "engines listen on loopback or the pod network only, without TLS"
_ONE_ENGINE = "a worker is one engine; scale with replicas"
_KV_MEMORY = "use gpu_memory_utilization, or cpu_kv_cache_mib on CPU"

OWNED: dict[str, str] = {
    "model": "use spec.model.source",
    "tokenizer": "the router counts tokens with the model's own tokenizer",
    "served-model-name": f"use spec.model.served_name; {_IDENTITY}",
    "max-model-len": "use spec.model.max_model_len; it is the same in all pools",
    "dtype": "use spec.model.dtype; it is the same in all pools",
    "block-size": "use spec.transfer.block_size; a handoff between two block sizes corrupts text",
    "kv-transfer-config": "use spec.transfer; Baton writes the connector's settings",
    "kv-events-config": "use spec.routing.prefix: exact",
    "kv-offloading-*": "it would replace the connector that hands the KV cache over",
    "tensor-parallel-size": "use tensor_parallel of the pool",
    "pipeline-parallel-size": "use pipeline_parallel of the pool",
    "data-parallel-*": _ONE_ENGINE,
    "api-server-count": _ONE_ENGINE,
    "max-num-seqs": "use max_num_seqs of the pool",
    "max-num-batched-tokens": "use max_num_batched_tokens of the pool",
    "gpu-memory-utilization": "use gpu_memory_utilization of the pool",
    "device-memory-utilization": "use gpu_memory_utilization of the pool",
    "kv-cache-memory-bytes": _KV_MEMORY,
    "num-gpu-blocks-override": _KV_MEMORY,
    "enforce-eager": "use enforce_eager of the pool",
    "distributed-executor-backend": "Baton chooses the one that works on the worker's device",
    "nnodes": f"use nodes of the pool; {_GROUP}",
    "node-rank": _GROUP,
    "master-addr": _GROUP,
    "master-port": _GROUP,
    "headless": _GROUP,
    "host": _LISTEN,
    "port": _LISTEN,
    "uds": _LISTEN,
    "grpc": "routers speak HTTP to workers",
    "grpc-port": "routers speak HTTP to workers",
    "root-path": "routers expect the engine's API at its root",
    "ssl-*": _TLS,
    "enable-ssl-refresh": _TLS,
    "api-key": "the cluster token is the engine's key; secrets do not belong in a profile",
    "middleware": "Baton's own keeps everybody without the cluster token out",
    "hf-token": "set HF_TOKEN in the worker's environment; secrets do not belong in a profile",
    "config": "a second settings file could override the fields of this one",
    "disable-log-stats": "the worker reads its load from the engine's metrics",
}
"""Flag, or family of flags ending in ``*``, to the reason that the message gives."""

KV_MEANING = (
    "kv-cache-dtype",
    "hf-overrides",
    "load-format",
    "quantization",
    "revision",
    "tokenizer-revision",
    "tokenizer-mode",
    "chat-template",
    "chat-template-content-format",
    "default-chat-template-kwargs",
)
"""Flags that change what the bytes of a KV cache mean, or which tokens a prompt becomes: both ends
of a handoff need the same, or decode reads the KV of another prompt."""


def base_name(name: str) -> str:
    """The flag that a dotted name reaches into: ``hf-overrides.x`` is about ``hf-overrides``."""
    return name.partition(".")[0]


def refusal(name: str) -> str | None:
    """Why a profile may not pass this flag, as a plain sentence; None if it may."""
    if not re.fullmatch(NAME_PATTERN, name):
        return _spelling(name)
    if name.startswith("no-"):
        return f"write {name[3:]}: false instead"
    base = base_name(name)
    for owned, reason in OWNED.items():
        stem = owned.removesuffix("*")
        if base == owned or (owned.endswith("*") and base.startswith(stem)):
            return f"is set by Baton: {reason}"
        # The engine's parser takes an unambiguous beginning of a flag for the flag.
        if stem.startswith(base):
            return f"is short for {owned}, which is set by Baton: {reason}"
    return None


def _spelling(name: str) -> str:
    head, dot, tail = name.lstrip("-").partition(".")
    better = head.lower().replace("_", "-") + dot + tail
    hint = f"; write {better}" if re.fullmatch(NAME_PATTERN, better) else ""
    return f"must be the long name of a vLLM flag, without dashes in front{hint}"
