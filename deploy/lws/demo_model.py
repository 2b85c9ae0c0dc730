"""The demo model on a cluster: one pod makes it and keeps it on a volume, workers fetch it.

It is the profile's wish (``model.source: demo``) or the site's (``weights.kind: demo``), so that
every profile can be tried on a cluster that has nothing.
"""

from __future__ import annotations

from deploy.lws import demo_share, labels
from deploy.lws.network import policy, port, workers
from deploy.lws.patches import add
from deploy.lws.router import service_account
from deploy.lws.site import Site
from deploy.lws.site_sections import DemoWeights, HubWeights
from deploy.lws.tree import Json, Part, Patch, Target
from deploy.lws.worker_pod import HOME, MODELS, container_security, pod_security
from profiles import DEMO, ServingProfile

COMPONENT = "demo-model"
OBJECT = "baton-demo-model"
_POD = "/spec/leaderWorkerTemplate/workerTemplate/spec"


def is_demo(profile: ServingProfile, site: Site) -> bool:
    """Whether this profile serves the demo model on this site."""
    weights = site.spec.weights
    wished = isinstance(weights, HubWeights) and profile.spec.model.source == DEMO
    return wished or isinstance(weights, DemoWeights)


def demo_model(profile: ServingProfile, site: Site) -> Part | None:
    """The component; None where another model is served."""
    if not is_demo(profile, site):
        return None
    image = site.spec.images.worker_cpu
    return Part(
        name=COMPONENT,
        about="The demo model, which Baton trains itself in a minute or two. One pod makes it and "
        "keeps it on a volume, and workers fetch it from there: all of them have to serve the "
        "same weights. Needs: a default StorageClass.",
        files={"demo-model.yaml": [_service(), _stateful_set(site), _account(), _policy()]},
        patches=[
            Patch(
                about="Each worker fetches the model before it starts.",
                target=Target("LeaderWorkerSet"),
                ops=[
                    add(f"{_POD}/initContainers", [_fetch(image)]),
                    add(f"{_POD}/volumes/-", {"name": "models", "emptyDir": {}}),
                    add(
                        f"{_POD}/containers/0/volumeMounts/-",
                        {"name": "models", "mountPath": MODELS, "readOnly": True},
                    ),
                    add(f"{_POD}/containers/0/env/-", _variable("BATON_MODEL", _FOLDER)),
                    add(
                        f"{_POD}/containers/0/env/-",
                        _variable("BATON_SERVED_NAME", profile.served_name),
                    ),
                ],
            )
        ],
    )


_FOLDER = f"{MODELS}/demo"


def _variable(name: str, value: str) -> Json:
    return {"name": name, "value": value}


def _fetch(image: str) -> Json:
    url = f"http://{OBJECT}:{demo_share.PORT}"
    return {
        "name": "fetch-model",
        "image": image,
        "command": ["python", "-m", "deploy.lws.demo_share", "fetch", url, _FOLDER],
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"memory": "256Mi"},
        },
        "securityContext": container_security(),
        "volumeMounts": [{"name": "models", "mountPath": MODELS}],
    }


def _service() -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": OBJECT, "labels": labels.labels(COMPONENT)},
        "spec": {
            "selector": labels.selector(COMPONENT),
            "ports": [{"name": "http", "port": demo_share.PORT, "targetPort": "http"}],
        },
    }


def _account() -> Json:
    return service_account(OBJECT, COMPONENT, token=False)


def _stateful_set(site: Site) -> Json:
    pod: Json = {
        "serviceAccountName": OBJECT,
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [
            {
                "name": "demo-model",
                "image": site.spec.images.worker_cpu,
                "command": ["python", "-m", "deploy.lws.demo_share", "serve", "--home", HOME],
                "env": [_variable("HOME", "/tmp")],  # noqa: S108 - in the pod
                "ports": [{"name": "http", "containerPort": demo_share.PORT}],
                "resources": {
                    "requests": {"cpu": "500m", "memory": "2Gi"},
                    "limits": {"memory": "2Gi"},
                },
                # It listens when the model is there.
                "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 5},
                "securityContext": container_security(),
                "volumeMounts": [
                    {"name": "model", "mountPath": HOME},
                    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
                ],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    if site.spec.images.pull_secret:
        pod["imagePullSecrets"] = [{"name": site.spec.images.pull_secret}]
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": OBJECT, "labels": labels.labels(COMPONENT)},
        "spec": {
            "replicas": 1,
            "serviceName": OBJECT,
            "selector": {"matchLabels": labels.selector(COMPONENT)},
            "template": {"metadata": {"labels": labels.labels(COMPONENT)}, "spec": pod},
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "model"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}},
                    },
                }
            ],
        },
    }


def _policy() -> Json:
    return policy(
        OBJECT,
        {"matchLabels": labels.selector(COMPONENT)},
        [{"from": [{"podSelector": workers()}], "ports": [port("http")]}],
    )
