"""What a plan can ask for: one frozen record for each thing that the controller changes.

Each carries what it must find unchanged when it is done (an object's version, workers that hold
nothing), so that it can be refused instead of done on an old picture. Each says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deploy.controller.picture import Memory, Pool, Remnant
from profiles.switching import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One change.

    Attributes:
        reason: why, in half a sentence.
    """

    kind: ClassVar[str] = ""
    lessens: ClassVar[bool] = False
    """Whether it takes something away: never done without the routers' word."""

    reason: str

    @property
    def target(self) -> str:
        """What is changed, for people."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteWish(Action):
    """Remember a wish, or what became of it."""

    kind: ClassVar[str] = "note"
    memory: Memory
    profile: Ref

    @property
    def target(self) -> str:
        """The wish."""
        return f"wish {self.memory.digest} ({self.profile.name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePool(Action):
    """Make a pool that is not there."""

    kind: ClassVar[str] = "create"
    profile: Ref
    role: str
    key: str

    @property
    def target(self) -> str:
        """Role and key."""
        return f"pool {self.role} {self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePool(Action):
    """Have a pool grow to ``replicas`` groups."""

    kind: ClassVar[str] = "grow"
    pool: Pool
    replicas: int

    @property
    def target(self) -> str:
        """The pool and the numbers."""
        return f"pool {self.pool.name} from {self.pool.replicas} to {self.replicas}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkPool(ScalePool):
    """Have a pool shrink, once none of the groups that go holds anything."""

    kind: ClassVar[str] = "shrink"
    lessens: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePool(Action):
    """Delete a pool that the controller made, once none of its groups holds anything."""

    kind: ClassVar[str] = "delete"
    lessens: ClassVar[bool] = True
    pool: Pool

    @property
    def target(self) -> str:
        """The pool."""
        return f"pool {self.pool.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkPool(Action):
    """Note on the pool that cordons of its groups from ``first`` on are the controller's.

    It is written before the first cordon, so that a later controller can tell its own cordons from
    an operator's, which are never taken back.
    """

    kind: ClassVar[str] = "mark"
    pool: Pool
    first: int

    @property
    def target(self) -> str:
        """The pool and the groups."""
        return f"pool {self.pool.name}: groups from {self.first} on"


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseMark(MarkPool):
    """Note on the pool that its groups below ``first`` were seen to take traffic again: from now on
    a cordon of theirs is an operator's."""

    kind: ClassVar[str] = "open"

    @property
    def target(self) -> str:
        """The pool and the groups."""
        return f"pool {self.pool.name}: groups below {self.first}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWorker(Action):
    """Have routers send a worker nothing new."""

    kind: ClassVar[str] = "drain"
    lessens: ClassVar[bool] = True
    worker: str

    @property
    def target(self) -> str:
        """The worker."""
        return f"worker {self.worker}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainWorker(Action):
    """Have routers use a worker again."""

    kind: ClassVar[str] = "undrain"
    worker: str

    @property
    def target(self) -> str:
        """The worker."""
        return f"worker {self.worker}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginSwitch(Action):
    """Ask the routers to switch to the wish.

    Attributes:
        profile, digest: the wish.
        by: who asks, as routers note it.
        hurried: nothing serves that a canary could be held against.
    """

    kind: ClassVar[str] = "switch"
    profile: Ref
    digest: str
    by: str
    hurried: bool = False

    @property
    def target(self) -> str:
        """The profile."""
        return f"routers to {self.profile.name} ({self.profile.version})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror(Action):
    """Write down what serves, for routers that start from nothing."""

    kind: ClassVar[str] = "mirror"
    profile: Ref

    @property
    def target(self) -> str:
        """The profile."""
        return f"{self.profile.name} ({self.profile.version})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep(Action):
    """Delete what was made beside a pool that is gone."""

    kind: ClassVar[str] = "sweep"
    lessens: ClassVar[bool] = True
    remnant: Remnant

    @property
    def target(self) -> str:
        """The object."""
        return f"{self.remnant.path.rpartition('/')[2]} {self.remnant.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What the controller waits for.

    Attributes:
        key: the same as long as it is the same wait.
        sentence: for people.
        limit_s: after which operators are told; None for never.
    """

    key: str
    sentence: str
    limit_s: float | None = None
