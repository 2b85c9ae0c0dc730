"""What the schemas of LWS's custom resources say, as far as Baton's parts touch it: types,
defaults, limits, and which fields there are. Pod templates are taken as they come.

The CustomResourceDefinitions have a megabyte and a half each and may be missing where tests run; a
test holds these against them where they are there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from tests.fakes.kubernetes.errors import Cause, required

Json = dict[str, Any]

_FREE: Json = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_COUNT: Json = {"type": "integer", "minimum": 0}
_INTEGER: Json = {"type": "integer"}
_TEXT: Json = {"type": "string"}


def _object(needed: Sequence[str] = (), **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(needed)}


def _list(items: Json, **more: object) -> Json:
    return {"type": "array", "items": items, **more}


def _choice(*values: str, default: str | None = None) -> Json:
    found: Json = {"type": "string", "enum": list(values)}
    return found if default is None else {**found, "default": default}


_CONDITIONS = _list(
    _object(
        ("lastTransitionTime", "message", "reason", "status", "type"),
        lastTransitionTime=_TEXT,
        message=_TEXT,
        observedGeneration=_COUNT,
        reason=_TEXT,
        status=_choice("True", "False", "Unknown"),
        type=_TEXT,
    )
)

_LWS_SPEC = _object(
    ("leaderWorkerTemplate",),
    replicas={**_COUNT, "default": 1},
    leaderWorkerTemplate=_object(
        ("workerTemplate",),
        leaderTemplate=_FREE,
        workerTemplate=_FREE,
        size={**_INTEGER, "default": 1},
        restartPolicy=_choice(
            "Default",
            "RecreateGroupOnPodRestart",
            "RecreateGroupAfterStart",
            "None",
            default="RecreateGroupOnPodRestart",
        ),
        subGroupPolicy=_object(
            subGroupPolicyType=_choice("LeaderWorker", "LeaderExcluded", default="LeaderWorker"),
            subGroupSize=_INTEGER,
        ),
        persistentVolumeClaimRetentionPolicy=_object(whenDeleted=_TEXT, whenScaled=_TEXT),
        volumeClaimTemplates=_list(_FREE),
    ),
    networkConfig=_object(
        ("subdomainPolicy",), subdomainPolicy=_choice("Shared", "UniquePerReplica")
    ),
    rolloutStrategy=_object(
        ("type",),
        type=_choice("RollingUpdate", default="RollingUpdate"),
        rollingUpdateConfiguration=_object(
            maxSurge={"default": 0, "x-kubernetes-int-or-string": True},
            maxUnavailable={"default": 1, "x-kubernetes-int-or-string": True},
            partition={**_INTEGER, "default": 0},
        ),
    ),
    startupPolicy=_choice("LeaderCreated", "LeaderReady", default="LeaderCreated"),
)

SCHEMAS: dict[str, Json] = {
    "leaderworkersets": _object(
        spec=_LWS_SPEC,
        status=_object(
            conditions=_CONDITIONS,
            hpaPodSelector=_TEXT,
            observedGeneration=_INTEGER,
            readyReplicas=_INTEGER,
            replicas=_INTEGER,
            updatedReplicas=_INTEGER,
        ),
    ),
    "disaggregatedsets": _object(
        ("spec",),
        spec=_object(
            ("roles",),
            placementPolicy=_object(
                topology=_TEXT,
                type=_choice("None", "ExclusiveSlice", "ExclusiveTopology", default="None"),
            ),
            roles=_list(
                _object(
                    ("name",),
                    metadata=_FREE,
                    name={"type": "string", "maxLength": 63},
                    scaling=_object(mode=_choice("Static", "External", default="Static")),
                    spec=_LWS_SPEC,
                ),
                minItems=2,
                maxItems=10,
            ),
            slices={"type": "integer", "minimum": 1, "default": 1},
        ),
        status=_object(
            conditions=_CONDITIONS,
            observedGeneration=_INTEGER,
            roleStatuses=_list(
                _object(
                    ("name",),
                    name=_TEXT,
                    readyReplicas=_INTEGER,
                    replicas=_INTEGER,
                    updatedReplicas=_INTEGER,
                )
            ),
        ),
    ),
    "disaggregatedsetrolescalers": _object(
        spec=_object(("replicas",), replicas={**_COUNT, "default": 0}),
        status=_object(
            conditions=_CONDITIONS,
            observedGeneration=_INTEGER,
            replicas=_INTEGER,
            selector=_TEXT,
        ),
    ),
}

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
}


def with_defaults(value: Any, schema: Json) -> Any:
    """A copy with the defaults of what is left out, and without fields that the schema has not."""
    if isinstance(value, dict) and "properties" in schema:
        known: Json = schema["properties"]
        result = {}
        for key, inner in value.items():
            if key in known and inner is not None:
                result[key] = with_defaults(inner, known[key])
        for key, inner_schema in known.items():
            if key not in result and "default" in inner_schema:
                result[key] = copy.deepcopy(inner_schema["default"])
        return result
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(entry, schema["items"]) for entry in value]
    return copy.deepcopy(value)


def unknown_fields(value: Any, schema: Json, path: str = "") -> Iterator[str]:
    """Paths that the schema has not."""
    if isinstance(value, dict) and "properties" in schema:
        known: Json = schema["properties"]
        for key, inner in value.items():
            where = f"{path}.{key}" if path else key
            if key not in known:
                yield where
            else:
                yield from unknown_fields(inner, known[key], where)
    elif isinstance(value, list) and "items" in schema:
        for place, entry in enumerate(value):
            yield from unknown_fields(entry, schema["items"], f"{path}[{place}]")


def problems(value: Any, schema: Json, path: str = "") -> Iterator[Cause]:
    """What is wrong with a value, defaults filled in."""
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or isinstance(value, bool)):
        found = {dict: "object", list: "array", str: "string", bool: "boolean"}.get(type(value))
        message = f'{path} in body must be of type {kind}: "{found or "number"}"'
        yield Cause(path, f"Invalid value: {message}", "FieldValueTypeInvalid")
        return
    if isinstance(value, int) and "minimum" in schema and value < schema["minimum"]:
        message = f"{path} in body should be greater than or equal to {schema['minimum']}"
        yield Cause(path, f"Invalid value: {value}: {message}")
    if "enum" in schema and value not in schema["enum"]:
        known = ", ".join(f'"{one}"' for one in schema["enum"])
        message = f'Unsupported value: "{value}": supported values: {known}'
        yield Cause(path, message, "FieldValueNotSupported")
    if isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        yield Cause(path, f"Too long: may not be more than {schema['maxLength']} bytes")
    if isinstance(value, list) and "items" in schema:
        if len(value) < schema.get("minItems", 0):
            message = f"{path} in body should have at least {schema['minItems']} items"
            yield Cause(path, f"Invalid value: {len(value)}: {message}")
        if len(value) > schema.get("maxItems", len(value)):
            message = f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
            yield Cause(path, message, "FieldValueTooMany")
        for place, entry in enumerate(value):
            yield from problems(entry, schema["items"], f"{path}[{place}]")
    if isinstance(value, dict) and "properties" in schema:
        for key in schema["required"]:
            if key not in value:
                yield required(f"{path}.{key}" if path else key)
        for key, inner in value.items():
            if key in schema["properties"]:
                where = f"{path}.{key}" if path else key
                yield from problems(inner, schema["properties"][key], where)
