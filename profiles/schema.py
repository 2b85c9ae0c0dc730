"""The serving profile itself: its sections put together, its version, its JSON Schema.

A profile is a value: frozen, comparable, with a version that depends on what it says and not on
how it is written. Reading files and explaining mistakes is the business of ``resolve``.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from profiles.explain import broken_rules
from profiles.rules import Parts, findings
from profiles.sections import (
    ClassifySpec,
    DeadlinesSpec,
    LimitsSpec,
    Metadata,
    Mode,
    ModelSpec,
    PoolSpec,
    PoolsSpec,
    Section,
    SloSpec,
    TransferSpec,
)
from profiles.traffic_sections import DegradeSpec, FlowSpec, RoutingSpec, SwitchSpec

__all__ = [
    "ClassifySpec",
    "DeadlinesSpec",
    "DegradeSpec",
    "FlowSpec",
    "LimitsSpec",
    "Metadata",
    "Mode",
    "ModelSpec",
    "PoolSpec",
    "PoolsSpec",
    "ProfileSpec",
    "RoutingSpec",
    "ServingProfile",
    "SloSpec",
    "SwitchSpec",
    "TransferSpec",
    "profile_schema",
]


def _mode_schema(schema: dict[str, Any]) -> None:
    """Says in JSON Schema which sections each mode has, so that editors complain in time."""
    no_pool: dict[str, Any] = {"type": "null"}
    schema["allOf"] = [
        {
            "if": {"properties": {"mode": {"const": "disaggregated"}}},
            "then": {
                "required": ["classify"],
                "properties": {
                    "classify": {"type": "object"},
                    "pools": {
                        "required": ["prefill", "decode"],
                        "properties": {
                            "prefill": {"type": "object"},
                            "decode": {"type": "object"},
                            "standard": no_pool,
                        },
                    },
                },
            },
        },
        {
            "if": {"properties": {"mode": {"const": "standard"}}},
            "then": {
                "properties": {
                    "classify": {"type": "null"},
                    "degrade": {"type": "null"},
                    "pools": {
                        "required": ["standard"],
                        "properties": {
                            "prefill": no_pool,
                            "decode": no_pool,
                            "standard": {"type": "object"},
                        },
                    },
                },
            },
        },
    ]


class ProfileSpec(Section):
    """Everything that a profile decides."""

    model_config = ConfigDict(json_schema_extra=_mode_schema)

    mode: Annotated[Mode, Field(strict=False)] = Field(
        description="disaggregated: long prompts are computed by prefill workers and handed to "
        "decode workers. standard: each worker serves whole requests. Required: it is the choice "
        "that a profile is about.",
    )
    model: ModelSpec = Field(description="The base model. Required.")
    classify: ClassifySpec | None = Field(
        default=None,
        description="Which prompts go to prefill workers. Required in mode disaggregated; must "
        "be absent in mode standard, where nothing is classified.",
    )
    pools: PoolsSpec = Field(
        description="The workers: prefill and decode in mode disaggregated, standard in mode "
        "standard. Required.",
    )
    transfer: TransferSpec = Field(
        default=TransferSpec(),
        description="The handover of KV caches. Default: its fields' defaults.",
    )
    routing: RoutingSpec = Field(
        default=RoutingSpec(),
        description="How workers are chosen. Default: its fields' defaults.",
    )
    flow: FlowSpec = Field(
        default=FlowSpec(),
        description="Who waits in the router. Default: its fields' defaults.",
    )
    degrade: DegradeSpec | None = Field(
        default=None,
        description="What is tried when a handoff fails. Default: in mode disaggregated its "
        "fields' defaults; must be absent in mode standard, where nothing is handed over.",
    )
    deadlines: DeadlinesSpec = Field(
        default=DeadlinesSpec(),
        description="How long each leg of a request may take. Default: its fields' defaults.",
    )
    slo: SloSpec = Field(
        default=SloSpec(),
        description="The service level that benchmarks judge requests by. Default: none.",
    )
    switch: SwitchSpec = Field(
        default=SwitchSpec(),
        description="How routers change over to this profile. Default: its fields' defaults.",
    )
    limits: LimitsSpec = Field(
        default=LimitsSpec(),
        description="What one router takes on. Default: its fields' defaults.",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        pools = self.pools
        named = {"prefill": pools.prefill, "decode": pools.decode, "standard": pools.standard}
        found = findings(
            Parts(
                mode=self.mode,
                model=self.model,
                has_classify=self.classify is not None,
                has_degrade=self.degrade is not None,
                classify=self.classify,
                pools={name: pool for name, pool in named.items() if pool is not None},
                transfer=self.transfer,
                deadlines=self.deadlines,
                switch=self.switch,
            )
        )
        if found:
            raise broken_rules(found)
        return self


class ServingProfile(Section):
    """A serving profile, as in a YAML file with ``kind: ServingProfile``."""

    model_config = ConfigDict(title="ServingProfile")

    api_version: Literal["baton/v1"] = Field(
        alias="apiVersion",
        description="Version of this format: baton/v1. Required, so that a later format can "
        "tell old files.",
    )
    kind: Literal["ServingProfile"] = Field(
        description="Always ServingProfile. Required, so that other files are not taken for one.",
    )
    metadata: Metadata = Field(description="What the profile is called. Required.")
    spec: ProfileSpec = Field(description="What the profile decides. Required.")

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name

    @property
    def served_name(self) -> str:
        """The name that clients ask for: the model's own setting, or derived from its source."""
        return self.spec.model.name

    @property
    def degrade(self) -> DegradeSpec:
        """``spec.degrade``, or its defaults."""
        return self.spec.degrade or DegradeSpec()

    @property
    def version(self) -> str:
        """First 12 hex digits of the SHA-256 of the spec, defaults filled in.

        The same for two files that decide the same: formatting, comments, order of keys, name,
        description and defaults written out do not change it.
        """
        canonical = json.dumps(
            self.canonical_spec(), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:12]

    def canonical_spec(self) -> dict[str, Any]:
        """The spec as plain data with every default filled in, the derived model name too."""
        data: dict[str, Any] = self.spec.model_dump(mode="json")
        data["model"]["served_name"] = self.spec.model.name
        if self.spec.mode is Mode.DISAGGREGATED:
            data["degrade"] = self.degrade.model_dump(mode="json")
        return data


def profile_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a profile, for editors. Rules between fields other than the
    mode's are not in it: ``load_profile`` has the last word."""
    schema = ServingProfile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
