"""``/scale``: the replicas of any kind in one shape (autoscaling/v1)."""

from __future__ import annotations

import copy
from typing import Any

from tests.fakes.kubernetes.errors import Refused, bad_request, invalid, wrong
from tests.fakes.kubernetes.kinds import Row

Json = dict[str, Any]

_SHOWN = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def scale_of(row: Row, found: Json) -> Json:
    """The scale of an object.

    Raises:
        Refused: 500, the object does not say how many replicas it has.
    """
    assert row.scale is not None
    replicas = _value(found, row.scale.replicas)
    if replicas is None:
        message = f'the spec replicas field "{row.scale.replicas}" does not exist'
        raise Refused(500, "InternalError", f"Internal error occurred: {message}")
    status: Json = {"replicas": _value(found, row.scale.status) or 0}
    if selector := _selector(row, found):
        status["selector"] = selector
    metadata = found["metadata"]
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in _SHOWN if key in metadata},
        # A real server leaves a zero out here, and not in the status.
        "spec": {"replicas": replicas} if replicas else {},
        "status": status,
    }


def scaled(row: Row, before: Json, wanted: Any) -> Json:
    """The object with the replicas that a scale wants, and the version that it states.

    Raises:
        Refused: 400 or 422, it is no scale.
    """
    assert row.scale is not None
    if not isinstance(wanted, dict) or wanted.get("kind", "Scale") != "Scale":
        raise bad_request("the object provided is no Scale")
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise bad_request("Scale in version v1 cannot be handled: spec.replicas is no integer")
    name = before["metadata"]["name"]
    if replicas < 0:
        cause = wrong("spec.replicas", replicas, "should be a non-negative integer")
        raise invalid(row, name, [cause])
    found = copy.deepcopy(before)
    *way, last = row.scale.replicas.split(".")
    place = found
    for part in way:
        place = place.setdefault(part, {})
    place[last] = replicas
    stated = wanted.get("metadata") or {}
    for key in ("resourceVersion", "uid"):
        found["metadata"].pop(key, None)
        if stated.get(key):
            found["metadata"][key] = stated[key]
    return found


def at_path(path: str, value: object) -> Json:
    """An object with one value in it."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _selector(row: Row, found: Json) -> str:
    assert row.scale is not None
    if row.scale.selector:
        return _value(found, row.scale.selector) or ""
    labels = (_value(found, "spec.selector.matchLabels")) or {}
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _value(found: Json, path: str) -> Any:
    value: Any = found
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
