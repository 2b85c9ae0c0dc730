"""Who may use the router and how much of it: what people write, and what the hot path reads.

A tenant is a name with limits and the hashes of its keys. People write them into a YAML file or let
``baton key`` do it; every mistake is told with file, line and field. The file never holds a key,
and nothing here could tell one: a key exists in the clear once, when it is made.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from baton.errors import SettingsError
from profiles import PATTERNS, Explainer, Section, YamlKind, broken_rules

MAX_PRIORITY = 100
"""Priorities lie between this and its negative: each one in use is a band of its own."""

MAX_TENANTS = 10_000
"""Of one router. A file ends earlier, at a few hundred (5,000 values); Redis holds more."""

ANONYMOUS = "anonymous"
"""The tenant of a router without keys."""

TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$"
HASH_PATTERN = r"^sha256:[0-9a-f]{64}$"
MODEL_PATTERN = r"^[A-Za-z0-9._:/@+*?\[\]!-]{1,200}$"

TenantName = Annotated[str, Field(pattern=TENANT_PATTERN)]
KeyHash = Annotated[str, Field(pattern=HASH_PATTERN)]
ModelGlob = Annotated[str, Field(pattern=MODEL_PATTERN)]


class TenantSpec(Section):
    """One tenant, as it is written."""

    priority: int = Field(
        default=0,
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="Band in the queue: higher goes first, negative is shed first. Default: 0.",
    )
    weight: float = Field(
        default=1.0,
        ge=0.01,
        le=1000,
        description="Share of its band against the other tenants'. Default: 1.",
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Default: no limit."
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000_000,
        description="Prompt and answer together. Default: no limit.",
    )
    concurrency: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Requests at a time. Default: no limit."
    )
    models: list[ModelGlob] | None = Field(
        default=None,
        max_length=100,
        description="Patterns (* and ?) of the models it may use. Default: all.",
    )
    key_hashes: list[KeyHash] = Field(
        default_factory=list,
        max_length=100,
        description="sha256:<hex> of each key. Default: none, so that nobody gets in.",
    )


class TenantsFile(Section):
    """The file: ``apiVersion: baton/v1``, ``kind: Tenants``, and tenants by name."""

    api_version: Literal["baton/v1"] = Field(alias="apiVersion")
    kind: Literal["Tenants"]
    tenants: dict[TenantName, TenantSpec] = Field(default_factory=dict, max_length=MAX_TENANTS)

    @model_validator(mode="after")
    def _keys_are_of_one_tenant(self) -> Self:
        found = [(("tenants", name), text) for name, text in repeated_hashes(self.tenants)]
        if found:
            raise broken_rules(found)
        return self


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant on the hot path; see :class:`TenantSpec` for the fields."""

    name: str
    priority: int = 0
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    models: re.Pattern[str] | None = None

    def allows(self, model: str) -> bool:
        """Whether it may use a model."""
        return self.models is None or self.models.fullmatch(model) is not None


def tenant_of(name: str, spec: TenantSpec) -> Tenant:
    """The hot path's form; all patterns become one."""
    models = None
    if spec.models is not None:
        # No pattern at all matches nothing, not even the empty name.
        globs = "|".join(fnmatch.translate(glob) for glob in spec.models) or r"(?!)"
        models = re.compile(globs)
    return Tenant(
        name=name,
        priority=spec.priority,
        weight=spec.weight,
        requests_per_minute=spec.requests_per_minute,
        tokens_per_minute=spec.tokens_per_minute,
        concurrency=spec.concurrency,
        models=models,
    )


def repeated_hashes(tenants: Mapping[str, TenantSpec]) -> list[tuple[str, str]]:
    """Tenants with a key that another tenant has already, each with a sentence about it."""
    owners: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    for name, spec in tenants.items():
        for key_hash in spec.key_hashes:
            owner = owners.setdefault(key_hash, name)
            if owner != name:
                found.append((name, f"has a key that is {owner}'s already ({key_hash[:15]}...)"))
    return found


_EXPLAINER = Explainer(
    TenantsFile,
    patterns={
        **PATTERNS,
        TENANT_PATTERN: "must be 1 to 63 letters, digits and . _ @ - only, starting with a letter "
        "or digit",
        HASH_PATTERN: "must be sha256: and 64 hexadecimal digits in lower case; "
        "`baton key create` makes it",
        MODEL_PATTERN: "must be a model's name, or a pattern of one with * and ?",
    },
    stand_ins={TenantSpec: "<name>"},
)


def _error(problems: Sequence[str]) -> SettingsError:
    return SettingsError("\n".join(problems))


_FILES = YamlKind(
    TenantsFile,
    noun="tenants file",
    package="router.tenants",
    explain=_EXPLAINER.explain,
    error=_error,
)


def parse_tenants(text: str, *, source: str) -> dict[str, TenantSpec]:
    """Tenants from YAML text; ``source`` is what messages call it.

    Raises:
        SettingsError: one line per problem, ``source:line: field.path: what is wrong``.
    """
    return _FILES.parse(text, source=source).tenants


def load_tenants(path: Path) -> dict[str, TenantSpec]:
    """Tenants from a file.

    Raises:
        SettingsError: as ``parse_tenants``, or it cannot be read.
    """
    return _FILES.load(path).tenants


def parse_tenant(name: str, text: bytes | str, *, source: str) -> TenantSpec:
    """One tenant from JSON, as Redis holds it.

    Raises:
        SettingsError: what is wrong, on one line.
    """
    if not re.fullmatch(TENANT_PATTERN, name):
        raise SettingsError(f"{source}: {name[:80]!r} is not a tenant's name")
    try:
        return TenantSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        said = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise SettingsError(f"{source}: {name}: {said}") from error


def plain(spec: TenantSpec) -> dict[str, Any]:
    """What differs from the defaults, as plain data; reads back as the same tenant."""
    return spec.model_dump(mode="json", exclude_defaults=True)
