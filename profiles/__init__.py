"""Serving profiles: what one says, how it is read, and the ones that come with Baton.

A profile is the one file in which an operator says which pools there are, what they run and how
requests are divided among them. This package reads and checks; it starts nothing and asks nobody.
"""

from __future__ import annotations

from profiles.overrides import with_overrides
from profiles.resolve import builtin_names, load_profile, parse_profile, resolve_profile
from profiles.schema import ProfileSpec, ServingProfile, profile_schema
from profiles.sections import (
    CPU,
    DEMO,
    ClassifySpec,
    Connector,
    DeadlinesSpec,
    LimitsSpec,
    Metadata,
    Mode,
    ModelSpec,
    PoolSpec,
    PoolsSpec,
    SloSpec,
    SourceKind,
    TransferSpec,
    Transport,
)
from profiles.worker_plan import worker_plan

__all__ = [
    "CPU",
    "DEMO",
    "ClassifySpec",
    "Connector",
    "DeadlinesSpec",
    "LimitsSpec",
    "Metadata",
    "Mode",
    "ModelSpec",
    "PoolSpec",
    "PoolsSpec",
    "ProfileSpec",
    "ServingProfile",
    "SloSpec",
    "SourceKind",
    "TransferSpec",
    "Transport",
    "builtin_names",
    "load_profile",
    "parse_profile",
    "profile_schema",
    "resolve_profile",
    "with_overrides",
    "worker_plan",
]
