"""Mistakes in pods and their templates: part of the table of ``mistakes``."""

from __future__ import annotations

from tests.manifests.examples import GONE, Mistake

WEB, GROUP = "Deployment/web", "LeaderWorkerSet/group"
POD = "spec.template.spec"
BOX = f"{POD}.containers[0]"
TEMPLATE = "spec.leaderWorkerTemplate"
LEADER = f"{TEMPLATE}.leaderTemplate.spec.containers[0]"
RESTRICTED = "namespace enforces restricted"

PODS = [
    Mistake(WEB, f"{BOX}.image", "registry.example/shop/web", "is not pinned"),
    Mistake(WEB, f"{BOX}.image", "registry.example:5000/shop/web:latest", "is not pinned"),
    Mistake(WEB, f"{BOX}.ports[0].name", "http-of-the-web-server", "at most 15 characters"),
    Mistake(
        WEB,
        f"{BOX}.ports",
        [{"name": "http", "containerPort": port} for port in (8000, 8001)],
        "http is the name of two ports",
        path=f"{BOX}.ports[1].name",
    ),
    Mistake(WEB, f"{BOX}.ports[0].containerPort", 80_000, "must be a port from 1 to 65535"),
    Mistake(WEB, f"{BOX}.env[0].valueFrom.fieldRef.fieldPath", "status.ip", "is no field"),
    Mistake(WEB, f"{BOX}.env[0].valueFrom", {}, "exactly one source (got none)"),
    Mistake(
        WEB,
        f"{BOX}.env[0].name",
        "POD_IPS",
        "$(POD_IP) is not set before it",
        path=f"{BOX}.env[1].value",
    ),
    Mistake(WEB, f"{BOX}.env[2].name", "WHERE", "has the same name", path=f"{BOX}.env[2]"),
    Mistake(WEB, f"{BOX}.args[0]", "--at=$(HERE)", "$(HERE) is not set"),
    Mistake(WEB, f"{BOX}.readinessProbe.httpGet.port", "web", "no port named 'web'"),
    Mistake(GROUP, f"{LEADER}.startupProbe.tcpSocket.port", 8101, "has no port 8101"),
    Mistake(
        WEB,
        f"{BOX}.readinessProbe.tcpSocket",
        {"port": 8000},
        "exactly one handler",
        path=f"{BOX}.readinessProbe",
    ),
    Mistake(
        WEB,
        f"{BOX}.livenessProbe",
        {"httpGet": {"port": "http"}, "successThreshold": 2},
        "must be 1",
        path=f"{BOX}.livenessProbe.successThreshold",
    ),
    Mistake(WEB, f"{BOX}.lifecycle.preStop.sleep.seconds", 61, "the pod's grace period (60)"),
    Mistake(
        WEB, f"{BOX}.resources.requests.memory", "2Gi", "must not be more than the limit (1Gi)"
    ),
    Mistake(WEB, f"{BOX}.resources.requests.cpu", "half", "is no amount"),
    Mistake(WEB, f'{BOX}.resources.limits["example.com/fast"]', "1500m", "must be whole"),
    Mistake(
        WEB,
        f'{BOX}.resources.requests["example.com/fast"]',
        1,
        "is required, equal to the request",
        path=f'{BOX}.resources.limits["example.com/fast"]',
    ),
    Mistake(WEB, f"{BOX}.volumeMounts[0].name", "setings", "there is no volume 'setings'"),
    Mistake(
        WEB,
        f"{BOX}.volumeMounts[1].mountPath",
        "/etc/settings",
        "has the same mountPath",
        path=f"{BOX}.volumeMounts[1]",
    ),
    Mistake(WEB, f"{POD}.volumes[0].emptyDir", {}, "exactly one source", path=f"{POD}.volumes[0]"),
    Mistake(WEB, f"{POD}.volumes[1].emptyDir.sizeLimit", "64MiB", "is no amount"),
    Mistake(WEB, f"{POD}.volumes[1].emptyDir.sizeLimit", "1Gi", "less than the containers' memory"),
    Mistake(
        WEB, f"{BOX}.volumeMounts", GONE, "is mounted by no container", path=f"{POD}.volumes[0]"
    ),
    Mistake(WEB, f"{POD}.tolerations[0].value", "yes", "must be empty with operator Exists"),
    Mistake(WEB, f"{POD}.restartPolicy", "Never", "must be Always (got Never)"),
    Mistake(
        WEB,
        f"{POD}.topologySpreadConstraints[0].labelSelector.matchLabels.app",
        "other",
        "nothing is spread",
        path=f"{POD}.topologySpreadConstraints[0].labelSelector",
    ),
    Mistake(GROUP, f"{LEADER}.resources.claims[0].name", "cart", "no resource claim 'cart'"),
]

SECURITY = [
    Mistake(WEB, f"{BOX}.securityContext.allowPrivilegeEscalation", GONE, RESTRICTED),
    Mistake(WEB, f"{BOX}.securityContext.capabilities.drop", ["NET_RAW"], "must hold ALL"),
    Mistake(
        WEB,
        f"{BOX}.securityContext.capabilities.add",
        ["IPC_LOCK"],
        "must not be IPC_LOCK",
        path=f"{BOX}.securityContext.capabilities.add[0]",
    ),
    Mistake(
        WEB,
        f"{POD}.securityContext.runAsNonRoot",
        GONE,
        "must be true",
        path=f"{BOX}.securityContext.runAsNonRoot",
    ),
    Mistake(
        WEB,
        f"{POD}.securityContext.seccompProfile",
        GONE,
        RESTRICTED,
        path=f"{BOX}.securityContext.seccompProfile",
    ),
    Mistake(WEB, f"{POD}.hostNetwork", True, RESTRICTED),
    Mistake(
        WEB,
        f"{POD}.volumes[1]",
        {"name": "scratch", "nfs": {"server": "nas", "path": "/x"}},
        "must not be of type nfs",
        path=f"{POD}.volumes[1].nfs",
    ),
]
