"""What must hold between fields of a profile, as pure functions over its sections.

They take sections that may be missing, so that the reader can apply them to the sound parts of a
broken file and report everything at once. A rule that lacks one of its sections says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from profiles.document import show
from profiles.engine_flags import KV_MEANING, base_name
from profiles.explain import Finding
from profiles.sections import (
    CPU,
    MAX_SERVED_NAME,
    SERVED_NAME_PATTERN,
    ClassifySpec,
    Connector,
    DeadlinesSpec,
    Decider,
    Mode,
    ModelSpec,
    PoolSpec,
    TransferSpec,
    derived_name,
)
from profiles.traffic_sections import SwitchSpec

_POOLS = {Mode.DISAGGREGATED: ("prefill", "decode"), Mode.STANDARD: ("standard",)}


@dataclass(frozen=True, slots=True)
class Parts:
    """The sections of a spec that are sound; None where one is missing or broken.

    ``pools`` holds every pool that the file names, with None for a broken one; ``pools`` itself
    is None where it cannot be told which there are.
    """

    mode: Mode | None = None
    model: ModelSpec | None = None
    has_classify: bool = False
    classify: ClassifySpec | None = None
    has_degrade: bool = False
    pools: Mapping[str, PoolSpec | None] | None = None
    transfer: TransferSpec | None = None
    deadlines: DeadlinesSpec | None = None
    switch: SwitchSpec | None = None


def findings(parts: Parts) -> list[Finding]:
    """Everything that does not fit together; paths start at ``spec``."""
    return [
        *_mode(parts),
        *_model(parts),
        *_pools(parts),
        *_classify(parts),
        *_transfer(parts),
        *_deadlines(parts),
        *_takes(parts),
        *_switch(parts),
    ]


def _mode(parts: Parts) -> Iterator[Finding]:
    if parts.mode is None:
        return
    if parts.mode is Mode.DISAGGREGATED and not parts.has_classify:
        yield ("classify",), "is required in mode disaggregated"
    if parts.mode is Mode.STANDARD and parts.has_classify:
        yield ("classify",), "has no meaning in mode standard; remove it"
    if parts.mode is Mode.STANDARD and parts.has_degrade:
        yield ("degrade",), "has no meaning in mode standard; remove it"
    if parts.pools is None:
        return
    wanted = _POOLS[parts.mode]
    for name in wanted:
        if name not in parts.pools:
            yield ("pools", name), f"is required in mode {parts.mode}"
    for name in parts.pools:
        if name not in wanted:
            names = " and ".join(wanted)
            yield ("pools", name), f"is not a pool of mode {parts.mode}, which has {names} only"


def _model(parts: Parts) -> Iterator[Finding]:
    model = parts.model
    if model is None:
        return
    if model.served_name is None:
        name = derived_name(model.source)
        if len(name) > MAX_SERVED_NAME or not re.fullmatch(SERVED_NAME_PATTERN, name):
            yield (
                ("model", "source"),
                f"gives no usable name ({show(name)}); set model.served_name as well",
            )
    if parts.classify and model.max_model_len is not None:
        threshold = parts.classify.threshold_tokens
        if threshold >= model.max_model_len:
            yield (
                ("classify", "threshold_tokens"),
                f"must be less than model.max_model_len ({model.max_model_len}), or no prompt "
                f"ever goes to a prefill worker (got {threshold})",
            )


def _takes(parts: Parts) -> Iterator[Finding]:
    pools = {name: pool for name, pool in (parts.pools or {}).items() if pool is not None}
    taken: dict[str, str] = {}
    for name, pool in pools.items():
        for index, role in enumerate(pool.takes or ()):
            where = ("pools", name, "takes", index)
            if role == name:
                yield where, f"names the pool itself, whose workers it has anyway ({role})"
            elif role in pools:
                yield where, f"{role} is a pool of this profile, which keeps its workers"
            elif role in taken:
                yield where, f"{role} is taken by pool {taken[role]} already"
            else:
                taken[role] = name


def _switch(parts: Parts) -> Iterator[Finding]:
    switch = parts.switch
    if switch is not None and switch.canary_share > 0 and switch.canary_s < switch.hold_s:
        yield (
            ("switch", "canary_s"),
            f"must not be less than switch.hold_s ({switch.hold_s:g}) (got {switch.canary_s:g})",
        )


def _classify(parts: Parts) -> Iterator[Finding]:
    classify = parts.classify
    if classify is None:
        return
    default = ClassifySpec.model_fields["hysteresis"].default
    if classify.decider is Decider.THRESHOLD and classify.hysteresis != default:
        yield (
            ("classify", "hysteresis"),
            f"has no meaning with decider threshold; remove it (got {classify.hysteresis:g})",
        )


def _pools(parts: Parts) -> Iterator[Finding]:
    pools = {name: pool for name, pool in (parts.pools or {}).items() if pool is not None}
    for name, pool in pools.items():
        tokens, seqs = pool.max_num_batched_tokens, pool.max_num_seqs
        if tokens is not None and seqs is not None and tokens < seqs:
            yield (
                ("pools", name, "max_num_batched_tokens"),
                f"must be at least max_num_seqs ({seqs}), one token per sequence (got {tokens})",
            )
        if pool.accelerator == CPU and pool.gpu_memory_utilization is not None:
            yield (
                ("pools", name, "gpu_memory_utilization"),
                "has no meaning with accelerator cpu; use cpu_kv_cache_mib",
            )
        if pool.devices % pool.nodes:
            yield (
                ("pools", name, "nodes"),
                f"must divide the worker's {pool.devices} devices (tensor_parallel times "
                f"pipeline_parallel), so that each node has as many (got {pool.nodes})",
            )
        if name != "standard" and pool.pipeline_parallel > 1:
            yield (
                ("pools", name, "pipeline_parallel"),
                "must be 1 where a KV cache is handed over, because the connector reads one "
                f"pipeline stage only; use tensor_parallel (got {pool.pipeline_parallel})",
            )
    prefill, decode = pools.get("prefill"), pools.get("decode")
    if prefill is not None and decode is not None:
        for flag in KV_MEANING:
            if _values(prefill, flag) != _values(decode, flag):
                at = "decode" if _values(decode, flag) else "prefill"
                name = next(iter(_values(pools[at], flag)))
                yield (
                    ("pools", at, "engine_args", name),
                    "must be the same in the pools prefill and decode, because it changes what "
                    "the KV cache means",
                )


def _values(pool: PoolSpec, flag: str) -> dict[str, object]:
    return {name: value for name, value in pool.engine_args.items() if base_name(name) == flag}


def _transfer(parts: Parts) -> Iterator[Finding]:
    transfer = parts.transfer
    if transfer is None:
        return
    default_us = TransferSpec.model_fields["progress_delay_us"].default
    if transfer.connector is Connector.STOCK and transfer.progress_delay_us != default_us:
        yield (
            ("transfer", "progress_delay_us"),
            "has no meaning with connector stock, which always spins; remove it or use baton "
            f"(got {transfer.progress_delay_us})",
        )
    on_cpu = [
        name for name, pool in (parts.pools or {}).items() if pool and pool.accelerator == CPU
    ]
    if on_cpu and transfer.block_size % 32:
        yield (
            ("transfer", "block_size"),
            f"must be a multiple of 32, because pool {on_cpu[0]} runs on CPU "
            f"(got {transfer.block_size})",
        )


def _deadlines(parts: Parts) -> Iterator[Finding]:
    deadlines = parts.deadlines
    if deadlines is None:
        return
    for name in ("prefill_s", "first_token_s", "idle_s"):
        value = getattr(deadlines, name)
        if value > deadlines.total_s:
            yield (
                ("deadlines", name),
                f"must not be more than total_s ({deadlines.total_s:g}) (got {value:g})",
            )
    for name in ("prefill_s", "first_token_s"):
        limit = getattr(deadlines, name)
        if deadlines.connect_s > limit:
            yield (
                ("deadlines", "connect_s"),
                f"must not be more than {name} ({limit:g}), which includes it "
                f"(got {deadlines.connect_s:g})",
            )
            break
