"""Names of everything that is rendered, the ports of pods, and how long a name may be.

LeaderWorkerSet makes further names from its own (pods, services, revisions), and Kueue makes
longer ones, so that theirs may not fill the 63 characters of a DNS label.
"""

from __future__ import annotations

import re
from typing import Final

from baton.errors import SettingsError
from baton.settings import (
    ADMIN_PORT,
    KV_EVENTS_PORT,
    ROUTER_PORT,
    SIDE_CHANNEL_PORT,
    WORKER_PORT,
)

PREFIX: Final = "baton"

ROUTER: Final = "baton-router"
ROUTER_ADMIN: Final = "baton-router-admin"
CONTROLLER: Final = "baton-controller"
STORE: Final = "baton-store"
WORKER: Final = "baton-worker"
"""Service account of the workers; names of pools hold the role instead."""
DISAGGREGATED_SET: Final = "baton"

PROFILES: Final = "baton-profiles"
"""ConfigMap that operators edit: ``active`` and ``<profile>.yaml``."""
START: Final = "baton-router"
START_KEY: Final = "profile.yaml"
"""ConfigMap with the profile that routers begin with while neither store nor source says more."""
ACTIVE: Final = "baton-active"
"""ConfigMap that the controller writes: what serves, for routers that start from nothing."""
SITE: Final = "baton-site"
SITE_KEY: Final = "site.yaml"
TOKENS: Final = "baton-tokens"
"""Secret that is made by hand; the tree holds none."""
CLUSTER_TOKEN_KEY: Final = "cluster-token"  # noqa: S105 - the name of a key, not a token
ADMIN_TOKEN_KEY: Final = "admin-token"  # noqa: S105
LEASE: Final = "baton-controller"

CONTAINER: Final = "worker"
"""The container of a worker's pod that serves; it is the first one."""

HTTP_PORT: Final = WORKER_PORT
HEALTH_PORT: Final = 8180
GROUP_PORT: Final = 29500
STORE_PORT: Final = 6379
"""Other ports of pods are Baton's usual ones, ``baton.settings``."""

LWS_MAX: Final = 51
"""Characters of a LeaderWorkerSet's name: its pods and revisions add up to 12."""
KUEUE_MAX: Final = 39
"""The same where Kueue makes a Workload's name from it."""

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def pool_name(role: str) -> str:
    """The pool of a role that the tree holds."""
    return f"{PREFIX}-{role}"


def keyed_pool_name(role: str, key: str) -> str:
    """A pool that the controller makes beside the tree's."""
    return f"{PREFIX}-{role}-{key}"


def check_lws_name(name: str, *, kueue: bool = False) -> str:
    """The name, if a LeaderWorkerSet (or a DisaggregatedSet's child) may be called so.

    Raises:
        SettingsError: not a DNS-1035 label, or too long for what is made from it.
    """
    limit = KUEUE_MAX if kueue else LWS_MAX
    if not _DNS_1035.fullmatch(name):
        raise SettingsError(
            f"{name!r} cannot be the name of a LeaderWorkerSet: lower-case letters, digits and "
            "dashes, starting with a letter and not ending with a dash"
        )
    if len(name) > limit:
        why = "Kueue makes a longer name from it" if kueue else "names of pods are made from it"
        raise SettingsError(
            f"{name!r} has {len(name)} characters; the name of a LeaderWorkerSet may have "
            f"{limit}, because {why}"
        )
    return name


__all__ = [
    "ACTIVE",
    "ADMIN_PORT",
    "ADMIN_TOKEN_KEY",
    "CLUSTER_TOKEN_KEY",
    "CONTAINER",
    "CONTROLLER",
    "DISAGGREGATED_SET",
    "GROUP_PORT",
    "HEALTH_PORT",
    "HTTP_PORT",
    "KUEUE_MAX",
    "KV_EVENTS_PORT",
    "LEASE",
    "LWS_MAX",
    "PREFIX",
    "PROFILES",
    "ROUTER",
    "ROUTER_ADMIN",
    "ROUTER_PORT",
    "SIDE_CHANNEL_PORT",
    "SITE",
    "SITE_KEY",
    "START",
    "START_KEY",
    "STORE",
    "STORE_PORT",
    "TOKENS",
    "WORKER",
    "check_lws_name",
    "keyed_pool_name",
    "pool_name",
]
