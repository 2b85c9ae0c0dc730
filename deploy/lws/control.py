"""The controller as a component: its pods, its rights, and what changes for the routers.

With it routers start from the ConfigMap that it writes after a switch was committed, and no longer
from the one that operators edit: a router that starts from nothing begins with what serves.
"""

from __future__ import annotations

from deploy.lws import labels, names, network, router
from deploy.lws.patches import add, replace
from deploy.lws.site import Site
from deploy.lws.site_options import ControllerSpec
from deploy.lws.tree import Json, Part, Patch, Target
from deploy.lws.worker_pod import container_security, from_field, from_secret, pod_security
from profiles import ServingProfile

NAME = "controller"
_HEALTH_PORT = 8002
_ROUTER_ENVS = "/spec/template/spec/containers/0/env"
_ROUTER_ENV = f"{_ROUTER_ENVS}/{router.PROFILES_ENV}"


def has_controller(site: Site) -> bool:
    """Whether a site's overlay takes the controller. It makes LeaderWorkerSets: beside a
    DisaggregatedSet it would make every pool a second time."""
    return site.spec.controller is not None and site.spec.workload == "lws"


def controller(profile: ServingProfile, site: Site) -> Part | None:
    """The component; None where the site has no controller."""
    spec = site.spec.controller
    if spec is None or not has_controller(site):
        return None
    return Part(
        name=NAME,
        about="`baton controller`: brings the pools to what the active profile says, new ones "
        "before old ones go, and has the routers switch in between. Pools of this folder stay "
        "Git's: it takes them as they are, makes others beside them, and scales to 0 what no "
        "profile needs any more.",
        files={
            "controller.yaml": [
                _deployment(site, spec),
                _disruption_budget(),
                network.policy(names.CONTROLLER, _selector(), []),
            ],
            "controller-access.yaml": [
                router.service_account(names.CONTROLLER, labels.CONTROLLER),
                _role(site),
                router.binding(names.CONTROLLER, labels.CONTROLLER),
            ],
        },
        abouts={
            "controller-access.yaml": "What it makes, watches and tells, in this namespace only.",
        },
        patches=[
            Patch(
                about="Routers start from what the controller says that serves, and take nothing "
                "there for a proposal later.",
                target=Target("Deployment", name=names.ROUTER),
                ops=[
                    {"op": "test", "path": f"{_ROUTER_ENV}/name", "value": "BATON_PROFILES"},
                    replace(f"{_ROUTER_ENV}/value", f"configmap:{names.ACTIVE}"),
                    add(f"{_ROUTER_ENVS}/-", {"name": "BATON_PROFILES_AT_START", "value": "true"}),
                ],
            ),
            *_free_replicas(profile, site),
            Patch(
                about="They read that one.",
                target=Target("Role", name=names.ROUTER),
                ops=[
                    replace("/rules/0/resourceNames/0", names.ACTIVE),
                    replace("/rules/1/resourceNames/0", f"{names.ACTIVE}-status"),
                ],
            ),
            Patch(
                about="The controller asks routers for switches, and has them drain workers.",
                target=Target("NetworkPolicy", name=names.ROUTER),
                ops=[
                    add(
                        "/spec/ingress/-",
                        {
                            "from": [network.pods(labels.CONTROLLER)],
                            "ports": [network.port("admin")],
                        },
                    )
                ],
            ),
        ],
    )


def _free_replicas(profile: ServingProfile, site: Site) -> list[Patch]:
    """Git and the controller must not both say how many there are: an apply would undo a switch.
    Where there is an autoscaler, its component does the same."""
    if site.spec.autoscaling.kind != "none":
        return []
    return [
        Patch(
            about="Replicas are the controller's: the profile's, or 0 after a switch.",
            target=Target("LeaderWorkerSet", name=names.pool_name(role)),
            ops=[{"op": "remove", "path": "/spec/replicas"}],
        )
        for role in profile.spec.pools.by_role
    ]


def _selector() -> Json:
    return {"matchLabels": labels.selector(labels.CONTROLLER)}


def _deployment(site: Site, spec: ControllerSpec) -> Json:
    pod: Json = {
        "serviceAccountName": names.CONTROLLER,
        "securityContext": pod_security(),
        "containers": [_container(site, spec)],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    if site.spec.images.pull_secret:
        pod["imagePullSecrets"] = [{"name": site.spec.images.pull_secret}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": names.CONTROLLER, "labels": labels.labels(labels.CONTROLLER)},
        "spec": {
            "replicas": spec.replicas,
            "selector": _selector(),
            "template": {
                "metadata": {"labels": labels.labels(labels.CONTROLLER)},
                "spec": pod,
            },
        },
    }


def _container(site: Site, spec: ControllerSpec) -> Json:
    return {
        "name": "controller",
        "image": site.spec.images.controller,
        "command": ["baton", "controller"],
        "args": [
            *("--retire", f"{spec.retire_s}s"),
            *("--log-format", "json"),
        ],
        "env": [
            from_field("BATON_NAMESPACE", "metadata.namespace"),
            from_field("BATON_CONTROLLER_ID", "metadata.name"),
            {
                "name": "BATON_ADMIN_URL",
                "value": f"http://{names.ROUTER_ADMIN}:{names.ADMIN_PORT}",
            },
            from_secret("BATON_ADMIN_TOKEN", names.ADMIN_TOKEN_KEY),
        ],
        "ports": [{"name": "health", "containerPort": _HEALTH_PORT}],
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"memory": "256Mi"},
        },
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "health"}},
        "livenessProbe": {"httpGet": {"path": "/livez", "port": "health"}},
        "securityContext": container_security(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - a mount
    }


def _disruption_budget() -> Json:
    found = router.disruption_budget()
    found["metadata"] = {
        "name": names.CONTROLLER,
        "labels": labels.labels(labels.CONTROLLER),
    }
    found["spec"]["selector"] = _selector()
    return found


def _role(site: Site) -> Json:
    rules: list[Json] = [
        _rule("", ["configmaps"], ["get", "list", "watch", "create", "patch", "update", "delete"]),
        _rule("", ["pods"], ["get", "list", "watch"]),
        _rule("", ["events"], ["create", "patch"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "create", "patch", "update"]),
        _rule(
            "leaderworkerset.x-k8s.io",
            ["leaderworkersets"],
            ["get", "list", "watch", "create", "patch", "update", "delete"],
        ),
        _rule("leaderworkerset.x-k8s.io", ["leaderworkersets/scale"], ["get", "patch", "update"]),
        _rule("policy", ["poddisruptionbudgets"], _MAKES),
    ]
    scaling = site.spec.autoscaling.kind
    # Also where the site makes none: a pool that somebody's autoscaler sizes is left to it.
    autoscalers = _MAKES if scaling == "hpa" else ["list"]
    rules.append(_rule("autoscaling", ["horizontalpodautoscalers"], autoscalers))
    if scaling == "keda":
        rules.append(_rule("keda.sh", ["scaledobjects"], _MAKES))
    if site.spec.dra:
        rules.append(_rule("resource.k8s.io", ["resourceclaimtemplates"], _MAKES))
    if site.spec.workload == "disaggregatedset":
        rules.append(
            _rule("disaggregatedset.x-k8s.io", ["disaggregatedsets"], ["get", "list", "watch"])
        )
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": names.CONTROLLER, "labels": labels.labels(labels.CONTROLLER)},
        "rules": rules,
    }


_MAKES = ["get", "list", "create", "patch", "delete"]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Json:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
