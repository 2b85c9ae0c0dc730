"""Strict JSON schemas: of custom kinds from their CRDs, of built-in ones from kubernetes-validate.

API servers drop fields that they do not know, silently. Here they are errors, except where a
schema says that it keeps unknown ones. Rules that need more than a schema are elsewhere.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema
import re2  # type: ignore[import-untyped]  # comes with cel-python
from jsonschema import Draft202012Validator, FormatChecker, TypeChecker, ValidationError
from referencing import Registry, Resource

from tests.manifests import crds
from tests.manifests.findings import Findings, Json, Path

_KEPT = (
    *("type", "enum", "pattern", "format", "required", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems"),
    *("uniqueItems", "minProperties", "maxProperties", "anyOf", "allOf", "oneOf", "not"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "default"),
)
_EMBEDDED = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {}}
_DURATION = re.compile(r"([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+|0")
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def findings(found: Json, schema_of: Draft202012Validator) -> Findings:
    """Everything that a schema has against an object."""
    for error in schema_of.iter_errors(found):
        yield from _explained(error)


@functools.cache
def of_crd(crd_group: str, version: str, kind: str) -> Draft202012Validator | None:
    """The validator of a custom kind; None if there is no such CRD. Metadata is left open."""
    crd = crds.of_group(crd_group).get((version, kind))
    if crd is None:
        return None
    schema = strict(crd.schema)
    schema["properties"] = {**schema.get("properties", {}), **_EMBEDDED}
    schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
    return validator(schema)


@functools.cache
def of_builtin(api_version: str, kind: str) -> Draft202012Validator | None:
    """The validator of a built-in kind in the newest version of Kubernetes that is there."""
    group, _, version = api_version.rpartition("/")
    # The files are named by the first part of the group: "apps", "rbac" of rbac.authorization...
    stem = (
        f"{kind.lower()}-{group.partition('.')[0]}-{version}"
        if group
        else f"{kind.lower()}-{version}"
    )
    file = _newest() / f"{stem}.json"
    if not file.is_file():
        return None
    schema = json.loads(file.read_text("utf-8"))
    if not any(
        (known["group"], known["version"], known["kind"]) == (group, version, kind)
        for known in schema.get("x-kubernetes-group-version-kind", ())
    ):
        return None
    return validator(schema, _definitions())


@functools.cache
def object_meta() -> Draft202012Validator:
    """The validator of ``metadata``, of any kind."""
    name = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    definitions = json.loads((_newest() / "_definitions.json").read_text("utf-8"))["$id"]
    return validator({"$ref": f"{definitions}#/$defs/{name}"}, _definitions())


def strict(schema: Json) -> Json:
    """A structural schema as a JSON schema in which unknown fields are errors."""
    made: Json = {key: schema[key] for key in _KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string") and "anyOf" not in made:
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if "items" in schema:
        made["items"] = strict(schema["items"])
    properties = {name: strict(one) for name, one in schema.get("properties", {}).items()}
    if schema.get("x-kubernetes-embedded-resource"):
        properties = {**_EMBEDDED, **properties}
    if properties:
        made["properties"] = properties
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        made["additionalProperties"] = strict(more)
    elif schema.get("type") == "object" and not (
        more is True or schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        made["additionalProperties"] = False
    return made


def with_defaults(value: Any, schema: Json) -> Any:
    """A copy with the defaults that an API server fills in before it evaluates rules."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        more = schema.get("additionalProperties")
        filled = {}
        for key, entry in value.items():
            below = properties.get(key, more if isinstance(more, dict) else {})
            filled[key] = with_defaults(entry, below)
        for key, below in properties.items():
            if key not in filled and "default" in below:
                filled[key] = with_defaults(json.loads(json.dumps(below["default"])), below)
        return filled
    if isinstance(value, list):
        return [with_defaults(entry, schema.get("items", {})) for entry in value]
    return value


# --- what jsonschema does not know ---


def _list_type(
    validator: Draft202012Validator, kind: str, value: object, schema: Json
) -> Iterator[ValidationError]:
    if not isinstance(value, list) or kind not in ("map", "set"):
        return
    keys = schema.get("x-kubernetes-list-map-keys", ())
    defaults = {
        key: one["default"]
        for key, one in schema.get("items", {}).get("properties", {}).items()
        if "default" in one
    }
    seen = set()
    for index, item in enumerate(value):
        if kind == "map" and not isinstance(item, dict):
            continue
        entry = [item.get(key, defaults.get(key)) for key in keys] if kind == "map" else item
        mark = json.dumps(entry, sort_keys=True)
        if mark in seen:
            what = f"the same {' and '.join(keys)} as" if keys else "the same value as"
            yield ValidationError(f"has {what} an earlier entry ({mark})", path=[index])
        seen.add(mark)


def _pattern(
    validator: Draft202012Validator, pattern: str, value: object, schema: Json
) -> Iterator[ValidationError]:
    # The patterns are Go's: RE2 takes (?i) in their middle, and its $ is the end and no newline.
    if isinstance(value, str) and not re2.search(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _is_integer(checker: TypeChecker, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_STRICT = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    validators={"x-kubernetes-list-type": _list_type, "pattern": _pattern},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)
_FORMATS = FormatChecker(())


@_FORMATS.checks("int32")
def _int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@_FORMATS.checks("int64")
def _int64(value: object) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


@_FORMATS.checks("date-time")
def _date_time(value: object) -> bool:
    return not isinstance(value, str) or bool(_DATE_TIME.fullmatch(value))


@_FORMATS.checks("duration")
def _duration(value: object) -> bool:
    return not isinstance(value, str) or bool(_DURATION.fullmatch(value))


@_FORMATS.checks("ipv4", raises=ValueError)
def _ipv4(value: object) -> bool:
    return not isinstance(value, str) or bool(ipaddress.IPv4Address(value))


@_FORMATS.checks("ipv6", raises=ValueError)
def _ipv6(value: object) -> bool:
    return not isinstance(value, str) or bool(ipaddress.IPv6Address(value))


def _explained(error: ValidationError) -> Findings:
    """One finding for each unknown field, at the field; of a choice, all that speaks against it."""
    path: Path = tuple(error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        for name in error.instance:
            if name not in known:
                yield (*path, name), "is no field that the schema knows"
        return
    message = error.message
    if len(message) > 300:
        message = f"{message[:140]} ... {message[-140:]}"
    yield path, message


def validator(schema: Json, registry: Registry[Any] | None = None) -> Draft202012Validator:
    """A validator that knows what the ones of JSON Schema do not: formats, kinds of lists."""
    made: Draft202012Validator = _STRICT(
        schema, registry=Registry() if registry is None else registry, format_checker=_FORMATS
    )
    return made


@functools.cache
def _newest() -> Any:
    """The folder with the strict schemas of the newest version."""
    suffix = "-local-strict"
    root = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    folders = [one for one in root.iterdir() if one.name.endswith(suffix)]
    return max(
        folders,
        key=lambda one: tuple(map(int, one.name.removeprefix("v").removesuffix(suffix).split("."))),
    )


@functools.cache
def _definitions() -> Registry[Any]:
    contents = json.loads((_newest() / "_definitions.json").read_text("utf-8"))
    registry: Registry[Any] = Registry()
    made: Registry[Any] = registry.with_resource(contents["$id"], Resource.from_contents(contents))
    return made
