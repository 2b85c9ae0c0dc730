"""Whose field is which: server-side apply and ``managedFields``.

A path is a tuple of the steps that ``fieldsV1`` is written with: ``f:name`` for a field,
``k:{"name":"x"}`` for an entry of a list that has keys, ``v:"x"`` for one of a set. Which lists
have keys is known by the field's name (a real server reads it in schemas, which say the same for
what Baton writes); all other lists are one value, and so are label selectors. Ownership is of
leaves and of list entries, not of the maps between them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.kubernetes.errors import Refused

Json = dict[str, Any]
Path = tuple[str, ...]
Paths = frozenset[Path]

_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
    "claims": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "conditions": ("type",),
    "roles": ("name",),
    "roleStatuses": ("name",),
    "ownerReferences": ("uid",),
}
_CONTAINER_PORTS = ("containerPort", "protocol")
_SERVICE_PORTS = ("port", "protocol")
_ATOMIC = frozenset({"selector", "labelSelector", "namespaceSelector", "podSelector"})
_DEFAULTS = {"protocol": "TCP"}
_OWNED_METADATA = ("labels", "annotations", "finalizers", "ownerReferences")


@dataclass(frozen=True)
class Writer:
    """Who writes: a manager by an operation, at ``status``, ``scale`` or the object itself."""

    manager: str
    operation: str
    api_version: str
    subresource: str = ""

    def told(self) -> str:
        """As conflicts name it."""
        name = json.dumps(self.manager)
        if self.subresource:
            name += f" with subresource {json.dumps(self.subresource)}"
        return name if self.operation == "Apply" else f"{name} using {self.api_version}"

    def same(self, other: Writer) -> bool:
        """Whether both have one entry; an applier keeps its own through versions of the API."""
        mine = (self.manager, self.operation, self.subresource)
        return mine == (other.manager, other.operation, other.subresource) and (
            self.operation == "Apply" or self.api_version == other.api_version
        )


Owners = dict[Writer, Paths]


def list_keys(path: Path) -> tuple[str, ...]:
    """By what the entries of a list are told apart; nothing if the list is one value."""
    name = path[-1].removeprefix("f:")
    if name == "ports":
        if path[-2:] == ("f:spec", "f:ports"):
            return _SERVICE_PORTS
        inside = any(step in ("f:containers", "f:initContainers") for step in path)
        return _CONTAINER_PORTS if inside else ()
    return _KEYS.get(name, ())


def entry_step(keys: tuple[str, ...], entry: object) -> str:
    """The step to an entry of a list that has keys; empty if it lacks one of them."""
    if not isinstance(entry, dict):
        return ""
    found = {key: entry.get(key, _DEFAULTS.get(key)) for key in sorted(keys)}
    if any(value is None for value in found.values()):
        return ""
    return "k:" + json.dumps(found, separators=(",", ":"))


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """All owned paths in an object, each with its value; that of a list's entry is None."""
    if isinstance(value, dict) and value and not (path and path[-1][2:] in _ATOMIC):
        found: dict[Path, Any] = {}
        for key, inner in value.items():
            found |= leaves(inner, (*path, f"f:{key}"))
        return found
    if isinstance(value, list) and value:
        if path[-1] == "f:finalizers":
            return {(*path, f"v:{json.dumps(entry)}"): entry for entry in value}
        steps = [entry_step(list_keys(path), entry) for entry in value] if list_keys(path) else []
        if steps and all(steps) and len(set(steps)) == len(steps):
            found = {}
            for step, entry in zip(steps, value, strict=True):
                found[(*path, step)] = None
                found |= leaves(entry, (*path, step))
            return found
    return {path: value}


def owned(found: Json, subresource: str, *, has_status: bool) -> dict[Path, Any]:
    """The leaves that can have owners when it is written there."""
    metadata = found.get("metadata") or {}
    part: Json = {
        key: value
        for key, value in found.items()
        if key not in ("apiVersion", "kind", "metadata", "status")
    }
    kept = {key: metadata[key] for key in _OWNED_METADATA if metadata.get(key)}
    if subresource == "status":
        part = {}
        kept = {}
    if kept:
        part["metadata"] = kept
    if found.get("status") is not None and (subresource == "status" or not has_status):
        part["status"] = found["status"]
    return {path: value for path, value in leaves(part).items() if path}


def merged(before: Any, config: Any, path: Path = ()) -> Any:
    """What an apply makes of an object before anything is taken away."""
    if isinstance(before, dict) and isinstance(config, dict):
        if path and path[-1][2:] in _ATOMIC:
            return copy.deepcopy(config)
        result = dict(before)
        for key, value in config.items():
            result[key] = merged(before.get(key), value, (*path, f"f:{key}"))
        return result
    if isinstance(before, list) and isinstance(config, list) and path:
        if path[-1] == "f:finalizers":
            return [*before, *(entry for entry in config if entry not in before)]
        keys = list_keys(path)
        if keys and all(entry_step(keys, entry) for entry in [*before, *config]):
            result_list = list(before)
            places = {entry_step(keys, entry): place for place, entry in enumerate(before)}
            for entry in config:
                step = entry_step(keys, entry)
                if step in places:
                    place = places[step]
                    result_list[place] = merged(before[place], entry, (*path, step))
                else:
                    result_list.append(copy.deepcopy(entry))
            return result_list
    return copy.deepcopy(config)


def without(found: Any, path: Path, at: Path = ()) -> None:
    """Takes the value at a path away, in place, and maps that are left empty with it."""
    step, rest = path[0], path[1:]
    if step.startswith("f:"):
        name = step[2:]
        if not isinstance(found, dict) or name not in found:
            return
        if not rest:
            del found[name]
            return
        without(found[name], rest, (*at, step))
        if found[name] in ({}, []):
            del found[name]
        return
    if not isinstance(found, list):
        return
    keys = list_keys(at) if step.startswith("k:") else ()
    for place, entry in enumerate(found):
        if step == (entry_step(keys, entry) if keys else f"v:{json.dumps(entry)}"):
            if rest:
                without(entry, rest, (*at, step))
            else:
                del found[place]
            return


def read_owners(found: Json | None) -> Owners:
    """Out of ``managedFields``."""
    owners: Owners = {}
    for entry in (found or {}).get("metadata", {}).get("managedFields") or []:
        if not entry.get("manager"):
            continue
        writer = Writer(
            entry["manager"],
            entry["operation"],
            entry["apiVersion"],
            entry.get("subresource", ""),
        )
        owners[writer] = frozenset(_decoded(entry.get("fieldsV1") or {}))
    return owners


def write_owners(found: Json, owners: Owners, before: Json | None, now: str) -> None:
    """Into ``managedFields``; an entry that is as before keeps its time."""
    times = {
        (entry["manager"], entry["operation"], entry.get("subresource", "")): entry
        for entry in (before or {}).get("metadata", {}).get("managedFields") or []
    }
    entries = []
    for writer, paths in owners.items():
        if not paths:
            continue
        entry: Json = {
            "manager": writer.manager,
            "operation": writer.operation,
            "apiVersion": writer.api_version,
            "time": now,
            "fieldsType": "FieldsV1",
            "fieldsV1": _encoded(paths),
        }
        if writer.subresource:
            entry["subresource"] = writer.subresource
        old = times.get((writer.manager, writer.operation, writer.subresource))
        if old is not None and {**old, "time": now} == entry:
            entry = old
        entries.append(entry)
    if entries:
        found["metadata"]["managedFields"] = entries
    else:
        found["metadata"].pop("managedFields", None)


def updated(
    owners: Owners, writer: Writer, old: Mapping[Path, Any], new: Mapping[Path, Any]
) -> Owners:
    """After a write that is no apply: what it changed is the writer's alone."""
    changed = frozenset(
        path for path, value in new.items() if path not in old or old[path] != value
    )
    gone = frozenset(old) - frozenset(new)
    result = {
        other: paths - gone - (frozenset() if other.same(writer) else changed)
        for other, paths in owners.items()
    }
    mine = next((other for other in result if other.same(writer)), writer)
    result[mine] = result.get(mine, frozenset()) | changed
    return result


def conflicts(
    owners: Owners, writer: Writer, old: Mapping[Path, Any], new: Mapping[Path, Any]
) -> list[tuple[Writer, Path]]:
    """Fields of others that an apply would change."""
    changed = {path for path, value in new.items() if path not in old or old[path] != value}
    return [
        (other, path)
        for other, paths in owners.items()
        if not other.same(writer)
        for path in sorted(paths & changed)
    ]


def apply_conflict(found: list[tuple[Writer, Path]]) -> Refused:
    """409, one cause for each field."""
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {other.told()}",
            "field": dotted(path),
        }
        for other, path in found
    ]
    if len(found) == 1:
        other, path = found[0]
        message = f"Apply failed with 1 conflict: conflict with {other.told()}: {dotted(path)}"
    else:
        parts = []
        for other in dict.fromkeys(other for other, _ in found):
            lines = "".join(f"\n- {dotted(path)}" for who, path in found if who == other)
            parts.append(f"conflicts with {other.told()}:{lines}")
        message = f"Apply failed with {len(found)} conflicts: " + "\n".join(parts)
    return Refused(409, "Conflict", message, {"causes": causes})


def dotted(path: Path) -> str:
    """As conflicts name it: ``.spec.containers[name="a"].image``."""
    text = ""
    for step in path:
        if step.startswith("f:"):
            text += f".{step[2:]}"
        elif step.startswith("k:"):
            keys = json.loads(step[2:])
            text += f"[{','.join(f'{key}={json.dumps(value)}' for key, value in keys.items())}]"
        else:
            text += f"[={step[2:]}]"
    return text


def _encoded(paths: Iterable[Path]) -> Json:
    root: Json = {}
    listed = set(paths)
    for path in sorted(listed):
        node = root
        for step in path:
            node = node.setdefault(step, {})
        if any(len(other) > len(path) and other[: len(path)] == path for other in listed):
            node["."] = {}
    return root


def _decoded(node: Json, path: Path = ()) -> Iterable[Path]:
    if path and (not node or "." in node):
        yield path
    for step, inner in node.items():
        if step != ".":
            yield from _decoded(inner, (*path, step))
