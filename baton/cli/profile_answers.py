"""What a router's admin API answers about profiles and switches, as types.

Fields that another version does not send keep their defaults; an answer that has another shape is
one that we do not understand, and is said to be so rather than shown in part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from baton.cli.admin import AdminAway
from baton.types import RouterId
from profiles.switching import Ref, Report, Shadow, Switch

T = TypeVar("T")


class SourceView(msgspec.Struct, frozen=True):
    """Where profiles come from: ``active`` is what it wants, ``problems`` why parts of it are
    refused, a line each."""

    where: str | None = None
    active: str = ""
    digest: str = ""
    problems: tuple[str, ...] = ()


class RouterView(msgspec.Struct, frozen=True):
    """One router, as it told the others: ``seen`` is the revision that it serves by, ``asked``
    whether it is the one that answers."""

    id: RouterId
    node: str = ""
    profile: str = ""
    profile_version: str = ""
    seen: int = 0
    asked: bool = msgspec.field(name="self", default=False)


class SwitchAnswer(msgspec.Struct, frozen=True):
    """``GET /admin/switch``; ``turning`` are workers that change roles and still have old work,
    ``number`` is that of a switch that was just asked for."""

    active: Ref
    previous: Ref | None = None
    switch: Switch | None = None
    last: Report | None = None
    source: SourceView | None = None
    routers: tuple[RouterView, ...] = ()
    revision: int = 0
    store: str = ""
    store_lost: bool = False
    turning: tuple[str, ...] = ()
    number: int = 0

    @property
    def subject(self) -> int:
        """The number of the switch that an answer to a POST is about; 0 if of none."""
        if self.number:
            return self.number
        if self.switch is not None:
            return self.switch.number
        return self.last.number if self.last is not None else 0


class History(msgspec.Struct, frozen=True):
    """``GET /admin/history``; newest last."""

    history: tuple[Report, ...] = ()


class Listed(msgspec.Struct, frozen=True):
    """One profile that a router knows; ``origin`` is ``source``, ``built-in`` or ``started
    with``."""

    name: str
    version: str = ""
    mode: str = ""
    description: str = ""
    origin: str = msgspec.field(name="from", default="")
    active: bool = False


class Listing(msgspec.Struct, frozen=True):
    """``GET /admin/profiles``."""

    profiles: tuple[Listed, ...] = ()
    source: SourceView | None = None


class Served(msgspec.Struct, frozen=True):
    """``GET /admin/profiles/NAME``; ``document`` is the whole profile, defaults filled in."""

    name: str
    version: str
    document: dict[str, Any]


class Change(msgspec.Struct, frozen=True):
    """One field that differs between two profiles; unset on a side that lacks it. The texts are
    for people, where they were sent."""

    path: str
    old: Any = msgspec.UNSET
    new: Any = msgspec.UNSET
    old_text: str = ""
    new_text: str = ""


class CheckAnswer(msgspec.Struct, frozen=True):
    """What ``POST /admin/switch`` says with ``check_only``."""

    fits: bool
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    shadow: Shadow | None = None


def understood(answer: Mapping[str, Any], kind: type[T]) -> T:
    """The answer as its type.

    Raises:
        AdminAway: it is none.
    """
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise AdminAway(
            f"its answer is not understood ({error}); is it of another version?"
        ) from error
