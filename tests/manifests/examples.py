"""A small set of sound objects, written by hand, and one mistake after another to put into it.

The validator has to be able to fail before its silence means anything: each mistake names the
object, the field and the words that it must be refused with.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tests.manifests.findings import Json, name_of

GONE: Final = object()
"""As a mistake's value: the field is taken away."""

SOUND = """\
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels: {pod-security.kubernetes.io/enforce: restricted}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
immutable: true
data: {colour: blue}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: "shop:reader", namespace: shop}
rules:
  - {apiGroups: [""], resources: [configmaps], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: web, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: "shop:reader"}
subjects: [{kind: ServiceAccount, name: web, namespace: shop}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 60
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector: {matchLabels: {app: web}}
      tolerations: [{key: spot, operator: Exists, effect: NoSchedule}]
      containers:
        - name: web
          image: registry.example/shop/web:1.2
          args: ["--at=$(WHERE)"]
          ports: [{name: http, containerPort: 8000}]
          env:
            - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
            - {name: WHERE, value: "http://$(POD_IP):8000"}
            - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
            - {name: TOKEN, valueFrom: {secretKeyRef: {name: tokens, key: token}}}
          readinessProbe: {httpGet: {path: /ready, port: http}}
          lifecycle: {preStop: {sleep: {seconds: 5}}}
          resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {memory: 1Gi}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: settings, mountPath: /etc/settings, readOnly: true}
            - {name: scratch, mountPath: /tmp}
      volumes:
        - {name: settings, configMap: {name: settings}}
        - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: shop}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: group, namespace: shop}
spec:
  podSelector: {matchLabels: {app: group}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: http}, {port: 5600, endPort: 5601}]
  egress:
    - to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]
---
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata:
  name: group
  namespace: shop
  labels: {kueue.x-k8s.io/queue-name: queue}
spec:
  rolloutStrategy:
    type: RollingUpdate
    rollingUpdateConfiguration: {maxUnavailable: 0, maxSurge: 50%}
  leaderWorkerTemplate:
    size: 6
    subGroupPolicy: {subGroupSize: 2}
    restartPolicy: RecreateGroupOnPodRestart
    leaderTemplate: &group
      metadata: {labels: {app: group}}
      spec:
        securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
        resourceClaims: [{name: card, resourceClaimTemplateName: card}]
        containers:
          - name: engine
            image: registry.example/shop/engine:1.2
            args: ["--master=$(LWS_LEADER_ADDRESS)"]
            ports: [{name: http, containerPort: 8100}, {containerPort: 5600}]
            startupProbe: {tcpSocket: {port: 8100}, failureThreshold: 60}
            resources: {limits: {example.com/fast: 1, memory: 8Gi}, claims: [{name: card}]}
            securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    workerTemplate: *group
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: group, namespace: shop}
spec:
  scaleTargetRef: {apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, name: group}
  minReplicas: 1
  maxReplicas: 4
  metrics:
    - type: Pods
      pods: {metric: {name: "engine:waiting"}, target: {type: AverageValue, averageValue: "4"}}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: 600
      policies: [{type: Pods, value: 1, periodSeconds: 300}]
---
apiVersion: disaggregatedset.x-k8s.io/v1
kind: DisaggregatedSet
metadata: {name: pair, namespace: shop}
spec:
  roles:
    - name: prefill
      scaling: {mode: External}
      spec: &role
        replicas: 1
        leaderWorkerTemplate:
          size: 1
          workerTemplate:
            metadata: {labels: {app: pair}}
            spec:
              securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
              containers:
                - name: engine
                  image: registry.example/shop/engine:1.2
                  securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    - {name: decode, spec: *role}
    - {name: spare, spec: *role}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: pair, namespace: shop}
spec:
  scaleTargetRef:
    apiVersion: disaggregatedset.x-k8s.io/v1
    kind: DisaggregatedSetRoleScaler
    name: pair-prefill
  minReplicaCount: 1
  maxReplicaCount: 4
  triggers:
    - type: prometheus
      metadata: {serverAddress: "http://prometheus:9090", query: sum(up), threshold: "4"}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: group, namespace: shop}
spec:
  selector:
    matchLabels: {leaderworkerset.sigs.k8s.io/name: group}
    matchExpressions: [{key: leaderworkerset.sigs.k8s.io/worker-index, operator: In, values: ["0"]}]
  podMetricsEndpoints: [{port: http, interval: 15s}]
---
apiVersion: monitoring.googleapis.com/v1
kind: PodMonitoring
metadata: {name: group, namespace: shop}
spec:
  selector: {matchLabels: {app: group}}
  endpoints: [{port: http, interval: 15s, timeout: 10s}]
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: shop, namespace: shop}
spec:
  groups: [{name: shop, rules: [{alert: Slow, expr: vector(1), for: 5m}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: example
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: http}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /v1}}]
      backendRefs: [{name: web, port: 80}]
      timeouts: {request: 600s, backendRequest: 300s}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: group, namespace: shop}
spec:
  selector: {matchLabels: {app: group}}
  targetPorts: [{number: 8100}]
  endpointPickerRef: {name: shop-epp, port: {number: 9002}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: Topology
metadata: {name: racks}
spec: {levels: [{nodeLabel: example.com/rack}, {nodeLabel: kubernetes.io/hostname}]}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {name: fast}
spec: {nodeLabels: {example.com/card: fast}, topologyName: racks}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: queue}
spec:
  cohortName: all
  namespaceSelector: {}
  resourceGroups:
    - coveredResources: [cpu, example.com/fast]
      flavors:
        - name: fast
          resources:
            - {name: cpu, nominalQuota: 64}
            - {name: example.com/fast, nominalQuota: 8, borrowingLimit: 4, lendingLimit: 4}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: queue, namespace: shop}
spec: {clusterQueue: queue}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: card, namespace: shop}
spec:
  spec:
    devices:
      requests:
        - name: card
          exactly:
            deviceClassName: example.com
            selectors: [{cel: {expression: 'device.driver == "example.com"'}}]
"""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One change that makes the set unsound.

    Attributes:
        object: ``Kind/name`` of what is changed.
        at: the field that is changed, as problems show paths.
        value: what is put there; ``GONE`` takes it away.
        says: words of the problem that must be found.
        path: the field that the problem must name; the changed one by default.
        where: the object that the problem must be about; the changed one by default.
    """

    object: str
    at: str
    value: Any
    says: str
    path: str | None = None
    where: str | None = None


def sound() -> list[Json]:
    """The set as it should be; the caller's own copy."""
    return copy.deepcopy(_parsed())


def broken(mistake: Mistake) -> list[Json]:
    """The set with one mistake in it."""
    objects = sound()
    found = next(one for one in objects if name_of(one) == mistake.object)
    *parents, last = keys(mistake.at)
    place: Any = found
    for key in parents:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    if mistake.value is GONE:
        del place[last]
    else:
        place[last] = mistake.value
    return objects


def keys(path: str) -> Sequence[str | int]:
    """The keys of a path as problems show it."""
    found = re.findall(r'\["([^"]*)"\]|\[(\d+)\]|([^.\[\]]+)', path)
    return [int(index) if index else quoted or plain for quoted, index, plain in found]


@functools.cache
def _parsed() -> list[Json]:
    # By way of JSON, since YAML's aliases are one value in two places.
    objects: list[Json] = json.loads(json.dumps(list(yaml.safe_load_all(SOUND))))
    return objects
