"""Scraping of routers, workers and the controller: by the Prometheus operator, or by Google's
Managed Prometheus.

Of a group only the leader is scraped: it exports what the whole group does, and its followers
have no engine's server. Series of workers get the labels ``baton_role`` and ``baton_pool``, by
which autoscalers and alerts tell pools apart; plain ``role`` is a label of the router's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploy.lws import labels, names, network
from deploy.lws.patches import add
from deploy.lws.tree import Json, Part, Patch, Target

if TYPE_CHECKING:
    from deploy.lws.site import Site
    from profiles import ServingProfile

ROLE_LABEL: Final = "baton_role"
POOL_LABEL: Final = "baton_pool"
"""Labels of a worker's series: its role, and the name of its LeaderWorkerSet."""

_PORT: Final = "http"
_CONTROLLER_PORT: Final = "health"
_INTERVAL: Final = "15s"
"""Autoscalers look every 15 s; older figures would make them late, newer ones are not asked for."""

_POD_LABELS: Final = {ROLE_LABEL: labels.ROLE, POOL_LABEL: labels.LWS_NAME}


def podmonitor(profile: ServingProfile, site: Site) -> Part | None:
    """PodMonitors of the Prometheus operator; None unless the site asks for them."""
    del profile
    if "podmonitor" not in site.spec.monitoring:
        return None
    return Part(
        name="podmonitor",
        about="Scraping by the Prometheus operator: routers, the leader of each worker, and the "
        "controller.\n"
        "Needs: the Prometheus operator, a Prometheus whose podMonitorSelector takes these objects "
        "(monitor_labels of the site), and its namespace in access.metrics_from.",
        files={
            "podmonitors.yaml": [
                _monitor(labels.ROUTER, "baton-routers", site),
                _monitor("", "baton-workers", site),
                *(
                    [_monitor(labels.CONTROLLER, names.CONTROLLER, site)]
                    if site.spec.controller
                    else []
                ),
            ]
        },
        patches=_let_in(site),
    )


def podmonitoring(profile: ServingProfile, site: Site) -> Part | None:
    """PodMonitorings of Google's Managed Prometheus; None unless the site asks for them."""
    del profile
    if "podmonitoring" not in site.spec.monitoring:
        return None
    return Part(
        name="podmonitoring",
        about="Scraping by Google Cloud Managed Service for Prometheus: routers, the leader of "
        "each worker, and the controller.\n"
        "Needs: managed collection, which GKE has on by default.",
        files={
            "podmonitorings.yaml": [
                _monitoring(labels.ROUTER, "baton-routers"),
                _monitoring("", "baton-workers"),
                *(
                    [_monitoring(labels.CONTROLLER, names.CONTROLLER)]
                    if site.spec.controller
                    else []
                ),
            ]
        },
        patches=_let_in(site),
    )


def _let_in(site: Site) -> tuple[Patch, ...]:
    """Prometheus reaches routers and workers already; the controller has no other callers."""
    spaces = site.spec.access.metrics_from
    if not spaces or site.spec.controller is None:
        return ()
    rule = {"from": network.namespaces(spaces), "ports": [network.port(_CONTROLLER_PORT)]}
    return (
        Patch(
            f"Prometheus, in {', '.join(spaces)}, reads the controller's metrics.",
            Target("NetworkPolicy", name=names.CONTROLLER),
            [add("/spec/ingress", [rule])],
        ),
    )


def _selector(component: str) -> Json:
    """Pods of one component; without one, the leaders of all pools, of whatever role."""
    if component:
        return {"matchLabels": labels.selector(component)}
    return {
        "matchLabels": {labels.NAME: labels.BATON, labels.LWS_WORKER_INDEX: "0"},
        "matchExpressions": [{"key": labels.ROLE, "operator": "Exists"}],
    }


def _endpoint(component: str) -> Json:
    port = _CONTROLLER_PORT if component == labels.CONTROLLER else _PORT
    return {"port": port, "path": "/metrics", "interval": _INTERVAL}


def _meta(component: str, name: str) -> Json:
    found = labels.labels(component) if component else labels.shared()
    return {"name": name, "labels": found}


def _monitor(component: str, name: str, site: Site) -> Json:
    metadata = _meta(component, name)
    metadata["labels"] = {**metadata["labels"], **site.spec.monitor_labels}
    endpoint = _endpoint(component)
    if not component:
        endpoint["relabelings"] = [
            {"sourceLabels": [_meta_label(pod_label)], "targetLabel": label}
            for label, pod_label in _POD_LABELS.items()
        ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata,
        "spec": {"selector": _selector(component), "podMetricsEndpoints": [endpoint]},
    }


def _meta_label(pod_label: str) -> str:
    """What Prometheus' discovery calls a pod's label."""
    name = "".join(c if c.isalnum() else "_" for c in pod_label)
    return f"__meta_kubernetes_pod_label_{name}"


def _monitoring(component: str, name: str) -> Json:
    spec: Json = {
        "selector": _selector(component),
        "endpoints": [_endpoint(component)],
    }
    if not component:
        spec["targetLabels"] = {
            "fromPod": [
                {"from": pod_label, "to": label} for label, pod_label in _POD_LABELS.items()
            ],
            "metadata": ["container", "node", "pod"],
        }
    return {
        "apiVersion": "monitoring.googleapis.com/v1",
        "kind": "PodMonitoring",
        "metadata": _meta(component, name),
        "spec": spec,
    }
