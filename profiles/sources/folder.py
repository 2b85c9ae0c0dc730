"""Profiles in a folder: files that people edit, or a mounted ConfigMap.

The kubelet writes each version of a ConfigMap into a folder of its own and then moves the link
``..data`` to it. A read goes through that link once, so that all it finds is of one version, and
begins again when anything has changed meanwhile. The folder is looked at each second instead of
being subscribed to: notifications get lost on network and overlay file systems, and a few stat
calls a second cost nothing.

It writes nothing, and follows no subfolders.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from baton.clock import Clock, SystemClock
from baton.errors import SourceUnavailable
from profiles.document import MAX_BYTES
from profiles.sources.base import MAX_TEXTS, Bundle, Told
from profiles.sources.texts import Entry, bundle_of, counts, rank
from profiles.sources.waiting import POLL_S, polled

_DATA = "..data"
_TRIES = 5
_SETTLED_S = 2.0
"""Age at which times of files tell changes apart: a file system's ticks are milliseconds to two
seconds long, and two writes of the same length within one look the same."""

_MAX_FILES = 2 * MAX_TEXTS
"""That are looked at; of more the source says that they are too many."""

Signature = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """A folder seen from outside.

    Attributes:
        root: where the files lie.
        names: of the files that count, ``active`` first.
        signature: other than before when something has changed.
        newest_s: when the last of them was written, wall-clock time.
    """

    root: Path
    names: tuple[str, ...]
    signature: Signature
    newest_s: float


class FolderSource:
    """See :class:`profiles.sources.base.ProfileSource`.

    Args:
        folder: may be made later; until then it cannot be read.
        clock: tells how old files are.
        every_s: seconds between two looks.
    """

    def __init__(
        self, folder: Path, clock: Clock | None = None, *, every_s: float = POLL_S
    ) -> None:
        self._folder = folder
        self._clock = clock or SystemClock()
        self._every_s = every_s

    def describe(self) -> str:
        """The folder's path."""
        return f"folder {self._folder}"

    async def read(self) -> Bundle:
        """See ``ProfileSource``. In a thread: a network's file system may take its time."""
        bundle, _ = await asyncio.to_thread(self._read)
        return bundle

    def changes(self) -> AsyncGenerator[Bundle]:
        """See ``ProfileSource``."""
        last: Signature | None = None

        def look() -> tuple[Bundle | None, Signature | None]:
            seen = self._look()
            settled = self._clock.wall_s() - seen.newest_s >= _SETTLED_S
            if seen.signature == last and settled:
                return None, last
            return self._read()

        async def read() -> Bundle | None:
            nonlocal last
            try:
                bundle, last = await asyncio.to_thread(look)
            except SourceUnavailable:
                last = None
                raise
            return bundle

        return polled(read, what=self.describe(), every_s=self._every_s)

    async def tell(self, told: Told) -> None:
        """Nothing: a folder is for people to write and for us to read."""

    async def close(self) -> None:
        """Nothing is held between two looks."""

    def _read(self) -> tuple[Bundle, Signature]:
        """All of one change, and the signature that goes with it."""
        for _ in range(_TRIES):
            before = self._look()
            entries = [self._entry(before.root, name) for name in before.names]
            if self._look().signature == before.signature:
                return bundle_of(entries), before.signature
        raise SourceUnavailable(
            f"{self.describe()}: changes again and again while it is read; write files elsewhere "
            "and rename them into it"
        )

    def _look(self) -> _Look:
        try:
            try:
                target = os.readlink(self._folder / _DATA)
            except OSError as error:
                if not self._folder.is_dir():
                    raise NotADirectoryError(
                        None, "is not there, or is no folder; make it, or mount it"
                    ) from error
                target = ""
            root = self._folder / target
            names = sorted(filter(counts, os.listdir(root)), key=rank)[:_MAX_FILES]
            files = [(name, *_signature(root / name)) for name in names]
        except OSError as error:
            raise SourceUnavailable(f"{self.describe()}: {error.strerror or error}") from error
        newest_s = max((file[1] for file in files), default=0) / 1e9
        return _Look(root, tuple(names), (target, *files), newest_s)

    def _entry(self, root: Path, name: str) -> Entry:
        # Named by the folder also where it lies below ..data: that is what people look for.
        where = str(self._folder / name)
        try:
            path = root / name
            if not stat.S_ISREG(path.stat().st_mode):
                # A pipe or a device could keep the reader waiting for ever.
                return Entry(name, where, None, "is not a regular file")
            with path.open("rb") as file:
                return Entry(name, where, file.read(MAX_BYTES + 1))
        except OSError as error:
            return Entry(name, where, None, f"cannot be read: {error.strerror or error}")


def _signature(path: Path) -> tuple[int, int, int, str]:
    """Of one file: when it was written, its size, its number, and where it points to."""
    try:
        link = os.readlink(path) if path.is_symlink() else ""
        status = path.stat()
    except OSError as error:
        # Gone, or a link to nothing: that too can change.
        return 0, 0, 0, f"error {error.errno}"
    return status.st_mtime_ns, status.st_size, status.st_ino, link
