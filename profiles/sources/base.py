"""Where profiles come from: the contract that every source keeps.

A source holds named texts and says which one should be active. It proposes; what is served is
decided by the switch (``profiles.switching``). It refuses to judge texts: that is the catalog's
business, which keeps the last good one of each name.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

ACTIVE = "active"
"""The key, or file, that names the active profile. Its text is the name, or ``active: NAME``."""

SUFFIXES = (".yaml", ".yml")
"""Of keys and files that are profiles; the name of a profile is what stands in it, not this."""

MAX_TEXTS = 200
"""Profiles in one source; a ConfigMap of 1 MiB has room for about as many."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a source holds at one moment, all of it of the same change.

    Attributes:
        texts: by where each is from, as messages show it: a path, ``configmap ns/name, key k``.
        active: the name that the source wants active; empty where it says nothing.
        active_from: where that stands, for messages.
        problems: entries that are there and cannot be had as text, by where each is from: a line
            that says why, beginning with the place. A profile that was good stays as it was.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    active: str = ""
    active_from: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The same for the same content."""
        whole = hashlib.sha256()
        for part in (self.active, self.active_from):
            _add(whole, part)
        for mapping in (self.texts, self.problems):
            whole.update(b"%d;" % len(mapping))
            for item in sorted(mapping.items()):
                for part in item:
                    _add(whole, part)
        return whole.hexdigest()[:12]


def _add(whole: hashlib._Hash, part: str) -> None:
    encoded = part.encode("utf-8", "replace")
    # With its length, so that no two lists of parts look the same.
    whole.update(b"%d:%b" % (len(encoded), encoded))


@dataclass(frozen=True, slots=True)
class Told:
    """What operators of the source should see there.

    Attributes:
        active, version: what routers serve.
        phase: of a switch that is on; empty for none.
        problems: why parts of the source are refused, one line each.
        event: something that just happened, in a sentence; empty for nothing.
        warning: whether ``event`` is bad news.
        reason: of the event, one word such as ``ProfileRolledBack``; empty for ``ProfileRefused``
            or ``ProfileSwitched``, by whether it is bad news.
    """

    active: str = ""
    version: str = ""
    phase: str = ""
    problems: tuple[str, ...] = ()
    event: str = ""
    warning: bool = False
    reason: str = ""


class ProfileSource(Protocol):
    """One place that profiles come from."""

    def describe(self) -> str:
        """Where, for people; holds no credentials."""
        ...

    async def read(self) -> Bundle:
        """What is there now.

        Raises:
            SourceUnavailable: it cannot be read; the message says what to do.
        """
        ...

    def changes(self) -> AsyncIterator[Bundle]:
        """What is there now, and again whenever it has changed, for ever: outages are waited out,
        with a warning when one begins and a note when it ends. Close it when done (``aclose``)."""
        ...

    async def tell(self, told: Told) -> None:
        """Shows operators what became of the source, where the source has a place for that: a
        status ConfigMap and an Event in Kubernetes. Never raises; bounded in time."""
        ...

    async def close(self) -> None:
        """Lets go of files and connections; may be called again."""
        ...
