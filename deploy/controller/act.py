"""Does what a plan says, one action after the other.

Each is idempotent, and is refused rather than done on an old picture: writes name the version of
the object that was looked at, and before groups are taken away the routers are asked once more
whether their workers hold nothing. What was refused is planned anew after the next look.
"""

from __future__ import annotations

from collections.abc import Callable

from baton.errors import PeerFault
from baton.kube import Json
from deploy.controller.actions import (
    Action,
    BeginSwitch,
    CreatePool,
    DeletePool,
    DrainWorker,
    MarkPool,
    Mirror,
    NoteWish,
    ScalePool,
    ShrinkPool,
    Sweep,
    UndrainWorker,
)
from deploy.controller.cluster import POOLS, Cluster
from deploy.controller.observe import DRAINING, MEMORY, Seen, is_free, memory_text
from deploy.controller.picture import Memory, Outcome, Pool
from deploy.controller.routers import RoutersApi, RoutersRefused
from deploy.controller.settings import ControllerSettings
from deploy.lws import labels
from deploy.lws.pools import profile_text
from profiles import ServingProfile

OURS = {labels.MANAGED_BY: labels.CONTROLLER_MANAGER}


class Stale(PeerFault):
    """Things are not any more as they were when this was planned; nothing was done."""

    status = 503
    code = "stale"


class Actor:
    """Acts on a cluster and its routers.

    Args:
        cluster: the namespace.
        routers: their admin API.
        settings: names.
        may: whether acting is safe now; asked before each action.
    """

    def __init__(
        self,
        cluster: Cluster,
        routers: RoutersApi,
        settings: ControllerSettings,
        may: Callable[[], bool],
    ) -> None:
        self._cluster = cluster
        self._routers = routers
        self._settings = settings
        self._may = may

    async def do(self, action: Action, seen: Seen) -> Action:
        """One action; returns what was done, which for a switch that the routers refuse is the note
        of that.

        Raises:
            Stale: it does not fit what is there any more, or the lease is not safely ours.
            SourceUnavailable: the Kubernetes API will not, or does not answer.
            RoutersAway, RoutersRefused: the routers do not, or will not.
            OperatorError: a pool cannot be rendered.
        """
        if not self._may():
            raise Stale("the lease may be somebody else's by now")
        match action:
            case NoteWish():
                await self._note(action.memory, seen)
            case CreatePool():
                await self._create(action, seen)
            case ShrinkPool():
                await self._check_free(action.pool, action.replicas)
                await self._scale(action.pool, action.replicas)
            case ScalePool():
                await self._scale(action.pool, action.replicas)
            case DeletePool():
                pool = action.pool
                await self._check_free(pool, 0)
                path = self._cluster.path(POOLS, pool.name)
                await self._cluster.delete(path, pool.uid, pool.version)
            case MarkPool():
                mark = {DRAINING: str(action.first)}
                await self._patch_pool(action.pool, {"metadata": {"annotations": mark}})
            case DrainWorker():
                await self._routers.drain(action.worker)
            case UndrainWorker():
                await self._routers.undrain(action.worker)
            case BeginSwitch():
                return await self._begin(action, seen)
            case Mirror():
                await self._mirror(action, seen)
            case Sweep():
                await self._cluster.delete(action.remnant.path, action.remnant.uid)
            case _:
                raise AssertionError(f"nobody does {action!r}")
        return action

    async def _note(self, memory: Memory, seen: Seen) -> None:
        metadata = {"annotations": {MEMORY: memory_text(memory)}, "labels": OURS}
        await self._cluster.put_data(self._settings.status, {}, metadata, seen.status_map)

    async def _create(self, action: CreatePool, seen: Seen) -> None:
        profile = seen.profiles.get(action.profile.version)
        if seen.pools is None or profile is None:
            raise Stale(f"profile {action.profile.name} or the site is not known any more")
        role = next(role for role in profile.spec.pools.by_role if role == action.role)
        for obj in seen.pools.objects(profile, role, self._cluster.namespace):
            if not self._may():
                raise Stale("the lease may be somebody else's by now")
            if obj["kind"] == "LeaderWorkerSet":
                # One of the same name may have been drained: its cordons are none of an operator's.
                obj["metadata"].setdefault("annotations", {})[DRAINING] = "0"
            await self._cluster.apply(obj)

    async def _scale(self, pool: Pool, replicas: int) -> None:
        await self._patch_pool(pool, {"spec": {"replicas": replicas}})

    async def _patch_pool(self, pool: Pool, body: Json) -> None:
        metadata = {**body.get("metadata", {}), "resourceVersion": pool.version}
        await self._cluster.patch(POOLS, pool.name, {**body, "metadata": metadata})

    async def _check_free(self, pool: Pool, keep: int) -> None:
        """The routers' last word before groups go."""
        rows = {str(row.record.id): row for row in await self._routers.workers()}
        for member in pool.members:
            row = rows.get(member.id)
            if member.index >= keep and row is not None and not is_free(row):
                raise Stale(f"worker {member.id} is in use again")
        stem = f"{pool.name}-"
        known = {member.id for member in pool.members}
        for name, row in rows.items():
            index = name.removeprefix(stem)
            new = name.startswith(stem) and index.isdecimal() and name not in known
            if new and int(index) >= keep and not is_free(row):
                raise Stale(f"worker {name} has come meanwhile")
        if not self._may():
            raise Stale("the lease may be somebody else's by now")

    async def _begin(self, action: BeginSwitch, seen: Seen) -> Action:
        profile = seen.profiles.get(action.profile.version)
        if profile is None:
            raise Stale(f"profile {action.profile.name} is not known any more")
        try:
            await self._routers.switch(
                _text(profile, action.profile.name),
                origin=f"configmap {self._cluster.namespace}/{self._settings.profiles}",
                by=action.by,
                hurried=action.hurried,
            )
        except RoutersRefused as error:
            if error.http_status != 400:
                # Another switch was faster, say: the next look shows it.
                raise
            # They may have noted it as a switch of the next number, or not at all.
            routers = seen.picture.routers
            note = NoteWish(
                memory=Memory(action.digest, Outcome.REFUSED, routers.number if routers else 0),
                profile=action.profile,
                reason=f"refused: {error.message}",
            )
            await self._note(note.memory, seen)
            return note
        return action

    async def _mirror(self, action: Mirror, seen: Seen) -> None:
        profile = seen.profiles.get(action.profile.version)
        agreement = await self._routers.agreement()
        if profile is None or agreement.switch is not None or agreement.active != action.profile:
            raise Stale("the routers have gone on meanwhile")
        name = action.profile.name
        before = {} if seen.active_map is None else seen.active_map.get("data") or {}
        data: dict[str, str | None] = {key: None for key in before if key != "active"}
        data |= {"active": name, f"{name}.yaml": _text(profile, name)}
        await self._cluster.put_data(self._settings.active, data, {"labels": OURS}, seen.active_map)


def _text(profile: ServingProfile, name: str) -> str:
    """The profile's text under a name: several may have one version, which is all that counts."""
    if profile.name != name:
        metadata = profile.metadata.model_copy(update={"name": name})
        profile = profile.model_copy(update={"metadata": metadata})
    return profile_text(profile)
