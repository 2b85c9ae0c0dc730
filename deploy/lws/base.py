"""The base: what is the same on every cluster.

It runs on none by itself: images, nodes and devices are the overlays' business, as are the pools'
keys, which depend on them.
"""

from __future__ import annotations

from deploy.lws import labels, names, network, pools, router
from deploy.lws.tree import Json, Part
from profiles import ServingProfile

RESTRICTED = "pod-security.kubernetes.io"

_POOLS = {
    "prefill": "Workers that compute long prompts and hand their KV cache over.",
    "decode": "Workers that generate, and compute short prompts themselves.",
    "standard": "Workers that serve whole requests.",
}


def base(profile: ServingProfile, text: str) -> Part:
    """The base of a profile, with a LeaderWorkerSet for each pool.

    Args:
        profile: what is rendered.
        text: the profile as a person wrote it, comments and all.
    """
    files: dict[str, list[Json]] = {
        "namespace.yaml": [_namespace()],
        "profiles.yaml": [profiles_map(profile, text)],
        "router.yaml": [
            router.deployment(profile),
            *router.services(),
            router.disruption_budget(),
            router.start_map(text),
        ],
        "router-access.yaml": router.access(),
        "workers-access.yaml": [router.service_account(names.WORKER, "", token=False)],
        "network.yaml": _policies(profile),
    }
    abouts = {
        "namespace.yaml": "Pods that do not keep to the level `restricted` are refused.",
        "profiles.yaml": "What operators edit: routers follow `active` and the profiles beside it "
        "within a second (docs/profile-sources.md).",
        "router.yaml": "The OpenAI endpoint. Needs the Secret baton-tokens with the keys "
        "cluster-token and admin-token, each of 16 characters or more, made by hand:\n"
        "  kubectl -n NAMESPACE create secret generic baton-tokens \\\n"
        '    --from-literal=cluster-token="$(openssl rand -hex 32)" \\\n'
        '    --from-literal=admin-token="$(openssl rand -hex 32)"',
        "router-access.yaml": "Routers read one ConfigMap, and tell in another one and in Events "
        "what became of it.",
        "workers-access.yaml": "Workers have no business with the Kubernetes API.",
        "network.yaml": "Nobody reaches a pod but for what is allowed here; probes, which come "
        "from the pod's own node, are not held off.",
    }
    for role in profile.spec.pools.by_role:
        name = f"{role}.yaml"
        files[name] = [pools.pool(profile, role), pools.disruption_budget(role)]
        abouts[name] = _POOLS[role.value]
    return Part(
        name="base",
        about=f"What is the same on every cluster. {profile.spec.mode.value.capitalize()} serving "
        f"of {profile.served_name}. Apply an overlay, not this: images, nodes and devices are its "
        "business.",
        files=files,
        abouts=abouts,
    )


def profiles_map(profile: ServingProfile, text: str) -> Json:
    """The ConfigMap that operators edit."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.PROFILES, "labels": labels.labels(labels.ROUTER)},
        "data": {"active": profile.name, f"{profile.name}.yaml": text},
    }


def _policies(profile: ServingProfile) -> list[Json]:
    found = network.policies()
    if profile.spec.routing.prefix == "exact":
        found[-1]["spec"]["ingress"].append(network.kv_events())
    return found


def _namespace() -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": names.PREFIX,
            "labels": {
                **labels.shared(),
                f"{RESTRICTED}/enforce": "restricted",
                f"{RESTRICTED}/warn": "restricted",
            },
        },
    }
