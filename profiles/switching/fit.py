"""Whether the workers that are there can serve a profile, and what is still missing.

Three questions, since they have different answers: what can never work with these workers
(``fit``; the switch is refused), what may come while one waits (``missing``; the switch prepares)
and what an operator should know and may ignore (notes). Sentences begin with the profile's field
that they are about. It looks at records only, and asks no worker anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from baton.types import Role, WorkerId, WorkerRecord, WorkerState
from profiles.schema import ServingProfile
from profiles.sections import Mode, Transport
from profiles.traffic_sections import PrefixKnowledge

_MOST_NAMED = 5
"""Workers that one sentence names."""


class Fit(NamedTuple):
    """Why a profile cannot be served by the workers there are, and what else should be known."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


class _Fixed(NamedTuple):
    """A field that an engine keeps from its start to its end, and the workers it is false of."""

    field: str
    wanted: str
    unfit: Mapping[WorkerId, str]


def fit(
    profile: ServingProfile,
    workers: Sequence[WorkerRecord],
    roles: Mapping[WorkerId, Role] = {},
) -> Fit:
    """What makes a switch to ``profile`` impossible without other workers.

    What an engine was started with is a problem where it is wrong for every worker of a pool, and
    a note where it is for some: beside new workers, the old ones of the profile that is still
    active have to stay. Without any worker nothing is impossible.

    Args:
        profile: what would become active.
        workers: all that are registered.
        roles: of workers that are used in another role than they were started in.
    """
    problems: list[str] = []
    notes: list[str] = []
    served = sorted({worker.model for worker in workers})
    if served and profile.served_name not in served:
        problems.append(
            f"spec.model: no registered worker serves {profile.served_name}; "
            f"served are: {_named(served)}"
        )
    for role, members in _pools(profile, workers, roles).items():
        for fixed in _fixed(profile, members):
            if not fixed.unfit:
                continue
            have = _named([f"{worker} {what}" for worker, what in fixed.unfit.items()])
            sentence = (
                f"{fixed.field}: the profile says {fixed.wanted}, which takes a restart of workers "
                f"of pool {role}: {have}"
            )
            (problems if len(fixed.unfit) == len(members) else notes).append(sentence)
        silent = [worker.id for worker in members if not worker.kv_events_url]
        if profile.spec.routing.prefix is PrefixKnowledge.EXACT and silent:
            notes.append(
                "spec.routing.prefix: exact, but some workers of pool "
                f"{role} publish no KV events: {_named(silent)}"
            )
    return Fit(tuple(problems), tuple(notes))


def _fixed(profile: ServingProfile, members: Sequence[WorkerRecord]) -> Iterator[_Fixed]:
    spec = profile.spec
    block_size = spec.transfer.block_size
    yield _Fixed(
        "spec.transfer.block_size",
        str(block_size),
        {
            worker.id: f"has {worker.geometry.block_size}"
            for worker in members
            if worker.geometry.block_size != block_size
        },
    )
    length = spec.model.max_model_len
    if length is not None:
        yield _Fixed(
            "spec.model.max_model_len",
            str(length),
            {
                worker.id: f"has {worker.limits.max_model_len}"
                for worker in members
                if worker.limits.max_model_len < length
            },
        )
    if spec.mode is Mode.DISAGGREGATED and spec.transfer.transport is Transport.RDMA:
        # As when pairs are checked: what a worker does not say is not taken for rdma.
        yield _Fixed(
            "spec.transfer.transport",
            "rdma",
            {
                worker.id: f"has {worker.transport or 'whatever it finds'}"
                for worker in members
                if worker.transport != Transport.RDMA
            },
        )


def missing(
    profile: ServingProfile,
    workers: Sequence[WorkerRecord],
    usable: Callable[[WorkerRecord], bool],
    roles: Mapping[WorkerId, Role] = {},
    pair_ok: Callable[[WorkerId, WorkerId], bool] | None = None,
) -> tuple[str, ...]:
    """What has to come before the profile can serve a request; empty for nothing.

    Args:
        profile: what would become active.
        workers: all that are registered.
        usable: whether a worker may get requests now.
        roles: of workers that are used in another role than they were started in.
        pair_ok: whether a prefill and a decode worker have been checked as a pair; None where
            pairs are not checked.
    """
    found: list[str] = []
    ready: dict[Role, list[WorkerId]] = {}
    for role, members in _pools(profile, workers, roles).items():
        ready[role] = [worker.id for worker in members if usable(worker)]
        if not members:
            found.append(f"spec.pools.{role}: no worker is registered")
        elif not ready[role]:
            states = _named([f"{worker.id} {_state(worker)}" for worker in members])
            found.append(
                f"spec.pools.{role}: no worker is ready ({len(members)} registered: {states})"
            )
    wanted = profile.spec.mode is Mode.DISAGGREGATED and profile.spec.transfer.warm_pairs
    if wanted and pair_ok is not None and not found:
        pairs = ((p, d) for p in ready[Role.PREFILL] for d in ready[Role.DECODE])
        if not any(pair_ok(p, d) for p, d in pairs):
            found.append(
                "spec.transfer.warm_pairs: no pair of prefill and decode workers is checked yet"
            )
    return tuple(found)


def notes(
    profile: ServingProfile,
    workers: Sequence[WorkerRecord],
    usable: Callable[[WorkerRecord], bool],
    roles: Mapping[WorkerId, Role] = {},
) -> tuple[str, ...]:
    """Pools with fewer ready workers than the profile asks for; arguments as of ``missing``."""
    found: list[str] = []
    for role, members in _pools(profile, workers, roles).items():
        ready = sum(map(usable, members))
        replicas = profile.spec.pools.by_role[role].replicas
        if ready < replicas:
            found.append(f"spec.pools.{role}.replicas: {ready} of {replicas} workers are ready")
    return tuple(found)


def _pools(
    profile: ServingProfile, workers: Sequence[WorkerRecord], roles: Mapping[WorkerId, Role]
) -> dict[Role, list[WorkerRecord]]:
    """The profile's pools with the workers of its model that each would have."""
    pools = profile.spec.pools
    members: dict[Role, list[WorkerRecord]] = {role: [] for role in pools.by_role}
    for worker in workers:
        role = pools.role_of(roles.get(worker.id, worker.role))
        if role is not None and worker.model == profile.served_name:
            members[role].append(worker)
    return members


def _state(worker: WorkerRecord) -> str:
    return "not usable" if worker.state is WorkerState.READY else worker.state.value


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    text = ", ".join(names[:_MOST_NAMED])
    return f"{text} and {more} more" if more > 0 else text
