"""What workers are used for while profiles change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from baton.clock import VirtualClock
from baton.types import Role, WorkerId, WorkerRecord, WorkerState
from profiles import ServingProfile
from router.roles import Roles
from router.serving import Serving
from tests.fakes.worker_records import worker_record
from tests.unit.router.serving_profiles import disaggregated, serving, standard

P, D, S = WorkerId("p"), WorkerId("d"), WorkerId("s")
HANDING_OVER = disaggregated()
WHOLE = standard()
FLIP_S = WHOLE.spec.switch.flip_s

Seen = dict[str, tuple[Role, WorkerState]]
READY, DRAINING = WorkerState.READY, WorkerState.DRAINING


class Stage:
    """Workers, profiles, and who has work of which kind."""

    def __init__(self, *roles: Role) -> None:
        self.clock = VirtualClock()
        self.records: Sequence[WorkerRecord] = tuple(
            worker_record(role[0], role=role) for role in (roles or (Role.DECODE, Role.PREFILL))
        )
        self.assigned: Mapping[WorkerId, Role] = {}
        self.prefilling: set[WorkerId] = set()
        self.answering: set[WorkerId] = set()
        self.unusable: set[WorkerId] = set()
        self.asked: list[tuple[WorkerId, bool]] = []
        self.admitting: Sequence[Serving] = ()
        self.roles = Roles(self._has_work, self.clock.monotonic_s)

    def _has_work(self, worker_id: WorkerId, prefilling: bool) -> bool:
        self.asked.append((worker_id, prefilling))
        return worker_id in (self.prefilling if prefilling else self.answering)

    def serve(self, *profiles: ServingProfile) -> None:
        """Requests are taken under these from now on."""
        self.admitting = [serving(profile) for profile in profiles]
        self.look()

    def look(self) -> None:
        """The store was read."""
        self.roles.arrange(self.records, self.assigned, self.admitting, self._is_usable)

    def _is_usable(self, record: WorkerRecord) -> bool:
        return record.state is READY and record.id not in self.unusable

    def seen(self, profile: ServingProfile) -> Seen:
        """The workers under a profile."""
        found = self.roles.seen_by(serving(profile), self.records, self.assigned)
        return {record.id: (record.role, record.state) for record in found}

    def usable(self, profile: ServingProfile) -> dict[str, Role]:
        """Those that get requests under a profile."""
        return {name: role for name, (role, state) in self.seen(profile).items() if state is READY}


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_workers_serve_as_they_were_started(stage: Stage) -> None:
    """Under the profile that they were started for, records go through as they are."""
    stage.serve(HANDING_OVER)
    assert stage.roles.seen_by(stage.admitting[0], stage.records, {}) is stage.records
    assert stage.roles.turning == frozenset()
    assert stage.asked == []


def test_idle_workers_turn_at_once(stage: Stage) -> None:
    """A standard profile takes all there are, and gives them back."""
    stage.serve(HANDING_OVER)
    stage.serve(WHOLE)
    assert stage.usable(WHOLE) == {P: Role.STANDARD, D: Role.STANDARD}
    assert stage.roles.turning == frozenset()
    stage.serve(HANDING_OVER)
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL, D: Role.DECODE}


def test_a_prefill_worker_answers_after_its_prefill_work(stage: Stage) -> None:
    """Until then it gets nothing under any profile; decode workers, whose kind of work stays the
    same, answer on at once, whatever they have."""
    stage.serve(HANDING_OVER)
    stage.prefilling, stage.answering = {P}, {D}
    stage.serve(WHOLE)
    assert stage.roles.turning == {P}
    assert stage.seen(WHOLE) == {P: (Role.STANDARD, DRAINING), D: (Role.STANDARD, READY)}
    assert stage.seen(HANDING_OVER) == {P: (Role.PREFILL, DRAINING), D: (Role.DECODE, READY)}
    stage.look()
    assert stage.roles.turning == {P}
    stage.prefilling = set()
    stage.look()
    assert stage.usable(WHOLE) == {P: Role.STANDARD, D: Role.STANDARD}
    assert stage.usable(HANDING_OVER) == {D: Role.DECODE}


def test_a_prefill_worker_goes_back_after_its_answers(stage: Stage) -> None:
    """The other way round it is its answers that end first."""
    stage.serve(HANDING_OVER)
    stage.serve(WHOLE)
    stage.answering = {P, D}
    stage.serve(HANDING_OVER)
    assert stage.roles.turning == {P}
    assert stage.seen(HANDING_OVER) == {P: (Role.PREFILL, DRAINING), D: (Role.DECODE, READY)}
    assert stage.usable(WHOLE) == {D: Role.STANDARD}
    stage.answering = {D}
    stage.look()
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL, D: Role.DECODE}


@pytest.mark.parametrize("back", [False, True])
def test_a_worker_is_waited_for_so_long(stage: Stage, back: bool) -> None:
    """After flip_s, not before, it is used for the new kind with the old kind still on it."""
    stage.serve(HANDING_OVER)
    if back:
        stage.serve(WHOLE)
    stage.prefilling, stage.answering = {P}, {P}
    target = HANDING_OVER if back else WHOLE
    stage.serve(target)
    stage.clock.advance(FLIP_S - 0.1)
    stage.look()
    assert stage.roles.turning == {P}
    assert P not in stage.usable(target)
    stage.clock.advance(0.1)
    stage.look()
    assert stage.roles.turning == frozenset()
    assert P in stage.usable(target)


def test_the_wait_is_the_profile_s(stage: Stage) -> None:
    """Of two profiles that take requests, the more patient one's."""
    patient = standard(name="patient", more="  switch: {flip_s: 60}\n")
    stage.serve(HANDING_OVER)
    stage.prefilling = {P}
    stage.serve(patient)
    stage.clock.advance(59)
    stage.look()
    assert stage.roles.turning == {P}
    stage.clock.advance(1)
    stage.look()
    assert stage.roles.turning == frozenset()
    # None at all: both kinds at once, from the beginning.
    stage.serve(disaggregated(name="hasty", more="  switch: {flip_s: 0}\n"))
    assert stage.roles.turning == frozenset()


def test_a_switch_that_is_taken_back(stage: Stage) -> None:
    """Who had not turned yet goes on as before, and the next switch waits anew."""
    stage.serve(HANDING_OVER)
    stage.prefilling = {P}
    stage.serve(WHOLE)
    stage.clock.advance(FLIP_S - 1)
    stage.serve(HANDING_OVER)
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL, D: Role.DECODE}
    stage.serve(WHOLE)
    stage.clock.advance(FLIP_S - 1)
    stage.look()
    assert stage.roles.turning == {P}


@pytest.mark.parametrize("profiles", [(WHOLE, HANDING_OVER), (HANDING_OVER, WHOLE)])
def test_during_a_canary_prefill_has_precedence(
    stage: Stage, profiles: tuple[ServingProfile, ...]
) -> None:
    """Where two profiles take requests, a worker that one of them wants for prefill prefills, and
    is nothing to the other; who answers under both serves both."""
    stage.serve(*profiles)
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL, D: Role.DECODE}
    assert stage.usable(WHOLE) == {D: Role.STANDARD}
    assert stage.seen(WHOLE)[P] == (Role.STANDARD, DRAINING)


def test_a_canary_of_handoffs_waits_for_its_prefill_worker(stage: Stage) -> None:
    """While it ends its answers it is nobody's: the old profile gives it nothing more."""
    stage.serve(WHOLE)
    stage.answering = {P, D}
    stage.serve(HANDING_OVER, WHOLE)
    assert stage.usable(HANDING_OVER) == {D: Role.DECODE}
    assert stage.usable(WHOLE) == {D: Role.STANDARD}
    stage.answering = {D}
    stage.look()
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL, D: Role.DECODE}


def test_the_active_profile_keeps_its_last_worker(stage: Stage) -> None:
    """While a profile is tried it takes none for prefill without which nobody would answer: not
    where the others are cordoned, prefill or are to answer under the tried one only, nor where all
    would go at once. A worker that has begun to prefill stays."""
    stage.records = (*stage.records, worker_record("q", role=Role.PREFILL))
    stage.serve(WHOLE)
    stage.unusable = {D}
    stage.answering = {P, WorkerId("q")}
    stage.serve(HANDING_OVER, WHOLE)
    assert stage.roles.turning == {P}
    assert set(stage.usable(WHOLE)) == {"d", "q"}
    stage.answering = set()
    stage.look()
    assert stage.roles.turning == frozenset()
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL, D: Role.DECODE}
    assert set(stage.usable(WHOLE)) == {"d", "q"}
    stage.unusable = set()
    stage.look()
    assert set(stage.usable(WHOLE)) == {D}
    stage.unusable = {D}
    stage.look()
    assert stage.usable(HANDING_OVER)["q"] is Role.PREFILL


@pytest.mark.parametrize(
    "other",
    [
        worker_record("d", model="another"),
        worker_record("d", state=WorkerState.STARTING),
    ],
    ids=["another model", "starting"],
)
def test_who_cannot_stand_in(other: WorkerRecord) -> None:
    """A worker that the active profile could not use instead spares nobody."""
    stage = Stage(Role.PREFILL)
    stage.records = (*stage.records, other)
    stage.serve(WHOLE)
    stage.serve(HANDING_OVER, WHOLE)
    assert P in stage.usable(WHOLE)


def test_a_commit_takes_the_last_worker_too(stage: Stage) -> None:
    """What was tried is active then: nobody answers under the old one any more."""
    stage.records = stage.records[1:]
    stage.serve(WHOLE)
    stage.serve(HANDING_OVER, WHOLE)
    assert stage.usable(WHOLE) == {P: Role.STANDARD}
    stage.serve(HANDING_OVER)
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL}


def test_operators_assign(stage: Stage) -> None:
    """A decode worker that is to prefill does, once its answers have ended, until that is taken
    back."""
    stage.serve(HANDING_OVER)
    stage.answering = {D}
    stage.assigned = {D: Role.PREFILL}
    stage.look()
    assert stage.seen(HANDING_OVER) == {P: (Role.PREFILL, READY), D: (Role.PREFILL, DRAINING)}
    stage.answering = set()
    stage.look()
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL, D: Role.PREFILL}
    stage.assigned = {}
    stage.look()
    assert stage.usable(HANDING_OVER) == {P: Role.PREFILL, D: Role.DECODE}
    assert stage.asked == [(D, False), (D, False), (D, True)]


def test_an_assignment_stands_for_the_role_it_was_started_in(stage: Stage) -> None:
    """Profiles take it as they take workers of that role; one that does not take any, does not."""
    stage.assigned = {D: Role.PREFILL}
    stage.serve(standard(takes="[decode]"))
    assert stage.usable(stage.admitting[0].profile) == {}
    stage.serve(WHOLE)
    assert stage.usable(WHOLE) == {P: Role.STANDARD, D: Role.STANDARD}


def test_a_worker_without_a_role_gets_nothing(stage: Stage) -> None:
    """It shows as what it is, and as not ready."""
    only_decode = standard(takes="[decode]")
    stage.serve(only_decode)
    assert stage.seen(only_decode) == {P: (Role.PREFILL, DRAINING), D: (Role.STANDARD, READY)}
    nobody = standard(takes="[]")
    stage.serve(nobody)
    assert stage.usable(nobody) == {}


def test_what_nobody_wants_does_not_turn(stage: Stage) -> None:
    """A worker on its way that the next profile has no use for is not waited for, and starts from
    the beginning when one has."""
    stage.serve(HANDING_OVER)
    stage.prefilling = {P}
    stage.serve(WHOLE)
    assert stage.roles.turning == {P}
    stage.serve(standard(takes="[decode]"))
    assert stage.roles.turning == frozenset()
    stage.clock.advance(FLIP_S)
    stage.serve(WHOLE)
    assert stage.roles.turning == {P}


def test_standard_workers_can_prefill() -> None:
    """Where the prefill pool takes them; by default they decode."""
    stage = Stage(Role.STANDARD)
    stage.serve(WHOLE)
    stage.serve(HANDING_OVER)
    assert stage.usable(HANDING_OVER) == {S: Role.DECODE}
    prefilling = disaggregated(takes="[standard]")
    stage.serve(prefilling)
    assert stage.usable(prefilling) == {S: Role.PREFILL}


@pytest.mark.parametrize("state", [s for s in WorkerState if s is not READY])
def test_roles_make_nobody_ready(stage: Stage, state: WorkerState) -> None:
    """A worker that starts or drains stays in that state under every profile."""
    stage.records = tuple(
        worker_record(name, role=role, state=state)
        for name, role in (("p", Role.PREFILL), ("d", Role.DECODE))
    )
    stage.serve(WHOLE)
    assert stage.seen(WHOLE) == {P: (Role.STANDARD, state), D: (Role.STANDARD, state)}
    stage.prefilling = {P}
    stage.serve(HANDING_OVER, WHOLE)
    assert stage.seen(WHOLE)[P] == (Role.STANDARD, state)


def test_who_leaves_is_forgotten(stage: Stage) -> None:
    """A worker that comes back under its id starts in its role at once, whatever it did before."""
    stage.serve(HANDING_OVER)
    stage.prefilling = {P}
    stage.serve(WHOLE)
    assert stage.roles.turning == {P}
    everybody, stage.records = stage.records, stage.records[:1]
    stage.look()
    assert stage.roles.turning == frozenset()
    stage.records = everybody
    stage.look()
    assert stage.usable(WHOLE) == {P: Role.STANDARD, D: Role.STANDARD}


def test_a_new_worker_waits_for_nothing(stage: Stage) -> None:
    """It comes in the middle of a canary and has its role at once."""
    stage.serve(HANDING_OVER, WHOLE)
    stage.records = (*stage.records, worker_record("q", role=Role.PREFILL))
    stage.look()
    assert stage.usable(HANDING_OVER)["q"] is Role.PREFILL
    assert stage.asked == []
