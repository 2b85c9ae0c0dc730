"""What a check says: where in an object, and why; and the values that checks share.

A finding knows its path only. Which object it is about is added at the end, once, by ``check``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Path = tuple[str | int, ...]
Finding = tuple[Path, str]
Findings = Iterator[Finding]

_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that an API server, an admission webhook or the cluster itself would refuse.

    Attributes:
        object: ``Kind/name``.
        path: the field, such as ``spec.ports[0].name``; empty for the whole object.
        reason: why, as a plain sentence.
    """

    object: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.object}: {self.path or 'the object'}: {self.reason}"


def show_path(path: Path) -> str:
    """A path as messages of API servers write it."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            shown += f".{part}" if shown else part
        else:
            shown += f'["{part}"]'
    return shown


def name_of(found: Mapping[str, Any]) -> str:
    """``Kind/name`` of an object, as far as it says so."""
    metadata = found.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{found.get('kind', '?')}/{name or '?'}"


def entries(value: object) -> Iterator[tuple[int, Json]]:
    """The mappings in a list, with their places; nothing where there is no list."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield index, item


def mapping(value: object) -> Json:
    """The value if it is a mapping, else an empty one: schemas have complained by then."""
    return value if isinstance(value, dict) else {}


def dig(found: Json, *keys: str) -> Json:
    """The mapping below these keys, or an empty one."""
    for key in keys:
        found = mapping(found.get(key))
    return found


def repeated(names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each entry that stood earlier in the list, with its place."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield index, name
        seen.add(name)
