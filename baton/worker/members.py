"""Who belongs to a group, who is lost, and what follows from it. No I/O, no clock.

Each follower sends the leader a beat about once a second; the answer says what the group does. Two
small machines decide: ``Roster`` for the leader, ``Tether`` for a follower. Both get what was heard
and the time, and say what to do. An engine that spans nodes cannot go on without one of them, nor
take a new one in: so one loss is the end of the group, and whatever runs it makes a new one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import msgspec

_STALL_S = 1.0
"""Whoever looks this much later than it should was held up itself, and heard nobody meanwhile."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How often members speak, and how long they wait. In seconds; the same in a whole group.

    Attributes:
        beat_s: between two beats of a follower.
        again_s: from a beat that failed to the next.
        answer_s: for one beat, connecting included.
        lost_after_s: silence after which a member is lost. Two beats may be late or fail. Longer
            would keep requests waiting on an engine that will not answer; a false alarm costs a
            group's start.
        gather_limit_s: until all members are there. Pods of a group may wait for nodes and images;
            the bound is there for those that never come.
        tell_s: how long the end of a group waits for followers to hear of it: two beats and a bit.
            Those that do not hear notice by themselves that the leader is gone.
        progress_s: between two lines in the log that say what is waited for.
    """

    beat_s: float = 1.0
    again_s: float = 0.5
    answer_s: float = 1.0
    lost_after_s: float = 3.0
    gather_limit_s: float = 1800.0
    tell_s: float = 2.5
    progress_s: float = 10.0


class Phase(enum.StrEnum):
    """What a group does."""

    GATHERING = "gathering"
    """Members are missing; no engine runs."""
    RUNNING = "running"
    """All were there: each runs its part of the engine, or starts it."""
    DRAINED = "drained"
    """Nothing is in flight any more; members may go."""
    ENDED = "ended"
    """Over, in good order: members stop."""
    LOST = "lost"
    """Over, because a part failed: members stop at once."""


OVER = frozenset({Phase.ENDED, Phase.LOST})


class Beat(msgspec.Struct, frozen=True):
    """What a follower tells its leader.

    Attributes:
        index: its number in the group.
        size: members of the group, as it was told.
        member: drawn at random by its process, so that another process in its place is noticed.
        setup: digest of all that the members' engines have to agree on.
        group: which group it belongs to (``GroupPlace.name``): what it reaches at its leader's
            address may be the leader of another.
        run: the engine id that it joined; empty before.
        drain: it was asked to drain or to stop, so that the group has to drain.
        bye: its last beat, and why; empty for all others.
        lost: with ``bye``, that its part failed.
    """

    index: int
    size: int
    member: str
    setup: str
    group: str
    run: str = ""
    drain: bool = False
    bye: str = ""
    lost: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What the leader answers.

    Attributes:
        run: the engine id that all members use; another one is another life of the leader.
        phase: what the group does.
        ready: whether the engine has generated.
        master_address, master_port: where the ranks meet.
        reason: why the group is lost, or empty.
    """

    run: str
    phase: Phase
    ready: bool
    master_address: str
    master_port: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    member: str
    heard_s: float
    spared: bool = False
    """Whether a pause of the leader's own was taken off its silence, since its last beat."""

    def after_pause(self, pause_s: float, now_s: float) -> _Seen:
        """As it is once the leader was held up, which counts for nobody: once. A leader that is
        held up again and again would otherwise never miss one that is dead."""
        if self.spared:
            return self
        return replace(self, heard_s=min(now_s, self.heard_s + pause_s), spared=True)


class Roster:
    """The leader's knowledge of its followers. ``leaving`` is set from outside, once the leader
    was asked to stop.

    Args:
        size: members of the group, the leader included.
        setup: digest that every follower's has to equal.
        group: the group's name, likewise.
        now_s: the time on the monotonic clock, as in all methods.
        timing: how long silence may be.
    """

    def __init__(self, size: int, setup: str, group: str, *, now_s: float, timing: Timing) -> None:
        self.leaving = False
        self.phase = Phase.GATHERING
        self.reason = ""
        self.drain_wanted = False
        self._size = size
        self._setup = setup
        self._group = group
        self._lost_after_s = timing.lost_after_s
        self._gather_until_s = now_s + timing.gather_limit_s
        self._looked_s = now_s
        self._seen: dict[int, _Seen] = {}
        self._told: set[int] = set()

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the followers that are not there."""
        return tuple(i for i in range(1, self._size) if i not in self._seen)

    @property
    def all_told(self) -> bool:
        """Whether every follower that was there has heard that the group is over."""
        return self._told >= set(self._seen)

    def hear(self, beat: Beat, now_s: float) -> str:
        """Takes a beat in.

        Returns:
            Why it is refused, for the follower's log; empty when it is not.
        """
        if beat.group != self._group:
            return (
                f"member {beat.index} of the group of {beat.group} asked the leader of the group "
                f"of {self._group}; members have to be told the same LWS_LEADER_ADDRESS and "
                "BATON_GROUP_PORT"
            )
        if not 1 <= beat.index < self._size or beat.size != self._size:
            return (
                f"member {beat.index} of {beat.size} does not belong to this group of {self._size}"
            )
        if beat.setup != self._setup:
            return (
                "leader and follower differ in profile, model, engine flags or a version; give "
                "every member of a group the same"
            )
        known = self._seen.get(beat.index)
        if self.phase is Phase.GATHERING:
            self._gather(beat, now_s)
        elif known is None or known.member != beat.member:
            self._replaced(beat)
        elif self.phase in OVER:
            self._told.add(beat.index)
        elif beat.bye:
            self._left(beat)
        else:
            self._seen[beat.index] = _Seen(beat.member, now_s)
            self.drain_wanted = self.drain_wanted or beat.drain
        return ""

    def tick(self, now_s: float) -> None:
        """Looks for silence; to be called several times a second."""
        pause_s = now_s - self._looked_s
        self._looked_s = now_s
        if pause_s > _STALL_S:
            self._seen = {i: s.after_pause(pause_s, now_s) for i, s in self._seen.items()}
        silent = [i for i, s in self._seen.items() if now_s - s.heard_s > self._lost_after_s]
        if self.phase is Phase.GATHERING:
            for index in silent:
                del self._seen[index]
            if not self.missing:
                self.phase = Phase.RUNNING
            elif now_s > self._gather_until_s:
                self.lose(f"followers {_listed(self.missing)} did not come")
        elif self.phase is Phase.RUNNING and silent:
            self._told.update(silent)
            self.lose(f"no beat of follower {_listed(silent)} for {self._lost_after_s:g} s")
        elif self.phase is Phase.DRAINED and silent:
            self._told.update(silent)
            self.phase = Phase.ENDED

    def lose(self, reason: str) -> None:
        """The group cannot go on; nothing changes if it is over already."""
        if self.phase not in OVER:
            self.phase, self.reason = Phase.LOST, reason

    def engine_ended(self, reason: str) -> None:
        """The leader's engine ended by itself: a loss, unless nothing was left to do for it and
        the followers may have gone."""
        if self.phase is Phase.DRAINED:
            self.phase = Phase.ENDED
        else:
            self.lose(reason)

    def drained(self) -> None:
        """The leader has nothing in flight any more."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINED

    def end(self) -> None:
        """The leader goes, in good order."""
        if self.phase not in OVER:
            self.phase = Phase.ENDED

    def _gather(self, beat: Beat, now_s: float) -> None:
        if beat.bye or beat.drain:
            # One that is to drain does not start any more.
            self._seen.pop(beat.index, None)
        else:
            self._seen[beat.index] = _Seen(beat.member, now_s)

    def _left(self, beat: Beat) -> None:
        self._told.add(beat.index)
        if self.phase is Phase.DRAINED or (self.leaving and not beat.lost):
            self.phase = Phase.ENDED
        else:
            self.lose(f"follower {beat.index} ended: {beat.bye}")

    def _replaced(self, beat: Beat) -> None:
        """Another process beats in a follower's place: the one that held a rank is gone, or about
        to hear of the end as others do."""
        if self.phase is Phase.RUNNING:
            self.lose(f"follower {beat.index} was started again")
        elif self.phase is Phase.DRAINED:
            self.phase = Phase.ENDED


class Step(enum.Enum):
    """What a follower does next."""

    WAIT = "wait"
    START = "start"
    STAY = "stay"
    STOP = "stop"
    ABORT = "abort"


class Tether:
    """A follower's tie to its leader. ``quiet`` says that it did not answer for a while.

    Args:
        now_s: the time on the monotonic clock, as in all methods.
        timing: how long silence may be.
    """

    def __init__(self, *, now_s: float, timing: Timing) -> None:
        self.run = ""
        self.drained = False
        self.ready = False
        self.reason = ""
        self.quiet = False
        self._spared = False
        self._lost_after_s = timing.lost_after_s
        self._stall_s = timing.answer_s + timing.beat_s + _STALL_S
        self._wait_until_s = now_s + timing.gather_limit_s
        self._heard_s = now_s
        self._looked_s = now_s
        self._drain_asked = False
        self._leave_by_s: float | None = None

    @property
    def joined(self) -> bool:
        """Whether this member has a part of the engine."""
        return bool(self.run)

    @property
    def drain_asked(self) -> bool:
        """Whether this member was asked to drain: the leader has to hear of it."""
        return self._drain_asked

    def drain(self) -> None:
        """Somebody asks this member to drain; it stays."""
        self._drain_asked = True
        self.drained = self.drained or not self.joined

    def leave(self, now_s: float, limit_s: float) -> None:
        """Somebody asks this member to stop: once the leader has drained, or after ``limit_s``."""
        self.drain()
        if self._leave_by_s is None:
            self._leave_by_s = now_s + limit_s

    def heard(self, answer: Answer, now_s: float) -> Step:
        """Takes an answer of the leader in."""
        self._looked_s = self._heard_s = now_s
        self.quiet = self._spared = False
        if not self.joined:
            return self._may_join(answer, now_s)
        if answer.run != self.run:
            return self._abort("the leader was started again")
        self.ready = answer.ready
        if answer.phase is Phase.LOST:
            return self._abort(answer.reason)
        if answer.phase is Phase.ENDED:
            self.reason = "the group ended"
            return Step.STOP
        self.drained = self.drained or answer.phase is Phase.DRAINED
        return self._or_leave(now_s)

    def silent(self, now_s: float) -> Step:
        """Takes in that the leader gave no answer."""
        pause_s = now_s - self._looked_s
        self._looked_s = now_s
        if not self.joined:
            return self._go_on_waiting(now_s, "the leader did not answer")
        if pause_s > self._stall_s and not self._spared:
            # Longer than a beat that gets no answer, and the pause before it. Once, as a leader
            # does: held up again and again, it has to notice at some point.
            self._heard_s, self._spared = min(now_s, self._heard_s + pause_s), True
        silent_s = now_s - self._heard_s
        self.quiet = silent_s > self._lost_after_s / 2
        if silent_s <= self._lost_after_s:
            return self._or_leave(now_s)
        if self._leave_by_s is not None:
            self.reason = "the leader is gone"
            return Step.STOP
        return self._abort(f"no answer of the leader for {silent_s:.1f} s")

    def _may_join(self, answer: Answer, now_s: float) -> Step:
        if answer.phase is Phase.RUNNING and not self._drain_asked:
            self.run = answer.run
            return Step.START
        return self._go_on_waiting(now_s, "the group did not start")

    def _go_on_waiting(self, now_s: float, why: str) -> Step:
        if self._leave_by_s is not None:
            self.reason = "asked to stop before the group started"
            return Step.STOP
        if now_s > self._wait_until_s:
            return self._abort(why)
        return Step.WAIT

    def _or_leave(self, now_s: float) -> Step:
        if self._leave_by_s is None:
            return Step.STAY
        if self.drained:
            self.reason = "the group has drained"
            return Step.STOP
        if now_s > self._leave_by_s:
            self.reason = "the leader did not drain in time"
            return Step.STOP
        return Step.STAY

    def _abort(self, reason: str) -> Step:
        self.reason = reason
        return Step.ABORT


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
