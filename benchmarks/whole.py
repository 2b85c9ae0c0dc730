"""Files that are there whole or not at all, for results that somebody may read at any moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there.

    Raises:
        OSError: the folder cannot be written to.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as JSON for people, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    write_whole(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
