"""Serving profiles: what one says, how it is read, and the ones that come with Baton.

A profile is the one file in which an operator says which pools there are, what they run and how
requests are divided among them. This package reads and checks; it starts nothing and asks nobody.

Other files that people write in the same way (workloads) are read and explained with ``Section``,
``YamlKind`` and ``Explainer``.
"""

from __future__ import annotations

from profiles.explain import Explainer, broken_rules
from profiles.overrides import with_overrides
from profiles.problems import PATTERNS
from profiles.resolve import builtin_names, load_profile, parse_profile, resolve_profile
from profiles.schema import ProfileSpec, ServingProfile, profile_schema
from profiles.sections import (
    CPU,
    DEMO,
    MAX_SERVED_NAME,
    NAME_PATTERN,
    SERVED_NAME_PATTERN,
    ClassifySpec,
    Connector,
    DeadlinesSpec,
    Decider,
    LimitsSpec,
    Metadata,
    Mode,
    ModelSpec,
    PoolSpec,
    PoolsSpec,
    Section,
    SloSpec,
    SourceKind,
    TransferSpec,
    Transport,
)
from profiles.traffic_sections import (
    DegradeSpec,
    DegradeStep,
    FlowSpec,
    Picker,
    PrefixKnowledge,
    RoutingSpec,
    ScorersSpec,
    SwitchSpec,
)
from profiles.worker_plan import worker_plan
from profiles.yaml_files import YamlKind

__all__ = [
    "CPU",
    "DEMO",
    "MAX_SERVED_NAME",
    "NAME_PATTERN",
    "PATTERNS",
    "SERVED_NAME_PATTERN",
    "ClassifySpec",
    "Connector",
    "DeadlinesSpec",
    "Decider",
    "DegradeSpec",
    "DegradeStep",
    "Explainer",
    "FlowSpec",
    "LimitsSpec",
    "Metadata",
    "Mode",
    "ModelSpec",
    "Picker",
    "PoolSpec",
    "PoolsSpec",
    "PrefixKnowledge",
    "ProfileSpec",
    "RoutingSpec",
    "ScorersSpec",
    "Section",
    "ServingProfile",
    "SloSpec",
    "SourceKind",
    "SwitchSpec",
    "TransferSpec",
    "Transport",
    "YamlKind",
    "broken_rules",
    "builtin_names",
    "load_profile",
    "parse_profile",
    "profile_schema",
    "resolve_profile",
    "with_overrides",
    "worker_plan",
]
