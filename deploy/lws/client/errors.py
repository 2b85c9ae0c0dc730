"""What the Kubernetes API may say no with, as exceptions that a program can tell apart.

They hang in Baton's tree (``baton.errors``), so that whoever catches that catches these. Each says
what was asked for, of which object, and what to do about it. Answers are turned into them here and
nowhere else.

::

    OperatorError
    ├── Refused                 the API server said no
    │   ├── NotFound            404  no such object, or no such namespace
    │   ├── KindMissing         404  the cluster does not know the kind: its CRD is not installed
    │   ├── AlreadyExists       409  the name is taken
    │   ├── Conflict            409  somebody else changed it meanwhile: read it again
    │   │   └── FieldConflict        server-side apply: other managers own fields
    │   ├── Unauthorized        401  the credentials are not accepted
    │   ├── Forbidden           403  a Role is missing; ``rule`` is the one
    │   └── Invalid        400, 422  the object is wrong; ``causes`` says where
    ├── BadObject               it is of another kind or place than where it is written to
    └── BadName                 a name that LeaderWorkerSet or Kueue cannot work with
    KubernetesUnavailable       no answer at all (from baton.errors)
    └── Busy             429, 5xx    an answer, but none that helps, and so to the last try
    PeerFault
    └── NotInTime               a wait ran out; also a TimeoutError
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baton.errors import KubernetesUnavailable, OperatorError, PeerFault

Json = dict[str, Any]

_MAX_WORDS = 2000
"""Characters of a server's message that are kept; webhooks can be wordy."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call was about.

    Attributes:
        verb: as Roles name it: get, list, watch, create, patch, delete.
        group: API group; empty for core.
        resource: plural, with a subresource behind a slash.
        kind: of the object.
        namespace: it lies in.
        name: of the object; empty for a collection.
    """

    verb: str
    group: str
    resource: str
    kind: str
    namespace: str
    name: str = ""

    def __str__(self) -> str:
        name = f"/{self.name}" if self.name else ""
        return f"{self.verb} {self.resource} {self.namespace}{name}"


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that is wrong.

    Attributes:
        field: where, such as ``spec.replicas``; empty where the server does not say.
        message: what.
        reason: the server's word for it, such as ``FieldValueInvalid``.
    """

    field: str
    message: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Refused(OperatorError):
    """The API server said no.

    Attributes:
        asked: what was asked for.
        http_status: of the answer.
        reason: the server's word for it; empty where it has none.
    """

    def __init__(self, message: str, *, asked: Asked, http_status: int, reason: str = "") -> None:
        super().__init__(message)
        self.asked = asked
        self.http_status = http_status
        self.reason = reason


class NotFound(Refused):
    """There is no such object, or no such namespace to make it in."""

    status = 404


class KindMissing(Refused):
    """The cluster does not know the kind: its CRD is not installed, or not in this version."""

    status = 404


class AlreadyExists(Refused):
    """The name is taken."""

    status = 409


class Conflict(Refused):
    """Somebody else changed the object meanwhile: read it again, decide again."""

    status = 409
    retry_can_help = True


class FieldConflict(Conflict):
    """Server-side apply would change fields that other managers own.

    Attributes:
        causes: each names a field and who owns it.
    """

    retry_can_help = False

    def __init__(self, message: str, *, asked: Asked, causes: Sequence[Cause]) -> None:
        super().__init__(message, asked=asked, http_status=409, reason="Conflict")
        self.causes = tuple(causes)


class Unauthorized(Refused):
    """The credentials are not accepted, not even after they were read anew."""

    status = 401


class Forbidden(Refused):
    """No Role allows it.

    Attributes:
        rule: the rule of a Role in the object's namespace that would.
    """

    status = 403

    @property
    def rule(self) -> Json:
        """``{"apiGroups": [...], "resources": [...], "verbs": [...]}``."""
        return {
            "apiGroups": [self.asked.group],
            "resources": [self.asked.resource],
            "verbs": [self.asked.verb],
        }


class Invalid(Refused):
    """The object is wrong: against the schema, or a webhook turned it down.

    Attributes:
        causes: what is wrong where, as far as the server says.
    """

    status = 400

    def __init__(
        self, message: str, *, asked: Asked, http_status: int, reason: str, causes: Sequence[Cause]
    ) -> None:
        super().__init__(message, asked=asked, http_status=http_status, reason=reason)
        self.causes = tuple(causes)


class BadObject(OperatorError):
    """An object of another kind or namespace than it is written to, or without a name."""


class BadName(OperatorError):
    """A name that LeaderWorkerSet or Kueue cannot work with; the message says why."""


class Busy(KubernetesUnavailable):
    """The API server answers, but with 429 or 5xx to the last try.

    Attributes:
        asked: what was asked for.
        http_status: of the last answer.
        retry_after_s: after which the server wants to be asked again, where it says so.
    """

    def __init__(
        self, message: str, *, asked: Asked, http_status: int, retry_after_s: float | None
    ) -> None:
        super().__init__(message)
        self.asked = asked
        self.http_status = http_status
        self.retry_after_s = retry_after_s


class NotInTime(PeerFault, TimeoutError):
    """What was waited for did not come in time.

    Attributes:
        missing: what was not so at the end, one line each.
    """

    status = 504

    def __init__(self, message: str, *, missing: Sequence[str]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


def retry_after_s(answer: Json) -> float | None:
    """After which the server wants to be asked again, where it says so."""
    value = _details(answer).get("retryAfterSeconds")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def error_of(asked: Asked, status: int, answer: Json) -> Refused | Busy:
    """The exception for an answer that is not of 2xx.

    Args:
        asked: what was asked for.
        status: HTTP status.
        answer: the ``Status`` object; ``{}`` where something in between answered in its own words.
    """
    said = str(answer.get("message") or f"HTTP {status}")[:_MAX_WORDS]
    reason = str(answer.get("reason") or "")
    plain = f"cannot {asked}: {said}"
    if status == 429 or status >= 500:
        return Busy(plain, asked=asked, http_status=status, retry_after_s=retry_after_s(answer))
    if status in (400, 422):
        causes = _causes(answer)
        lines = "".join(f"\n  {cause}" for cause in causes if str(cause) not in said)
        return Invalid(plain + lines, asked=asked, http_status=status, reason=reason, causes=causes)
    if status == 409 and reason == "Conflict":
        owned = [cause for cause in _causes(answer) if cause.reason == "FieldManagerConflict"]
        if owned:
            return FieldConflict(
                f"{plain}; leave these fields out, or take them over with force=True",
                asked=asked,
                causes=owned,
            )
    kind, advice = _kind_of(asked, status, reason, answer)
    return kind(plain + advice, asked=asked, http_status=status, reason=reason)


def _kind_of(asked: Asked, status: int, reason: str, answer: Json) -> tuple[type[Refused], str]:
    """The class, and what to do about it."""
    if status == 401:
        return Unauthorized, "; renew the kubeconfig's or the service account's credentials"
    if status == 403:
        return Forbidden, (
            f"; allow verb {asked.verb} on resource {asked.resource} of API group "
            f'"{asked.group}" by a Role in namespace {asked.namespace}'
        )
    if status == 404:
        named = _details(answer).get("name") or f'"{asked.name}"' in str(answer.get("message"))
        if reason == "NotFound" and named:
            return NotFound, ""
        return KindMissing, (
            f"; the cluster does not serve {asked.kind} of {asked.group}: install its CRD "
            "and controller (LeaderWorkerSet and DisaggregatedSet come with LWS)"
        )
    if status == 409:
        if reason == "AlreadyExists":
            return AlreadyExists, "; choose another name, or apply instead of create"
        return Conflict, "; read it again and decide again"
    return Refused, ""


def _details(answer: Json) -> Json:
    details = answer.get("details")
    return details if isinstance(details, dict) else {}


def _causes(answer: Json) -> list[Cause]:
    found = _details(answer).get("causes")
    return [
        Cause(
            str(cause.get("field") or ""),
            str(cause.get("message") or "")[:_MAX_WORDS],
            str(cause.get("reason") or ""),
        )
        for cause in (found if isinstance(found, list) else [])
        if isinstance(cause, dict)
    ]
