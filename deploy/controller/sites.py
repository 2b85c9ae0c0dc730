"""Where the description of the cluster comes from; the last good one stays while one is bad."""

from __future__ import annotations

from collections.abc import Callable

from baton.errors import OperatorError, SourceUnavailable
from deploy.controller.cluster import CONFIGMAPS, Cluster
from deploy.controller.rendering import Pools, Renderer, SiteRenderer
from deploy.lws import names

CONFIGMAP = "configmap:"


class SiteSource:
    """A site by its reference.

    Args:
        ref: ``configmap:NAME`` (key ``site.yaml``), a built-in name or a file.
        cluster: for the first of these.
        make: text and origin to a renderer; raises OperatorError for a bad one.
    """

    def __init__(
        self,
        ref: str,
        cluster: Cluster,
        make: Callable[[str, str], Renderer] = SiteRenderer,
    ) -> None:
        self._ref = ref
        self._cluster = cluster
        self._make = make
        self._text: str | None = None
        self._pools: Pools | None = None
        self._problem = ""

    async def pools(self, problems: list[str]) -> Pools | None:
        """The pools of the site as it is now; of the last good one with a line in ``problems`` that
        says what is wrong; None where there never was a good one."""
        try:
            text, origin = await self._read()
        except (SourceUnavailable, OperatorError) as error:
            problems.append(f"the site cannot be read: {error.message}")
            return self._pools
        if text != self._text:
            self._text, self._problem = text, ""
            try:
                self._pools = Pools(self._make(text, origin))
            except OperatorError as error:
                self._problem = error.message
        if self._problem:
            problems.append(f"the site is refused: {self._problem}")
        return self._pools

    async def _read(self) -> tuple[str, str]:
        """The text, and where it is from.

        Raises:
            SourceUnavailable: the cluster does not say, or has none.
            SettingsError: the reference names none.
        """
        if not self._ref.startswith(CONFIGMAP):
            from deploy.lws.site import site_text

            return site_text(self._ref)
        name = self._ref.removeprefix(CONFIGMAP)
        found = await self._cluster.get(CONFIGMAPS, name)
        text = ((found or {}).get("data") or {}).get(names.SITE_KEY)
        if text is None:
            raise SourceUnavailable(
                f"there is no ConfigMap {name} with the key {names.SITE_KEY} in namespace "
                f"{self._cluster.namespace}"
            )
        return str(text), f"configmap {self._cluster.namespace}/{name}, key {names.SITE_KEY}"
