"""What is wrong with a profile, in plain sentences with lines: pydantic's findings translated.

The validator's own messages speak to programmers and name no line. Each kind of finding has one
sentence here; what is missing falls back to the validator's words, which is ugly and not wrong.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from profiles.document import Document, FieldPath, Problem, show, show_path
from profiles.rules import Parts, findings
from profiles.schema import RULES_ERROR, ServingProfile
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

_Section = TypeVar("_Section", bound=BaseModel)

MAX_PROBLEMS = 50
"""More than this nobody reads; the last line says how many were left out."""

_KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode text",
    "model_type": "must be a mapping of fields",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
}

_PATTERNS = {
    NAME_PATTERN: "must be lower-case letters, digits and dashes, starting with a letter and not "
    "ending with a dash",
    ACCELERATOR_PATTERN: "must be lower-case letters, digits, dots, dashes and underscores, "
    "starting and ending with a letter or digit",
    SERVED_NAME_PATTERN: "must be letters, digits and . _ : / @ + - only, starting with a letter "
    "or digit",
}


def explain(error: ValidationError, document: Document) -> list[Problem]:
    """One problem per mistake, in the order of their lines.

    Rules between fields are applied to the sound sections even where others are broken, which the
    validator by itself does not do.
    """
    problems: list[Problem] = []
    taken: set[FieldPath] = set()
    for path, sentence in (*_field_problems(error), *_rule_problems(error, document)):
        # Of two findings about one place the first says enough: a flag that is refused needs no
        # remark on its value.
        if path not in taken and not _unread(path, document):
            taken.add(path)
            problems.append(Problem(document.line_of(path), path, sentence))
    return problems


def in_order(problems: list[Problem]) -> list[Problem]:
    """Sorted by line, cut at ``MAX_PROBLEMS``."""
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    rest = len(ordered) - MAX_PROBLEMS
    if rest > 0:
        last = ordered[MAX_PROBLEMS]
        more = Problem(last.line, (), f"and {rest} more problems from here on")
        ordered = [*ordered[:MAX_PROBLEMS], more]
    return ordered


def _unread(path: FieldPath, document: Document) -> bool:
    return any(path[:length] in document.unread for length in range(len(path) + 1))


def _field_problems(error: ValidationError) -> Iterator[tuple[FieldPath, str]]:
    for item in error.errors(include_url=False):
        path: FieldPath = item["loc"]
        if item["type"] == RULES_ERROR:
            continue
        if path and path[-1] == "[key]":
            path = path[:-1]
        yield path, _sentence(item["type"], item["input"], item.get("ctx", {}), path, item["msg"])


def _rule_problems(error: ValidationError, document: Document) -> Iterator[tuple[FieldPath, str]]:
    found = [
        finding
        for item in error.errors(include_url=False)
        if item["type"] == RULES_ERROR
        for finding in item["ctx"]["findings"]
    ]
    if not found and isinstance(document.value, dict):
        spec = document.value.get("spec")
        found = findings(_sound_parts(spec)) if isinstance(spec, dict) else []
    for path, sentence in found:
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
        pools=pools,
        transfer=_sound(TransferSpec, spec.get("transfer", {})),
        deadlines=_sound(DeadlinesSpec, spec.get("deadlines", {})),
    )


def _sound(section: type[_Section], raw: object) -> _Section | None:
    try:
        return section.model_validate(raw)
    except ValidationError:
        return None


def _sentence(
    kind: str, got: object, context: Mapping[str, Any], path: FieldPath, fallback: str
) -> str:
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return _unknown_field(path)
    if kind == "profile_value":
        return str(context["sentence"])
    if kind in ("literal_error", "enum"):
        return _choice(got, str(context["expected"]))
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch" and context["pattern"] in _PATTERNS:
        return f"{_PATTERNS[context['pattern']]} (got {show(got)})"
    if kind in _KINDS:
        bounds = {name: _number(value) for name, value in context.items()}
        return f"{_KINDS[kind].format(**bounds)} (got {show(got)}{_hint(kind, got, path)})"
    return f"{fallback} (got {show(got)})"


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hint(kind: str, got: object, path: FieldPath) -> str:
    if got is None:
        field = _field_at(path)
        optional = field is not None and not field.is_required()
        return "; leave the field out for its default" if optional else ""
    if kind in ("int_type", "float_type") and isinstance(got, str):
        return "; write the number without quotes" if re.fullmatch(r"-?[0-9.]+", got) else ""
    if kind == "string_type" and isinstance(got, bool | int | float):
        return "; put it in quotes"
    return ""


def _choice(got: object, expected: str) -> str:
    quoted = re.findall(r"'([^']*)'", expected)
    choices = quoted or re.findall(r"[0-9]+", expected)
    *head, last = choices
    allowed = f"one of {', '.join(head)} or {last}" if head else last
    hint = ""
    if isinstance(got, str) and got in choices:
        hint = "; write the number without quotes"
    elif isinstance(got, str) and head and (near := closest(got, choices)):
        hint = f"; did you mean {near}?"
    return f"must be {allowed} (got {show(got)}{hint})"


def closest(word: str, choices: list[str]) -> str | None:
    """The choice that a word was probably meant to be: case, dashes and underscores aside."""
    if len(word) > 100:
        return None
    plain = {re.sub(r"[-_]", "", choice).lower(): choice for choice in choices}
    near = difflib.get_close_matches(re.sub(r"[-_]", "", word).lower(), plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def _unknown_field(path: FieldPath) -> str:
    name = str(path[-1])
    section = _section_at(path[:-1])
    known = list(_fields(section)) if section is not None else []
    near = closest(name, known)
    if near is not None and near != name:
        return f"is not a known field; did you mean {near}?"
    elsewhere = [place for place in _places() if place[-1] == name]
    if elsewhere:
        return f"is not a known field here; it belongs at {show_path(elsewhere[0])}"
    return f"is not a known field (known here: {', '.join(known)})"


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """A section's fields under the names that files use."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def _section_of(info: FieldInfo) -> type[BaseModel] | None:
    for option in (info.annotation, *get_args(info.annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _section_at(path: FieldPath) -> type[BaseModel] | None:
    section: type[BaseModel] | None = ServingProfile
    for part in path:
        info = _fields(section).get(str(part)) if section is not None else None
        section = _section_of(info) if info is not None else None
    return section


def _field_at(path: FieldPath) -> FieldInfo | None:
    section = _section_at(path[:-1])
    return _fields(section).get(str(path[-1])) if section is not None and path else None


@functools.cache
def _places() -> tuple[FieldPath, ...]:
    """The path of every field; the pools' fields stand once, under ``<role>``."""
    found: dict[FieldPath, None] = {}

    def walk(section: type[BaseModel], at: FieldPath) -> None:
        for name, info in _fields(section).items():
            below = _section_of(info)
            found[(*at, name)] = None
            if below is not None:
                walk(below, (*at, "<role>" if below is PoolSpec else name))

    walk(ServingProfile, ())
    return tuple(found)
