"""What a profile's pools are on this cluster: their keys, their sizes, their objects.

A thin seam before ``deploy.lws``, so that decisions are tested without rendering pods, and so that
keys, which take a rendering each, are made once per profile and site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from baton.kube import Json
from baton.types import Role
from deploy.controller.picture import Known, Want
from deploy.lws import labels, names
from profiles import ServingProfile
from profiles.switching import ref

_MOST_KNOWN = 1000


class Renderer(Protocol):
    """What the controller asks of a site."""

    def key(self, profile: ServingProfile, role: Role) -> str:
        """The pool's key.

        Raises:
            OperatorError: the site cannot have such a pool.
        """
        ...

    def objects(self, profile: ServingProfile, role: Role, name: str) -> list[Json]:
        """The pool's objects, in any order.

        Raises:
            OperatorError: as of ``key``.
        """
        ...


class SiteRenderer:
    """Renders for one site.

    Args:
        text: of the site.
        origin: where it is from, for messages.

    Raises:
        SettingsError: it is not good.
    """

    def __init__(self, text: str, origin: str) -> None:
        # Late: rendering is the largest part of the package, and is wanted by the pass only.
        from deploy.lws.render import pool_key, pool_objects
        from deploy.lws.site import site_from_text

        self._site = site_from_text(text, origin)
        self._key, self._objects = pool_key, pool_objects

    def key(self, profile: ServingProfile, role: Role) -> str:
        """See ``Renderer``."""
        return self._key(profile, role, self._site)

    def objects(self, profile: ServingProfile, role: Role, name: str) -> list[Json]:
        """See ``Renderer``."""
        return self._objects(profile, role, self._site, name=name)


class Pools:
    """The pools of profiles under one renderer; remembers the keys."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._known: dict[str, tuple[Want, ...]] = {}

    def known(self, profile: ServingProfile) -> Known:
        """The profile with its pools.

        Raises:
            OperatorError: the site cannot have one of them.
        """
        wants = self._known.get(profile.version)
        if wants is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            wants = tuple(
                Want(role, self._renderer.key(profile, role), pool.replicas)
                for role, pool in profile.spec.pools.by_role.items()
            )
            self._known[profile.version] = wants
        return Known(ref(profile), wants)

    def objects(self, profile: ServingProfile, role: Role, namespace: str) -> list[Json]:
        """The objects of a pool that the controller makes, the LeaderWorkerSet last: where it is,
        all of them are. All bear whose they are and of which pool.

        Raises:
            OperatorError: as of ``known``.
        """
        key = self._renderer.key(profile, role)
        name = names.check_lws_name(names.keyed_pool_name(role, key))
        made = self._renderer.objects(profile, role, name)
        for obj in made:
            metadata = obj["metadata"]
            metadata["namespace"] = namespace
            own: Mapping[str, str] = {
                labels.MANAGED_BY: labels.CONTROLLER_MANAGER,
                labels.POOL: key,
            }
            metadata["labels"] = {**(metadata.get("labels") or {}), **own}
        return sorted(made, key=lambda obj: obj["kind"] == "LeaderWorkerSet")
