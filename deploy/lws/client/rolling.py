"""What can be done with objects that are rolled out, and with those that have a ``/scale``."""

from __future__ import annotations

from collections.abc import Sequence

from baton.kube import Json, rfc3339
from deploy.lws.client.collection import Collection
from deploy.lws.client.errors import Conflict
from deploy.lws.client.objects import Scale, T, read_scale
from deploy.lws.client.rollout import Rollout
from deploy.lws.client.waits import exists

_RESTARTS = 3
"""Tries to restart an object that others write to."""


class Rolling(Collection[T]):
    """Objects that are rolled out."""

    async def rollout_status(self, name: str) -> Rollout:
        """Where its rollout is.

        Raises:
            NotFound: there is no such object.
        """
        return await self._rollout(await self.get(name))

    async def wait_rollout(self, name: str, *, timeout_s: float) -> T:
        """Waits until its rollout is done; the object need not be there yet.

        Raises:
            NotInTime: with what is missing still.
        """

        async def check(found: T | None) -> Sequence[str]:
            return exists(found) if found is None else (await self._rollout(found)).missing

        done = await self._waited(name, check, timeout_s)
        assert done is not None
        return done

    async def restart(self, name: str) -> T:
        """Rolls all groups out anew, by an annotation of their templates.

        Raises:
            NotFound: there is no such object.
            Conflict: others write to it all the time.
        """
        when = rfc3339(self._place.clock.wall_s())
        for last in (*(False,) * (_RESTARTS - 1), True):
            found = await self.get(name)
            try:
                return self._read(await self._patch(name, self._restarted(found, when)))
            except Conflict:
                if last:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _rollout(self, found: T) -> Rollout:
        raise NotImplementedError

    def _restarted(self, found: T, when: str) -> Json:
        """The merge patch that rolls all out anew."""
        raise NotImplementedError


class Scalable(Collection[T]):
    """Objects with a ``/scale``."""

    async def get_scale(self, name: str) -> Scale:
        """The groups wanted and seen.

        Raises:
            NotFound: there is no such object.
        """
        return read_scale(await self._call("get", "GET", name, subresource="scale"))

    async def scale(self, name: str, replicas: int, *, current: int | None = None) -> Scale:
        """Asks for so many groups. An autoscaler on the same object may ask for others again.

        Args:
            name: of the object.
            replicas: groups wanted.
            current: only if it is so many that are wanted now, and nobody writes meanwhile.

        Raises:
            NotFound: there is no such object.
            Conflict: ``current`` is not, or no longer, what is wanted.
            Invalid: the server takes no such number.
        """
        body: Json = {"spec": {"replicas": replicas}}
        if current is not None:
            before = await self.get_scale(name)
            if before.replicas != current:
                raise Conflict(
                    f"cannot scale {self.resource.plural} {self.namespace}/{name}: "
                    f"{before.replicas} groups are wanted by now, not {current}",
                    asked=self._asked("patch", name, "scale"),
                    http_status=409,
                    reason="Conflict",
                )
            body["metadata"] = {"resourceVersion": before.resource_version}
        return read_scale(await self._patch(name, body, subresource="scale"))
