"""Comments that stand in rendered files above what they explain, by kind and place.

Only where a reader would ask why; what a field does is Kubernetes' own documentation's business.
"""

from __future__ import annotations

from typing import Final

_POD: Final = {
    "terminationGracePeriodSeconds": "The drain, the engine's stop, and a margin.",
    "startupProbe": "Until the process has its weights, and answers. How long engines and groups "
    "may take from then on, it knows by itself.",
    "readinessProbe": "Ready is an engine that has really generated. A follower asks its leader.",
    "livenessProbe": "Fails when the supervisor hangs or another pod of the group is lost, on "
    "which the pod ends by itself as a rule: the group is then made anew as a whole.",
    "preStop": "Takes the worker out of the routers' choice, and waits for its requests.",
}

_POOL: Final = {
    "startupPolicy": "Not LeaderReady: a leader is ready when its followers have joined it.",
    "rollingUpdateConfiguration": "A new worker is ready before an old one goes, for which nodes "
    "have to be free. Where there are none: maxSurge 0, maxUnavailable 1.",
    "restartPolicy": "None where a worker is one pod: the kubelet restarts it, waits longer from "
    "try to try, and keeps the last one's log. A group of several is made anew as a whole.",
    "size": "Pods of one worker: the leader, and a follower for each further machine.",
    **_POD,
}

NOTES: Final = {
    "LeaderWorkerSet": _POOL,
    "DisaggregatedSet": _POOL,
    "PodDisruptionBudget": {
        "unhealthyPodEvictionPolicy": "A pod that is not ready serves nobody: it may always go.",
    },
    "Deployment": {
        "terminationGracePeriodSeconds": "The sleep below, the profile's limits.drain_s, and a "
        "margin.",
        "preStop": "Until proxies and balancers have taken the pod off their lists.",
    },
}
