"""Ways in for clients from outside: a Gateway with an HTTPRoute to the routers, directly or
through an InferencePool.

Only the API is routed, under ``/v1``: metrics, health and the registry stay inside. Timeouts are
the profile's, since a gateway's own, often 15 or 30 seconds, cut streams.

An InferencePool holds routers and never workers. Workers take the cluster token only, and a
picker knows nothing of pairs, leases and profiles; a pool of workers would get refusals, or plain
serving where the profile says disaggregated. What a pool of routers is good for is a gateway that
finds model servers by InferencePools, and shares clients out among them by the model's name.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from deploy.lws import labels, names
from deploy.lws.site_options import HttpRouteSpec, InferencePoolSpec
from deploy.lws.tree import Json, Part

if TYPE_CHECKING:
    from deploy.lws.site import Site
    from profiles import ServingProfile

_NAME: Final = "baton"
_SERVICE_PORT: Final = 80
_MARGIN_S: Final = 15
"""By which the gateway is more patient than the router, so that the router's error is seen."""


def gateway(profile: ServingProfile, site: Site) -> Part | None:
    """A Gateway and an HTTPRoute to the routers' Service; None unless the site asks for it."""
    wanted = site.spec.gateway
    if not isinstance(wanted, HttpRouteSpec):
        return None
    service: Json = {"name": names.ROUTER, "port": _SERVICE_PORT}
    return Part(
        name="gateway",
        about="A Gateway, and an HTTPRoute from it to the routers.\n"
        "Needs: Gateway API 1.1 or later, and an implementation behind the GatewayClass "
        f"{wanted.gateway_class}. One that does not honour the timeouts of routes has its own way "
        "to raise them (GKE: a GCPBackendPolicy); without, long streams are cut.",
        files={"gateway.yaml": [_gateway(wanted), _route(profile, wanted, service)]},
    )


def inferencepool(profile: ServingProfile, site: Site) -> Part | None:
    """The same through an InferencePool of the routers; None unless the site asks for it."""
    wanted = site.spec.gateway
    if not isinstance(wanted, InferencePoolSpec):
        return None
    backend: Json = {"group": "inference.networking.k8s.io", "kind": "InferencePool"}
    if wanted.picker:
        needs = (
            f"an endpoint picker of yours behind the Service {wanted.picker}, in this namespace; "
            "Baton has none. It sees routers, which are alike: let it balance. While it is away "
            "the gateway balances by itself (FailOpen)."
        )
    else:
        needs = (
            "version 1.6 or later, where a pool needs no endpoint picker and a gateway may "
            "balance by itself. One that wants a picker all the same says so in the pool's status "
            "(EndpointPickerRefMissing): name one of yours in spec.gateway.picker of the site; "
            "Baton has none."
        )
    return Part(
        name="inferencepool",
        about="A Gateway, and an HTTPRoute from it to an InferencePool of the routers; never of "
        "workers, who take the cluster's token only.\n"
        f"Needs: Gateway API 1.1 or later, a GatewayClass ({wanted.gateway_class}) that routes to "
        f"InferencePools, and the Gateway API Inference Extension: {needs}",
        files={
            "gateway.yaml": [
                _gateway(wanted),
                _route(profile, wanted, {**backend, "name": _NAME}),
            ],
            "inferencepool.yaml": [_pool(wanted)],
        },
    )


def request_timeout_s(profile: ServingProfile) -> int:
    """How long a gateway waits for a whole answer: what a request may wait in the router, and
    may take with all its tries, and a margin."""
    spec = profile.spec
    waits = max(spec.flow.queue_ttl_s, spec.flow.worker_wait_s)
    return math.ceil(spec.deadlines.total_s + waits) + _MARGIN_S


def _gateway(wanted: HttpRouteSpec | InferencePoolSpec) -> Json:
    listener: Json = {"name": "http", "port": 80, "protocol": "HTTP"}
    if wanted.tls_secret:
        listener = {
            "name": "https",
            "port": 443,
            "protocol": "HTTPS",
            "tls": {"mode": "Terminate", "certificateRefs": [{"name": wanted.tls_secret}]},
        }
    if wanted.hostname:
        listener["hostname"] = wanted.hostname
    listener["allowedRoutes"] = {"namespaces": {"from": "Same"}}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": _NAME, "labels": labels.shared()},
        "spec": {"gatewayClassName": wanted.gateway_class, "listeners": [listener]},
    }


def _route(
    profile: ServingProfile, wanted: HttpRouteSpec | InferencePoolSpec, backend: Json
) -> Json:
    timeout = f"{_duration(request_timeout_s(profile))}"
    spec: Json = {
        "parentRefs": [{"name": _NAME}],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                "backendRefs": [backend],
                "timeouts": {"request": timeout, "backendRequest": timeout},
            }
        ],
    }
    if wanted.hostname:
        spec["hostnames"] = [wanted.hostname]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": _NAME, "labels": labels.labels(labels.ROUTER)},
        "spec": spec,
    }


def _duration(seconds: int) -> str:
    """As Gateway API writes it, of at most five digits a unit."""
    minutes, rest = divmod(seconds, 60)
    if minutes == 0:
        return f"{rest}s"
    return f"{minutes}m{rest}s" if rest else f"{minutes}m"


def _pool(wanted: InferencePoolSpec) -> Json:
    spec: Json = {
        "selector": {"matchLabels": labels.selector(labels.ROUTER)},
        "targetPorts": [{"number": names.ROUTER_PORT}],
    }
    if wanted.picker:
        spec["endpointPickerRef"] = {
            "kind": "Service",
            "name": wanted.picker,
            "port": {"number": wanted.picker_port},
            "failureMode": "FailOpen",
        }
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": _NAME, "labels": labels.labels(labels.ROUTER)},
        "spec": spec,
    }
