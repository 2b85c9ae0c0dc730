"""What the API server says when it refuses: ``Status`` objects, worded as a real one words them,
because Baton's parts show those words to people and tell causes apart by their reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.kubernetes.kinds import Row

Json = dict[str, Any]


class Refused(Exception):
    """Answered as a ``Status`` object."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
            **({"details": details} if details else {}),
        }
        self.code = code


@dataclass(frozen=True)
class Cause:
    """One thing wrong with an object; ``reason`` is of the API's ``FieldValue...``."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


def required(field: str, message: str = "") -> Cause:
    """A field that has to be there."""
    return Cause(field, f"Required value{': ' if message else ''}{message}", "FieldValueRequired")


def wrong(field: str, value: object, message: str) -> Cause:
    """A value that may not be."""
    shown = f'"{value}"' if isinstance(value, str) else value
    return Cause(field, f"Invalid value: {shown}: {message}")


def forbidden(field: str, message: str) -> Cause:
    """A change that may not be."""
    return Cause(field, f"Forbidden: {message}", "FieldValueForbidden")


def bad_request(message: str) -> Refused:
    """400."""
    return Refused(400, "BadRequest", message)


def not_found(row: Row, name: str) -> Refused:
    """404 for an object; that of a kind is no ``Status``."""
    return Refused(404, "NotFound", f'{row.resource} "{name}" not found', _details(row, name))


def already_exists(row: Row, name: str) -> Refused:
    """409 for a name that is taken."""
    message = f'{row.resource} "{name}" already exists'
    return Refused(409, "AlreadyExists", message, _details(row, name))


def conflict(row: Row, name: str, why: str = "") -> Refused:
    """409 for a write that others were faster than."""
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try "
        "again"
    )
    message = f'Operation cannot be fulfilled on {row.resource} "{name}": {why}'
    return Refused(409, "Conflict", message, _details(row, name))


def invalid(row: Row, name: str, causes: Sequence[Cause]) -> Refused:
    """422."""
    kind = f"{row.kind}.{row.group}" if row.group else row.kind
    lines = [f"{cause.field}: {cause.message}" for cause in causes]
    said = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    details = _details(row, name, causes)
    details["kind"] = row.kind
    return Refused(422, "Invalid", f'{kind} "{name}" is invalid: {said}', details)


def not_allowed(row: Row, verb: str, resource: str, namespace: str, name: str) -> Refused:
    """403 of RBAC."""
    named = f' "{name}"' if name else ""
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = (
        f'{row.resource}{named} is forbidden: User "fake" cannot {verb} resource "{resource}" in '
        f'API group "{row.group}" {where}'
    )
    return Refused(403, "Forbidden", message, _details(row, name))


def expired(message: str) -> Refused:
    """410."""
    return Refused(410, "Expired", message)


def _details(row: Row, name: str, causes: Sequence[Cause] = ()) -> Json:
    details: Json = {"name": name, "kind": row.plural}
    if row.group:
        details["group"] = row.group
    if causes:
        details["causes"] = [
            {"reason": cause.reason, "message": cause.message, "field": cause.field}
            for cause in causes
        ]
    return details
