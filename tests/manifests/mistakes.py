"""One mistake of each kind for the small set of sound objects, and what has to be said of it."""

from __future__ import annotations

from tests.manifests.examples import GONE, Mistake
from tests.manifests.mistakes_of_pods import (
    BOX,
    GROUP,
    LEADER,
    POD,
    PODS,
    SECURITY,
    TEMPLATE,
    WEB,
)

PAIR = "DisaggregatedSet/pair"
ROLLOUT = "spec.rolloutStrategy.rollingUpdateConfiguration"

SCHEMAS = [
    Mistake(WEB, f"{BOX}.comand", ["run"], "no field that the schema knows"),
    Mistake(WEB, "spec.replicas", "2", "is not of type"),
    Mistake(WEB, "apiVersion", "apps/v2", "no schema of Deployment"),
    Mistake(WEB, f"{BOX}.ports[0].containerPort", 8000.0, "is not of type 'integer'"),
    Mistake(GROUP, f"{TEMPLATE}.sise", 2, "no field that the schema knows"),
    Mistake(GROUP, f"{LEADER}.livenesProbe", {}, "no field that the schema knows"),
    Mistake(GROUP, "spec.startupPolicy", "Leader", "is not one of"),
    Mistake(GROUP, "spec.replicas", 2**31, "is greater than the maximum"),
    Mistake(GROUP, f"{TEMPLATE}.size", 2**31, "is not a 'int32'"),
    Mistake(GROUP, f"{TEMPLATE}.workerTemplate", GONE, "is a required", path=TEMPLATE),
    Mistake(GROUP, f"{LEADER}.resources.limits.memory", "8 Gi", "does not match"),
    Mistake(GROUP, "status", {"replicas": 1}, "is a controller's to set"),
    Mistake(GROUP, f"{LEADER}.command", None, "is null: leave it out"),
    Mistake("ClusterQueue/queue", "apiVersion", "kueue.x-k8s.io/v1beta1", "is deprecated"),
    Mistake("PrometheusRule/shop", "spec.groups[0].rules[0].for", "5 minutes", "does not match"),
    Mistake(
        GROUP,
        f"{LEADER}.ports[1]",
        {"name": "again", "containerPort": 8100},
        "has the same containerPort and protocol as an earlier entry",
    ),
]

RULES_IN_CEL = [
    Mistake(
        "HTTPRoute/web",
        "spec.rules[0].matches[0].path.value",
        "/v1//chat",
        "must not contain '//'",
        path="spec.rules[0].matches[0].path",
    ),
    Mistake(
        "HTTPRoute/web",
        "spec.rules[0].timeouts.backendRequest",
        "700s",
        "backendRequest timeout cannot be longer than request timeout",
        path="spec.rules[0].timeouts",
    ),
    Mistake(
        "HTTPRoute/web",
        "spec.rules[0].backendRefs[0].port",
        GONE,
        "Must have port for Service reference",
        path="spec.rules[0].backendRefs[0]",
    ),
    Mistake(
        PAIR,
        "spec.roles[1].spec.replicas",
        0,
        "replicas must be zero for all non-External roles or non-zero for all",
        path="spec",
    ),
    Mistake(
        "InferencePool/group",
        "spec.endpointPickerRef.port",
        GONE,
        "port is required when kind is 'Service'",
        path="spec.endpointPickerRef",
    ),
    Mistake(
        "InferencePool/group",
        "spec.targetPorts",
        [{"number": 8100}, {"number": 8100}],
        "port number must be unique",
    ),
    Mistake(
        "Gateway/front",
        "spec.listeners",
        [{"name": name, "port": 80, "protocol": "HTTP"} for name in ("http", "other")],
        "Combination of port, protocol and hostname must be unique",
    ),
    Mistake("PodMonitoring/group", "spec.endpoints[0].port", 0, "Port is required"),
    Mistake(
        "PodMonitoring/group",
        "spec.endpoints[0].oauth2",
        {"proxyUrl": "not a url", "tokenURL": "https://id.example/token", "clientID": "x"},
        "breaks the rule isURL(self)",
        path="spec.endpoints[0].oauth2.proxyUrl",
    ),
    Mistake(
        "ResourceFlavor/fast",
        "spec.nodeLabels",
        GONE,
        "cannot be evaluated: no such member in mapping: 'nodeLabels'",
        path="spec",
    ),
    Mistake(
        "Topology/racks",
        "spec.levels",
        [{"nodeLabel": "kubernetes.io/hostname"}, {"nodeLabel": "example.com/rack"}],
        "the kubernetes.io/hostname label can only be used at the lowest level of topology",
    ),
    Mistake(
        "ClusterQueue/queue",
        "spec.cohortName",
        GONE,
        "borrowingLimit must be nil when cohort is empty",
        path="spec",
    ),
    Mistake(
        "ScaledObject/pair",
        "spec.minReplicaCount",
        9,
        "minReplicaCount must be less than or equal to maxReplicaCount",
        path="spec",
    ),
]

WEBHOOKS = [
    Mistake(
        GROUP,
        "metadata.name",
        "4-cards",
        "must be a DNS-1035 label",
        where="LeaderWorkerSet/4-cards",
    ),
    Mistake(
        GROUP,
        "metadata.name",
        "g" * 40,
        "at most 39 characters",
        where=f"LeaderWorkerSet/{'g' * 40}",
    ),
    Mistake(
        GROUP,
        ROLLOUT,
        {"maxUnavailable": "10%", "maxSurge": "0%"},
        "must not be 0",
        path=f"{ROLLOUT}.maxUnavailable",
    ),
    Mistake(GROUP, f"{ROLLOUT}.maxSurge", "150%", "must not be more than 100%"),
    Mistake(GROUP, f"{ROLLOUT}.maxSurge", "half", "a whole number or a percentage"),
    Mistake(GROUP, f"{ROLLOUT}.partition", -1, "must not be negative"),
    Mistake(GROUP, f"{TEMPLATE}.subGroupPolicy.subGroupSize", 7, "must not be more than size"),
    Mistake(GROUP, f"{TEMPLATE}.subGroupPolicy.subGroupSize", 4, "must divide size or size - 1"),
    Mistake(
        GROUP,
        f"{TEMPLATE}.subGroupPolicy.subGroupPolicyType",
        "LeaderExcluded",
        "must divide size - 1 (5) with LeaderExcluded",
        path=f"{TEMPLATE}.subGroupPolicy.subGroupSize",
    ),
    Mistake(
        PAIR,
        "spec.roles[1].spec.rolloutStrategy",
        {"type": "RollingUpdate", "rollingUpdateConfiguration": {"partition": 1}},
        "roles roll out together",
        path="spec.roles[1].spec.rolloutStrategy.rollingUpdateConfiguration.partition",
    ),
    Mistake(GROUP, f"{TEMPLATE}.size", 0, "must be at least 1"),
    Mistake(PAIR, "spec.slices", 2, "must be 1 while a role is scaled from outside"),
    Mistake(PAIR, "spec.roles[0].name", "prefill-on-the-large-cards-of-rack-4", "makes names of"),
    Mistake(
        PAIR,
        "spec.placementPolicy",
        {"type": "ExclusiveSlice"},
        "is required",
        path="spec.placementPolicy.topology",
    ),
    Mistake(
        "ClusterQueue/queue",
        "spec.resourceGroups[0].coveredResources",
        ["example.com/fast", "cpu"],
        "in this order",
        path="spec.resourceGroups[0].flavors[0].resources",
    ),
    Mistake("ScaledObject/pair", "spec.triggers[0].metadata.query", GONE, "is required"),
]

NAMES = [
    Mistake(WEB, "metadata.name", "Web_1", "must be a DNS subdomain", where="Deployment/Web_1"),
    Mistake(WEB, 'metadata.labels["app.kubernetes.io/"]', "x", "must be a name of at most 63"),
    Mistake(WEB, "metadata.labels.team", "the shop", "must be a label's value"),
    Mistake(
        WEB,
        "metadata.annotations.size",
        "x" * 262_144,
        "262144 are taken",
        path="metadata.annotations",
    ),
    Mistake("Namespace/shop", "metadata.namespace", "shop", "Namespace has no namespace"),
    Mistake("Topology/racks", "metadata.namespace", "shop", "Topology has no namespace"),
    Mistake(WEB, "metadata.resourceVersion", "7", "is the API server's to set"),
    Mistake(WEB, "metadata.lables", {}, "no field that the schema knows"),
    Mistake(
        "Service/web", "metadata.name", "4-web", "must be a DNS-1035 label", where="Service/4-web"
    ),
    Mistake("ServiceAccount/web", "metadata.namespace", "shop2", "there is no Namespace 'shop2'"),
]

KINDS = [
    Mistake(
        WEB, "spec.template.metadata.labels.app", "www", "does not select", path="spec.selector"
    ),
    Mistake(
        WEB,
        "spec.strategy.rollingUpdate.maxSurge",
        0,
        "must not both be 0",
        path="spec.strategy.rollingUpdate",
    ),
    Mistake(
        "Service/web",
        "spec.ports",
        [{"port": 80}, {"port": 81}],
        "is required",
        path="spec.ports[0].name",
    ),
    Mistake("ConfigMap/settings", 'data["a/b"]', "x", "must be letters, digits"),
    Mistake(
        "PodDisruptionBudget/web", "spec.maxUnavailable", 1, "either minAvailable or", path="spec"
    ),
    Mistake("HorizontalPodAutoscaler/group", "spec.maxReplicas", 0, "at least minReplicas (1)"),
    Mistake(
        "HorizontalPodAutoscaler/group",
        "spec.metrics[0].pods.target",
        {"type": "Value", "value": "4"},
        "must be AverageValue",
        path="spec.metrics[0].pods.target.type",
    ),
    Mistake(
        "HorizontalPodAutoscaler/group",
        "spec.metrics[0].type",
        "External",
        "the block of its type",
        path="spec.metrics[0]",
    ),
    Mistake(
        "HorizontalPodAutoscaler/group",
        "spec.behavior.scaleDown.policies[0].periodSeconds",
        3600,
        "from 1 to 1800",
    ),
    Mistake("NetworkPolicy/group", "spec.ingress[0].ports[1].endPort", 5599, "from port on"),
    Mistake(
        "NetworkPolicy/group",
        "spec.egress[0].to[0].ipBlock.except[0]",
        "11.0.0.0/8",
        "is not within",
    ),
    Mistake(
        "NetworkPolicy/group", "spec.policyTypes", ["Ingress"], "has no meaning", path="spec.egress"
    ),
    Mistake(
        "Role/shop:reader", "rules[0].verbs[0]", "*", "grants everything", path="rules[0].verbs"
    ),
    Mistake("RoleBinding/web", "roleRef.apiGroup", "rbac", "must be rbac.authorization.k8s.io"),
    Mistake(
        "Namespace/shop",
        'metadata.labels["pod-security.kubernetes.io/enforce"]',
        "strict",
        "must be one of",
    ),
    Mistake(
        "ResourceClaimTemplate/card",
        "spec.spec.devices.requests[0].exactly.selectors[0].cel.expression",
        "device.driver ==",
        "is no CEL",
        path="spec.spec.devices.requests[0].exactly.selectors[0]",
    ),
]

REFERENCES = [
    Mistake(
        GROUP,
        "spec.replicas",
        2,
        "each apply would undo the scaling",
        where="HorizontalPodAutoscaler/group",
        path="spec.scaleTargetRef",
    ),
    Mistake(WEB, f"{POD}.serviceAccountName", "www", "there is no ServiceAccount 'www'"),
    Mistake(
        WEB,
        f"{POD}.volumes[0].configMap.name",
        "setting",
        "there is no ConfigMap 'setting'",
        path=f"{POD}.volumes[0].configMap",
    ),
    Mistake(
        WEB,
        f"{BOX}.env[2].valueFrom.configMapKeyRef.key",
        "color",
        "has no key 'color'",
        path=f"{BOX}.env[2].valueFrom.configMapKeyRef.items[0].key",
    ),
    Mistake("Service/web", "spec.selector.app", "www", "selects no pods", path="spec.selector"),
    Mistake("Service/web", "spec.ports[0].targetPort", "web", "the pods have no port 'web'"),
    Mistake(
        "PodDisruptionBudget/web",
        "spec.selector.matchLabels.app",
        "www",
        "selects no pods",
        path="spec.selector",
    ),
    Mistake(
        "NetworkPolicy/group",
        "spec.ingress[0].ports[0].port",
        "https",
        "none of the pods has a port",
    ),
    Mistake(
        "HorizontalPodAutoscaler/group",
        "spec.scaleTargetRef.name",
        "groups",
        "there is no LeaderWorkerSet 'groups'",
        path="spec.scaleTargetRef",
    ),
    Mistake(
        "ScaledObject/pair",
        "spec.scaleTargetRef.name",
        "pair-decode",
        "no role of a DisaggregatedSet",
        path="spec.scaleTargetRef",
    ),
    Mistake(
        "ScaledObject/pair",
        "spec.scaleTargetRef",
        {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "group"},
        "HorizontalPodAutoscaler group scales it too",
    ),
    Mistake(
        "RoleBinding/web", "roleRef.name", "writer", "there is no Role 'writer'", path="roleRef"
    ),
    Mistake("RoleBinding/web", "subjects[0].namespace", GONE, "is required for a ServiceAccount"),
    Mistake(
        "PodMonitor/group", "spec.podMetricsEndpoints[0].port", "metrics", "have no port 'metrics'"
    ),
    Mistake("HTTPRoute/web", "spec.rules[0].backendRefs[0].port", 8000, "has no port 8000"),
    Mistake(
        "HTTPRoute/web", "spec.parentRefs[0].sectionName", "https", "there is no listener 'https'"
    ),
    Mistake(
        GROUP,
        'metadata.labels["kueue.x-k8s.io/queue-name"]',
        "line",
        "there is no LocalQueue 'line'",
    ),
    Mistake("LocalQueue/queue", "spec.clusterQueue", "line", "there is no ClusterQueue 'line'"),
    Mistake("ResourceFlavor/fast", "spec.topologyName", "rooms", "there is no Topology 'rooms'"),
    Mistake(
        GROUP,
        f"{TEMPLATE}.leaderTemplate.spec.resourceClaims[0].resourceClaimTemplateName",
        "cart",
        "no ResourceClaimTemplate 'cart'",
        path=f"{TEMPLATE}.leaderTemplate.spec.resourceClaims[0]",
    ),
]

ALL = [*SCHEMAS, *RULES_IN_CEL, *WEBHOOKS, *NAMES, *PODS, *KINDS, *SECURITY, *REFERENCES]
