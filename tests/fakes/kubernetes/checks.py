"""What an API server refuses to keep: names, labels, and rules of some kinds.

Of built-in kinds only what Baton's parts could get wrong is checked; of custom ones what
``schemas`` says.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

from tests.fakes.kubernetes.errors import Cause, bad_request, forbidden, required, wrong
from tests.fakes.kubernetes.kinds import Row
from tests.fakes.kubernetes.schemas import SCHEMAS, problems, unknown_fields, with_defaults

Json = dict[str, Any]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_PART = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_MICRO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

MAX_DATA = 1024 * 1024
"""Bytes in a ConfigMap or Secret."""

_NAMES = {
    "subdomain": (_SUBDOMAIN, 253, "a lowercase RFC 1123 subdomain"),
    "label": (_LABEL, 63, "a lowercase RFC 1123 label"),
    "dns1035": (_DNS1035, 63, "a DNS-1035 label"),
}
_TIMES: dict[str, tuple[tuple[str, re.Pattern[str]], ...]] = {
    "Lease": (("spec.acquireTime", _MICRO), ("spec.renewTime", _MICRO)),
    "Event": (
        ("eventTime", _MICRO),
        ("firstTimestamp", _SECONDS),
        ("lastTimestamp", _SECONDS),
    ),
}
_LAYOUTS = {
    _MICRO: "2006-01-02T15:04:05.000000Z07:00",
    _SECONDS: "2006-01-02T15:04:05Z07:00",
}


def decoded(row: Row, body: Any, *, strict: bool) -> Json:
    """A body as the server reads it into its own types: fields that it does not know are gone, and
    those that are left out have their defaults.

    Raises:
        Refused: 400, it is no object of this kind.
    """
    if not isinstance(body, dict):
        raise bad_request(f"the object provided is unrecognized: not a {row.kind}")
    for field, wanted in (("kind", row.kind), ("apiVersion", row.api_version)):
        stated = body.get(field)
        if stated is None and row.custom:
            raise bad_request(f"Object '{field}' is missing in the body")
        if stated not in (None, wanted):
            raise bad_request(
                f"{stated} cannot be handled as a {row.kind}: {field} should be {wanted}"
            )
    for path, pattern in _TIMES.get(row.kind, ()):
        value: Any = body
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and not pattern.fullmatch(str(value)):
            raise bad_request(
                f'{row.kind} in version "{row.version}" cannot be handled as a {row.kind}: '
                f'parsing time "{value}" as "{_LAYOUTS[pattern]}": cannot parse it'
            )
    schema = SCHEMAS.get(row.plural) if row.custom else None
    outer = {**body, "apiVersion": row.api_version, "kind": row.kind}
    outer["metadata"] = {
        key: value for key, value in (body.get("metadata") or {}).items() if value is not None
    }
    if schema:
        inner = {
            key: value
            for key, value in body.items()
            if key not in ("apiVersion", "kind", "metadata")
        }
        if strict and (unknown := list(unknown_fields(inner, schema))):
            said = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise bad_request(
                f'{row.kind} in version "{row.version}" cannot be handled as a {row.kind}: '
                f"strict decoding error: {said}"
            )
        head = {key: outer[key] for key in ("apiVersion", "kind", "metadata")}
        return {**head, **with_defaults(inner, schema)}
    if row.kind == "Secret" and isinstance(outer.get("stringData"), dict):
        outer["data"] = {**(outer.get("data") or {}), **_base64(outer.pop("stringData"))}
    return {key: value for key, value in outer.items() if value is not None}


def checked(row: Row, found: Json, before: Json | None) -> list[Cause]:
    """What is wrong with an object that is to be kept instead of ``before``."""
    causes = list(_metadata(row, found["metadata"], before))
    if row.custom and row.plural in SCHEMAS:
        inner = {
            key: value
            for key, value in found.items()
            if key not in ("apiVersion", "kind", "metadata")
        }
        causes += problems(inner, SCHEMAS[row.plural])
    if row.kind == "DisaggregatedSet" and not causes:
        causes += _disaggregated(found)
    if row.kind in ("ConfigMap", "Secret"):
        causes += _data(found, before)
    if row.kind == "CustomResourceDefinition":
        causes += _definition(found)
    if row.kind == "Lease":
        causes += _lease(found)
    if row.kind == "Event":
        causes += _event(found)
    return causes


def _metadata(row: Row, metadata: Json, before: Json | None) -> Iterator[Cause]:
    name = metadata["name"]
    if row.names == "path":
        if name in (".", "..") or "/" in name or "%" in name:
            yield wrong("metadata.name", name, "may not contain '/' or '%', or be '.' or '..'")
    else:
        pattern, longest, what = _NAMES[row.names]
        if not pattern.fullmatch(name) or len(name) > longest:
            yield wrong("metadata.name", name, f"{what} of at most {longest} characters")
    for field in ("labels", "annotations"):
        for key, value in (metadata.get(field) or {}).items():
            where = f"metadata.{field}"
            prefix, _, last = key.rpartition("/")
            if not _PART.fullmatch(last) or len(last) > 63 or len(prefix) > 253:
                yield wrong(where, key, "name part must consist of alphanumeric characters")
            if not isinstance(value, str):
                yield wrong(where, value, "must be a string")
            elif field == "labels" and value and not (_PART.fullmatch(value) and len(value) <= 63):
                yield wrong(where, value, "a valid label must be at most 63 of alphanumerics, -_.")
    old = (before or {}).get("metadata", {})
    if old.get("deletionTimestamp"):
        new = set(metadata.get("finalizers") or ()) - set(old.get("finalizers") or ())
        if new:
            message = (
                "no new finalizers can be added if the object is being deleted, found new "
                f"finalizers {sorted(new)}"
            )
            yield forbidden("metadata.finalizers", message)
    for owner in metadata.get("ownerReferences") or ():
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                yield required(f"metadata.ownerReferences.{key}", "must not be empty")


def _disaggregated(found: Json) -> Iterator[Cause]:
    """Replicas must be zero for all roles, or for none, apart from those scaled from outside."""
    static = [
        (role.get("spec") or {}).get("replicas")
        for role in found["spec"]["roles"]
        if (role.get("scaling") or {}).get("mode") != "External"
    ]
    if not (all(not count for count in static) or all(static)):
        message = (
            "replicas must be zero for all non-External roles or non-zero for all non-External "
            "roles"
        )
        yield wrong("spec", "object", message)


def _data(found: Json, before: Json | None) -> Iterator[Cause]:
    parts = [found.get(field) or {} for field in ("data", "binaryData")]
    for field, part in zip(("data", "binaryData"), parts, strict=True):
        for key in part:
            if not _DATA_KEY.fullmatch(key) or key in (".", ".."):
                yield wrong(f"{field}[{key}]", key, "a valid config key must be a file's name")
    if sum(len(str(value).encode()) for part in parts for value in part.values()) > MAX_DATA:
        yield Cause("", f"Too long: may not be more than {MAX_DATA} bytes", "FieldValueTooLong")
    if before is not None and before.get("immutable"):
        if not found.get("immutable"):
            yield forbidden("immutable", "field is immutable when `immutable` is set")
        for field in ("data", "binaryData"):
            if (found.get(field) or {}) != (before.get(field) or {}):
                yield forbidden(field, "field is immutable when `immutable` is set")


def _definition(found: Json) -> Iterator[Cause]:
    spec = found.get("spec") or {}
    for key in ("group", "names", "scope", "versions"):
        if not spec.get(key):
            yield required(f"spec.{key}")
            return
    wanted = f"{spec['names'].get('plural')}.{spec['group']}"
    if found["metadata"]["name"] != wanted:
        message = f'must be spec.names.plural+"."+spec.group, which is {wanted}'
        yield wrong("metadata.name", found["metadata"]["name"], message)


def _lease(found: Json) -> Iterator[Cause]:
    spec = found.get("spec") or {}
    duration, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if duration is not None and duration <= 0:
        yield wrong("spec.leaseDurationSeconds", duration, "must be greater than 0")
    if transitions is not None and transitions < 0:
        yield wrong("spec.leaseTransitions", transitions, "must be greater than or equal to 0")


def _event(found: Json) -> Iterator[Cause]:
    lies_in = found["metadata"]["namespace"]
    of = (found.get("involvedObject") or {}).get("namespace", "")
    if of != lies_in and not (not of and lies_in == "default"):
        yield wrong("involvedObject.namespace", of, "does not match event.namespace")


def _base64(texts: Json) -> Json:
    return {key: base64.b64encode(str(value).encode()).decode() for key, value in texts.items()}
