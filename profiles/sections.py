"""The sections of a profile: one frozen model each, every field with unit, default and reason.

A field stands here only if some code honours it. Nothing is checked here that takes more than
one field to see: that is in ``rules``. Nothing is looked up either, neither folders nor hubs nor
devices: a profile means the same on every machine.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from baton.types import Role
from profiles import engine_flags
from profiles.document import show
from profiles.explain import wrong_value

CPU = "cpu"
"""The accelerator label with a meaning: the pool's workers compute on the CPU."""

DEMO = "demo"
"""The model source that stands for the small model that Baton trains itself."""

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
SERVED_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"
MAX_SERVED_NAME = 200
ACCELERATOR_PATTERN = r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$"
_HUB_ID = r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?"

MAX_TOKENS = 100_000_000
MAX_DAY_S = 86_400.0


class Mode(enum.StrEnum):
    """How requests reach their tokens: through a prefill worker first, or on one worker alone."""

    DISAGGREGATED = "disaggregated"
    STANDARD = "standard"


class Connector(enum.StrEnum):
    """Which KV connector engines load; the two understand each other on the wire."""

    BATON = "baton"
    STOCK = "stock"


class Transport(enum.StrEnum):
    """What the KV cache travels over."""

    AUTO = "auto"
    TCP = "tcp"
    RDMA = "rdma"


class Decider(enum.StrEnum):
    """What weighs the two ways of a request against each other."""

    THRESHOLD = "threshold"
    COST = "cost"


class SourceKind(enum.StrEnum):
    """What a model source is; decided by its spelling alone."""

    DEMO = "demo"
    FOLDER = "folder"
    HUB = "hub"


def source_kind(source: str) -> SourceKind | None:
    """The kind of a model source, or None if it is none of the three."""
    if source == DEMO:
        return SourceKind.DEMO
    if source.startswith(("/", "./", "../", "~/")):
        return SourceKind.FOLDER
    return SourceKind.HUB if re.fullmatch(_HUB_ID, source) else None


def _check_source(source: str) -> str:
    if not source or source != source.strip() or not source.isprintable():
        what = "must be text without spaces at its ends and without control characters"
    elif "://" in source:
        what = 'must not be a URL; give "demo", a folder or a hub id such as owner/name'
    elif source_kind(source) is None:
        what = 'must be "demo", a folder (starting with /, ./, ../ or ~/) or a hub id'
    else:
        return source
    raise wrong_value(f"{what} (got {show(source)})")


def _check_flag(name: str) -> str:
    reason = engine_flags.refusal(name)
    if reason is not None:
        raise wrong_value(reason)
    return name


def _check_flag_value(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise wrong_value("must be text, a number, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong_value("must be a finite number")
    if isinstance(value, str) and value.startswith("-"):
        # On the engine's command line it would be one more flag, past the refusals.
        raise wrong_value("must not start with a dash, which would make it a flag of its own")
    if isinstance(value, str) and "\0" in value:
        raise wrong_value("must not hold a NUL character")
    return value


def _check_whole(value: object) -> object:
    # A literal takes 64.0 for 64, and true for 1.
    if isinstance(value, bool | float):
        raise wrong_value(f"must be a whole number (got {show(value)})")
    return value


FlagName = Annotated[
    str, Field(max_length=100, pattern=engine_flags.NAME_PATTERN), BeforeValidator(_check_flag)
]
FlagValue = Annotated[bool | int | float | str, BeforeValidator(_check_flag_value)]


class Section(BaseModel):
    """What all sections have in common: unknown fields are errors, "8" is not 8, no changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Metadata(Section):
    """What a profile is called."""

    name: str = Field(
        min_length=1,
        max_length=39,
        pattern=NAME_PATTERN,
        description="Name of the profile, a DNS-1035 label of at most 39 characters: names of "
        "cluster objects are made from it, with suffixes that must fit into 63. Required.",
    )
    description: str = Field(
        default="",
        max_length=1000,
        description="One sentence for people who list profiles. Default: empty.",
    )


class ModelSpec(Section):
    """The base model that all pools serve."""

    source: Annotated[str, AfterValidator(_check_source)] = Field(
        max_length=1000,
        description='Where the weights come from: "demo" (the small model that Baton trains '
        "itself), a folder on the workers' machines (starting with /, ./, ../ or ~/), or a hub id "
        "(owner/name). Required: a default model would be served by mistake.",
    )
    served_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SERVED_NAME,
        pattern=SERVED_NAME_PATTERN,
        description="Name that clients put into the model field. Default: derived from the "
        'source ("demo", the last part of a folder, or the hub id), so that it says what runs.',
    )
    max_model_len: int | None = Field(
        default=None,
        ge=2,
        le=MAX_TOKENS,
        description="Longest prompt plus answer, in tokens. Default: the model's own. Lower it "
        "where one request of full length would not fit a worker's KV memory: the engine then "
        "refuses to start.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Number format of weights and KV cache. Default: auto, the format of the "
        "model's files. One value for all pools, because a KV cache is only understood in the "
        "format it was written in.",
    )

    @property
    def kind(self) -> SourceKind:
        """What ``source`` is."""
        kind = source_kind(self.source)
        assert kind is not None  # the field's validator has checked it
        return kind

    @property
    def name(self) -> str:
        """The name that clients ask for: ``served_name``, or the one derived from the source."""
        return self.served_name or derived_name(self.source)


def derived_name(source: str) -> str:
    """The served name that follows from a source; may be unfit (``..``), which a rule reports."""
    if source_kind(source) is SourceKind.FOLDER:
        return PurePosixPath(source).name
    return source


class ClassifySpec(Section):
    """Which requests take the way over a prefill worker."""

    threshold_tokens: int = Field(
        ge=1,
        le=MAX_TOKENS,
        description="Prompts of this many tokens or more go to a prefill worker, shorter ones "
        "straight to a decode worker; tokens in the decode worker's prefix cache do not count. In "
        "tokens. Required in mode disaggregated: the right value depends on model and hardware; "
        "without one, short prompts pay for a handoff they do not need.",
    )
    decider: Annotated[Decider, Field(strict=False)] = Field(
        default=Decider.THRESHOLD,
        description="threshold: threshold_tokens alone decides. cost: the way with the lower "
        "predicted time to first token, from what was measured; threshold_tokens until there are "
        "enough measurements. Default: threshold, which can be foretold.",
    )
    hysteresis: float = Field(
        default=0.15,
        ge=0,
        lt=1,
        description="With decider cost: by what share of its own predicted time the other way has "
        "to be faster before prompts of a length change over. Default: 0.15, so that noise in the "
        "measurements does not make them go to and fro.",
    )
    decode_prefill_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="Prompt tokens that one decode worker computes at a time at most, in tokens; "
        "above it short prompts go to a prefill worker too. Default: none, no limit. Set it to "
        "protect running streams from many short prompts at once.",
    )
    max_prefill_queue: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Requests that wait at a prefill worker at most; when all have more, a long "
        "prompt of at most degrade.local_tokens stays on its decode worker. Default: none, no "
        "limit.",
    )


class PoolSpec(Section):
    """The workers of one role. Null leaves a setting at the engine's own default."""

    accelerator: str = Field(
        min_length=1,
        max_length=63,
        pattern=ACCELERATOR_PATTERN,
        description='Label of the hardware, such as nvidia-a100-80gb or nvidia-l4; "cpu" for '
        "workers without a GPU. Required: it selects nodes, and reports group by it.",
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Workers in the pool. Default: 1, the least that serves.",
    )
    tensor_parallel: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Devices that share each layer of one worker. Default: 1, which needs no "
        "traffic between devices; raise it when the weights do not fit one.",
    )
    pipeline_parallel: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Stages that the layers of one worker are cut into, each on tensor_parallel "
        "devices. Default: 1; raise it where devices that share a layer would be joined by a slow "
        "network only. Pool standard only: the connector hands over from one stage, so that such "
        "a worker runs without it.",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Machines that one worker spans, with equally many of its devices on each. "
        "Default: 1. More is for models larger than a machine, on Kubernetes, where a "
        "LeaderWorkerSet starts the group.",
    )
    max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Sequences that one worker computes at a time. Default: the engine's. "
        "Smaller keeps the time between tokens steady, larger gives more tokens per second.",
    )
    max_num_batched_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="Tokens that one engine step computes at most, prompt and answer tokens "
        "together. Default: the engine's. A longer prompt is cut into pieces of this size, and "
        "running streams wait for each piece.",
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of a GPU's memory that the engine takes for weights and KV cache, "
        "above 0 up to 1. Default: the engine's. Workers without a GPU ignore it, and a pool "
        "whose accelerator is cpu must not set it.",
    )
    cpu_kv_cache_mib: int = Field(
        default=256,
        ge=1,
        le=4 * 1024 * 1024,
        description="KV memory of a worker without a GPU, in MiB. Default: 256, which a laptop "
        "can spare several times over. Workers with a GPU ignore it.",
    )
    price_per_hour: float | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="What one accelerator of this pool costs, in US dollars per hour; a worker "
        "has tensor_parallel times pipeline_parallel of them. Default: none, because prices differ "
        "by contract; benchmarks then say nothing about cost.",
    )
    enforce_eager: bool | None = Field(
        default=None,
        description="true: no compilation and no CUDA graphs, for a faster start and slower "
        "tokens. Default: the engine's choice.",
    )
    takes: tuple[Annotated[Role, Field(strict=False)], ...] | None = Field(
        default=None,
        max_length=2,
        strict=False,
        description="Pools of other profiles whose workers serve in this one while this profile is "
        "active, without a restart. Default: standard takes prefill and decode, decode takes "
        "standard, prefill takes none. Empty: only workers that were started for this pool.",
    )
    engine_args: Mapping[FlagName, FlagValue] = Field(
        default={},
        max_length=64,
        description="Further vLLM flags: long name without dashes in front, and a value; true "
        "and false become --name and --no-name. Default: none. Flags that Baton sets itself are "
        "refused.",
    )

    @property
    def devices(self) -> int:
        """Accelerators of one worker, over all its nodes."""
        return self.tensor_parallel * self.pipeline_parallel


_TAKES = {
    Role.PREFILL: (),
    Role.DECODE: (Role.STANDARD,),
    Role.STANDARD: (Role.PREFILL, Role.DECODE),
}


class PoolsSpec(Section):
    """The pools of a profile; which of them must be there depends on the mode."""

    prefill: PoolSpec | None = Field(
        default=None,
        description="Workers that compute long prompts and hand their KV cache over. Mode "
        "disaggregated only, and required there.",
    )
    decode: PoolSpec | None = Field(
        default=None,
        description="Workers that generate; they compute short prompts too. Mode disaggregated "
        "only, and required there.",
    )
    standard: PoolSpec | None = Field(
        default=None,
        description="Workers that do both for every request. Mode standard only, and required "
        "there.",
    )

    def role_of(self, home: Role) -> Role | None:
        """What a worker that was started as ``home`` is used for under this profile; None for
        nothing."""
        pools = self.by_role
        if home in pools:
            return home
        for role, pool in pools.items():
            if home in (_TAKES[role] if pool.takes is None else pool.takes):
                return role
        return None

    @property
    def by_role(self) -> dict[Role, PoolSpec]:
        """The pools that are there, in the order prefill, decode, standard."""
        pools = {
            Role.PREFILL: self.prefill,
            Role.DECODE: self.decode,
            Role.STANDARD: self.standard,
        }
        return {role: pool for role, pool in pools.items() if pool is not None}

    def get(self, role: Role) -> PoolSpec | None:
        """The pool of a role, or None if the profile has none."""
        return self.by_role.get(role)


class TransferSpec(Section):
    """How the KV cache is handed over. In mode standard too: engines keep the connector loaded,
    so that a worker can change its role without a restart."""

    connector: Annotated[Connector, Field(strict=False)] = Field(
        default=Connector.BATON,
        description="stock: vLLM's NixlConnector as it is. baton: the same with a pause in "
        "NIXL's progress thread, and without its binding of CPU engines to the machine's last "
        "core, which all of them would share. Default: baton, because the stock thread takes a "
        "whole core.",
    )
    progress_delay_us: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Pause between two rounds of NIXL's progress thread, in microseconds; 0 "
        "spins on a core. Default: 1000, at which the thread was measured to cost 3 % of a core. "
        "With connector stock there is no such setting, and it must stay at its default.",
    )
    transport: Annotated[Transport, Field(strict=False)] = Field(
        default=Transport.AUTO,
        description="What the KV cache travels over: tcp, rdma, or auto, the best that the "
        "worker finds. Default: auto. Name one to have a worker fail rather than fall back.",
    )
    block_size: Annotated[Literal[16, 32, 64, 128, 256], BeforeValidator(_check_whole)] = Field(
        default=64,
        description="Tokens per KV block, a power of two from 16 to 256; a multiple of 32 on "
        "CPU. Default: 64, which every device takes. Only whole blocks are handed over, and "
        "smaller ones mean more transfers of fewer bytes.",
    )
    lease_s: int = Field(
        default=30,
        ge=5,
        le=3600,
        description="How long a prefill worker keeps finished blocks for a decode worker that "
        "does not come, in whole seconds. Default: 30. Longer ties up KV memory after failures; "
        "shorter than a decode worker's pause loses prefills.",
    )
    warm_pairs: bool = Field(
        default=True,
        description="Whether each pair of a prefill and a decode worker is tried with a dummy "
        "handoff, and measured, when one of them joins; only then requests use it. Default: true, "
        "because the first handshake of a pair costs up to seconds, and a pair that cannot work "
        "should not be found by a request.",
    )
    floor_mib_per_s: float | None = Field(
        default=None,
        gt=0,
        le=10_000_000,
        description="Bandwidth that a pair must reach when it is measured, in MiB/s; slower pairs "
        "are flagged and not used. Default: none. Set it where a fall-back to a slow transport "
        "would otherwise go unnoticed.",
    )
    canary_rate: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Share of finished greedy handoffs that are checked in the background: the "
        "same prompt once more over the same pair and once on one engine, first tokens compared; a "
        "difference takes the pair out of use. Default: 0.001, one in a thousand. 0: never.",
    )


class DeadlinesSpec(Section):
    """How long each leg of a request may take. A hung worker hangs its partner for ever, so
    every wait has an end."""

    connect_s: float = Field(
        default=2.0,
        gt=0,
        le=MAX_DAY_S,
        description="Opening a connection to a worker, in seconds. Default: 2; within a cluster "
        "it takes milliseconds, and the next worker is a better bet than waiting.",
    )
    prefill_s: float = Field(
        default=60.0,
        gt=0,
        le=MAX_DAY_S,
        description="The prefill leg, from sending the prompt to the transfer parameters, in "
        "seconds. Default: 60, for the longest prompt behind a queue.",
    )
    first_token_s: float = Field(
        default=60.0,
        gt=0,
        le=MAX_DAY_S,
        description="From sending a request to the worker that generates until its first token, "
        "in seconds. Default: 60; until then the request can be tried again elsewhere.",
    )
    idle_s: float = Field(
        default=60.0,
        gt=0,
        le=MAX_DAY_S,
        description="Silence between two tokens of a stream, in seconds. Default: 60, above any "
        "pause of a healthy engine.",
    )
    total_s: float = Field(
        default=600.0,
        gt=0,
        le=MAX_DAY_S,
        description="A whole request with all its tries, in seconds. Default: 600, so that no "
        "request holds a worker for ever.",
    )


class SloSpec(Section):
    """A service level. Benchmarks count a request as good if it meets all of it; a bound that is
    not set asks for nothing."""

    ttft_s: float | None = Field(
        default=None,
        gt=0,
        le=MAX_DAY_S,
        description="Time to the first token, in seconds. Default: none; it depends on model, "
        "hardware and what the answers are for.",
    )
    tpot_s: float | None = Field(
        default=None,
        gt=0,
        le=MAX_DAY_S,
        description="Mean time of a request's further tokens, in seconds. Default: none. People "
        "read about 5 to 10 tokens per second, which is 0.1 to 0.2.",
    )
    e2e_s: float | None = Field(
        default=None,
        gt=0,
        le=MAX_DAY_S,
        description="The whole answer, in seconds. Default: none; for callers that do not stream.",
    )


class LimitsSpec(Section):
    """What one router takes on."""

    body_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1024,
        le=1024 * 1024 * 1024,
        description="Largest request body, in bytes. Default: 8388608 (8 MiB), about two million "
        "tokens of text; larger bodies are refused before they are read.",
    )
    in_flight: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Requests that one router holds at a time, waiting ones included; more get "
        "429. Default: 1024, which bounds its memory.",
    )
    header_bytes: int = Field(
        default=32 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="Largest request head (request line and headers), in bytes. Default: 32768; "
        "larger ones get 431.",
    )
    connections: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Connections of clients that one router process holds at a time; more are "
        "refused with 503. Default: 4096, below the usual limit of open files with as many "
        "connections to workers.",
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        le=MAX_DAY_S,
        description="How long a stopping router or worker lets running requests finish, in "
        "seconds; 0 stops at once. Default: 30, the grace that Kubernetes gives a pod by default.",
    )
