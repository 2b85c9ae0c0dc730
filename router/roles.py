"""What each worker is used for under each profile: engines do not care, so the router says.

Profiles may want a worker in different roles (``pools.<role>.takes``), and operators may assign
one. A worker that changes between prefilling and answering first ends what it has of the old kind:
until then it gets nothing new. This module says who is what; counting legs, and asking anybody, is
not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from baton.types import Role, WorkerId, WorkerRecord, WorkerState
from router.serving import Serving

HasWork = Callable[[WorkerId, bool], bool]
"""Whether a worker has work of a kind, at any router: True for prefilling, False for answering."""


def _is_ready(record: WorkerRecord) -> bool:
    return record.state is WorkerState.READY


class Roles:
    """Who is what, over time.

    Args:
        has_work: asked of workers that are on their way from one kind of work to the other.
        now_s: monotonic seconds.
    """

    def __init__(self, has_work: HasWork, now_s: Callable[[], float]) -> None:
        self._has_work = has_work
        self._now_s = now_s
        self._prefills: dict[WorkerId, bool] = {}
        self._turning: dict[WorkerId, float] = {}

    @property
    def turning(self) -> frozenset[WorkerId]:
        """Workers that end their old kind of work."""
        return frozenset(self._turning)

    def arrange(
        self,
        records: Sequence[WorkerRecord],
        assigned: Mapping[WorkerId, Role],
        admitting: Sequence[Serving],
        usable: Callable[[WorkerRecord], bool] = _is_ready,
    ) -> None:
        """Decides anew what each worker does.

        Args:
            records: all workers.
            assigned: by operators.
            admitting: profiles that take requests, the active one last. Where they want a worker in
                roles of different kinds, it prefills: the other profile has more workers than it
                needs for a while, and without prefill workers the one could not be tried at all.
                But the active one keeps its last worker that answers.
            usable: whether a worker takes requests.
        """
        known = {record.id for record in records}
        for worker_id in self._prefills.keys() - known:
            del self._prefills[worker_id]
            self._turning.pop(worker_id, None)
        now_s = self._now_s()
        flip_s = max(serving.profile.spec.switch.flip_s for serving in admitting)
        for record in records:
            worker_id = record.id
            home = assigned.get(worker_id, record.role)
            roles = [serving.pools.role_of(home) for serving in admitting]
            if all(role is None for role in roles):
                # Nobody waits for it; who wants it later waits from then on.
                self._turning.pop(worker_id, None)
                continue
            wanted = Role.PREFILL in roles
            if wanted and roles[-1] not in (None, Role.PREFILL):
                wanted = self._can_spare(record, records, assigned, admitting[-1], usable)
            if self._prefills.setdefault(worker_id, wanted) == wanted:
                self._turning.pop(worker_id, None)
                continue
            since_s = self._turning.setdefault(worker_id, now_s)
            if now_s - since_s >= flip_s or not self._has_work(worker_id, not wanted):
                self._prefills[worker_id] = wanted
                del self._turning[worker_id]

    def _can_spare(
        self,
        record: WorkerRecord,
        records: Sequence[WorkerRecord],
        assigned: Mapping[WorkerId, Role],
        active: Serving,
        usable: Callable[[WorkerRecord], bool],
    ) -> bool:
        """Whether another worker still answers under the active profile."""
        for other in records:
            if other is record or other.model != record.model or not usable(other):
                continue
            role = active.pools.role_of(assigned.get(other.id, other.role))
            busy = other.id in self._turning or self._prefills.get(other.id, False)
            if role not in (None, Role.PREFILL) and not busy:
                return True
        return False

    def seen_by(
        self,
        serving: Serving,
        records: Sequence[WorkerRecord],
        assigned: Mapping[WorkerId, Role],
    ) -> Sequence[WorkerRecord]:
        """The workers as a profile may use them: in the roles that they have under it, and not
        READY where they have none, or do other work. The same sequence where all are as they say.
        """
        found: list[WorkerRecord] = []
        same = True
        for record in records:
            seen = self._seen(serving, record, assigned.get(record.id, record.role))
            same = same and seen is record
            found.append(seen)
        return records if same else tuple(found)

    def _seen(self, serving: Serving, record: WorkerRecord, home: Role) -> WorkerRecord:
        role = serving.pools.role_of(home)
        state = record.state
        prefills = self._prefills.get(record.id)
        if role is None or record.id in self._turning or prefills is not (role is Role.PREFILL):
            role = home if role is None else role
            if state is WorkerState.READY:
                state = WorkerState.DRAINING
        if role is record.role and state is record.state:
            return record
        return msgspec.structs.replace(record, role=role, state=state)


__all__ = ["Roles"]
