"""How far a rollout is, decided from an object alone.

Kubernetes tells it in pieces: a generation that the controller has seen, counts of groups, and
conditions that are written one after another. A rollout is done here when all of these agree, and
where they do not, ``missing`` says in words what is not so yet.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from deploy.lws.client.objects import (
    Condition,
    DisaggregatedSet,
    Json,
    KubeObject,
    LeaderWorkerSet,
    RoleStatus,
    condition,
)

RESTARTED = "kubectl.kubernetes.io/restartedAt"
"""Annotation of pod templates; another value of it makes another template, and so a rollout."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Counts of one LeaderWorkerSet, or of one role of a DisaggregatedSet over all slices.

    Attributes:
        role: empty for a LeaderWorkerSet.
        wanted: groups that the spec asks for.
        kept: groups of these that keep their old template, by the partition.
        total: groups there are, new and old, those of a surge too.
        updated: groups of these with the newest template.
        ready: groups of these that are ready, new and old.
    """

    role: str
    wanted: int
    kept: int
    total: int
    updated: int
    ready: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """Where a rollout is.

    Attributes:
        kind, name: of the object.
        generation: of its spec.
        observed_generation: that the controller has worked on; None where it does not say.
        groups: a single entry for a LeaderWorkerSet, one per role for a DisaggregatedSet.
        available, progressing, updating: the conditions Available, Progressing and
            UpdateInProgress; None where there is none.
        missing: what is not so yet, one line each; empty when the rollout is done.
    """

    kind: str
    name: str
    generation: int
    observed_generation: int | None
    groups: tuple[Groups, ...]
    available: bool | None
    progressing: bool | None
    updating: bool | None
    missing: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether all groups are there, of the newest template, and ready."""
        return not self.missing

    @property
    def wanted(self) -> int:
        """Groups that the spec asks for, over all roles."""
        return sum(entry.wanted for entry in self.groups)

    @property
    def total(self) -> int:
        """Groups there are, over all roles."""
        return sum(entry.total for entry in self.groups)

    @property
    def updated(self) -> int:
        """Groups with the newest template, over all roles."""
        return sum(entry.updated for entry in self.groups)

    @property
    def ready(self) -> int:
        """Groups that are ready, over all roles."""
        return sum(entry.ready for entry in self.groups)

    def __str__(self) -> str:
        state = "rolled out" if self.done else "; ".join(self.missing)
        return f"{self.kind} {self.name}: {state}"


def rollout_of(found: LeaderWorkerSet) -> Rollout:
    """Of a LeaderWorkerSet."""
    status = found.status
    groups = Groups(
        role="",
        wanted=found.replicas,
        kept=min(found.partition, found.replicas),
        total=status.replicas,
        updated=status.updated_replicas,
        ready=status.ready_replicas,
    )
    # LWS always ends in Available or Progressing: no condition means that it has not come so far.
    return _judged("LeaderWorkerSet", found, status.observed_generation, (groups,), strict=True)


def rollout_of_roles(found: DisaggregatedSet, scaled: Mapping[str, int]) -> Rollout:
    """Of a DisaggregatedSet.

    Args:
        found: the set.
        scaled: groups wanted of each role whose scaling is External, from its RoleScaler; a role
            that is not there has no RoleScaler yet.
    """
    groups, unknown = [], []
    for role in found.roles:
        status = found.status.roles.get(role.name, RoleStatus(role.name))
        wanted = role.replicas * found.slices
        if role.external:
            wanted = scaled.get(role.name, status.replicas)
            if role.name not in scaled:
                unknown.append(f"role {role.name}: its RoleScaler is not there yet")
        groups.append(
            Groups(
                role=role.name,
                wanted=wanted,
                kept=0,
                total=status.replicas,
                updated=status.updated_replicas,
                ready=status.ready_replicas,
            )
        )
    # Its controller writes no conditions in every release.
    judged = _judged(
        "DisaggregatedSet",
        found,
        found.status.observed_generation,
        tuple(groups),
        strict=False,
    )
    return replace(judged, missing=(*judged.missing, *unknown))


def restarted(found: LeaderWorkerSet | DisaggregatedSet, when: str) -> Json:
    """The merge patch that rolls all groups out anew, refused if the object changes meanwhile.

    Args:
        found: the object as it is.
        when: goes into the annotation; RFC 3339.
    """
    spec = found.raw.get("spec") or {}
    if isinstance(found, LeaderWorkerSet):
        change: Json = {"leaderWorkerTemplate": _stamped(spec["leaderWorkerTemplate"], when)}
    else:
        # A merge patch replaces lists whole.
        roles = copy.deepcopy(spec["roles"])
        for role in roles:
            template = role["spec"]["leaderWorkerTemplate"]
            for key, stamp in _stamped(template, when).items():
                metadata = template[key].setdefault("metadata", {})
                metadata["annotations"] = {
                    **(metadata.get("annotations") or {}),
                    **stamp["metadata"]["annotations"],
                }
        change = {"roles": roles}
    return {"metadata": {"resourceVersion": found.meta.resource_version}, "spec": change}


def _stamped(template: Json, when: str) -> Json:
    stamp = {"metadata": {"annotations": {RESTARTED: when}}}
    # Where there is no leader template, the leader is made from the worker's.
    keys = ("leaderTemplate", "workerTemplate")
    return {key: stamp for key in keys if isinstance(template.get(key), dict)}


def _judged(
    kind: str,
    found: KubeObject,
    observed: int | None,
    groups: tuple[Groups, ...],
    *,
    strict: bool,
) -> Rollout:
    generation = found.meta.generation
    missing = []
    if found.meta.deleting:
        missing.append("it is being deleted")
    if observed is None and not found.raw.get("status"):
        missing.append("its controller has not seen it: is LWS running?")
    elif observed is not None and observed < generation:
        missing.append(f"its controller has seen generation {observed} of {generation}")
    else:
        for entry in groups:
            missing += _missing_groups(entry)
        missing += _missing_conditions(found, strict=strict)
    return Rollout(
        kind=kind,
        name=found.name,
        generation=generation,
        observed_generation=observed,
        groups=groups,
        available=_truth(condition(found, "Available")),
        progressing=_truth(condition(found, "Progressing")),
        updating=_truth(condition(found, "UpdateInProgress")),
        missing=tuple(missing),
    )


def _missing_groups(groups: Groups) -> list[str]:
    where = f"role {groups.role}: " if groups.role else ""
    missing = []
    if groups.updated < (to_update := groups.wanted - groups.kept):
        missing.append(f"{where}{groups.updated} of {to_update} groups have the new template")
    if groups.ready < groups.wanted:
        missing.append(f"{where}{groups.ready} of {groups.wanted} groups are ready")
    if groups.total > groups.wanted:
        missing.append(f"{where}{groups.total - groups.wanted} groups too many are still there")
    if groups.total < groups.wanted:
        missing.append(f"{where}{groups.total} of {groups.wanted} groups are there")
    return missing


def _missing_conditions(found: KubeObject, *, strict: bool) -> list[str]:
    missing = []
    updating = condition(found, "UpdateInProgress")
    if updating is not None and updating.status == "True":
        missing.append(f"an update is in progress{_said(updating)}")
    available = condition(found, "Available")
    if available is None:
        if strict:
            missing.append("condition Available is not there")
    elif available.status != "True":
        missing.append(f"condition Available is {available.status}{_said(available)}")
    return missing


def _said(entry: Condition) -> str:
    words = ": ".join(filter(None, (entry.reason, entry.message)))
    return f" ({words})" if words else ""


def _truth(entry: Condition | None) -> bool | None:
    return None if entry is None else entry.status == "True"
