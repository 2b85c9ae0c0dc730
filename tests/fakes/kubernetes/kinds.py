"""The table of kinds that the fake serves, and what it tells about them (discovery).

Each kind is a row; nothing here knows what a kind means. Where kinds behave differently in a real
server (a status of its own, ``/scale``, a generation, writes without a version), a column says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Kind = tuple[str, str, str]
"""Group (empty for core), version, plural."""

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Scale:
    """Where ``/scale`` reads and writes; an empty ``selector`` means ``spec.selector`` (a real
    selector, as a Deployment has) and not a text at a path."""

    replicas: str = "spec.replicas"
    status: str = "status.replicas"
    selector: str = ""


@dataclass(frozen=True)
class Row:
    """One kind.

    Attributes:
        status: it has ``/status``, and other writes leave the status alone.
        generation: counts changes of all but metadata and status.
        custom: it comes from a CustomResourceDefinition.
        unconditional: may be replaced without saying which version is replaced.
        creates: PUT makes what is not there.
        tokens: it has ``/token``, where its tokens are made.
        names: which rule names keep to: subdomain, label, dns1035, or path.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    scale: Scale | None = None
    generation: bool = False
    custom: bool = False
    unconditional: bool = True
    creates: bool = False
    tokens: bool = False
    names: str = "subdomain"
    short: tuple[str, ...] = ()

    @property
    def key(self) -> Kind:
        """What the table is by."""
        return (self.group, self.version, self.plural)

    @property
    def api_version(self) -> str:
        """As objects state it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """``plural.group``, as messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def subresources(self) -> tuple[str, ...]:
        """Those there are."""
        has = {"status": self.status, "scale": self.scale, "token": self.tokens}
        return tuple(part for part, there in has.items() if there)


def custom(
    group: str,
    version: str,
    plural: str,
    kind: str,
    *,
    namespaced: bool = True,
    status: bool = True,
    scale: Scale | None = None,
    short: tuple[str, ...] = (),
) -> Row:
    """A row as a CustomResourceDefinition makes it."""
    return Row(
        group,
        version,
        plural,
        kind,
        namespaced,
        status,
        scale,
        generation=True,
        custom=True,
        unconditional=False,
        short=short,
    )


LWS = custom(
    "leaderworkerset.x-k8s.io",
    "v1",
    "leaderworkersets",
    "LeaderWorkerSet",
    scale=Scale(selector="status.hpaPodSelector"),
    short=("lws",),
)
DISAGGREGATED = custom("disaggregatedset.x-k8s.io", "v1", "disaggregatedsets", "DisaggregatedSet")
ROLE_SCALER = custom(
    "disaggregatedset.x-k8s.io",
    "v1",
    "disaggregatedsetrolescalers",
    "DisaggregatedSetRoleScaler",
    scale=Scale(selector="status.selector"),
    short=("dsrs",),
)
CUSTOM = (LWS, DISAGGREGATED, ROLE_SCALER)
"""Custom kinds that are installed from the start."""

CRD = Row(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
    status=True,
    generation=True,
    unconditional=False,
    short=("crd",),
)
NAMESPACE = Row(
    "", "v1", "namespaces", "Namespace", False, status=True, names="label", short=("ns",)
)
LEASE = Row("coordination.k8s.io", "v1", "leases", "Lease", unconditional=False, creates=True)
EVENT = Row("", "v1", "events", "Event", creates=True, short=("ev",))
CONFIG_MAP = Row("", "v1", "configmaps", "ConfigMap", short=("cm",))
SECRET = Row("", "v1", "secrets", "Secret")

_RBAC = "rbac.authorization.k8s.io"

BUILT_IN = (
    NAMESPACE,
    CONFIG_MAP,
    SECRET,
    EVENT,
    Row("", "v1", "nodes", "Node", False, status=True, short=("no",)),
    Row("", "v1", "pods", "Pod", status=True, generation=True, short=("po",)),
    Row("", "v1", "services", "Service", status=True, names="dns1035", short=("svc",)),
    Row(
        "",
        "v1",
        "serviceaccounts",
        "ServiceAccount",
        unconditional=False,
        tokens=True,
        short=("sa",),
    ),
    Row("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", status=True, short=("pvc",)),
    Row(
        "apps",
        "v1",
        "deployments",
        "Deployment",
        status=True,
        scale=Scale(),
        generation=True,
        short=("deploy",),
    ),
    Row(
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        status=True,
        generation=True,
        unconditional=False,
        short=("pdb",),
    ),
    Row(
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        status=True,
        unconditional=False,
        short=("hpa",),
    ),
    LEASE,
    Row("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", generation=True),
    Row("", "v1", "persistentvolumes", "PersistentVolume", False, status=True, short=("pv",)),
    Row("apps", "v1", "daemonsets", "DaemonSet", status=True, generation=True, short=("ds",)),
    Row("apps", "v1", "replicasets", "ReplicaSet", status=True, scale=Scale(), generation=True),
    Row("apps", "v1", "statefulsets", "StatefulSet", status=True, scale=Scale(), generation=True),
    Row("batch", "v1", "jobs", "Job", status=True, generation=True),
    Row("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", generation=True),
    Row("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", False, generation=True),
    Row("storage.k8s.io", "v1", "storageclasses", "StorageClass", False, short=("sc",)),
    Row("storage.k8s.io", "v1", "csidrivers", "CSIDriver", False),
    Row("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", False),
    Row("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", False, generation=True),
    Row("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", False, generation=True),
    Row("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim", status=True),
    Row("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate"),
    Row(_RBAC, "v1", "roles", "Role", names="path"),
    Row(_RBAC, "v1", "rolebindings", "RoleBinding", names="path"),
    Row(_RBAC, "v1", "clusterroles", "ClusterRole", False, names="path"),
    Row(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False, names="path"),
    CRD,
)

_PARTS = {
    "scale": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
    "token": {"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"},
}


def row_of(definition: Json) -> list[Row]:
    """The rows that a CustomResourceDefinition makes, one for each version that it serves."""
    spec = definition["spec"]
    names = spec["names"]
    rows = []
    for version in spec["versions"]:
        if not version.get("served", True):
            continue
        parts = version.get("subresources") or {}
        scale = parts.get("scale")
        rows.append(
            custom(
                spec["group"],
                version["name"],
                names["plural"],
                names["kind"],
                namespaced=spec["scope"] == "Namespaced",
                status="status" in parts,
                scale=Scale(
                    scale["specReplicasPath"].lstrip("."),
                    scale["statusReplicasPath"].lstrip("."),
                    scale.get("labelSelectorPath", ".status.selector").lstrip("."),
                )
                if scale
                else None,
                short=tuple(names.get("shortNames") or ()),
            )
        )
    return rows


def definition_of(row: Row) -> Json:
    """A CustomResourceDefinition for a row, without a schema worth the name."""
    parts: Json = {"status": {}} if row.status else {}
    if row.scale:
        parts["scale"] = {
            "specReplicasPath": f".{row.scale.replicas}",
            "statusReplicasPath": f".{row.scale.status}",
            "labelSelectorPath": f".{row.scale.selector}",
        }
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "spec": {
            "group": row.group,
            "scope": "Namespaced" if row.namespaced else "Cluster",
            "names": {
                "plural": row.plural,
                "singular": row.kind.lower(),
                "kind": row.kind,
                "listKind": f"{row.kind}List",
                "shortNames": list(row.short),
            },
            "versions": [
                {
                    "name": row.version,
                    "served": True,
                    "storage": True,
                    "subresources": parts,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def groups(rows: Iterable[Row]) -> Json:
    """The answer to ``/apis``."""
    names = sorted({row.group for row in rows if row.group})
    listed = list(rows)
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(name, listed) for name in names],
    }


def group(name: str, rows: Iterable[Row]) -> Json | None:
    """The answer to ``/apis/GROUP``."""
    found = _group(name, list(rows))
    return {"kind": "APIGroup", "apiVersion": "v1", **found} if found["versions"] else None


def resources(group: str, version: str, rows: Iterable[Row]) -> Json | None:
    """The answer to ``/api/v1`` and ``/apis/GROUP/VERSION``."""
    listed: list[Json] = []
    for row in rows:
        if (row.group, row.version) != (group, version):
            continue
        common = {"singularName": row.kind.lower(), "namespaced": row.namespaced}
        entry: Json = {"name": row.plural, **common, "kind": row.kind, "verbs": list(VERBS)}
        if row.short:
            entry["shortNames"] = list(row.short)
        listed.append(entry)
        for part in row.subresources:
            of = _PARTS.get(part, {"kind": row.kind})
            verbs = ["create"] if part == "token" else ["get", "patch", "update"]
            name = f"{row.plural}/{part}"
            listed.append({"name": name, **common, "singularName": "", **of, "verbs": verbs})
    if not listed:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": listed,
    }


def _group(name: str, rows: list[Row]) -> Json:
    versions = [
        {"groupVersion": f"{name}/{version}", "version": version}
        for version in sorted({row.version for row in rows if row.group == name})
    ]
    return {
        "name": name,
        "versions": versions,
        "preferredVersion": versions[0] if versions else {},
    }
