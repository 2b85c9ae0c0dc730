"""A profile as a small site can serve it: fewer ranks on a machine, the demo model's own length.

For trying the parts of a large installation on a cluster that has neither its accelerators nor its
model. What routers do stays as the profile says; what the result measures says nothing about it.
"""

from __future__ import annotations

from typing import Any

from deploy.lws.site import Site
from deploy.lws.site_sections import DemoWeights
from profiles import DEMO, ServingProfile


def fitted(profile: ServingProfile, site: Site) -> ServingProfile:
    """The profile itself, where the site can serve it as it is.

    Raises:
        SettingsError: the site does not say how an accelerator of the profile is had.
    """
    pools: dict[str, dict[str, int]] = {}
    for role, pool in profile.spec.pools.by_role.items():
        most = site.accelerator(pool.accelerator).most_per_node
        if most is not None and pool.devices // pool.nodes > most:
            ranks = {"tensor_parallel": pool.nodes * most, "pipeline_parallel": 1}
            pools[role.value] = ranks
    replaced = isinstance(site.spec.weights, DemoWeights) and profile.spec.model.source != DEMO
    length = replaced and profile.spec.model.max_model_len is not None
    if not pools and not length:
        return profile
    data: dict[str, Any] = profile.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for name, ranks in pools.items():
        data["spec"]["pools"][name].update(ranks)
    if length:
        # The demo model has its own, which is shorter than that of most.
        del data["spec"]["model"]["max_model_len"]
    return ServingProfile.model_validate(data)
