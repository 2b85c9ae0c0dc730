"""What becomes of a deletion: preconditions, finalizers, and what goes along.

A real server's garbage collector and namespace controller do their part some time later; here it is
done at once, or not at all where ``controllers`` says that there are none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.kubernetes import errors
from tests.fakes.kubernetes.errors import wrong
from tests.fakes.kubernetes.kinds import CRD, NAMESPACE, Row
from tests.fakes.kubernetes.storage import Storage, now

Json = dict[str, Any]

FOREGROUND = "foregroundDeletion"


@dataclass
class Deleting:
    """Deletes from one storage.

    Attributes:
        rows: the kinds that there are.
        on_definition: called after a CustomResourceDefinition went.
        controllers: owned objects go with their owners, and namespaces with all that is in them. A
            bare API server, as other people's test environments have, does neither.
    """

    storage: Storage
    rows: Callable[[], list[Row]]
    on_definition: Callable[[], None]
    controllers: bool = True
    _removing: set[str] = field(default_factory=set)

    def delete(self, row: Row, namespace: str, name: str, body: Json, *, dry: bool) -> Json:
        """DELETE; a ``Status``, or the object if it has to wait for its finalizers."""
        before = self.storage.there(row, namespace, name)
        metadata = before["metadata"]
        wanted = body.get("preconditions") or {}
        for key, what in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            if wanted.get(key) and wanted[key] != metadata[key]:
                raise errors.conflict(
                    row,
                    name,
                    f"Precondition failed: {what} in precondition: {wanted[key]}, {what} in object "
                    f"meta: {metadata[key]}",
                )
        policy = body.get("propagationPolicy") or "Background"
        if policy not in ("Background", "Foreground", "Orphan"):
            cause = wrong("propagationPolicy", policy, "must be Background, Foreground or Orphan")
            raise errors.invalid(row, name, [cause])
        done = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {
                "name": name,
                "kind": row.plural,
                "uid": metadata["uid"],
                **({"group": row.group} if row.group else {}),
            },
        }
        if dry:
            return done
        if self.controllers and policy == "Orphan":
            self._orphan(metadata["uid"])
        if self.controllers and policy == "Foreground":
            self._collect(metadata["uid"], namespace)
            before = self.storage.there(row, namespace, name)
            if self._dependents(metadata["uid"]):
                before = copy.deepcopy(before)
                before["metadata"].setdefault("finalizers", []).append(FOREGROUND)
        stays = row == NAMESPACE and not self.controllers
        if not before["metadata"].get("finalizers") and not stays:
            self.remove(row, before)
            return done
        return self._terminating(row, before)

    def _terminating(self, row: Row, before: Json) -> Json:
        after = copy.deepcopy(before)
        metadata = after["metadata"]
        if not metadata.get("deletionTimestamp"):
            metadata |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
            if metadata.get("generation"):
                metadata["generation"] += 1
        if row == NAMESPACE:
            after["status"] = {**(after.get("status") or {}), "phase": "Terminating"}
        return self.storage.store(row, after)

    def remove(self, row: Row, found: Json) -> None:
        metadata = found["metadata"]
        uid, namespace, name = metadata["uid"], metadata.get("namespace", ""), metadata["name"]
        if uid in self._removing:
            return
        self._removing.add(uid)
        try:
            if row == NAMESPACE:
                self._empty(name)
            if row == CRD:
                self._empty_kind(found)
            self.storage.remove(row, namespace, name)
            if self.controllers:
                self._collect(uid, namespace)
                self._finish_owners(metadata.get("ownerReferences") or [])
        finally:
            self._removing.discard(uid)
        if row == CRD:
            self.on_definition()

    def _empty(self, namespace: str) -> None:
        for row in self.rows():
            if row.namespaced:
                for found in list(self.storage.select(row, namespace)):
                    self.remove(row, found)

    def _empty_kind(self, definition: Json) -> None:
        group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
        for row in self.rows():
            if (row.group, row.plural) == (group, plural):
                for found in list(self.storage.select(row)):
                    self.remove(row, found)

    def _dependents(self, uid: str) -> list[tuple[Row, Json]]:
        return [
            (row, found)
            for row in self.rows()
            for found in self.storage.select(row)
            if any(owner["uid"] == uid for owner in found["metadata"].get("ownerReferences") or ())
        ]

    def _orphan(self, uid: str) -> None:
        for row, found in self._dependents(uid):
            after = copy.deepcopy(found)
            owners = after["metadata"]["ownerReferences"]
            left = [owner for owner in owners if owner["uid"] != uid]
            if left:
                after["metadata"]["ownerReferences"] = left
            else:
                del after["metadata"]["ownerReferences"]
            self.storage.store(row, after)

    def _collect(self, uid: str, namespace: str) -> None:
        """Deletes what has no owner left but the one that goes."""
        known = {found["metadata"]["uid"] for _, found in self.storage.everything()} - {uid}
        for row, found in self._dependents(uid):
            owners = found["metadata"]["ownerReferences"]
            if any(owner["uid"] in known for owner in owners):
                continue
            if found["metadata"].get("finalizers"):
                self._terminating(row, found)
            else:
                self.remove(row, found)

    def _finish_owners(self, owners: list[Json]) -> None:
        """Lets owners go that waited for the last of what they own."""
        for owner in owners:
            for row in self.rows():
                for found in list(self.storage.select(row)):
                    metadata = found["metadata"]
                    waits = FOREGROUND in (metadata.get("finalizers") or ())
                    if metadata["uid"] != owner["uid"] or not waits:
                        continue
                    if self._dependents(owner["uid"]):
                        continue
                    after = copy.deepcopy(found)
                    after["metadata"]["finalizers"].remove(FOREGROUND)
                    if after["metadata"]["finalizers"]:
                        self.storage.store(row, after)
                    else:
                        self.remove(row, found)
