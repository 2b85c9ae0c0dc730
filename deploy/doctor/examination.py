"""A whole examination of a cluster.

What is deployed there fills in what was not said, and a cluster that does not answer is one finding
and not one for each check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from baton.errors import KubernetesUnavailable, ProfileError, SettingsError
from deploy.doctor.cluster import Cluster
from deploy.doctor.findings import Check, Finding, Level, NotSeen, examine
from deploy.lws import names
from deploy.lws.site import site_from_text
from profiles import parse_profile


async def examine_cluster(
    checks: Sequence[Check[Cluster]],
    cluster: Cluster,
    *,
    on_start: Callable[[Check[Cluster]], None] = lambda _: None,
    on_end: Callable[[Check[Cluster]], None] = lambda _: None,
) -> list[Finding]:
    """Runs the checks on what was said or is deployed; a single finding where nobody answers."""
    try:
        status, _ = await cluster.api.call("GET", "/version")
    except KubernetesUnavailable as error:
        return [
            Finding(
                "api",
                Level.PROBLEM,
                error.message,
                "kubectl cluster-info says whether it is the cluster or the way to it; KUBECONFIG "
                "names another",
            )
        ]
    if status == 401:
        return [
            Finding(
                "api",
                Level.PROBLEM,
                "the Kubernetes API does not know who asks (401)",
                "renew the credentials in the kubeconfig: kubectl auth whoami",
            )
        ]
    cluster = await with_deployed(cluster)
    return await examine(checks, cluster, on_start=on_start, on_end=on_end)


async def with_deployed(cluster: Cluster) -> Cluster:
    """With the active profile and the site of the namespace's ConfigMaps, where none was given.
    What cannot be read is left out; the check ``configs`` tells."""
    profile, site = cluster.profile, cluster.site
    if profile is None:
        data = await _data(cluster, names.PROFILES)
        text = data.get(f"{data.get('active', '').strip()}.yaml")
        if text:
            try:
                profile = parse_profile(text, source=names.PROFILES)
            except ProfileError:
                profile = None
    if site is None:
        text = (await _data(cluster, names.SITE)).get(names.SITE_KEY)
        if text:
            try:
                site = site_from_text(text, names.SITE)
            except SettingsError:
                site = None
    return dataclasses.replace(cluster, profile=profile, site=site)


async def _data(cluster: Cluster, name: str) -> dict[str, str]:
    try:
        found = await cluster.get(cluster.here(f"api/v1/configmaps/{name}"))
    except NotSeen:
        return {}
    return (found or {}).get("data") or {}
