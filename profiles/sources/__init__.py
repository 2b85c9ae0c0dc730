"""Where profiles come from while a router runs: a folder, a ConfigMap, a Redis.

Sources propose named texts and the name that should be active. The catalog makes profiles of them
and keeps the last good one of each; the switch (``profiles.switching``) decides what is served.
"""

from __future__ import annotations

import re
from pathlib import Path

from baton.clock import Clock
from baton.errors import SettingsError
from baton.store import is_redis_url
from profiles.document import show
from profiles.sources.base import MAX_TEXTS, Bundle, ProfileSource, Told
from profiles.sources.catalog import Catalog, CatalogChange
from profiles.sources.folder import FolderSource
from profiles.sources.redis import RedisProfiles

__all__ = [
    "FORMS",
    "MAX_TEXTS",
    "Bundle",
    "Catalog",
    "CatalogChange",
    "FolderSource",
    "ProfileSource",
    "RedisProfiles",
    "Told",
    "open_source",
]

FORMS = (
    "a folder such as ./profiles or /etc/baton/profiles, configmap:NAME or "
    "configmap:NAMESPACE/NAME, or redis://HOST:PORT/DB and its kin"
)
"""Of a reference to a source, for messages and help texts."""

_CONFIGMAP = "configmap:"
# RFC 1123: a label for the namespace, labels with dots for the name.
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,244}[a-z0-9])?")


def open_source(ref: str, clock: Clock) -> ProfileSource:
    """The source that ``ref`` names, in one of ``FORMS``. Nothing is connected yet, and a folder
    need not be there.

    Raises:
        SettingsError: it has none of the forms, or its kind cannot be had here: no Kubernetes
            cluster is known, or the package ``kubernetes`` is missing.
    """
    # A URL may hold a password: no message below repeats one.
    if is_redis_url(ref):
        return RedisProfiles(ref, clock)
    if ref.startswith(_CONFIGMAP):
        return _configmap(ref, clock)
    if "://" in ref:
        raise SettingsError(f"no source of profiles has a URL of that scheme; it is {FORMS}")
    if not ref or "\0" in ref:
        raise SettingsError(f"a source of profiles is {FORMS}")
    try:
        path = Path(ref).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{show(ref)}: no such home folder") from error
    if path.is_file():
        raise SettingsError(f"{show(ref)} is a file; a source of profiles is {FORMS}")
    if "/" not in ref and not ref.startswith(".") and not path.is_dir():
        raise SettingsError(f"{show(ref)} is no folder here; a source of profiles is {FORMS}")
    return FolderSource(path, clock)


def _configmap(ref: str, clock: Clock) -> ProfileSource:
    namespace, slash, name = ref.removeprefix(_CONFIGMAP).rpartition("/")
    if not _NAME.fullmatch(name) or (slash and not _NAMESPACE.fullmatch(namespace)):
        raise SettingsError(f"{show(ref)} names no ConfigMap; a source of profiles is {FORMS}")
    # Late: the package behind it is an extra, and takes half a second to import.
    from baton.kube import KubeApi, find_access
    from profiles.sources.kubernetes import KubernetesSource

    access = find_access()
    return KubernetesSource(KubeApi(access), namespace or access.namespace, name, clock)
