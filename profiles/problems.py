"""What is wrong with a profile, in plain sentences with lines: what is said of any file, and the
rules between the sections of this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from profiles.document import Document, Problem
from profiles.explain import RULES_ERROR, Explainer, Finding, located
from profiles.rules import Parts, findings
from profiles.schema import ServingProfile
from profiles.sections import (
    ACCELERATOR_PATTERN,
    NAME_PATTERN,
    SERVED_NAME_PATTERN,
    ClassifySpec,
    DeadlinesSpec,
    Mode,
    ModelSpec,
    PoolSpec,
    TransferSpec,
)
from profiles.traffic_sections import SwitchSpec

_Section = TypeVar("_Section", bound=BaseModel)

PATTERNS = {
    NAME_PATTERN: "must be lower-case letters, digits and dashes, starting with a letter and not "
    "ending with a dash",
    ACCELERATOR_PATTERN: "must be lower-case letters, digits, dots, dashes and underscores, "
    "starting and ending with a letter or digit",
    SERVED_NAME_PATTERN: "must be letters, digits and . _ : / @ + - only, starting with a letter "
    "or digit",
}
"""A sentence for each kind of name, for every file that uses them."""

_EXPLAINER = Explainer(ServingProfile, patterns=PATTERNS, stand_ins={PoolSpec: "<role>"})


def explain(error: ValidationError, document: Document) -> list[Problem]:
    """One problem per mistake.

    Rules between fields are applied to the sound sections even where others are broken, which the
    validator by itself does not do.
    """
    return located(chain(_EXPLAINER.findings(error), _other_rules(error, document)), document)


def _other_rules(error: ValidationError, document: Document) -> Iterator[Finding]:
    """Broken rules between sound sections, where the validator did not come to look at them."""
    looked = any(item["type"] == RULES_ERROR for item in error.errors(include_url=False))
    if looked or not isinstance(document.value, dict):
        return
    spec = document.value.get("spec")
    for path, sentence in findings(_sound_parts(spec)) if isinstance(spec, dict) else ():
        yield ("spec", *path), sentence


def _sound_parts(spec: Mapping[str, object]) -> Parts:
    """The sections of a spec that validate on their own."""
    mode = spec.get("mode")
    raw_pools = spec.get("pools")
    pools: dict[str, PoolSpec | None] | None = None
    if isinstance(raw_pools, dict):
        named = {name: raw_pools.get(name) for name in ("prefill", "decode", "standard")}
        pools = {name: _sound(PoolSpec, raw) for name, raw in named.items() if raw is not None}
    return Parts(
        mode=Mode(mode) if isinstance(mode, str) and mode in tuple(Mode) else None,
        model=_sound(ModelSpec, spec.get("model")),
        has_classify=spec.get("classify") is not None,
        classify=_sound(ClassifySpec, spec.get("classify")),
        has_degrade=spec.get("degrade") is not None,
        pools=pools,
        transfer=_sound(TransferSpec, spec.get("transfer", {})),
        deadlines=_sound(DeadlinesSpec, spec.get("deadlines", {})),
        switch=_sound(SwitchSpec, spec.get("switch", {})),
    )


def _sound(section: type[_Section], raw: object) -> _Section | None:
    try:
        return section.model_validate(raw)
    except ValidationError:
        return None
