"""Objects as they are read: typed where this client looks, raw beside it.

Every value keeps the object it was read from in ``raw``, so that fields which are newer than this
client are not lost. Reading never fails on a field that is missing or odd: a default stands in its
place, the one of the CRD where it has one. What is written are plain dictionaries of the caller's.

Replicas are groups: a group is a leader and its workers, ``size`` pods in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

Json = dict[str, Any]

NAME_LABEL = "leaderworkerset.sigs.k8s.io/name"
"""On every pod: its LeaderWorkerSet."""

GROUP_LABEL = "leaderworkerset.sigs.k8s.io/group-index"
"""On every pod: its group, counted from 0."""

WORKER_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"
"""On every pod: its place in the group; the leader has 0."""

SET_LABEL = "disaggregatedset.x-k8s.io/name"
"""On the children of a DisaggregatedSet and their pods: its name."""

ROLE_LABEL = "disaggregatedset.x-k8s.io/role"
"""On the children of a DisaggregatedSet and their pods: the role."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Where a kind lives in the API."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """``GROUP/VERSION``."""
        return f"{self.group}/{self.version}"

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Of the collection, an object, or a part of one."""
        parts = ["/apis", self.group, self.version, "namespaces", namespace, self.plural]
        return "/".join([*parts, *filter(None, (name, subresource))])


LEADER_WORKER_SETS = Resource(
    "leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet"
)
DISAGGREGATED_SETS = Resource(
    "disaggregatedset.x-k8s.io", "v1", "disaggregatedsets", "DisaggregatedSet"
)
ROLE_SCALERS = Resource(
    "disaggregatedset.x-k8s.io",
    "v1",
    "disaggregatedsetrolescalers",
    "DisaggregatedSetRoleScaler",
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a status.

    Attributes:
        type: such as ``Available``.
        status: ``True``, ``False`` or ``Unknown``, as text.
        reason, message: the controller's words.
        since: RFC 3339 time of the last change.
    """

    type: str
    status: str
    reason: str = ""
    message: str = ""
    since: str = ""


@dataclass(frozen=True, slots=True)
class Meta:
    """What all objects have.

    Attributes:
        name, namespace, uid: who it is.
        resource_version: of this state; to be compared for equality only.
        generation: counts changes of the spec.
        labels, annotations: as they stand.
        deleting: it is being deleted, and waits for finalizers.
    """

    name: str
    namespace: str
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Status of a LeaderWorkerSet.

    Attributes:
        observed_generation: the spec's generation that the controller has worked on; None where
            it has not said yet, or is older than the field.
        replicas: groups there are, new and old, those of a surge too.
        ready_replicas: groups of these that are ready, new and old.
        updated_replicas: groups of these with the newest template, ready or not.
        selector: of the leaders' pods, which an autoscaler looks at.
        conditions: as they stand.
    """

    observed_generation: int | None = None
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    selector: str = ""
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaderWorkerSet:
    """Groups of pods, each with a leader.

    Attributes:
        meta: name, labels and so on.
        replicas: groups wanted.
        size: pods of a group.
        partition: groups below this index keep the old template in a rollout.
        status: what the controller says.
        raw: the whole object.
    """

    meta: Meta
    replicas: int
    size: int
    partition: int
    status: SetStatus
    raw: Json = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Of the object."""
        return self.meta.name

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Those of the status."""
        return self.status.conditions


@dataclass(frozen=True, slots=True)
class Role:
    """One role of a DisaggregatedSet.

    Attributes:
        name: unique in the set.
        replicas: groups wanted in each slice; means nothing where ``external``.
        size: pods of a group.
        external: the groups wanted stand in a RoleScaler.
    """

    name: str
    replicas: int
    size: int
    external: bool


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """Status of one role, over all slices; numbers as in :class:`SetStatus`."""

    name: str
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0


@dataclass(frozen=True, slots=True)
class DisaggregatedStatus:
    """Status of a DisaggregatedSet.

    Attributes:
        observed_generation: as in :class:`SetStatus`.
        roles: by name.
        conditions: as they stand; there may be none.
    """

    observed_generation: int | None = None
    roles: Mapping[str, RoleStatus] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class DisaggregatedSet:
    """Roles that are rolled out together, each a LeaderWorkerSet per slice.

    Attributes:
        meta: name, labels and so on.
        slices: copies of the whole.
        roles: in the object's order.
        status: what the controller says.
        raw: the whole object.
    """

    meta: Meta
    slices: int
    roles: tuple[Role, ...]
    status: DisaggregatedStatus
    raw: Json = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Of the object."""
        return self.meta.name

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Those of the status."""
        return self.status.conditions

    def role(self, name: str) -> Role | None:
        """The role of that name."""
        return next((role for role in self.roles if role.name == name), None)


@dataclass(frozen=True, slots=True)
class RoleScaler:
    """What an autoscaler turns for one role of a DisaggregatedSet; its controller makes it.

    Attributes:
        meta: name (``SET-ROLE``), labels and so on.
        replicas: groups wanted.
        status: of the observed groups; the counts of ready and updated ones are not kept here.
        raw: the whole object.
    """

    meta: Meta
    replicas: int
    status: SetStatus
    raw: Json = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Of the object."""
        return self.meta.name

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Those of the status."""
        return self.status.conditions


@dataclass(frozen=True, slots=True)
class Scale:
    """The ``/scale`` of an object.

    Attributes:
        name: of the object.
        replicas: groups wanted.
        seen: groups there are.
        selector: of the leaders' pods.
        resource_version: of the object.
    """

    name: str
    replicas: int
    seen: int
    selector: str
    resource_version: str


class KubeObject(Protocol):
    """What all of them have."""

    @property
    def meta(self) -> Meta: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def conditions(self) -> tuple[Condition, ...]: ...  # noqa: D102
    @property
    def raw(self) -> Json: ...  # noqa: D102


T = TypeVar("T", bound=KubeObject)


def condition(found: KubeObject, type_: str) -> Condition | None:
    """The condition of that type, where there is one."""
    return next((entry for entry in found.conditions if entry.type == type_), None)


def read_leader_worker_set(raw: Json) -> LeaderWorkerSet:
    """A LeaderWorkerSet as the API gives it."""
    spec = _map(raw, "spec")
    template = _map(spec, "leaderWorkerTemplate")
    rolling = _map(_map(spec, "rolloutStrategy"), "rollingUpdateConfiguration")
    return LeaderWorkerSet(
        meta=read_meta(raw),
        replicas=_int(spec, "replicas", 1),
        size=_int(template, "size", 1),
        partition=_int(rolling, "partition", 0),
        status=_set_status(_map(raw, "status")),
        raw=raw,
    )


def read_disaggregated_set(raw: Json) -> DisaggregatedSet:
    """A DisaggregatedSet as the API gives it."""
    spec, status = _map(raw, "spec"), _map(raw, "status")
    roles = []
    for role in _maps(spec, "roles"):
        inner = _map(role, "spec")
        roles.append(
            Role(
                name=_text(role, "name"),
                replicas=_int(inner, "replicas", 1),
                size=_int(_map(inner, "leaderWorkerTemplate"), "size", 1),
                external=_text(_map(role, "scaling"), "mode") == "External",
            )
        )
    statuses = {
        _text(entry, "name"): RoleStatus(
            _text(entry, "name"),
            _int(entry, "replicas", 0),
            _int(entry, "readyReplicas", 0),
            _int(entry, "updatedReplicas", 0),
        )
        for entry in _maps(status, "roleStatuses")
    }
    return DisaggregatedSet(
        meta=read_meta(raw),
        slices=_int(spec, "slices", 1),
        roles=tuple(roles),
        status=DisaggregatedStatus(_observed(status), statuses, _conditions(status)),
        raw=raw,
    )


def read_role_scaler(raw: Json) -> RoleScaler:
    """A DisaggregatedSetRoleScaler as the API gives it."""
    return RoleScaler(
        meta=read_meta(raw),
        replicas=_int(_map(raw, "spec"), "replicas", 0),
        status=_set_status(_map(raw, "status")),
        raw=raw,
    )


def read_scale(raw: Json) -> Scale:
    """An ``autoscaling/v1`` Scale as the API gives it."""
    meta = read_meta(raw)
    status = _map(raw, "status")
    return Scale(
        name=meta.name,
        # Zero is left out of JSON by Kubernetes.
        replicas=_int(_map(raw, "spec"), "replicas", 0),
        seen=_int(status, "replicas", 0),
        selector=_text(status, "selector"),
        resource_version=meta.resource_version,
    )


def read_meta(raw: Json) -> Meta:
    """The ``metadata`` of any object."""
    metadata = _map(raw, "metadata")
    return Meta(
        name=_text(metadata, "name"),
        namespace=_text(metadata, "namespace"),
        uid=_text(metadata, "uid"),
        resource_version=_text(metadata, "resourceVersion"),
        generation=_int(metadata, "generation", 0),
        labels=_map(metadata, "labels"),
        annotations=_map(metadata, "annotations"),
        deleting=bool(metadata.get("deletionTimestamp")),
    )


def _set_status(status: Json) -> SetStatus:
    return SetStatus(
        observed_generation=_observed(status),
        replicas=_int(status, "replicas", 0),
        ready_replicas=_int(status, "readyReplicas", 0),
        updated_replicas=_int(status, "updatedReplicas", 0),
        selector=_text(status, "hpaPodSelector") or _text(status, "selector"),
        conditions=_conditions(status),
    )


def _observed(status: Json) -> int | None:
    found = status.get("observedGeneration")
    return found if isinstance(found, int) else None


def _conditions(status: Json) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            _text(entry, "type"),
            _text(entry, "status"),
            _text(entry, "reason"),
            _text(entry, "message"),
            _text(entry, "lastTransitionTime"),
        )
        for entry in _maps(status, "conditions")
    )


def _map(of: Json, key: str) -> Json:
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def _maps(of: Json, key: str) -> list[Json]:
    found = of.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _int(of: Json, key: str, default: int) -> int:
    found = of.get(key)
    return found if isinstance(found, int) else default


def _text(of: Json, key: str) -> str:
    found = of.get(key)
    return found if isinstance(found, str) else ""
