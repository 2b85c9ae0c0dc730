"""What becomes of a write: versions, what of it counts where it was sent to, generations, owners,
finalizers.

Every write is worked out whole before anything is kept, so that a refused one and a dry one change
nothing.
"""

from __future__ import annotations

import copy
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.fakes.kubernetes import errors, fields, scaling
from tests.fakes.kubernetes.checks import checked, decoded
from tests.fakes.kubernetes.deleting import Deleting
from tests.fakes.kubernetes.errors import Refused, bad_request, required, wrong
from tests.fakes.kubernetes.fields import Writer, owned
from tests.fakes.kubernetes.kinds import CRD, NAMESPACE, Row
from tests.fakes.kubernetes.patches import APPLY, patched
from tests.fakes.kubernetes.storage import Storage, now

Json = dict[str, Any]

_OURS = ("uid", "creationTimestamp", "generation", "deletionTimestamp")
_KEPT = (*_OURS, "deletionGracePeriodSeconds", "name", "namespace", "generateName")
_SERVERS = ("name", "namespace", "uid", "resourceVersion", "generation", "managedFields")


@dataclass(frozen=True)
class Options:
    """How a write was asked for."""

    manager: str
    dry: bool = False
    force: bool = False
    strict: bool = False


@dataclass
class Writing:
    """Writes to one storage.

    Attributes:
        deleting: where objects go that have waited for their last finalizer.
        on_definition: called after a CustomResourceDefinition came.
    """

    storage: Storage
    deleting: Deleting
    on_definition: Callable[[], None]

    # Creation.

    def create(self, row: Row, namespace: str, body: Any, options: Options) -> Json:
        """POST.

        Raises:
            Refused: as a server refuses it.
        """
        found = decoded(row, body, strict=options.strict)
        metadata = found["metadata"]
        if metadata.get("namespace", namespace) != namespace:
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the "
                "request"
            )
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                cause = required("metadata.name", "name or generateName is required")
                raise errors.invalid(row, "", [cause])
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        writer = Writer(options.manager, "Update", row.api_version)
        return self._created(row, namespace, found, options, writer)

    def _created(
        self, row: Row, namespace: str, found: Json, options: Options, writer: Writer
    ) -> Json:
        metadata = found["metadata"]
        self._check_namespace(row, namespace, metadata["name"])
        if self.storage.find(row, namespace, metadata["name"]) is not None:
            raise errors.already_exists(row, metadata["name"])
        if metadata.get("resourceVersion"):
            message = "resourceVersion should not be set on objects to be created"
            raise Refused(500, "", message)
        for key in (*_OURS, "deletionGracePeriodSeconds", "managedFields", "selfLink"):
            metadata.pop(key, None)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if namespace:
            metadata["namespace"] = namespace
        if row.generation:
            metadata["generation"] = 1
        if row.status:
            found.pop("status", None)
        if row == NAMESPACE:
            found["status"] = {"phase": "Active"}
            found.setdefault("spec", {})["finalizers"] = ["kubernetes"]
            labels = metadata.setdefault("labels", {})
            labels["kubernetes.io/metadata.name"] = metadata["name"]
        if row == CRD:
            _established(found)
        if causes := checked(row, found, None):
            raise errors.invalid(row, metadata["name"], causes)
        mine = frozenset(owned(found, "", has_status=row.status))
        fields.write_owners(found, {writer: mine}, None, now())
        return self._keep(row, found, options)

    def put(
        self, row: Row, namespace: str, name: str, content: Json, *, established: bool = False
    ) -> Json:
        """Keeps what a test wants there, unchecked; see ``FakeKubernetes.put``."""
        before = self.storage.find(row, namespace, name)
        found = copy.deepcopy(content)
        stated = found.pop("metadata", None) or {}
        metadata: Json = {key: value for key, value in stated.items() if key not in _SERVERS}
        found["apiVersion"], found["kind"] = row.api_version, row.kind
        if before is None:
            made: Json = {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
            metadata = made | metadata
            if namespace:
                metadata["namespace"] = namespace
            if row.generation:
                metadata["generation"] = 1
        else:
            metadata = {**before["metadata"], **metadata}
        found["metadata"] = metadata
        found = decoded(row, found, strict=False)
        if established:
            _established(found)
        if before is not None and row.generation and _content(found) != _content(before):
            metadata = found["metadata"]
            metadata["generation"] = metadata.get("generation", 0) + 1
        owners = fields.read_owners(before)
        writer = Writer("test", "Update", row.api_version)
        old = owned(before, "", has_status=False) if before else {}
        owners = fields.updated(owners, writer, old, owned(found, "", has_status=False))
        fields.write_owners(found, owners, before, now())
        return self._keep(row, found, Options("test"))

    # Change.

    def update(
        self, row: Row, namespace: str, name: str, part: str, body: Any, options: Options
    ) -> tuple[int, Json]:
        """PUT; the status of the answer and the object, or its scale."""
        before = self.storage.find(row, namespace, name)
        if part == "scale":
            before = self.storage.there(row, namespace, name)
            found = scaling.scaled(row, before, body)
            writer = Writer(options.manager, "Update", row.api_version, "scale")
            after = self._replaced(row, before, found, "", options, writer)
            return 200, scaling.scale_of(row, after)
        found = decoded(row, body, strict=options.strict)
        if found["metadata"].get("name", name) != name:
            raise bad_request(
                f"the name of the object ({found['metadata']['name']}) does not match the name on "
                f"the URL ({name})"
            )
        if before is None and row.creates and not part:
            found["metadata"]["name"] = name
            return 201, self.create(row, namespace, found, options)
        before = self.storage.there(row, namespace, name)
        if not found["metadata"].get("resourceVersion") and not row.unconditional:
            cause = wrong("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.invalid(row, name, [cause])
        writer = Writer(options.manager, "Update", row.api_version, part)
        return 200, self._replaced(row, before, found, part, options, writer)

    def patch(
        self,
        row: Row,
        namespace: str,
        name: str,
        part: str,
        body: Any,
        content_type: str,
        options: Options,
    ) -> tuple[int, Json]:
        """PATCH of any kind; the status of the answer and the object, or its scale."""
        if content_type == APPLY:
            return self._apply(row, namespace, name, part, body, options)
        before = self.storage.there(row, namespace, name)
        operation = "Update"
        if part == "scale":
            seen = scaling.scale_of(row, before)
            wanted = patched(seen, body, content_type, custom=row.custom)
            found = scaling.scaled(row, before, wanted)
            writer = Writer(options.manager, operation, row.api_version, part)
            after = self._replaced(row, before, found, "", options, writer)
            return 200, scaling.scale_of(row, after)
        wanted = patched(before, body, content_type, custom=row.custom)
        found = decoded(row, wanted, strict=options.strict)
        writer = Writer(options.manager, operation, row.api_version, part)
        return 200, self._replaced(row, before, found, part, options, writer)

    def _apply(
        self, row: Row, namespace: str, name: str, part: str, body: Any, options: Options
    ) -> tuple[int, Json]:
        config = self._configuration(row, namespace, name, part, body, options)
        writer = Writer(options.manager, "Apply", row.api_version, part)
        before = self.storage.find(row, namespace, name)
        if before is None:
            if part:
                raise errors.not_found(row, name)
            config["metadata"]["name"] = name
            mine = frozenset(owned(config, "", has_status=row.status))
            found = decoded(row, config, strict=options.strict)
            made = self._created(row, namespace, found, Options(options.manager, dry=True), writer)
            fields.write_owners(made, {writer: mine}, None, now())
            return 201, self._keep(row, made, options)
        owners = fields.read_owners(before)
        endpoint = "" if part == "scale" else part
        old = owned(before, endpoint, has_status=row.status)
        wanted = owned(config, endpoint, has_status=row.status)
        if found_conflicts := fields.conflicts(owners, writer, old, wanted):
            if not options.force:
                raise fields.apply_conflict(found_conflicts)
            for other, path in found_conflicts:
                owners[other] = owners[other] - {path}
        former = next((other for other in owners if other.same(writer)), None)
        last = owners.pop(former) if former else frozenset()
        found = fields.merged(before, config)
        _release(found, last - frozenset(wanted), frozenset().union(*owners.values()))
        owners[writer] = frozenset(wanted)
        found = decoded(row, found, strict=options.strict)
        after = self._replaced(row, before, found, endpoint, options, None, owners)
        return 200, scaling.scale_of(row, after) if part == "scale" else after

    def _configuration(
        self, row: Row, namespace: str, name: str, part: str, body: Any, options: Options
    ) -> Json:
        """What an apply wants, in the shape of the object."""
        if not isinstance(body, dict):
            raise bad_request("an applied configuration is an object")
        if not body.get("apiVersion") or not body.get("kind"):
            raise bad_request("an applied configuration needs apiVersion and kind")
        metadata = body.get("metadata") or {}
        if metadata.get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        if metadata.get("name", name) != name:
            raise bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL "
                f"({name})"
            )
        if part == "scale":
            head = {"apiVersion": row.api_version, "kind": row.kind, "metadata": metadata}
            assert row.scale is not None
            return {**head, **scaling.at_path(row.scale.replicas, body["spec"]["replicas"])}
        if (body["apiVersion"], body["kind"]) != (row.api_version, row.kind):
            raise bad_request(
                f"Incorrect version specified in apply patch. Specified patch version: "
                f"{body['apiVersion']}, expected: {row.api_version}"
            )
        config = copy.deepcopy(body)
        config["metadata"] = {**metadata}
        if options.strict:
            decoded(row, config, strict=True)
        if part == "status":
            keep = ("apiVersion", "kind", "metadata", "status")
            return {key: value for key, value in config.items() if key in keep}
        if row.status:
            config.pop("status", None)
        return config

    def _replaced(
        self,
        row: Row,
        before: Json,
        found: Json,
        part: str,
        options: Options,
        writer: Writer | None,
        owners: fields.Owners | None = None,
    ) -> Json:
        """Keeps ``found`` in the place of ``before``, as far as a write at ``part`` may. The owners
        are those given, or the former ones after a write by ``writer``."""
        name = before["metadata"]["name"]
        stated = found["metadata"]
        if stated.get("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
            raise errors.conflict(
                row,
                name,
                f"Precondition failed: UID in precondition: {stated['uid']}, UID in object meta: "
                f"{before['metadata']['uid']}",
            )
        version = stated.get("resourceVersion")
        if version and version != before["metadata"]["resourceVersion"]:
            raise errors.conflict(row, name)
        after = self._counted(row, before, found, part)
        if causes := checked(row, after, before):
            raise errors.invalid(row, name, causes)
        if owners is None:
            assert writer is not None
            endpoint = "status" if part == "status" else ""
            owners = fields.updated(
                fields.read_owners(before),
                writer,
                owned(before, endpoint, has_status=row.status),
                owned(after, endpoint, has_status=row.status),
            )
        fields.write_owners(after, owners, before, now())
        if after["metadata"].get("deletionTimestamp") and not after["metadata"].get("finalizers"):
            if not options.dry:
                self.deleting.remove(row, before)
            return after
        return self._keep(row, after, options)

    def _counted(self, row: Row, before: Json, found: Json, part: str) -> Json:
        """Of a new object, what counts where it was sent to."""
        after = copy.deepcopy(found)
        if part == "status":
            after = copy.deepcopy(before)
            after.pop("status", None)
            if "status" in found:
                after["status"] = copy.deepcopy(found["status"])
        else:
            metadata = after["metadata"]
            for key in _KEPT:
                metadata.pop(key, None)
                if key in before["metadata"]:
                    metadata[key] = before["metadata"][key]
            if row.status:
                after.pop("status", None)
                if "status" in before:
                    after["status"] = copy.deepcopy(before["status"])
            if row.generation and _content(after) != _content(before):
                metadata["generation"] = before["metadata"].get("generation", 0) + 1
        after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
        return after

    # Common to all.

    def _check_namespace(self, row: Row, namespace: str, name: str) -> None:
        if not row.namespaced:
            return
        found = self.storage.find(NAMESPACE, "", namespace)
        if found is None:
            raise errors.not_found(NAMESPACE, namespace)
        if found["metadata"].get("deletionTimestamp"):
            message = (
                f'{row.resource} "{name}" is forbidden: unable to create new content in namespace '
                f"{namespace} because it is being terminated"
            )
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            details = {"name": name, "kind": row.plural, "causes": [cause]}
            raise Refused(403, "Forbidden", message, details)

    def _keep(self, row: Row, found: Json, options: Options) -> Json:
        if options.dry:
            return copy.deepcopy(found)
        kept = self.storage.store(row, found)
        if row == CRD:
            self.on_definition()
        return kept


def _content(found: Json) -> Json:
    return {key: value for key, value in found.items() if key not in ("metadata", "status")}


def _release(found: Json, given_up: fields.Paths, others: fields.Paths) -> None:
    """Takes away, in place, what an applier left out and nobody else owns. An entry of a list stays
    as long as anybody owns something in it, and keeps what it is known by."""
    for path in sorted(given_up, key=len):
        if any(other[: len(path)] == path for other in others):
            continue
        entry = path[-2] if len(path) > 1 else ""
        if entry.startswith("k:") and f'"{path[-1][2:]}":' in entry:
            continue
        fields.without(found, path)


def _established(definition: Json) -> None:
    """What the part of a server that serves custom kinds says of one that it serves."""
    spec = definition["spec"]
    definition["status"] = {
        "acceptedNames": spec["names"],
        "storedVersions": [version["name"] for version in spec["versions"] if version["storage"]],
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": now(),
            }
            for kind, reason, message in (
                ("NamesAccepted", "NoConflicts", "no conflicts found"),
                ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            )
        ],
    }
