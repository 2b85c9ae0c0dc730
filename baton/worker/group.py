"""Which place a process has in a group: several processes, one a node, that are one worker.

A LeaderWorkerSet tells each of its pods through three variables. Nothing here talks to anybody;
who is there and who is lost is ``baton.worker.members``' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baton.errors import SettingsError

SIZE_VARIABLE = "LWS_GROUP_SIZE"
INDEX_VARIABLE = "LWS_WORKER_INDEX"
LEADER_VARIABLE = "LWS_LEADER_ADDRESS"
"""Set by the LeaderWorkerSet controller in every container of a group."""

HEALTH_PORT = 8180
"""The health server of a group's member where nothing else is said: members cannot do without, as
the followers' beats go there."""
GROUP_PORT = 29500
"""Where the ranks meet, on the leader's node; the default of torch's own launcher."""

GROUP_LOST = 3
"""Exit status of each member of a group that lost a part of itself. Others: 0 in good order, 2 for
settings that a person has to mend."""

MAX_SIZE = 64
"""As many nodes as a pool of a profile may have."""


@dataclass(frozen=True, slots=True)
class GroupPlace:
    """A process's place in its group.

    Attributes:
        size: processes of the group, two or more.
        index: this one's number; 0 is the leader.
        leader: name or address of the leader's node.
        leader_health_port: where the leader's health server listens.
        rendezvous_port: where the leader's ranks listen for the others.
    """

    size: int
    index: int
    leader: str
    leader_health_port: int
    rendezvous_port: int

    @property
    def name(self) -> str:
        """What tells this group from others, on its machines too: the leader's address as all of
        its members were told it, and where its ranks meet."""
        return f"{self.leader.lower().rstrip('.')}:{self.rendezvous_port}"

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.index == 0


def group_place(
    env: Mapping[str, str], *, leader_health_port: int, rendezvous_port: int
) -> GroupPlace | None:
    """The place that the environment gives this process; None where there is no group, or one of
    one.

    Raises:
        SettingsError: the variables contradict each other.
    """
    said = env.get(SIZE_VARIABLE, "").strip()
    if not said:
        return None
    size = _whole_number(SIZE_VARIABLE, said)
    if not 1 <= size <= MAX_SIZE:
        raise SettingsError(f"{SIZE_VARIABLE} is {size}; a group has 1 to {MAX_SIZE} members")
    index_said = env.get(INDEX_VARIABLE, "").strip()
    if not index_said and size > 1:
        raise SettingsError(
            f"{SIZE_VARIABLE} is {size}, but {INDEX_VARIABLE} is not set: give each member its "
            "number, from 0, which is the leader's. A LeaderWorkerSet sets both"
        )
    index = _whole_number(INDEX_VARIABLE, index_said or "0")
    if not 0 <= index < size:
        raise SettingsError(
            f"{INDEX_VARIABLE} is {index}, but with {SIZE_VARIABLE}={size} it has to be 0"
            + (f" to {size - 1}" if size > 1 else "")
        )
    leader = env.get(LEADER_VARIABLE, "").strip()
    if size == 1:
        return None
    if not leader:
        raise SettingsError(
            f"{SIZE_VARIABLE} is {size}, but {LEADER_VARIABLE} is not set: give the name or "
            "address of the leader's node"
        )
    return GroupPlace(
        size=size,
        index=index,
        leader=leader,
        leader_health_port=leader_health_port,
        rendezvous_port=rendezvous_port,
    )


def _whole_number(variable: str, said: str) -> int:
    try:
        return int(said)
    except ValueError:
        raise SettingsError(f"{variable} is {said!r}; it has to be a whole number") from None
