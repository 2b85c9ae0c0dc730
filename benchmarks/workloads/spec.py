"""What a workload says: its sections, every field with unit, default and reason.

A workload is a value: frozen and comparable. Nothing here draws lots or opens a file, the trace
that a workload names least of all; what it plans is the business of ``build``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from benchmarks.workloads.distributions import (
    DAY_S,
    MAX_TOKENS,
    Pauses,
    Weight,
    WholeNumbers,
    largest_whole,
)
from profiles import (
    MAX_SERVED_NAME,
    NAME_PATTERN,
    SERVED_NAME_PATTERN,
    Section,
    SloSpec,
    broken_rules,
)
from profiles.explain import Finding

PRIORITY_PATTERN = r"^-?[0-9]{1,9}$"
LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$"

MAX_RATE = 100_000.0
MAX_LANES = 100_000
MAX_TURNS = 1000

ClassName = Annotated[str, Field(min_length=1, max_length=63, pattern=NAME_PATTERN)]
ModelName = Annotated[
    str, Field(min_length=1, max_length=MAX_SERVED_NAME, pattern=SERVED_NAME_PATTERN)
]
Tenant = Annotated[str, Field(min_length=1, max_length=200, pattern=LABEL_PATTERN)]
Priority = Annotated[str, Field(pattern=PRIORITY_PATTERN)]


class WorkloadMetadata(Section):
    """What a workload is called."""

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=NAME_PATTERN,
        description="Name of the workload; results are listed by it. Required.",
    )
    description: str = Field(
        default="",
        max_length=1000,
        description="One sentence that says what it is for. Default: empty.",
    )


class ConstantArrivals(Section):
    """Open loop: one request after the other at equal distances, the first at start_s."""

    kind: Literal["constant"] = Field(description="constant. Required.")
    rate: float = Field(gt=0, le=MAX_RATE, description="Requests per second. Required.")


class PoissonArrivals(Section):
    """Open loop: independent requests, as from many people who do not know of each other."""

    kind: Literal["poisson"] = Field(description="poisson. Required.")
    rate: float = Field(gt=0, le=MAX_RATE, description="Requests per second, on average. Required.")


class GammaArrivals(Section):
    """Open loop: requests in bursts (cv above 1) or more even than by chance (below 1)."""

    kind: Literal["gamma"] = Field(description="gamma. Required.")
    rate: float = Field(gt=0, le=MAX_RATE, description="Requests per second, on average. Required.")
    cv: float = Field(
        ge=0.01,
        le=20,
        description="Standard deviation of the gaps by their mean, without unit; 1 is poisson. "
        "Required.",
    )


class ClosedArrivals(Section):
    """Closed loop: a fixed number of clients, each sending when its last answer is there. Its
    load falls when the server slows down, which hides overload: use it for steady streams."""

    kind: Literal["closed"] = Field(description="closed. Required.")
    concurrency: int = Field(
        ge=1, le=MAX_LANES, description="Clients, each with one request at a time. Required."
    )
    think_s: Pauses = Field(
        default=0.0,
        description="Pause of a client between an answer and its next request, in seconds, as a "
        "number or a distribution. Default: 0, the steadiest load.",
    )
    requests: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Requests of all clients together, after which they stop. Default: none, they "
        "go on for the run's duration.",
    )


Arrivals = Annotated[
    ConstantArrivals | PoissonArrivals | GammaArrivals | ClosedArrivals,
    Field(discriminator="kind"),
]


class SharedPrefix(Section):
    """Text that requests have in common at their front, such as a system prompt."""

    tokens: int = Field(
        ge=1,
        le=MAX_TOKENS,
        description="Length of a prefix, in tokens; it comes on top of prompt_tokens. Required.",
    )
    groups: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="How many different prefixes there are. Default: 1.",
    )
    share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the requests (of the sessions, where there are turns) that have a "
        "prefix, from 0 to 1. Default: 1.",
    )
    pick: Literal["uniform", "zipf"] = Field(
        default="uniform",
        description="How often the groups are used: all equally (uniform), or the n-th 1/n times "
        "as often as the first (zipf), as is usual of popular things. Default: uniform.",
    )


class Turns(Section):
    """Conversations: a request's prompt is preceded by all that was said before it."""

    count: WholeNumbers = Field(
        description="Requests of a session, as a number or a distribution; at most 1000. Required."
    )
    think_s: Pauses = Field(
        default=0.0,
        description="Pause between an answer and the next request of its session, in seconds, as "
        "a number or a distribution. Default: 0.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="A session ends before the turn with which prompts and answers together would "
        "be longer, in tokens; its first turn is always sent. Default: none. Set it below the "
        "model's longest length.",
    )


class ClassSpec(Section):
    """One class of requests that are alike, with its own arrivals and its own figures."""

    arrivals: Arrivals = Field(
        description="When requests are sent. Required. With turns: when sessions start."
    )
    start_s: float = Field(
        default=0.0,
        ge=0,
        le=DAY_S,
        description="When the class begins, in seconds after the start of the run. Default: 0.",
    )
    prompt_tokens: WholeNumbers = Field(
        description="New text of each request, in tokens, as a number or a distribution. Required."
    )
    output_tokens: WholeNumbers = Field(
        description="Length of each answer, in tokens, as a number or a distribution. Required: "
        "answers of free length would make two runs incomparable."
    )
    shared_prefix: SharedPrefix | None = Field(
        default=None,
        description="Text in front that requests share. Default: none, every prompt is its own.",
    )
    turns: Turns | None = Field(
        default=None,
        description="Sessions of several requests; not with closed arrivals. Default: none, every "
        "request stands alone.",
    )
    models: Mapping[ModelName, Weight] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Served names to ask for, such as LoRA adapters, and how often each, in "
        "relation to the others. Default: the target's model.",
    )
    priorities: Mapping[Priority, Weight] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Values of the priority field (whole numbers; smaller is served earlier), and "
        "how often each. Default: none is sent.",
    )
    tenants: Mapping[Tenant, Weight] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Values of the OpenAI user field, and how often each. Default: none is sent.",
    )
    slo: SloSpec | None = Field(
        default=None,
        description="Service level of this class, instead of the whole workload's. Default: the "
        "workload's.",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found: list[Finding] = []
        if self.turns is not None and isinstance(self.arrivals, ClosedArrivals):
            found.append((("turns",), "has no meaning with closed arrivals; use an open loop"))
        if self.turns is not None:
            largest = largest_whole(self.turns.count)
            if largest > MAX_TURNS:
                what = f"must be at most {MAX_TURNS} (got {largest})"
                found.append((("turns", "count"), what))
        if found:
            raise broken_rules(found)
        return self


class TraceClass(Section):
    """A class of a trace's requests, by the length of their prompts."""

    max_prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="Longest prompt of the class, in tokens; shorter ones belong to the class "
        "with the smallest bound that takes them. Default: none, it takes the rest.",
    )
    slo: SloSpec | None = Field(
        default=None,
        description="Service level of this class, instead of the whole workload's. Default: the "
        "workload's.",
    )


class TraceSpec(Section):
    """Requests as they were recorded somewhere: their times and lengths, never their text."""

    format: Literal["azure", "mooncake", "burstgpt", "requests"] = Field(
        description="azure: CSV with TIMESTAMP, ContextTokens, GeneratedTokens. mooncake: JSON "
        "lines with timestamp, input_length, output_length, hash_ids of blocks of 512 tokens. "
        "burstgpt: CSV with Timestamp, Request tokens, Response tokens. requests: JSON lines with "
        "at_s, prompt_tokens, output_tokens, or the requests.jsonl of a run. Required."
    )
    file: str = Field(
        min_length=1,
        max_length=4000,
        description="The trace; a relative path starts at the workload's folder, ~ is the home "
        "folder. Required.",
    )
    time_unit: Literal["s", "ms", "us"] | None = Field(
        default=None,
        description="Unit of the trace's times. Default: the format's own, which is ms for "
        "mooncake and s for burstgpt and requests. The dates of azure have none.",
    )
    start_s: float = Field(
        default=0.0,
        ge=0,
        le=1e9,
        description="Where in the trace to begin, in seconds of the trace. Default: 0, the first "
        "row; for format requests its own second 0.",
    )
    duration_s: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="How much of the trace to take, in seconds of the trace. The file must then be "
        "in order of time, give or take a minute. Default: all.",
    )
    max_prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="Longest prompt that is sent, in tokens; see too_long. Default: none.",
    )
    max_output_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="Longest answer that is asked for, in tokens; see too_long. Default: none.",
    )
    too_long: Literal["drop", "clip"] = Field(
        default="drop",
        description="What happens to longer rows: left out and counted (drop), or shortened "
        "(clip). Default: drop, which changes the rate and not the requests.",
    )
    jitter: bool | None = Field(
        default=None,
        description="Whether requests of one tick of the recording's clock are spread over the "
        "tick, in their order; a tick is the smallest distance of two times. Default: true for "
        "mooncake and burstgpt, whose ticks of seconds would be bursts that never were.",
    )
    class_name: ClassName = Field(
        default="trace",
        description="Class of the rows that name none themselves. Default: trace.",
    )
    classes: Mapping[ClassName, TraceClass] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Splits the rows by prompt length, whatever class they name; one class must "
        "be without a bound. Default: none.",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found: list[Finding] = []
        if self.format == "azure" and self.time_unit is not None:
            found.append((("time_unit",), "has no meaning with format azure, which has dates"))
        if self.classes is not None:
            bounds = [entry.max_prompt_tokens for entry in self.classes.values()]
            if bounds.count(None) != 1:
                what = "must have exactly one class without max_prompt_tokens, for the rest"
                found.append((("classes",), f"{what} (got {bounds.count(None)})"))
            elif len(set(bounds)) != len(bounds):
                found.append((("classes",), "must not have two classes of equal bounds"))
        if found:
            raise broken_rules(found)
        return self


def _either_schema(schema: dict[str, Any]) -> None:
    """Says in JSON Schema that there are classes or a trace, so that editors complain in time."""
    none: dict[str, Any] = {"type": "null"}
    schema["oneOf"] = [
        {"required": ["classes", "duration_s"], "properties": {"trace": none}},
        {"required": ["trace"], "properties": {"classes": none}},
    ]


class WorkloadSpec(Section):
    """Everything that a workload decides."""

    model_config = ConfigDict(json_schema_extra=_either_schema)

    seed: int = Field(
        default=0,
        ge=0,
        le=2**53,
        description="Where all that is drawn comes from. Default: 0; the same seed plans the "
        "same requests.",
    )
    duration_s: float | None = Field(
        default=None,
        gt=0,
        le=7 * DAY_S,
        description="How long requests are sent, in seconds; answers are then awaited. Required "
        "with classes. Default with a trace: as long as the trace.",
    )
    slo: SloSpec | None = Field(
        default=None,
        description="Service level of all classes without their own. Default: none.",
    )
    classes: Mapping[ClassName, ClassSpec] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Made-up requests, by class. Either this or trace.",
    )
    trace: TraceSpec | None = Field(
        default=None,
        description="Recorded requests. Either this or classes.",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        found: list[Finding] = []
        if self.classes is None and self.trace is None:
            found.append(((), "must have classes or a trace"))
        if self.classes is not None and self.trace is not None:
            found.append((("trace",), "must not stand beside classes; a workload is one of both"))
        if self.classes is not None and self.duration_s is None:
            found.append((("duration_s",), "is required with classes"))
        for name, entry in (self.classes or {}).items():
            if self.duration_s is not None and entry.start_s >= self.duration_s:
                what = f"must be less than spec.duration_s ({self.duration_s:g})"
                found.append((("classes", name, "start_s"), f"{what} (got {entry.start_s:g})"))
        if found:
            raise broken_rules(found)
        return self


class Workload(Section):
    """A workload, as in a YAML file with ``kind: Workload``."""

    model_config = ConfigDict(title="Workload")

    api_version: Literal["baton/v1"] = Field(
        alias="apiVersion",
        description="Version of this format: baton/v1. Required, so that a later format can tell "
        "old files.",
    )
    kind: Literal["Workload"] = Field(
        description="Always Workload. Required, so that other files are not taken for one."
    )
    metadata: WorkloadMetadata = Field(description="What the workload is called. Required.")
    spec: WorkloadSpec = Field(description="What is sent, and when. Required.")

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name

    def canonical_spec(self) -> dict[str, Any]:
        """The spec as plain data with every default filled in."""
        data: dict[str, Any] = self.spec.model_dump(mode="json")
        return data
