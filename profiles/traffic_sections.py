"""The sections of a profile that say how a router treats traffic: where requests go, who waits,
what happens after a failure. Like ``sections``: one frozen model each, every field with unit,
default and reason, and nothing that takes more than one field to see.
"""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import AfterValidator, Field

from profiles.explain import wrong_value
from profiles.sections import MAX_DAY_S, MAX_TOKENS, Section


class Picker(enum.StrEnum):
    """How one worker is taken out of those that were scored."""

    BEST = "best"
    WEIGHTED_RANDOM = "weighted_random"
    POWER_OF_TWO = "power_of_two"


class PrefixKnowledge(enum.StrEnum):
    """Where the router's knowledge of prefix caches comes from."""

    OFF = "off"
    APPROXIMATE = "approximate"
    EXACT = "exact"


class DegradeStep(enum.StrEnum):
    """What may be tried after a failed handoff."""

    OTHER_PREFILL = "other_prefill"
    LOCAL = "local"
    QUEUE = "queue"


Weight = Annotated[float, Field(ge=0, le=1000)]


class ScorersSpec(Section):
    """Weights of what speaks for a worker. Only their proportions matter; 0 leaves one out."""

    prefix: Weight = Field(
        default=2.0,
        description="Weight of the share of the prompt that is in a worker's prefix cache. "
        "Default: 2, as much as load: a cached prompt need not be computed, but a queue is "
        "waited for.",
    )
    load: Weight = Field(
        default=2.0,
        description="Weight of free places: running and waiting requests against the worker's "
        "slots. Default: 2.",
    )
    pending: Weight = Field(
        default=1.0,
        description="Weight of having few prompt tokens in prefill now. Default: 1; one long "
        "prompt is more to wait for than ten short ones.",
    )
    kv_load: Weight = Field(
        default=1.0,
        description="Weight of free KV memory. Default: 1; a full cache preempts requests, but "
        "load usually says so earlier.",
    )
    adapter: Weight = Field(
        default=1.0,
        description="Weight of having the request's LoRA adapter loaded already. Default: 1.",
    )
    session: Weight = Field(
        default=1.0,
        description="Weight of keeping a session (header x-session-id, or the body's "
        "prompt_cache_key or user) on one worker. Default: 1; a hint, not a promise.",
    )


class RoutingSpec(Section):
    """How a worker is chosen among those that can serve a request."""

    scorers: ScorersSpec = Field(
        default=ScorersSpec(),
        description="Weights of the scorers. Default: its fields' defaults.",
    )
    picker: Annotated[Picker, Field(strict=False)] = Field(
        default=Picker.BEST,
        description="best: the highest score, ties by lot. weighted_random: by lot, in proportion "
        "to scores. power_of_two: the better of two drawn by lot. Default: best; take power_of_two "
        "when several routers would all rush to the same worker.",
    )
    prefix: Annotated[PrefixKnowledge, Field(strict=False)] = Field(
        default=PrefixKnowledge.APPROXIMATE,
        description="off: caches are not looked at. approximate: the router remembers what it sent "
        "where. exact: engines publish their KV events, and prompts are tokenized in the router, "
        "which costs 0.2 to 0.4 ms per KB of text. Default: approximate.",
    )
    prefix_blocks: int = Field(
        default=200_000,
        ge=1_000,
        le=10_000_000,
        description="Blocks that the router remembers over all workers. Default: 200000, some tens "
        "of MiB of its memory; the least recently used are forgotten.",
    )


class FlowSpec(Section):
    """Who waits in the router, and for how long."""

    queue: int = Field(
        default=256,
        ge=0,
        le=1_000_000,
        description="Requests that wait in the router at most; more get 429 with Retry-After, and "
        "sheddable ones (negative priority) make room first. Default: 256. 0: nobody waits.",
    )
    queue_ttl_s: float = Field(
        default=30.0,
        gt=0,
        le=MAX_DAY_S,
        description="Longest wait in the queue, in seconds; then 429. Default: 30, beyond which "
        "most clients have lost patience.",
    )
    slots_factor: float = Field(
        default=1.5,
        ge=1,
        le=1000,
        description="Requests that are out at the answering workers at most, per slot of theirs "
        "(max_num_seqs). Default: 1.5: an engine finds its next request in its own queue, and "
        "what waits longer waits in the router, where it is ordered by priority and fairness.",
    )
    worker_wait_s: float = Field(
        default=10.0,
        ge=0,
        le=MAX_DAY_S,
        description="How long a request waits when no worker of its model is ready, in seconds; "
        "then 503. Default: 10, a worker's restart on a warm machine; raise it to the start-up "
        "time where pools scale from zero.",
    )


class SwitchSpec(Section):
    """How routers change over to this profile while traffic flows."""

    prepare_s: float = Field(
        default=60.0,
        gt=0,
        le=MAX_DAY_S,
        description="How long a switch waits until each pool has a ready worker and pairs are "
        "checked, in seconds; then it is rolled back. Default: 60, a warm start; raise it to the "
        "start-up time where pools scale up for the switch.",
    )
    shadow: bool = Field(
        default=True,
        description="Whether the last requests are first decided anew under this profile, for the "
        "report, and to stop a switch under which requests would find no worker. Default: true; "
        "it takes a fraction of a second.",
    )
    canary_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of requests that is served under this profile first, 0 to 1. Default: "
        "0.1, few enough to be forgiven. 0: no canary, all at once.",
    )
    hold_s: float = Field(
        default=30.0,
        ge=0,
        le=MAX_DAY_S,
        description="How long the canary lasts at least, in seconds. Default: 30; at ten requests "
        "a second that is 30 of them under this profile.",
    )
    canary_s: float = Field(
        default=300.0,
        gt=0,
        le=MAX_DAY_S,
        description="How long a canary that has seen less than min_requests lasts at most, in "
        "seconds; then it is judged by what it has seen. Default: 300.",
    )
    min_requests: int = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="Requests that a canary should have served before the switch is committed. "
        "Default: 20, at which an error in five is told from chance.",
    )
    flip_s: float = Field(
        default=10.0,
        ge=0,
        le=MAX_DAY_S,
        description="How long a worker that changes between prefilling and answering waits for the "
        "end of its old kind of work, in seconds; then it does both until that has ended. Default: "
        "10, most answers.",
    )


def _check_steps(steps: tuple[DegradeStep, ...]) -> tuple[DegradeStep, ...]:
    if len(set(steps)) < len(steps):
        raise wrong_value(f"names a step twice (got {', '.join(steps)})")
    return steps


class DegradeSpec(Section):
    """What is tried when a handoff fails before the client has had anything. Mode disaggregated
    only."""

    steps: Annotated[
        tuple[Annotated[DegradeStep, Field(strict=False)], ...], AfterValidator(_check_steps)
    ] = Field(
        default=(DegradeStep.OTHER_PREFILL, DegradeStep.LOCAL),
        max_length=3,
        strict=False,
        description="In this order: other_prefill (a prefill worker that has not failed this "
        "request), local (the decode worker computes the prompt itself), queue (wait for a prefill "
        "worker, at most flow.queue_ttl_s). After the last step the request fails. Default: "
        "other_prefill, local. Empty: a failed handoff fails the request.",
    )
    local_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="Longest prompt that step local may put on a decode worker, in tokens. "
        "Default: none, any; set it where one long prompt holds up the streams beside it for too "
        "long.",
    )
    attempts: int = Field(
        default=3,
        ge=1,
        le=10,
        description="Tries of one request in all. Default: 3; a request that kills workers must "
        "not visit all of them.",
    )
