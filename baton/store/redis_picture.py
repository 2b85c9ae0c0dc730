"""What a router has seen of the shared store, brought up to date by what has changed.

``look`` of the Redis store asks for changes only; this is where they are put together with what was
known. Parts that have not changed stay the same objects, so that a reader need not compare. It
refuses to guess: when it does not hold as many as there are, it says so, and all are read anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from baton.store.base import NO_DOCUMENT, Document, Look
from baton.types import Role, RouterRecord, WorkerId, WorkerRecord


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_HasId)


def unpacked(answer: Sequence[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """Ids and records out of two texts, their lengths and their contents; None for a lost one."""
    lengths, content = answer
    sizes = [int(size) for size in lengths.split()]
    at = 0
    for id_size, size in zip(sizes[::2], sizes[1::2], strict=True):
        middle = at + id_size
        name = content[at:middle]
        if size < 0:
            at = middle
            yield name, None
        else:
            at = middle + size
            yield name, content[middle:at]


class Records(Generic[R]):
    """Records of one kind, by id.

    Args:
        kind: the record's class.
        skipped: what could not be read is added there, one line each.
    """

    def __init__(self, kind: type[R], skipped: list[str]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._skipped = skipped
        # None for one that cannot be read: it counts as known.
        self._known: dict[bytes, R | None] = {}
        self._sorted: tuple[R, ...] = ()

    def read(self, answer: Sequence[bytes]) -> dict[bytes, R | None]:
        """The records of a script's answer, unreadable ones as None."""
        found: dict[bytes, R | None] = {}
        for name, value in unpacked(answer):
            found[name] = None
            if value is None:
                continue
            try:
                found[name] = self._decoder.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self._skipped.append(f"{name[:80]!r}: {error}")
        return found

    def update(self, answer: Sequence[Any]) -> bool:
        """Takes in what has changed, or all; False if the count shows that something is missing."""
        everything, told = answer[0], answer[2]
        alive: int = answer[1]
        if everything:
            self._known = self.read(told)
        elif told[0]:
            self._known.update(self.read(told))
        else:
            return len(self._known) == alive
        live = sort(self._known)
        if live != self._sorted:
            self._sorted = live
        return len(self._known) == alive

    @property
    def sorted(self) -> tuple[R, ...]:
        """All that can be read, by id; the same object until it changes."""
        return self._sorted


class Picture:
    """The last look, and what has to be told to get the next one.

    Args:
        skipped: records that could not be read are added there, one line each.
    """

    def __init__(self, skipped: list[str]) -> None:
        self._epoch = b""
        self._changes = 0
        self._stamps = [b"", b"", b""]
        self._workers = Records(WorkerRecord, skipped)
        self._routers = Records(RouterRecord, skipped)
        self._look = Look()

    @property
    def look(self) -> Look:
        """As of the last update."""
        return self._look

    def known(self) -> tuple[str | bytes | int, ...]:
        """Epoch, count of changes, and the three stamps, for the script."""
        return (self._epoch, self._changes, *self._stamps)

    def forget(self) -> None:
        """Has the next answer hold everything; what is known is compared with it, not dropped."""
        self._epoch, self._changes, self._stamps = b"", 0, [b"", b"", b""]

    def update(self, answer: Sequence[Any]) -> bool:
        """Takes in the script's answer; False if everything has to be read anew."""
        epoch, changes, workers, routers, *stamped = answer
        whole = self._workers.update(workers)
        whole = self._routers.update(routers) and whole
        cordoned, assigned, state = self._look.cordoned, self._look.assigned, self._look.state
        (_, ids), (_, roles), (_, document) = stamped
        if ids is not None:
            cordoned = _kept(cordoned, frozenset(WorkerId(_text(name)) for name in ids))
        if roles is not None:
            assigned = _kept(assigned, _roles(roles))
        if document is not None:
            state = _kept(state, as_document(document))
        self._epoch, self._changes = epoch, changes
        self._stamps = [stamp for stamp, _ in stamped]
        last = self._look
        if (
            self._workers.sorted is not last.workers
            or cordoned is not last.cordoned
            or assigned is not last.assigned
            or self._routers.sorted is not last.routers
            or state is not last.state
            or _text(epoch) != last.epoch
        ):
            workers, routers = self._workers.sorted, self._routers.sorted
            self._look = Look(workers, cordoned, assigned, routers, state, _text(epoch))
        return whole


def sort(found: Mapping[bytes, R | None]) -> tuple[R, ...]:
    """The readable ones, by id."""
    records = [record for record in found.values() if record is not None]
    records.sort(key=_id)
    return tuple(records)


def as_document(answer: Sequence[bytes | None]) -> Document:
    """A document of a script's revision and value."""
    revision, value = answer
    if revision is None or value is None:
        return NO_DOCUMENT
    return Document(int(revision), value)


def _id(record: _HasId) -> str:
    return record.id


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _roles(pairs: Sequence[bytes]) -> dict[WorkerId, Role]:
    known = {role.value: role for role in Role}
    told = ((_text(name), _text(role)) for name, role in zip(pairs[::2], pairs[1::2], strict=True))
    # A role that a later version added is none that we could use the worker in.
    return {WorkerId(name): known[role] for name, role in told if role in known}


T = TypeVar("T")


def _kept(before: T, after: T) -> T:
    return before if before == after else after
