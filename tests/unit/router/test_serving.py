"""Who is served by which profile, for how long, and what is counted of it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from baton.types import Tally
from profiles import ServingProfile
from router.policy import Counts
from router.serving import Serving, Servings
from tests.fakes.worker_records import worker_record
from tests.unit.router.serving_profiles import disaggregated, serving, standard

IDS = [f"request-{number}" for number in range(10_000)]
LEVEL = "  slo: {ttft_s: 0.5, tpot_s: 0.1, e2e_s: 10}\n"


def servings(*, share: float = 0.0, number: int = 1) -> Servings:
    """The handing-over profile, and a standard one that is tried."""
    counts = Counts()
    made = Servings(serving(disaggregated(), counts))
    made.arrange(made.current, serving(standard(), counts))
    made.share, made.number = share, number
    return made


def tried(made: Servings, ids: Iterable[str] = IDS) -> set[str]:
    """The ids that go to the candidate."""
    return {request_id for request_id in ids if made.pick(request_id) is made.candidate}


# --- lots ---------------------------------------------------------------------------------------


def test_routers_agree_on_who_is_tried() -> None:
    """The same id goes to the same side at each router, and each time it is sent."""
    one, other = servings(share=0.3), servings(share=0.3)
    assert tried(one) == tried(other) == tried(one)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_kept(share: float) -> None:
    """Of ten thousand requests as many are tried as the share says, within four deviations."""
    deviation = (len(IDS) * share * (1 - share)) ** 0.5
    assert abs(len(tried(servings(share=share))) - share * len(IDS)) < 4 * deviation


def test_nobody_and_everybody() -> None:
    """A share of 0 tries nobody and one of 1 everybody, without exception."""
    assert tried(servings(share=0.0)) == set()
    assert tried(servings(share=1.0)) == set(IDS)


def test_a_growing_share_keeps_those_it_has() -> None:
    """Who is tried at a tenth is tried at a half too: nobody goes to and fro."""
    assert tried(servings(share=0.1)) < tried(servings(share=0.5))


def test_another_switch_tries_others() -> None:
    """The number salts the lots: over two switches, the sets meet no more often than by chance."""
    first, second = (tried(servings(share=0.1, number=number)) for number in (1, 2))
    assert 50 < len(first & second) < 150  # a tenth of a tenth


def test_without_a_candidate_the_current_one_serves() -> None:
    """A share that is left from a canary means nothing."""
    made = servings(share=1.0)
    made.arrange(made.current, None)
    assert {made.pick(request_id) for request_id in IDS[:100]} == {made.current}


# --- coming and going ---------------------------------------------------------------------------


def test_a_serving_stays_until_its_last_request_ends() -> None:
    """What came in under a profile ends under it; then the profile is let go of."""
    made = servings()
    old, new = made.current, made.candidate
    assert new is not None
    old.held = 2
    made.arrange(new, None)
    assert (made.current, made.candidate) == (new, None)
    assert made.all() == [new, old]
    assert made.find(old.version) is old
    for left in (2, 1):
        old.held = left
        made.sweep()
        assert made.all() == [new, old]
    old.held = 0
    made.sweep()
    assert made.all() == [new]
    assert made.find(old.version) is None


def test_nobody_sweeps_those_who_serve() -> None:
    """The current one and the candidate stay, idle or not."""
    made = servings()
    before = made.all()
    made.sweep()
    assert made.all() == before == [made.current, made.candidate]


def test_an_old_serving_can_come_back() -> None:
    """A switch that is rolled back while old requests still run goes on with the same value, and
    its counters with it."""
    made = servings()
    old, new = made.current, made.candidate
    assert new is not None
    old.held = new.held = 1
    made.arrange(new, None)
    made.arrange(old, None)
    assert made.all() == [old, new]
    new.held = 0
    made.sweep()
    assert made.all() == [old]


def test_who_has_left_hears_of_nothing() -> None:
    """Counts are told to those who serve; a serving that was let go of costs nothing more."""
    counts = Counts()
    made = Servings(serving(disaggregated(), counts))
    old = made.current
    made.arrange(serving(standard(), counts), None)
    made.sweep()
    counts.leg(worker_record("d").id, 1)
    assert old.traffic.stale == set()
    assert made.current.traffic.stale == {"d"}


# --- what is counted ----------------------------------------------------------------------------


def level(made: Serving) -> Servings:
    """Servings that hold requests against half a second, a tenth, and ten."""
    found = Servings(made)
    found.slo = disaggregated(more=LEVEL).spec.slo
    return found


@pytest.mark.parametrize(
    ("status", "broke_off", "ttft_s", "tpot_s", "duration_s", "errors", "missed"),
    [
        (200, False, 0.4, 0.05, 5.0, 0, 0),
        (200, False, 0.5, 0.1, 10.0, 0, 0),
        (200, False, 0.6, 0.05, 5.0, 0, 1),
        (200, False, 0.4, 0.2, 5.0, 0, 1),
        (200, False, 0.4, 0.05, 11.0, 0, 1),
        (200, False, 0.6, 0.2, 11.0, 0, 1),
        (200, False, None, None, 5.0, 0, 0),
        (200, False, None, None, 11.0, 0, 1),
        (200, True, 0.4, 0.05, 5.0, 1, 0),
        (200, True, 0.6, 0.2, 11.0, 1, 0),
        (500, False, None, None, 0.1, 1, 0),
        (503, False, None, None, 11.0, 1, 0),
    ],
)
def test_what_a_request_counts_as(
    status: int,
    broke_off: bool,
    ttft_s: float | None,
    tpot_s: float | None,
    duration_s: float,
    errors: int,
    missed: int,
) -> None:
    """Each request is one error, or one miss of the service level, or neither; what ended badly
    says nothing of the level. Bounds themselves are met, and what has no value misses none."""
    made = serving()
    level(made).done(
        made,
        status=status,
        broke_off=broke_off,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        duration_s=duration_s,
    )
    streams = 0 if ttft_s is None else 1
    assert made.tally() == Tally(1, errors, missed, streams, ttft_s or 0.0)


def done(made: Servings, profile: Serving, **more: float | None) -> None:
    """A good answer has ended; slow unless told otherwise."""
    fields = {"ttft_s": 2.0, "tpot_s": 1.0, "duration_s": 60.0, **more}
    made.done(profile, status=200, broke_off=False, **fields)  # type: ignore[arg-type]


def test_without_a_level_nothing_is_missed() -> None:
    """A profile that asks for nothing gets no misses, however slow."""
    made = Servings(serving())
    done(made, made.current)
    assert made.current.tally() == Tally(1, 0, 0, 1, 2.0)


def test_both_sides_are_held_against_the_same_level() -> None:
    """Else a candidate with a lax level would look better for that alone."""
    strict, lax = disaggregated(more=LEVEL), standard(more="  slo: {ttft_s: 60}\n")
    made = Servings(serving(strict))
    made.arrange(made.current, serving(lax))
    for profile in made.all():
        done(made, profile)
    assert [profile.missed for profile in made.all()] == [1, 1]


def test_streams_add_up() -> None:
    """The mean time to the first content is that of the streams, other answers left out."""
    made = Servings(serving())
    for ttft_s in (0.25, None, 0.5):
        done(made, made.current, ttft_s=ttft_s)
    assert made.current.tally() == Tally(requests=3, streams=2, ttft_s=0.75)


@pytest.mark.parametrize("profile", [disaggregated(), standard()], ids=lambda p: p.name)
def test_what_a_serving_says_of_its_profile(profile: ServingProfile) -> None:
    """Before anybody has told it of workers it has none, and no pool is left out."""
    made = serving(profile)
    assert (made.name, made.version) == (profile.name, profile.version)
    assert made.attempts == profile.degrade.attempts
    assert made.fleet.everyone == 0
    assert not made.settled
    assert made.pools.by_role == profile.spec.pools.by_role
