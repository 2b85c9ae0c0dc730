"""What a request's path and method mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes.kubernetes.errors import Refused
from tests.fakes.kubernetes.kinds import Kind, Row

Json = dict[str, Any]

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
TRUE = ("true", "1")


@dataclass(frozen=True)
class Target:
    """What a path means; an empty namespace is all of them, an empty name the collection."""

    row: Row
    namespace: str
    name: str
    part: str

    @property
    def resource(self) -> str:
        """``plural`` or ``plural/part``, as roles name it."""
        return f"{self.row.plural}/{self.part}" if self.part else self.row.plural


def target_of(path: str, kinds: Mapping[Kind, Row]) -> Target | None:
    """Nothing where no kind is served."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    inside = len(rest) > 2 and rest[0] == "namespaces"
    if inside and not (group == "" and rest[2] in ("status", "finalize")):
        namespace, rest = rest[1], rest[2:]
    row = kinds.get((group, version, rest[0]))
    if row is None or len(rest) > 3:
        return None
    name = rest[1] if len(rest) > 1 else ""
    part = rest[2] if len(rest) > 2 else ""
    if (part and part not in row.subresources) or (namespace and not row.namespaced):
        return None
    if row.namespaced and not namespace and name:
        return None
    return Target(row, namespace, name, part)


def verb_of(request: web.Request, target: Target) -> str:
    """As roles name it.

    Raises:
        Refused: 405, the method does not go there.
    """
    if request.method == "GET":
        if request.query.get("watch") in TRUE and not target.part:
            return "watch"
        return "get" if target.name else "list"
    verb = _VERBS.get(request.method, "")
    if verb == "delete" and not target.name:
        verb = "deletecollection"
    collection = verb in ("create", "deletecollection") and target.part != "token"
    nowhere = target.row.namespaced and not target.namespace
    misplaced = bool(target.name) is collection or (target.part and verb == "delete")
    if not verb or misplaced or nowhere:
        message = "the server does not allow this method on the requested resource"
        raise Refused(405, "MethodNotAllowed", message)
    return verb
