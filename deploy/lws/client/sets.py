"""The three kinds of LWS, each with what only it can do."""

from __future__ import annotations

import random

from baton.clock import Clock, SystemClock
from deploy.lws.client.calling import Caller, Retries
from deploy.lws.client.collection import Place
from deploy.lws.client.errors import BadObject, NotFound
from deploy.lws.client.names import QUEUE_LABEL, check_name, check_set_name
from deploy.lws.client.objects import (
    DISAGGREGATED_SETS,
    LEADER_WORKER_SETS,
    ROLE_SCALERS,
    DisaggregatedSet,
    DisaggregatedStatus,
    Json,
    LeaderWorkerSet,
    RoleScaler,
    Scale,
    SetStatus,
    read_disaggregated_set,
    read_leader_worker_set,
    read_role_scaler,
)
from deploy.lws.client.rolling import Rolling, Scalable
from deploy.lws.client.rollout import Rollout, restarted, rollout_of, rollout_of_roles
from deploy.lws.client.watching import BACKOFF, WatchApi

MANAGER = "lws-client"
"""Name that changes are made under, unless another is given."""


class LeaderWorkerSets(Scalable[LeaderWorkerSet], Rolling[LeaderWorkerSet]):
    """LeaderWorkerSets of one namespace."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, LEADER_WORKER_SETS, read_leader_worker_set)

    async def status(self, name: str) -> SetStatus:
        """What its controller says of it.

        Raises:
            NotFound: there is no such object.
        """
        return (await self.get(name)).status

    async def _rollout(self, found: LeaderWorkerSet) -> Rollout:
        return rollout_of(found)

    def _restarted(self, found: LeaderWorkerSet, when: str) -> Json:
        return restarted(found, when)

    def _check(self, body: Json) -> None:
        read = read_leader_worker_set(body)
        check_name(
            read.name, kueue=QUEUE_LABEL in read.meta.labels, replicas=read.replicas, size=read.size
        )


class RoleScalers(Scalable[RoleScaler]):
    """RoleScalers of one namespace; the controller of DisaggregatedSets makes and deletes them."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, ROLE_SCALERS, read_role_scaler)


class DisaggregatedSets(Rolling[DisaggregatedSet]):
    """DisaggregatedSets of one namespace.

    Args:
        place: where.
        scalers: their RoleScalers.
    """

    def __init__(self, place: Place, scalers: RoleScalers) -> None:
        super().__init__(place, DISAGGREGATED_SETS, read_disaggregated_set)
        self._scalers = scalers

    async def status(self, name: str) -> DisaggregatedStatus:
        """What its controller says of it.

        Raises:
            NotFound: there is no such object.
        """
        return (await self.get(name)).status

    async def get_role_scale(self, name: str, role: str) -> Scale:
        """The groups of a role that are wanted and seen, of its RoleScaler.

        Raises:
            NotFound: there is no such set, no such role, or no RoleScaler yet.
            BadObject: the role's groups are no autoscaler's to set.
        """
        try:
            return await self._scalers.get_scale(scaler_name(name, role))
        except NotFound:
            await self._explain(name, role)
            raise

    async def scale_role(
        self, name: str, role: str, replicas: int, *, current: int | None = None
    ) -> Scale:
        """Asks for so many groups of a role, by its RoleScaler.

        Args:
            name: of the set.
            role: whose ``scaling.mode`` is External.
            replicas: groups wanted.
            current: only if it is so many that are wanted now, and nobody writes meanwhile.

        Raises:
            NotFound: there is no such set, no such role, or no RoleScaler yet.
            BadObject: the role's groups are no autoscaler's to set.
            Conflict: ``current`` is not, or no longer, what is wanted.
        """
        try:
            return await self._scalers.scale(scaler_name(name, role), replicas, current=current)
        except NotFound:
            await self._explain(name, role)
            raise

    async def _rollout(self, found: DisaggregatedSet) -> Rollout:
        scaled = {}
        for role in found.roles:
            if role.external:
                try:
                    scaler = await self._scalers.get(scaler_name(found.name, role.name))
                except NotFound:
                    continue
                scaled[role.name] = scaler.replicas
        return rollout_of_roles(found, scaled)

    def _restarted(self, found: DisaggregatedSet, when: str) -> Json:
        return restarted(found, when)

    async def _explain(self, name: str, role: str) -> None:
        """Why there is no RoleScaler, where the set says so."""
        found = await self.get(name)
        entry = found.role(role)
        if entry is None:
            names = ", ".join(known.name for known in found.roles)
            raise BadObject(f"DisaggregatedSet {name} has no role {role}, but {names}") from None
        if not entry.external:
            raise BadObject(
                f"role {role} of DisaggregatedSet {name} has its replicas in the set itself: set "
                "its scaling.mode to External, or change its spec.replicas by apply"
            ) from None

    def _check(self, body: Json) -> None:
        read = read_disaggregated_set(body)
        check_set_name(
            read.name,
            {role.name: role.replicas for role in read.roles},
            slices=read.slices,
            kueue=QUEUE_LABEL in read.meta.labels,
        )


class LwsClient:
    """The kinds of LWS in one namespace.

    Args:
        api: the cluster, a :class:`baton.kube.KubeApi`; it stays the caller's to close.
        namespace: where.
        manager: name that changes are made under.
        retries: how calls are repeated.
        backoff: pauses of watches that do not come about; its tries and budget mean nothing.
        clock: for the time of restarts.
        rng: draws pauses.

    Attributes:
        leader_worker_sets, disaggregated_sets, role_scalers: what there is.
    """

    def __init__(
        self,
        api: WatchApi,
        namespace: str,
        *,
        manager: str = MANAGER,
        retries: Retries | None = None,
        backoff: Retries = BACKOFF,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - pauses are no secret
        caller = Caller(api, retries or Retries(), rng)
        place = Place(api, caller, namespace, manager, clock or SystemClock(), backoff)
        self.namespace = namespace
        self.leader_worker_sets = LeaderWorkerSets(place)
        self.role_scalers = RoleScalers(place)
        self.disaggregated_sets = DisaggregatedSets(place, self.role_scalers)


def scaler_name(name: str, role: str) -> str:
    """Of the RoleScaler of a DisaggregatedSet's role."""
    return f"{name}-{role}"
