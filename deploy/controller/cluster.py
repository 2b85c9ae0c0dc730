"""The objects of one namespace that the controller reads and writes, over ``baton.kube``.

It knows paths, selectors and statuses, and decides nothing. A status that is no success raises
here, with a sentence that says what may be wrong: for the loop that is one kind of failure.
"""

from __future__ import annotations

from collections.abc import Mapping

from baton.errors import SourceUnavailable
from baton.kube import Json, KubeApi

MANAGER = "baton-controller"
"""Field manager of what is written."""

POOLS = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/{}/leaderworkersets"
CONFIGMAPS = "/api/v1/namespaces/{}/configmaps"
EVENTS = "/api/v1/namespaces/{}/events"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
BUDGETS = "/apis/policy/v1/namespaces/{}/poddisruptionbudgets"
AUTOSCALERS = "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers"
SCALED_OBJECTS = "/apis/keda.sh/v1alpha1/namespaces/{}/scaledobjects"
CLAIM_TEMPLATES = "/apis/resource.k8s.io/v1/namespaces/{}/resourceclaimtemplates"

_PATHS = {
    "LeaderWorkerSet": POOLS,
    "ConfigMap": CONFIGMAPS,
    "PodDisruptionBudget": BUDGETS,
    "HorizontalPodAutoscaler": AUTOSCALERS,
    "ScaledObject": SCALED_OBJECTS,
    "ResourceClaimTemplate": CLAIM_TEMPLATES,
}
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"


class ClusterRefused(SourceUnavailable):
    """The Kubernetes API answered, and will not.

    Attributes:
        http_status: what it answered with: 403 for a right that is missing, 409 for an object that
            has changed meanwhile, 404 for one that is gone.
    """

    code = "cluster_refused"

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class Cluster:
    """One namespace.

    Args:
        api: the connection; closed by whoever made it.
        namespace: of everything.
    """

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    def path(self, form: str, name: str = "") -> str:
        """Of a collection, or of one of its objects."""
        collection = form.format(self.namespace)
        return f"{collection}/{name}" if name else collection

    async def get(self, form: str, name: str) -> Json | None:
        """An object; None where there is none.

        Raises:
            ClusterRefused: it may not be read.
            KubernetesUnavailable: no answer; so for all that follow.
        """
        status, found = await self.api.call("GET", self.path(form, name))
        if status == 404:
            return None
        return _good("get", form, name, status, found)

    async def items(self, form: str, selector: str = "", *, optional: bool = False) -> list[Json]:
        """All objects of a kind with these labels.

        Args:
            form: the kind's path.
            selector: of labels.
            optional: whether a kind that is not there, or may not be listed, has none.
        """
        query = [("labelSelector", selector)] if selector else []
        status, found = await self.api.call("GET", self.path(form), query=query)
        if optional and status in (403, 404):
            return []
        items: list[Json] = _good("list", form, "", status, found).get("items") or []
        return items

    async def apply(self, obj: Json) -> Json:
        """Server-side apply, which makes an object or brings it to what it should be.

        Raises:
            ClusterRefused: of a kind that is not known here, too.
        """
        form = _PATHS.get(obj.get("kind", ""))
        name = str(obj["metadata"]["name"])
        if form is None:
            raise ClusterRefused(f"objects of kind {obj.get('kind')} are not made by it", 400)
        status, found = await self.api.call(
            "PATCH",
            self.path(form, name),
            query=[("fieldManager", MANAGER), ("force", "true")],
            body=obj,
            content_type=_APPLY,
        )
        return _good("apply", form, name, status, found)

    async def patch(self, form: str, name: str, body: Json) -> Json:
        """A merge patch; with ``metadata.resourceVersion`` in it only on that version (409)."""
        status, found = await self.api.call(
            "PATCH",
            self.path(form, name),
            query=[("fieldManager", MANAGER)],
            body=body,
            content_type=_MERGE,
        )
        return _good("patch", form, name, status, found)

    async def create(self, form: str, body: Json) -> Json:
        """A new object; 409 where its name is taken."""
        status, found = await self.api.call(
            "POST", self.path(form), query=[("fieldManager", MANAGER)], body=body
        )
        return _good("create", form, str(body["metadata"].get("name", "")), status, found)

    async def replace(self, form: str, name: str, body: Json) -> Json:
        """An update on the version that ``body`` names (409)."""
        status, found = await self.api.call(
            "PUT", self.path(form, name), query=[("fieldManager", MANAGER)], body=body
        )
        return _good("update", form, name, status, found)

    async def delete(self, path: str, uid: str, version: str = "") -> None:
        """Deletes an object with all that hangs on it; one that is gone is deleted.

        Args:
            path: of the object.
            uid, version: it must have (409 otherwise); an empty version for any.
        """
        preconditions = {"uid": uid, **({"resourceVersion": version} if version else {})}
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": preconditions,
        }
        status, found = await self.api.call("DELETE", path, body=body)
        if status != 404:
            _good("delete", path, "", status, found)

    async def put_data(
        self, name: str, data: Mapping[str, str | None], metadata: Json, kept: Json | None
    ) -> Json:
        """Writes a ConfigMap's keys; those that are None are taken away.

        Args:
            name: of the ConfigMap.
            data: what differs.
            metadata: labels and annotations to set.
            kept: the object as it was read; None to make it.
        """
        if kept is None:
            whole: Json = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": self.namespace, **metadata},
                "data": {key: value for key, value in data.items() if value is not None},
            }
            return await self.create(CONFIGMAPS, whole)
        version = kept["metadata"].get("resourceVersion")
        body: Json = {"metadata": {**metadata, "resourceVersion": version}, "data": dict(data)}
        return await self.patch(CONFIGMAPS, name, body)


def _good(verb: str, form: str, name: str, status: int, found: Json) -> Json:
    if status < 300:
        return found
    kind = form.rpartition("}/")[2].split("/", maxsplit=1)[0] if "}/" in form else form
    said = str(found.get("message") or found.get("reason") or "no reason given")[:500]
    what = f"{kind} {name}".rstrip()
    if status == 403:
        raise ClusterRefused(
            f"not allowed to {verb} {what}: give the controller's service account the verb in its "
            f"Role ({said})",
            status,
        )
    raise ClusterRefused(f"{verb} {what} failed with {status} ({said})", status)


def labels_of(obj: Json) -> Mapping[str, str]:
    """Its labels."""
    return obj.get("metadata", {}).get("labels") or {}


def annotations_of(obj: Json) -> Mapping[str, str]:
    """Its annotations."""
    return obj.get("metadata", {}).get("annotations") or {}
