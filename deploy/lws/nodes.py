"""What a site makes of the base: images, nodes, devices, sizes, and who else may reach the pods.

One component per site, which its overlay takes before the options: what they add, and what they
take away again (a device plug-in's resource, for a claim), is added to this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from jsonpointer import resolve_pointer

from baton.types import Role
from deploy.lws import labels, names, network, pools, router
from deploy.lws.patches import add, escaped, pool_target, replace
from deploy.lws.site import Site
from deploy.lws.site_sections import AcceleratorSpec, StoreUrlSpec
from deploy.lws.tree import Json, Part, Patch, Target
from deploy.lws.worker_pod import PROBE_PERIOD_S, STARTUP_LIMIT_S
from profiles import PoolSpec, ServingProfile

_POD = "/spec/leaderWorkerTemplate/workerTemplate/spec"
_CONTAINER = f"{_POD}/containers/0"
_REGISTRY_ENV = 1
_SHM_VOLUME = 3
_ROUTER_POD = "/spec/template/spec"
_ROUTER = f"{_ROUTER_POD}/containers/0"


def component_name(site: Site) -> str:
    """The folder of a site's component."""
    return f"nodes-{site.name}"


def nodes(profile: ServingProfile, site: Site) -> Part:
    """The component of a site.

    Raises:
        SettingsError: the site does not say how an accelerator of the profile is had.
    """
    patches = [
        *(
            _without_repetition(_pool_patch(site, role, spec), pools.pool(profile, role))
            for role, spec in profile.spec.pools.by_role.items()
        ),
        _without_repetition(_router_patch(profile, site), router.deployment(profile)),
        *_access_patches(site),
    ]
    return Part(
        name=component_name(site),
        about=f"What site {site.name} makes of the base: images, nodes, devices, sizes.",
        patches=patches,
    )


def _without_repetition(patch: Patch, found: Json) -> Patch:
    """The patch without what the base says already."""

    def repeats(op: Json) -> bool:
        says: object = resolve_pointer(found, op["path"], None)
        return op["op"] == "replace" and bool(says == op["value"])

    return dataclasses.replace(patch, ops=[op for op in patch.ops if not repeats(op)])


def cores(amount: float) -> str:
    """Cores as Kubernetes writes them: ``2``, or ``500m``."""
    return f"{amount:g}" if float(amount).is_integer() else f"{round(amount * 1000)}m"


def gib(amount: float) -> str:
    """GiB as Kubernetes writes them: ``2Gi``, or ``512Mi``."""
    return f"{amount:g}Gi" if float(amount).is_integer() else f"{round(amount * 1024)}Mi"


def _pool_patch(site: Site, role: Role, pool: PoolSpec) -> Patch:
    accelerator = site.accelerator(pool.accelerator)
    devices = pool.devices // pool.nodes
    return Patch(
        about=_about(pool, accelerator, devices) + _about_topology(site, pool),
        target=pool_target(role),
        ops=[
            *_topology(site, role, pool),
            *_placement(accelerator),
            *_container(site, accelerator, devices),
            *_common(site, _POD, _CONTAINER, _REGISTRY_ENV, "BATON_REGISTRY"),
        ],
    )


def _about(pool: PoolSpec, accelerator: AcceleratorSpec, devices: int) -> str:
    machines = "one machine" if pool.nodes == 1 else f"{pool.nodes} machines"
    if accelerator.resource is None:
        shares = "" if pool.devices == 1 else f", as {pool.devices} ranks"
        return f"A worker is {machines} without an accelerator{shares}."
    each = "" if pool.nodes == 1 else " each"
    return f"A worker is {machines} with {devices} x {pool.accelerator}{each}."


def _about_topology(site: Site, pool: PoolSpec) -> str:
    key = site.spec.topology_key
    if pool.nodes == 1 or key is None:
        return ""
    if not site.spec.topology_exclusive:
        return f" They share one {key} where there is room."
    return (
        f" Each worker has one {key} to itself, where no other worker of the namespace is: "
        f"{pool.replicas} of them for this pool, and others for all other pools. A rollout takes "
        "one away before it makes another, which would find none."
    )


def _topology(site: Site, role: Role, pool: PoolSpec) -> Iterator[Json]:
    key = site.spec.topology_key
    if pool.nodes == 1 or key is None:
        return
    if site.spec.topology_exclusive:
        rollout = "/spec/rolloutStrategy/rollingUpdateConfiguration"
        yield add(f"/metadata/annotations/{escaped(labels.LWS_EXCLUSIVE_TOPOLOGY)}", key)
        yield replace(f"{rollout}/maxSurge", 0)
        yield replace(f"{rollout}/maxUnavailable", 1)
        return
    # LeaderWorkerSet 0.10 has no placement but the exclusive one. A wish and no demand, because
    # nobody sees to it that where a group's first pod goes there is room for all; Kueue does.
    same_group: Json = {
        "labelSelector": {"matchLabels": labels.selector(role)},
        "matchLabelKeys": [labels.LWS_GROUP_KEY],
        "topologyKey": key,
    }
    wishes = [{"weight": 100, "podAffinityTerm": same_group}]
    name = "preferredDuringSchedulingIgnoredDuringExecution"
    yield add(f"{_POD}/affinity", {"podAffinity": {name: wishes}})


def _placement(accelerator: AcceleratorSpec) -> Iterator[Json]:
    for key, value in accelerator.node_selector.items():
        yield add(f"{_POD}/nodeSelector/{escaped(key)}", value)
    if accelerator.tolerations:
        yield add(
            f"{_POD}/tolerations",
            [
                {
                    "key": taint.key,
                    **(
                        {"operator": "Exists"}
                        if taint.value is None
                        else {"operator": "Equal", "value": taint.value}
                    ),
                    "effect": taint.effect,
                }
                for taint in accelerator.tolerations
            ],
        )


def _container(site: Site, accelerator: AcceleratorSpec, devices: int) -> Iterator[Json]:
    images = site.spec.images
    resources = f"{_CONTAINER}/resources"
    memory = gib(accelerator.memory_gib * devices)
    image = images.worker_cpu if accelerator.resource is None else images.worker_gpu
    yield replace(f"{_CONTAINER}/image", image)
    yield replace(f"{resources}/requests/cpu", cores(accelerator.cpu * devices))
    yield replace(f"{resources}/requests/memory", memory)
    yield replace(f"{resources}/limits/memory", memory)
    if accelerator.resource is None:
        threads = max(1, int(accelerator.cpu))
        yield add(f"{_CONTAINER}/env/-", {"name": "BATON_CPU_THREADS", "value": str(threads)})
    else:
        for kind in ("requests", "limits"):
            yield add(f"{resources}/{kind}/{escaped(accelerator.resource)}", str(devices))
    size = gib(accelerator.shm_gib * devices)
    yield replace(f"{_POD}/volumes/{_SHM_VOLUME}/emptyDir/sizeLimit", size)
    if site.spec.startup_limit_s != STARTUP_LIMIT_S:
        looks = -(-site.spec.startup_limit_s // PROBE_PERIOD_S)
        yield replace(f"{_CONTAINER}/startupProbe/failureThreshold", looks)


def _common(site: Site, pod: str, container: str, store_env: int, name: str) -> Iterator[Json]:
    """What pods of workers and routers have in common: where images and the store are."""
    if site.spec.images.pull_secret:
        yield add(f"{pod}/imagePullSecrets", [{"name": site.spec.images.pull_secret}])
    store = site.spec.store
    if isinstance(store, StoreUrlSpec):
        variable = f"{container}/env/{store_env}"
        yield {"op": "test", "path": f"{variable}/name", "value": name}
        if store.url is not None:
            yield replace(f"{variable}/value", store.url)
        else:
            yield {"op": "remove", "path": f"{variable}/value"}
            yield add(f"{variable}/valueFrom", _secret_url(store))


def _secret_url(store: StoreUrlSpec) -> Json:
    return {"secretKeyRef": {"name": store.url_secret, "key": "url"}}


def _router_patch(profile: ServingProfile, site: Site) -> Patch:
    spec = site.spec.routers
    resources = f"{_ROUTER}/resources"
    memory = gib(spec.memory_gib)
    extra: Mapping[str, str | None] = {
        "BATON_ROUTER_WORKERS": str(spec.processes) if spec.processes > 1 else None,
        "OTEL_EXPORTER_OTLP_ENDPOINT": spec.otlp_endpoint,
    }
    env: list[Json] = [{"name": k, "value": v} for k, v in extra.items() if v is not None]
    store = site.spec.store
    if spec.tenants and isinstance(store, StoreUrlSpec):
        tenants: Json = {"name": "BATON_TENANTS"}
        if store.url is not None:
            tenants["value"] = store.url
        else:
            tenants["valueFrom"] = _secret_url(store)
        env.append(tenants)
    return Patch(
        about="The routers.",
        target=Target("Deployment", name=names.ROUTER),
        ops=[
            replace("/spec/replicas", spec.replicas),
            replace(f"{_ROUTER}/image", site.spec.images.router),
            replace(f"{resources}/requests/cpu", cores(spec.cpu * spec.processes)),
            replace(f"{resources}/requests/memory", memory),
            replace(f"{resources}/limits/memory", memory),
            replace(
                f"{_ROUTER_POD}/terminationGracePeriodSeconds",
                router.grace_s(profile, spec.endpoints_s),
            ),
            replace(f"{_ROUTER}/lifecycle/preStop/sleep/seconds", spec.endpoints_s),
            *(add(f"{_ROUTER}/env/-", variable) for variable in env),
            *_common(site, _ROUTER_POD, _ROUTER, router.STORE_ENV, "BATON_STORE"),
        ],
    )


def _access_patches(site: Site) -> Iterator[Patch]:
    access = site.spec.access
    if access.metrics_from:
        who = f"Prometheus, in {' or '.join(access.metrics_from)}, reads"
        peers = network.namespaces(access.metrics_from)
        yield Patch(
            about=f"{who} the workers' metrics.",
            target=Target("NetworkPolicy", name=network.WORKERS),
            ops=[add("/spec/ingress/-", {"from": peers, "ports": [network.port("http")]})],
        )
        if site.spec.controller is not None:
            yield Patch(
                about=f"{who} the controller's metrics.",
                target=Target("NetworkPolicy", name=names.CONTROLLER),
                ops=[add("/spec/ingress", [{"from": peers, "ports": [network.port("health")]}])],
            )
    if access.admin_from:
        yield Patch(
            about=f"Operators' pods, in {' or '.join(access.admin_from)}, reach the admin API.",
            target=Target("NetworkPolicy", name=names.ROUTER),
            ops=[
                add(
                    "/spec/ingress/-",
                    {
                        "from": network.namespaces(access.admin_from),
                        "ports": [network.port("admin")],
                    },
                )
            ],
        )
