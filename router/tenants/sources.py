"""Where tenants are kept: a file or a Redis, read by routers and changed by ``baton key``.

A source says what has changed since it was last asked; a book applies a change as a whole or not at
all, also against somebody who changes it at the same time. A file is taken or refused whole. In
Redis a broken entry stands for itself: it keeps its last sound version, and does not hold up the
revocation of another tenant's key.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import yaml

from baton.errors import SettingsError
from router.tenants.spec import TenantSpec, load_tenants, plain, repeated_hashes

Tenants = dict[str, TenantSpec]
T = TypeVar("T")


class TenantSource(Protocol):
    """What a router reads."""

    async def read(self) -> Tenants | None:
        """All tenants, or None if nothing has changed since the last call.

        Raises:
            SettingsError: it is there and cannot be used.
            StoreUnavailable: it cannot be reached.
        """
        ...

    def problems(self) -> tuple[str, ...]:
        """What is wrong with entries that were left out or kept at an older version."""
        ...

    def describe(self) -> str:
        """Its name for logs and status, without credentials."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


class TenantBook(Protocol):
    """What ``baton key`` changes."""

    def describe(self) -> str:
        """Its name for messages."""
        ...

    async def change(self, edit: Callable[[Tenants], T]) -> T:
        """Reads all tenants, lets ``edit`` change them in place, and writes them. ``edit`` may run
        several times, and nothing is written when it raises.

        Raises:
            SettingsError: it cannot be read or written.
            StoreUnavailable: it cannot be reached.
        """
        ...

    async def tenants(self) -> Tenants:
        """All tenants; the errors of ``change``."""
        ...


class FileSource:
    """A YAML file, looked at by its size, times and number: a file that was replaced, written to,
    or swapped by a mounted ConfigMap has other ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    async def read(self) -> Tenants | None:
        """See :meth:`TenantSource.read`. In a thread: a network's file system may take its time."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Tenants | None:
        try:
            status = self._path.stat()
        except OSError as error:
            self._seen = None
            raise SettingsError(f"{self._path}: {error.strerror or error}") from error
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return None
        # A bad file is told once, and looked at again when it has changed.
        self._seen = seen
        return load_tenants(self._path)

    def problems(self) -> tuple[str, ...]:
        """None: a file is taken whole or refused whole."""
        return ()

    def describe(self) -> str:
        """The path."""
        return str(self._path)

    async def close(self) -> None:
        """Nothing is held."""


class FileBook:
    """The same file, to be changed: replaced as a whole, mode 0600, one writer at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def describe(self) -> str:
        """The path."""
        return str(self._path)

    async def tenants(self) -> Tenants:
        """See :meth:`TenantBook.tenants`."""
        return load_tenants(self._path)

    async def change(self, edit: Callable[[Tenants], T]) -> T:
        """See :meth:`TenantBook.change`. A file that is not there yet is made."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._path.parent):
                tenants = load_tenants(self._path) if self._path.exists() else {}
                result = edit(tenants)
                checked(tenants)
                self._write(tenants)
                return result
        except OSError as error:
            raise SettingsError(f"{self._path}: {error.strerror or error}") from error

    def _write(self, tenants: Tenants) -> None:
        scratch = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(render_tenants(tenants))
                file.flush()
                os.fsync(file.fileno())
            # Through a link, so that the file it points to is replaced and not the link.
            os.replace(scratch, self._path.resolve())
        finally:
            scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time. The folder itself is locked: a lock file would be left over, and the
    file in question is replaced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def checked(tenants: Mapping[str, TenantSpec]) -> None:
    """Refuses what a router would refuse.

    Raises:
        SettingsError: a key is two tenants' at once.
    """
    found = repeated_hashes(tenants)
    if found:
        raise SettingsError("\n".join(f"{name} {sentence}" for name, sentence in found))


def render_tenants(tenants: Mapping[str, TenantSpec]) -> str:
    """The file's text; what is not given keeps its default."""
    data = {
        "apiVersion": "baton/v1",
        "kind": "Tenants",
        "tenants": {name: plain(spec) for name, spec in sorted(tenants.items())},
    }
    head = (
        "# Written by `baton key`, which keeps no comments. Routers notice changes by themselves.\n"
    )
    return head + yaml.safe_dump(data, sort_keys=False, width=100)
