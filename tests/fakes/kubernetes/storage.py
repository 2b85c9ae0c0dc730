"""Objects, the one counter of their versions, the history, and who watches it.

It decides nothing: what may be written is said by ``writing``.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.fakes.kubernetes.errors import Refused, expired, not_found
from tests.fakes.kubernetes.kinds import Kind, Row
from tests.fakes.kubernetes.selectors import Selection

Json = dict[str, Any]
Key = tuple[Kind, str, str]
Event = tuple[str, Json]

MAX_PAGED = 64
"""Lists that are kept for those who read them page by page."""

MAX_HISTORY = 10_000
"""Changes that are remembered, whatever is compacted."""

_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start "
    "a new list without the continue parameter, or use the continue token in this response to "
    "retrieve the remainder of the results."
)


@dataclass(frozen=True)
class Change:
    """One entry of the history; ``found`` is the object afterwards, or as it was last."""

    version: int
    kind: Kind
    type: str
    found: Json
    before: Json | None


@dataclass(eq=False)
class Watcher:
    """One watch that is on."""

    row: Row
    namespace: str
    chosen: Selection
    bookmarks: bool
    queue: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)

    def event(self, change: Change) -> Event | None:
        """What of a change it is told. An object that leaves the selection is as good as deleted,
        and one that enters it as good as new."""
        if change.kind != self.row.key:
            return None
        if self.namespace not in ("", change.found["metadata"].get("namespace", "")):
            return None
        before = change.before
        was = before is not None and self.chosen.fits(before)
        now = change.type != "DELETED" and self.chosen.fits(change.found)
        if now:
            return ("MODIFIED" if was else "ADDED"), change.found
        if not was or before is None:
            return None
        last = copy.deepcopy(before)
        last["metadata"]["resourceVersion"] = str(change.version)
        return "DELETED", last


class Storage:
    """Everything that the server remembers.

    Attributes:
        version: of the last change.
        watchers: those that are on.
    """

    def __init__(self) -> None:
        self.version = 1000
        self.watchers: set[Watcher] = set()
        self._objects: dict[Key, Json] = {}
        self._history: deque[Change] = deque()
        self._oldest = self.version
        self._paged: dict[str, list[Json]] = {}

    def find(self, row: Row, namespace: str, name: str) -> Json | None:
        """The object itself; not to be changed."""
        return self._objects.get((row.key, namespace, name))

    def there(self, row: Row, namespace: str, name: str) -> Json:
        """The object itself, which must be there.

        Raises:
            Refused: 404.
        """
        found = self.find(row, namespace, name)
        if found is None:
            raise not_found(row, name)
        return found

    def select(
        self, row: Row, namespace: str = "", chosen: Selection | None = None
    ) -> Iterator[Json]:
        """The objects of a kind, by namespace and name; an empty namespace means all."""
        chosen = chosen or Selection()
        for (kind, lies_in, _), found in sorted(self._objects.items(), key=lambda item: item[0]):
            if kind == row.key and namespace in ("", lies_in) and chosen.fits(found):
                yield found

    def everything(self) -> list[tuple[Key, Json]]:
        """All objects of all kinds."""
        return list(self._objects.items())

    def store(self, row: Row, found: Json) -> Json:
        """Keeps an object, and tells of it unless nothing is different.

        Returns:
            A copy, with its version.
        """
        metadata = found["metadata"]
        key = (row.key, metadata.get("namespace", ""), metadata["name"])
        before = self._objects.get(key)
        if before is not None and plain(found) == plain(before):
            return copy.deepcopy(before)
        kept = copy.deepcopy(found)
        self._objects[key] = kept
        self._note(row.key, "MODIFIED" if before else "ADDED", kept, before)
        return copy.deepcopy(kept)

    def remove(self, row: Row, namespace: str, name: str) -> Json:
        """Forgets an object.

        Returns:
            It, with the version of its end.
        """
        found = self._objects.pop((row.key, namespace, name))
        last = copy.deepcopy(found)
        self._note(row.key, "DELETED", last, found)
        return last

    def _note(self, kind: Kind, type_: str, found: Json, before: Json | None) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        change = Change(self.version, kind, type_, copy.deepcopy(found), before)
        self._history.append(change)
        if len(self._history) > MAX_HISTORY:
            self._oldest = self._history.popleft().version
        for watcher in self.watchers:
            if event := watcher.event(change):
                watcher.queue.put_nowait(event)

    # Lists by pages.

    def page(self, items: list[Json], limit: int) -> tuple[list[Json], str]:
        """The first of a list, and the token for what is left of it; empty for nothing."""
        if not limit or len(items) <= limit:
            return items, ""
        return items[:limit], self._keep(copy.deepcopy(items[limit:]))

    def next_page(self, token: str, limit: int) -> tuple[list[Json], str, str]:
        """More of a list as it was when it was begun, the token, and the version of then.

        Raises:
            Refused: 410, it was forgotten.
        """
        left = self._paged.get(token)
        if left is None:
            raise expired(_TOO_OLD)
        version = json.loads(token)["rv"]
        if not limit or len(left) <= limit:
            return left, "", str(version)
        return left[:limit], self._keep(left[limit:], version), str(version)

    def _keep(self, left: list[Json], version: int | None = None) -> str:
        last = left[0]["metadata"]
        token = json.dumps(
            {
                "v": "meta.k8s.io/v1",
                "rv": self.version if version is None else version,
                "start": f"{last.get('namespace', '')}/{last['name']}",
            }
        )
        self._paged[token] = left
        while len(self._paged) > MAX_PAGED:
            del self._paged[next(iter(self._paged))]
        return token

    # History.

    def compact(self) -> None:
        """Forgets the history: no watch can begin at a version before this one."""
        self._history.clear()
        self._paged.clear()
        self._oldest = self.version

    def replay(self, watcher: Watcher, begin: int) -> None:
        """Tells a watcher what happened since a version.

        Raises:
            Refused: 410, that is not known any more.
        """
        if begin < self._oldest:
            raise expired(f"too old resource version: {begin} ({self._oldest})")
        for change in self._history:
            if change.version > begin and (event := watcher.event(change)):
                watcher.queue.put_nowait(event)

    def bookmark(self, row: Row, *, initial: bool = False) -> Event:
        """One for the current version; ``initial`` ends the list that a watch began with."""
        metadata: Json = {"resourceVersion": str(self.version)}
        if initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        return "BOOKMARK", {
            "apiVersion": row.api_version,
            "kind": row.kind,
            "metadata": metadata,
        }

    def end_watches(self, error: Refused | None = None) -> None:
        """Ends them all, with an ERROR event if there is an error."""
        for watcher in self.watchers:
            if error:
                watcher.queue.put_nowait(("ERROR", error.body))
            watcher.queue.put_nowait(None)


def plain(found: Json) -> Json:
    """Without its version, and without when its managers wrote: a write that changes nothing
    makes no new version."""
    metadata = {key: value for key, value in found["metadata"].items() if key != "resourceVersion"}
    if "managedFields" in metadata:
        metadata["managedFields"] = [
            {key: value for key, value in entry.items() if key != "time"}
            for entry in metadata["managedFields"]
        ]
    return {**found, "metadata": metadata}


def now() -> str:
    """The time, as objects state it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
