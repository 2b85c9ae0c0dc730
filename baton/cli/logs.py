"""The log files of ``baton up``: one for each child, bounded, and never in a child's way.

A child writes into a pipe that somebody has to empty, so a full disk or a removed folder costs
lines, not the service.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

MAX_BYTES = 10 * 1024 * 1024
"""Of one file; one older file of the same size is kept beside it."""

_MAX_TELLING = 3
_TELLING = re.compile(r"\b(?!Baton)[A-Za-z]*(?:Error|Exception): \S")

LineSink = Callable[[str], None]


class ChildLog:
    """The log of one child process over all its runs.

    Args:
        path: the file; appended to. ``path`` with ``.1`` behind it is the older one.
        max_bytes: after a line that takes the file over this, the next one starts a new file.

    Attributes:
        telling: the first few lines of the last run that name an error. An engine's last words
            say that it failed; why stands far above them.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.telling: list[str] = []
        self._max_bytes = max_bytes
        self._file: IO[bytes] | None = None
        self._size = 0

    def new_run(self) -> None:
        """Forgets what the run before it said."""
        self.telling.clear()

    def write(self, line: str) -> None:
        """Adds one line. Never raises."""
        if len(self.telling) < _MAX_TELLING and _TELLING.search(line):
            self.telling.append(line)
        raw = line.encode("utf-8", "replace") + b"\n"
        with contextlib.suppress(OSError):
            if self._size >= self._max_bytes:
                self.close()
                # While this fails lines are dropped, and the file stays bounded.
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
                self._size = 0
            file = self._file or self._open()
            file.write(raw)
            self._size += len(raw)

    def close(self) -> None:
        """Lets go of the file; a later line opens it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _open(self) -> IO[bytes]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Unbuffered: somebody may be following the file, and a crash must not swallow the end.
        self._file = self.path.open("ab", buffering=0)
        # Prompts can get into an engine's log.
        self.path.chmod(0o600)
        self._size = self._file.tell()
        return self._file
