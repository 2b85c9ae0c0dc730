"""Who belongs to a group and who is lost: beats and answers in, decisions out, no clock."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from baton.worker.members import OVER, Answer, Beat, Phase, Roster, Step, Tether, Timing

TIMING = Timing(lost_after_s=3.0, gather_limit_s=60.0)
TICK_S = 0.2
GROUP = "baton-prefill-0.baton-prefill.serving:29500"


def beat(index: int = 1, **changes: Any) -> Beat:
    plain = Beat(index=index, size=3, member=f"process-{index}", setup="the same", group=GROUP)
    return msgspec.structs.replace(plain, **changes)


def answer(phase: Phase = Phase.RUNNING, **changes: Any) -> Answer:
    plain = Answer(
        run="run-1", phase=phase, ready=False, master_address="10.0.0.1", master_port=29500
    )
    return msgspec.structs.replace(plain, **changes)


class Leading:
    """A roster of three and the time."""

    def __init__(self, *, running: bool = True) -> None:
        self.now_s = 100.0
        self.roster = Roster(3, "the same", GROUP, now_s=self.now_s, timing=TIMING)
        if running:
            self.hear(beat(1))
            self.hear(beat(2))
            self.wait(TICK_S)
            assert self.phase() is Phase.RUNNING

    def phase(self) -> Phase:
        return self.roster.phase

    def missing(self) -> list[int]:
        return list(self.roster.missing)

    def hear(self, told: Beat) -> str:
        return self.roster.hear(told, self.now_s)

    def wait(self, seconds: float, *alive: int) -> None:
        """Time passes, looked at every tick; the followers named beat once a second."""
        for number in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            if number % 5 == 0:
                for index in alive:
                    self.hear(beat(index))
            self.roster.tick(self.now_s)


def test_the_engine_starts_when_all_are_there() -> None:
    """Not before: ranks that wait for others hold memory, and give up at some point."""
    group = Leading(running=False)
    group.wait(5)
    assert group.missing() == [1, 2]
    group.wait(10, 2)
    assert (group.phase(), group.missing()) == (Phase.GATHERING, [1])
    group.wait(1, 1, 2)
    assert (group.phase(), group.missing()) == (Phase.RUNNING, [])


def test_a_member_that_goes_before_the_start_is_waited_for_again() -> None:
    """Silent or with a goodbye, and another process may come in its place: no rank is lost."""
    group = Leading(running=False)
    group.hear(beat(1))
    group.wait(4)
    assert group.missing() == [1, 2]
    group.hear(beat(1))
    group.hear(beat(1, bye="stopped"))
    group.hear(beat(2))
    group.wait(TICK_S)
    assert group.missing() == [1]
    group.hear(beat(2, member="another"))
    group.hear(beat(1, member="another"))
    group.wait(TICK_S)
    assert group.phase() is Phase.RUNNING


def test_members_that_never_come() -> None:
    """The wait has an end, which names them."""
    group = Leading(running=False)
    group.wait(61, 1)
    assert group.phase() is Phase.LOST
    assert group.roster.reason == "followers 2 did not come"


def test_a_silent_follower_is_lost() -> None:
    """After three seconds, not sooner, whatever the others do."""
    group = Leading()
    group.wait(20, 1, 2)
    group.hear(beat(2))
    group.wait(2.8, 1)
    assert group.phase() is Phase.RUNNING
    group.wait(0.4)
    assert group.phase() is Phase.LOST
    assert group.roster.reason == "no beat of follower 2 for 3 s"
    assert not group.roster.all_told
    group.hear(beat(1))
    assert group.roster.all_told, "the lost one is not waited for"


def test_a_leader_that_was_held_up_loses_nobody() -> None:
    """It heard nobody because it did not listen; who is silent afterwards is lost as ever."""
    group = Leading()
    group.now_s += 30
    group.roster.tick(group.now_s)
    assert group.phase() is Phase.RUNNING
    group.wait(2, 1, 2)
    assert group.phase() is Phase.RUNNING
    group.wait(4, 1)
    assert group.phase() is Phase.LOST


@pytest.mark.parametrize("pause_s", [1.1, 2.5, 10.0])
def test_a_leader_that_is_held_up_again_and_again(pause_s: float) -> None:
    """It keeps those that beat in between, and still loses one that is dead."""
    group = Leading()
    for _ in range(10):
        group.now_s += pause_s
        group.roster.tick(group.now_s)
        group.hear(beat(1))
        group.hear(beat(2))
    assert group.phase() is Phase.RUNNING
    began_s = group.now_s
    while group.phase() is Phase.RUNNING:
        assert group.now_s - began_s < 2 * pause_s + 2 * TIMING.lost_after_s
        group.now_s += pause_s
        group.roster.tick(group.now_s)
        group.hear(beat(1))
    assert group.roster.reason == "no beat of follower 2 for 3 s"


def test_a_pause_makes_nobody_heard_later_than_now() -> None:
    """Heard in the pause's last moment, a follower gets three seconds from there, not more."""
    group = Leading()
    group.now_s += 30
    group.hear(beat(1))
    group.hear(beat(2))
    group.roster.tick(group.now_s)
    group.wait(3.2, 1)
    assert group.roster.reason == "no beat of follower 2 for 3 s"


def test_asked_to_drain_before_the_start() -> None:
    """Such a follower does not start any more, so the leader does not count it as there."""
    group = Leading(running=False)
    group.hear(beat(1))
    group.hear(beat(2))
    group.hear(beat(2, drain=True))
    group.wait(TICK_S)
    assert (group.phase(), group.missing()) == (Phase.GATHERING, [2])


@pytest.mark.parametrize(
    ("leaving", "lost", "phase"),
    [
        (True, False, Phase.ENDED),
        (True, True, Phase.LOST),
        (False, False, Phase.LOST),
    ],
)
def test_a_follower_that_does_not_wait_for_the_drain(
    leaving: bool, lost: bool, phase: Phase
) -> None:
    """Asked twice to stop. While the leader leaves as well that is a good end; otherwise, and when
    its part failed, a loss."""
    group = Leading()
    group.roster.leaving = leaving
    group.hear(beat(1, drain=True, bye="asked twice", lost=lost))
    assert group.phase() is phase


def test_the_end_is_told_to_those_who_were_there() -> None:
    """Not to another process that has come in a follower's place."""
    group = Leading()
    group.roster.end()
    group.hear(beat(1))
    group.hear(beat(2, member="another"))
    assert not group.roster.all_told
    group.hear(beat(2))
    assert group.roster.all_told


def test_a_goodbye_needs_no_silence() -> None:
    """A follower whose engine ended says so: the group is lost at once, with its words."""
    group = Leading()
    group.hear(beat(2, bye="the engine ended with status 1"))
    assert group.phase() is Phase.LOST
    assert group.roster.reason == "follower 2 ended: the engine ended with status 1"


def test_another_process_in_a_followers_place() -> None:
    """Restarted faster than silence shows: the rank that it held is gone all the same."""
    group = Leading()
    group.hear(beat(1, member="another"))
    assert group.phase() is Phase.LOST
    assert group.roster.reason == "follower 1 was started again"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (beat(0), "member 0 of 3 does not belong"),
        (beat(3), "member 3 of 3 does not belong"),
        (beat(1, size=2), "member 1 of 2 does not belong"),
        (beat(1, setup="other"), "differ in profile, model, engine flags or a version"),
        (beat(1, group="baton-decode-0:29500"), "member 1 of the group of baton-decode-0:29500"),
        (beat(1, group="another", member="another"), "members have to be told the same"),
        (beat(1, group="another", bye="x", lost=True), "members have to be told the same"),
    ],
)
@pytest.mark.parametrize("running", [True, False])
def test_strangers_are_refused(told: Beat, said: str, running: bool) -> None:
    """Of another group, or set up otherwise; they change nothing."""
    group = Leading(running=running)
    before = (group.phase(), group.missing())
    assert said in group.hear(told)
    assert (group.phase(), group.missing()) == before


def test_a_follower_that_is_asked_to_stop_drains_the_group() -> None:
    """Its beat says so; until the leader has drained, it belongs to the group."""
    group = Leading()
    assert not group.roster.drain_wanted
    group.hear(beat(1, drain=True))
    assert group.roster.drain_wanted
    assert group.phase() is Phase.RUNNING


@pytest.mark.parametrize("how", ["goodbye", "silence", "another process", "engine"])
def test_once_drained_nobody_is_lost(how: str) -> None:
    """Who goes then ends the group in good order."""
    group = Leading()
    group.roster.drained()
    group.wait(10, 1, 2)
    assert group.phase() is Phase.DRAINED
    if how == "goodbye":
        group.hear(beat(1, bye="the group has drained"))
    elif how == "silence":
        group.wait(4, 2)
    elif how == "another process":
        group.hear(beat(1, member="another"))
    else:
        group.roster.engine_ended("status 1")
    assert (group.phase(), group.roster.reason) == (Phase.ENDED, "")


def test_an_engine_that_ends_by_itself() -> None:
    """Before the drain is over, that is a loss."""
    group = Leading()
    group.roster.engine_ended("the leader's engine: status 1")
    assert group.phase() is Phase.LOST


def test_the_end_is_told() -> None:
    """A leader that goes in good order waits until each follower has heard, and then some."""
    group = Leading()
    group.roster.drained()
    group.roster.end()
    assert not group.roster.all_told
    group.hear(beat(1))
    assert not group.roster.all_told
    group.hear(beat(2, bye="the group ended"))
    assert group.roster.all_told


def test_nobody_to_tell() -> None:
    """A group that never gathered ends alone."""
    group = Leading(running=False)
    group.roster.end()
    assert group.roster.all_told


def happens(group: Leading, what: int) -> None:
    """One of the things that can happen to a leader."""
    roster = group.roster
    things: list[Callable[[], object]] = [
        lambda: group.wait(4),
        lambda: group.hear(beat(1, bye="x")),
        lambda: group.hear(beat(2, member="another")),
        lambda: roster.lose("later"),
        lambda: roster.engine_ended("later"),
        roster.drained,
        roster.end,
    ]
    things[what]()


def test_the_end_is_final() -> None:
    """Whatever comes later, at random: neither phase nor reason change any more."""
    rng = random.Random(5)
    ends = set()
    for _ in range(60):
        group = Leading()
        while group.phase() not in OVER:
            happens(group, rng.randrange(7))
        before = (group.phase(), group.roster.reason)
        ends.add(group.phase())
        for _ in range(20):
            happens(group, rng.randrange(7))
            assert (group.phase(), group.roster.reason) == before
    assert ends == OVER


class Following:
    """A tether and the time."""

    def __init__(self, *, joined: bool = True) -> None:
        self.now_s = 50.0
        self.tether = Tether(now_s=self.now_s, timing=TIMING)
        if joined:
            assert self.hear(answer()) is Step.START

    def hear(self, told: Answer, after_s: float = 1.0) -> Step:
        self.now_s += after_s
        return self.tether.heard(told, self.now_s)

    def silence(self, after_s: float = 1.0) -> Step:
        self.now_s += after_s
        return self.tether.silent(self.now_s)


def test_a_follower_waits_for_its_group() -> None:
    """For a leader that answers, for the other members, and then starts once."""
    member = Following(joined=False)
    assert [member.silence() for _ in range(20)] == [Step.WAIT] * 20
    assert member.hear(answer(Phase.GATHERING)) is Step.WAIT
    assert not member.tether.joined
    assert member.hear(answer()) is Step.START
    assert member.tether.run == "run-1"
    assert member.hear(answer()) is Step.STAY


@pytest.mark.parametrize("phase", [Phase.LOST, Phase.ENDED, Phase.DRAINED, Phase.GATHERING])
def test_a_group_that_cannot_be_joined(phase: Phase) -> None:
    """The one before may still be ending: its leader's end is not ours, and the wait has one."""
    member = Following(joined=False)
    assert member.hear(answer(phase)) is Step.WAIT
    assert member.hear(answer(phase), after_s=61) is Step.ABORT
    assert member.tether.reason


def test_no_leader_ever() -> None:
    """The wait has an end."""
    member = Following(joined=False)
    assert member.silence(59) is Step.WAIT
    assert member.silence(2) is Step.ABORT


def test_a_lost_leader() -> None:
    """Three seconds without an answer, and the follower gives up its rank."""
    member = Following()
    assert member.hear(answer()) is Step.STAY
    assert [member.silence() for _ in range(3)] == [Step.STAY] * 3
    assert member.silence(0.5) is Step.ABORT
    assert member.tether.reason == "no answer of the leader for 3.5 s"


def test_a_late_answer_is_one() -> None:
    """Silence counts from the last answer."""
    member = Following()
    for _ in range(5):
        assert member.silence(1.0) is Step.STAY
        assert member.silence(1.4) is Step.STAY
        assert member.hear(answer(), 0.5) is Step.STAY


def test_a_leader_that_is_quiet() -> None:
    """Said before it is lost: two answers that do not come."""
    member = Following()
    member.silence(1.4)
    assert not member.tether.quiet
    member.silence(1.0)
    assert member.tether.quiet
    member.hear(answer())
    assert not member.tether.quiet


def test_a_follower_that_is_held_up_again_and_again() -> None:
    """It still notices that its leader is gone."""
    member = Following()
    steps = [member.silence(4) for _ in range(3)]
    assert steps[0] is Step.STAY
    assert Step.ABORT in steps


def test_a_follower_that_was_held_up() -> None:
    """It asked nobody meanwhile, so nobody is lost yet."""
    member = Following()
    assert member.silence(30) is Step.STAY
    assert member.hear(answer()) is Step.STAY


@pytest.mark.parametrize(
    ("told", "step", "reason"),
    [
        (answer(Phase.LOST, reason="no beat of follower 2"), Step.ABORT, "no beat of follower 2"),
        (answer(run="run-2"), Step.ABORT, "the leader was started again"),
        (answer(Phase.GATHERING, run="run-2"), Step.ABORT, "the leader was started again"),
        (answer(Phase.ENDED), Step.STOP, "the group ended"),
    ],
)
def test_the_leader_says_that_it_is_over(told: Answer, step: Step, reason: str) -> None:
    """Lost at once, ended in good order; another run of the leader has no use for our rank."""
    member = Following()
    assert member.hear(told) is step
    assert member.tether.reason == reason


def test_readiness_is_the_leaders() -> None:
    """Only it knows whether the engine has generated."""
    member = Following()
    assert not member.tether.ready
    member.hear(answer(ready=True))
    assert member.tether.ready
    member.hear(answer(ready=False))
    assert not member.tether.ready


def test_asked_to_stop_it_waits_for_the_drain() -> None:
    """All pods of a group are asked at once: the rank stays until the leader needs it no more."""
    member = Following()
    member.tether.leave(member.now_s, limit_s=50)
    assert member.tether.drain_asked
    assert [member.hear(answer()) for _ in range(20)] == [Step.STAY] * 20
    assert member.hear(answer(Phase.DRAINED)) is Step.STOP


def test_asked_to_stop_it_does_not_wait_for_ever() -> None:
    """Neither for a leader that does not drain nor for one that is gone."""
    member = Following()
    member.tether.leave(member.now_s, limit_s=50)
    assert member.hear(answer(), 49) is Step.STAY
    assert member.hear(answer(), 2) is Step.STOP
    member = Following()
    member.tether.leave(member.now_s, limit_s=50)
    assert [member.silence(), member.silence(), member.silence()] == [Step.STAY] * 3
    assert member.silence() is Step.STOP


def test_asked_to_drain_it_stays() -> None:
    """A hook asks before the signal comes; the drain is over when the leader says so."""
    member = Following()
    member.tether.drain()
    assert not member.tether.drained
    assert member.hear(answer(Phase.DRAINED)) is Step.STAY
    assert member.tether.drained
    member.tether.leave(member.now_s, limit_s=50)
    assert member.hear(answer(Phase.DRAINED)) is Step.STOP


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.RUNNING])
def test_asked_to_stop_before_the_start(phase: Phase) -> None:
    """It has nothing to drain and does not start any more."""
    member = Following(joined=False)
    member.tether.leave(member.now_s, limit_s=50)
    assert member.tether.drained
    assert member.hear(answer(phase)) is Step.STOP
    assert not member.tether.joined


def test_messages_survive_the_wire() -> None:
    """As JSON, with the phases by name."""
    for message in (beat(2, drain=True, bye="x"), answer(Phase.DRAINED, ready=True)):
        encoded = msgspec.json.encode(message)
        assert msgspec.json.decode(encoded, type=type(message)) == message


def test_the_timing_fits_itself() -> None:
    """Two beats may fail before a member is lost, and the whole end stays within ten seconds."""
    normal = Timing()
    assert normal.beat_s + normal.again_s + normal.answer_s < normal.lost_after_s
    assert normal.lost_after_s + normal.answer_s + normal.tell_s + 3 < 10
    assert dataclasses.replace(normal, beat_s=2).beat_s == 2
