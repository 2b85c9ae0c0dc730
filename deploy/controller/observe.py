"""Looks at everything that a plan is made from, and makes one picture of it.

It decides nothing. What it cannot see is told in the picture as a problem where something else is
still true (the last good profiles, the last good site), and raises where nothing is: without the
cluster's own word on its pools there is no picture.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from baton.clock import Clock
from baton.errors import BatonError, OperatorError, ProfileError, SourceUnavailable
from baton.kube import Json
from baton.types import WorkerState
from deploy.controller.cluster import (
    AUTOSCALERS,
    BUDGETS,
    CLAIM_TEMPLATES,
    CONFIGMAPS,
    POOLS,
    SCALED_OBJECTS,
    Cluster,
    annotations_of,
    labels_of,
)
from deploy.controller.picture import (
    Known,
    Member,
    Memory,
    Outcome,
    Picture,
    Pool,
    Remnant,
    Routers,
    Wish,
)
from deploy.controller.rendering import Pools
from deploy.controller.routers import ActiveProfile, Agreement, RoutersApi, WorkerRow, look
from deploy.controller.settings import ControllerSettings
from deploy.controller.sites import SiteSource
from deploy.controller.timers import Timers
from deploy.lws import labels
from profiles import ServingProfile, builtin_names, parse_profile
from profiles.sources import Catalog, ProfileSource
from profiles.switching import Report, ref

MEMORY = "baton.serving/wish"
"""Annotation of the status ConfigMap: what is remembered of wishes, as JSON."""
DRAINING = "baton.serving/draining"
"""Annotation of a LeaderWorkerSet: cordons of groups from this index on are the controller's."""

_ALL_POOLS = labels.POOL
_OURS = f"{labels.MANAGED_BY}={labels.CONTROLLER_MANAGER}"
_BESIDE = (CONFIGMAPS, BUDGETS, AUTOSCALERS, SCALED_OBJECTS, CLAIM_TEMPLATES)
_MOST_GROUPS = 10_000

log = logging.getLogger("baton.controller")


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture, and what acting on it needs besides.

    Attributes:
        picture: to plan by.
        profiles: by version, whole.
        pools: renders; None while no good site is known.
        status_map, active_map: the ConfigMaps as they were read; None where there is none.
        profiles_uid: of the ConfigMap that operators edit, for Events.
    """

    picture: Picture
    profiles: Mapping[str, ServingProfile] = field(default_factory=dict)
    pools: Pools | None = None
    status_map: Json | None = None
    active_map: Json | None = None
    profiles_uid: str = ""


@dataclass(frozen=True, slots=True)
class _Told:
    """What the routers said."""

    agreement: Agreement
    history: tuple[Report, ...]
    workers: tuple[WorkerRow, ...]
    active: ServingProfile | None


class Observer:
    """Looks, again and again; remembers the last good profiles and site, and since when what is so.

    Args:
        cluster: the namespace.
        source: of profiles.
        sites: of the site.
        routers: their admin API.
        settings: names.
        clock: monotonic, for how long something has been so.
    """

    def __init__(
        self,
        cluster: Cluster,
        source: ProfileSource,
        sites: SiteSource,
        routers: RoutersApi,
        settings: ControllerSettings,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._source = source
        self._sites = sites
        self._routers = routers
        self._settings = settings
        self._catalog = Catalog()
        self._timers = Timers(clock.monotonic_s)
        self._builtin: dict[str, ServingProfile] | None = None
        self._agreed: dict[str, ServingProfile] = {}
        self._waits: tuple[str, ...] = ()
        self._wished: str | None = None
        """The profile that operators name; None before it was read."""

    def note_waits(self, keys: Iterable[str]) -> None:
        """What the last plan waits for: the next picture says for how long."""
        self._waits = tuple(keys)

    async def look(self) -> Seen:
        """Everything, now.

        Raises:
            SourceUnavailable: the Kubernetes API does not say.
        """
        problems: list[str] = []
        await self._read_profiles(problems)
        told, away = await self._ask_routers()
        pools = await self._sites.pools(problems)
        cluster, names = self._cluster, self._settings
        edited, status_map, active_map, found, (least, remnants) = await asyncio.gather(
            cluster.get(CONFIGMAPS, names.profiles),
            cluster.get(CONFIGMAPS, names.status),
            cluster.get(CONFIGMAPS, names.active),
            cluster.items(POOLS, _ALL_POOLS),
            self._beside(),
        )
        workers = () if told is None else told.workers
        mirrored = _mirrored(active_map)
        profiles = self._known_profiles(told, mirrored)
        known = _wants(pools, profiles, self._named(told, mirrored), problems)
        wish = self._wish(known)
        routers = None if told is None else self._agreed_on(told, _memory(status_map))
        picture = Picture(
            wish=wish,
            profiles=known,
            pools=self._pools_of(found, least, workers),
            routers=routers,
            routers_problem=away,
            memory=_memory(status_map),
            mirrored=None if mirrored is None else _known(known, mirrored),
            remnants=remnants,
            waited=self._timers.keep("wait ", self._waits),
            unread="" if wish is not None else self._unread(),
            problems=tuple(problems),
        )
        uid = str((edited or {}).get("metadata", {}).get("uid", ""))
        return Seen(picture, profiles, pools, status_map, active_map, uid)

    # --- profiles ---

    async def _read_profiles(self, problems: list[str]) -> None:
        try:
            bundle = await self._source.read()
        except SourceUnavailable as error:
            problems.append(f"profiles stay as they were: {error.message}")
        else:
            self._catalog.take(bundle)
            self._wished = bundle.active
        problems += self._catalog.problems

    def _known_profiles(
        self, told: _Told | None, mirrored: ServingProfile | None
    ) -> dict[str, ServingProfile]:
        """By version, all whose text is had from anywhere. Those that routers serve by were active
        at one time, so that the one before is still known when another is."""
        if self._builtin is None:
            found = [self._catalog.get(name) for name in builtin_names()]
            self._builtin = {profile.version: profile for profile in found if profile is not None}
        profiles = dict(self._builtin)
        others = [*self._catalog.profiles().values()]
        if self._catalog.wanted is not None:
            others.append(self._catalog.wanted)
        if mirrored is not None:
            others.append(mirrored)
        if told is not None and told.active is not None:
            others.append(told.active)
        profiles |= {profile.version: profile for profile in others}
        if told is not None:
            agreement = told.agreement
            on = None if agreement.switch is None else agreement.switch.new
            named = [one.version for one in (agreement.active, agreement.previous, on) if one]
            profiles = self._agreed | profiles
            self._agreed = {v: profiles[v] for v in named if v in profiles}
        return profiles

    def _named(self, told: _Told | None, mirrored: ServingProfile | None) -> list[str]:
        """Versions that matter now."""
        named = [profile.version for profile in (self._catalog.wanted, mirrored) if profile]
        if told is not None:
            agreement = told.agreement
            on = None if agreement.switch is None else agreement.switch.new
            named += [one.version for one in (agreement.active, agreement.previous, on) if one]
        return list(dict.fromkeys(named))

    def _wish(self, known: Mapping[str, Known]) -> Wish | None:
        wanted = self._catalog.wanted
        if wanted is None or wanted.version not in known:
            return None
        return Wish(
            _known(known, wanted) or known[wanted.version],
            self._catalog.wanted_digest,
            wanted.spec.switch.prepare_s,
        )

    def _unread(self) -> str:
        """Why nobody knows which pools the wish needs; empty where there is no wish."""
        if self._wished is None:
            return "it was not read yet"
        return f"{self._wished} is named, and cannot be used" if self._wished else ""

    # --- routers ---

    async def _ask_routers(self) -> tuple[_Told | None, str]:
        """What they say, or why they do not."""
        try:
            agreement, history, workers = await look(self._routers)
            active = self._agreed.get(agreement.active.version)
            if active is None:
                active = _read_active(await self._routers.profile(), agreement)
        except BatonError as error:
            return None, error.message
        return _Told(agreement, history, workers, active), ""

    def _agreed_on(self, told: _Told, memory: Memory) -> Routers:
        agreement = told.agreement
        active = f"{agreement.active.name} {agreement.active.version}"
        # A router that is late may name another one for a moment; then it begins anew.
        active_s = self._timers.keep("active ", [active])[active]
        routers = Routers(
            active=agreement.active,
            previous=agreement.previous,
            switch=agreement.switch,
            history=told.history,
            following=sum(r.profile_version == agreement.active.version for r in agreement.routers),
            routers=len(agreement.routers),
            store_lost=agreement.store_lost,
            active_s=active_s,
            workers=len(told.workers),
        )
        behind_s = self._timers.held_s("behind", memory.number > routers.number) or 0.0
        return replace(routers, behind_s=behind_s)

    # --- pools ---

    async def _beside(self) -> tuple[dict[str, int], tuple[Remnant, ...]]:
        """By pool that has an autoscaler, the least of its groups; and what the controller made
        beside pools. Of what the site does not use it may have no right to list any."""
        cluster = self._cluster
        listed = await asyncio.gather(
            cluster.items(CONFIGMAPS, _OURS),
            cluster.items(BUDGETS, _OURS, optional=True),
            cluster.items(AUTOSCALERS, optional=True),
            cluster.items(SCALED_OBJECTS, optional=True),
            cluster.items(CLAIM_TEMPLATES, _OURS, optional=True),
        )
        least: dict[str, int] = {}
        remnants: list[Remnant] = []
        for form, objs in zip(_BESIDE, listed, strict=True):
            for obj in objs:
                least |= _least(obj)
                remnants += self._remnant(form, obj)
        return least, tuple(remnants)

    def _remnant(self, form: str, obj: Json) -> list[Remnant]:
        has, metadata = labels_of(obj), obj["metadata"]
        key, name = has.get(labels.POOL, ""), str(metadata["name"])
        ours = has.get(labels.MANAGED_BY) == labels.CONTROLLER_MANAGER
        if not ours or not key or metadata.get("deletionTimestamp"):
            return []
        named = form not in (CONFIGMAPS, CLAIM_TEMPLATES)
        path = self._cluster.path(form, name)
        return [Remnant(path, name, str(metadata.get("uid", "")), key, named)]

    def _pools_of(
        self, found: Iterable[Json], least: Mapping[str, int], workers: Iterable[WorkerRow]
    ) -> tuple[Pool, ...]:
        rows = {str(row.record.id): row for row in workers}
        free: dict[str, bool] = {}
        pools = []
        for obj in found:
            pool = _pool(obj, least)
            members = tuple(_members(pool, rows))
            free |= {m.id: m.free_s is not None for m in members}
            pools.append((pool, members))
        held_s = self._timers.keep("free ", [name for name, is_free in free.items() if is_free])
        return tuple(
            replace(pool, members=tuple(replace(m, free_s=held_s.get(m.id)) for m in members))
            for pool, members in pools
        )


# --- from objects to the picture ---


def _pool(obj: Json, least: Mapping[str, int]) -> Pool:
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    marked = annotations_of(obj).get(DRAINING, "")
    replicas = spec.get("replicas")
    return Pool(
        name=str(metadata["name"]),
        uid=str(metadata.get("uid", "")),
        version=str(metadata.get("resourceVersion", "")),
        key=labels_of(obj).get(labels.POOL, ""),
        role=labels_of(obj).get(labels.ROLE, ""),
        replicas=1 if replicas is None else int(replicas),
        ready_groups=int(status.get("readyReplicas") or 0),
        owned=labels_of(obj).get(labels.MANAGED_BY) == labels.CONTROLLER_MANAGER,
        least=least.get(str(metadata["name"])),
        marked=int(marked) if marked.isdecimal() else None,
        deleting=bool(metadata.get("deletionTimestamp")),
    )


def _members(pool: Pool, rows: Mapping[str, WorkerRow]) -> list[Member]:
    """Groups that are asked for, and others that are still registered. ``free_s`` is 0 for free."""
    stem = f"{pool.name}-"
    indexes = set(range(min(pool.replicas, _MOST_GROUPS)))
    for name in rows:
        index = name.removeprefix(stem)
        if name.startswith(stem) and index.isdecimal() and len(index) < 7:
            indexes.add(int(index))
    return [
        _member(index, f"{stem}{index}", rows.get(f"{stem}{index}")) for index in sorted(indexes)
    ]


def _member(index: int, name: str, row: WorkerRow | None) -> Member:
    if row is None:
        return Member(index, name, free_s=0.0)
    return Member(
        index,
        name,
        state=row.record.state.value,
        ready=row.record.state is WorkerState.READY and not row.cordoned,
        cordoned=row.cordoned,
        legs=int(row.legs),
        free_s=0.0 if is_free(row) else None,
    )


def is_free(row: WorkerRow) -> bool:
    """Whether a worker gets nothing new and holds nothing, as far as the router that was asked
    knows."""
    return row.cordoned and row.drained and not row.legs


def _least(obj: Json) -> dict[str, int]:
    """Of an autoscaler of a pool: the least of its groups. KEDA makes a HorizontalPodAutoscaler of
    its own beside, which says the same."""
    spec = obj.get("spec") or {}
    target = spec.get("scaleTargetRef") or {}
    if target.get("kind") != "LeaderWorkerSet":
        return {}
    least = spec.get("minReplicas", spec.get("minReplicaCount"))
    return {str(target.get("name")): 1 if least is None else int(least)}


def _memory(status_map: Json | None) -> Memory:
    if status_map is None:
        return Memory()
    try:
        said = json.loads(annotations_of(status_map).get(MEMORY, "{}"))
        return Memory(
            str(said.get("digest", "")),
            Outcome(said.get("outcome", "")),
            int(said.get("number", 0)),
        )
    except (ValueError, AttributeError, TypeError):
        log.warning("what is remembered of wishes cannot be read, and counts as nothing")
        return Memory()


def memory_text(memory: Memory) -> str:
    """As it is kept."""
    kept = {"digest": memory.digest, "outcome": memory.outcome.value, "number": memory.number}
    return json.dumps(kept)


def _mirrored(active_map: Json | None) -> ServingProfile | None:
    """The profile that routers start from; None where there is none, or none that can be read."""
    data = {} if active_map is None else active_map.get("data") or {}
    name = str(data.get("active", "")).strip()
    text = data.get(f"{name}.yaml")
    if not name or not isinstance(text, str):
        return None
    try:
        return parse_profile(text, source=f"ConfigMap of what serves, key {name}.yaml")
    except ProfileError as error:
        log.warning("%s", error.message)
        return None


def _read_active(found: ActiveProfile, agreement: Agreement) -> ServingProfile | None:
    """The profile that routers serve by; None where it is another one by now, or says something
    else here than there."""
    document = {
        "apiVersion": "baton/v1",
        "kind": "ServingProfile",
        "metadata": {"name": found.name},
        "spec": found.spec,
    }
    try:
        profile = ServingProfile.model_validate_json(json.dumps(document))
    except ValueError as error:
        log.warning("the routers' profile %s cannot be read here: %s", found.name, error)
        return None
    same = profile.version == found.version == agreement.active.version
    return profile if same else None


def _wants(
    pools: Pools | None,
    profiles: Mapping[str, ServingProfile],
    named: Iterable[str],
    problems: list[str],
) -> dict[str, Known]:
    """By version, those of the named profiles that this cluster can have pools for."""
    known: dict[str, Known] = {}
    for version in named:
        profile = profiles.get(version)
        if pools is None or profile is None or version in known:
            continue
        try:
            known[version] = pools.known(profile)
        except OperatorError as error:
            problems.append(f"profile {profile.name}: {error.message}")
    return known


def _known(known: Mapping[str, Known], profile: ServingProfile) -> Known | None:
    """Under the profile's own name, whatever others have the same version."""
    found = known.get(profile.version)
    if found is None:
        return None
    return Known(ref(profile), found.wants)
