"""Profiles in one ConfigMap, by the Kubernetes API.

Against a mounted ConfigMap it is a second instead of a minute from ``kubectl apply`` to the
routers, and there is a place to answer: a status ConfigMap and Events, which ``kubectl describe``
shows.

It lists with a selector of the one name instead of getting it: a watch has to begin at the list's
version. An object's own version may be months old, and a server refuses to watch from there (410).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

from baton.clock import Clock, SystemClock
from baton.errors import SourceUnavailable
from baton.kube import OPEN, Json, KubeApi
from profiles.sources.base import Bundle, Told
from profiles.sources.kube_status import StatusBoard
from profiles.sources.texts import Entry, bundle_of, counts
from profiles.sources.waiting import Backoff, Outage

WATCH_S = 60.0
"""Length of one watch. A connection that died in silence is noticed soon after."""

_STEADY_S = 1.0
"""A watch that lasted so long was a sound one, even if nothing came."""


class KubernetesSource:
    """See :class:`profiles.sources.base.ProfileSource`.

    Args:
        api: the cluster; closed with this.
        namespace, name: of the ConfigMap, which may be made later.
        clock: for the times that are told, and what is not told again so soon.
        rng: draws pauses.
        watch_s: length of one watch.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        clock: Clock | None = None,
        *,
        rng: random.Random | None = None,
        watch_s: float = WATCH_S,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._rng = rng or random.Random()  # noqa: S311 - pauses are no secret
        self._watch_s = watch_s
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._query = (("fieldSelector", f"metadata.name={name}"),)
        self._board = StatusBoard(api, namespace, name, clock or SystemClock())

    def describe(self) -> str:
        """``configmap NAMESPACE/NAME``."""
        return f"configmap {self._namespace}/{self._name}"

    async def read(self) -> Bundle:
        """See ``ProfileSource``; empty where there is no such ConfigMap."""
        bundle, _ = await self._list()
        return bundle

    async def changes(self) -> AsyncGenerator[Bundle]:
        """See ``ProfileSource``."""
        loop = asyncio.get_running_loop()
        outage = Outage(self.describe())
        backoff = Backoff(self._rng)
        version = last = ""
        while True:
            opened_s, sound = math.inf, False
            try:
                if not version:
                    bundle, version = await self._list()
                    if bundle.digest != last:
                        last = bundle.digest
                        yield bundle
                async with aclosing(self._watch(version)) as events:
                    async for kind, found in events:
                        outage.is_over()
                        if kind == OPEN:
                            opened_s = loop.time()
                            continue
                        sound = True
                        version = found["metadata"]["resourceVersion"]
                        if kind == "BOOKMARK":
                            continue
                        bundle = Bundle() if kind == "DELETED" else self._bundle(found)
                        if bundle.digest != last:
                            last = bundle.digest
                            yield bundle
            except _TooOld:
                version = ""
            except SourceUnavailable as error:
                # Listed again before it is watched: nobody knows what is still true by then.
                version = ""
                outage.goes_on(error)
            if sound or loop.time() - opened_s >= _STEADY_S:
                backoff.reset()
                if version:
                    continue
            await asyncio.sleep(backoff.next_s())

    async def tell(self, told: Told) -> None:
        """See ``ProfileSource``: the ConfigMap ``NAME-status``, and an Event on the ConfigMap."""
        await self._board.tell(told)

    async def close(self) -> None:
        """Closes the connections."""
        await self._api.close()

    async def _list(self) -> tuple[Bundle, str]:
        """What is there, and the version to watch from."""
        status, answer = await self._api.call("GET", self._path, query=self._query)
        if status != 200:
            raise self._refused("list", status, answer)
        try:
            version = str(answer["metadata"]["resourceVersion"])
            items = [item for item in answer["items"] if item["metadata"]["name"] == self._name]
            return (self._bundle(items[0]) if items else Bundle()), version
        except (KeyError, TypeError, AttributeError) as error:
            raise SourceUnavailable(
                f"{self.describe()}: the answer is not a list of ConfigMaps"
            ) from error

    async def _watch(self, version: str) -> AsyncGenerator[tuple[str, Json]]:
        """Events from there on, those of a refusal as exceptions."""
        query = [*self._query, ("allowWatchBookmarks", "true"), ("resourceVersion", version)]
        async with aclosing(self._api.watch(self._path, query, watch_s=self._watch_s)) as events:
            async for kind, found in events:
                if kind == "ERROR":
                    if found.get("code") == 410:
                        raise _TooOld
                    raise self._refused("watch", int(found.get("code") or 0), found)
                if kind != OPEN and not found.get("metadata", {}).get("resourceVersion"):
                    raise SourceUnavailable(f"{self.describe()}: an event has no version")
                yield kind, found

    def _bundle(self, found: Json) -> Bundle:
        self._board.uid = str(found["metadata"].get("uid", ""))
        data, binary = found.get("data") or {}, found.get("binaryData") or {}
        entries = [
            Entry(key, self._where(key), str(text).encode("utf-8", "surrogatepass"))
            for key, text in data.items()
        ]
        for key, encoded in binary.items():
            if counts(key):
                entries.append(Entry(key, self._where(key), None, _why_binary(encoded)))
        return bundle_of(entries)

    def _where(self, key: str) -> str:
        return f"{self.describe()}, key {key}"

    def _refused(self, verb: str, status: int, answer: Json) -> SourceUnavailable:
        what = self.describe()
        said = str(answer.get("message") or answer.get("reason") or "no reason given")[:500]
        if status == 403:
            return SourceUnavailable(
                f"{what}: not allowed to {verb} configmaps in namespace {self._namespace}; give "
                f"the router's service account a Role with the verbs list and watch on configmaps, "
                f"resourceNames [{self._name}] ({said})"
            )
        if status == 401:
            return SourceUnavailable(
                f"{what}: the Kubernetes API does not know who asks to {verb} configmaps (401); "
                "the token has run out or is another cluster's"
            )
        return SourceUnavailable(f"{what}: {verb} configmaps failed with {status} ({said})")


class _TooOld(Exception):
    """The version that a watch should begin at is forgotten; list again."""


def _why_binary(encoded: object) -> str:
    """``kubectl create configmap`` puts into binaryData what is not UTF-8."""
    why = "stands under binaryData, and profiles are text under data"
    try:
        base64.b64decode(str(encoded), validate=True).decode("utf-8")
    except UnicodeDecodeError:
        why += "; the file is not UTF-8"
    except (binascii.Error, ValueError):
        pass
    return why
