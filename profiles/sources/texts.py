"""From what a source holds as bytes to a bundle of texts, the same for every source.

It keeps the bounds (number, size, UTF-8), so that no source can forget one. An entry out of bounds
is left out with a line that says why; the others are served.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from profiles.document import MAX_BYTES, show
from profiles.sources.base import ACTIVE, MAX_TEXTS, SUFFIXES, Bundle


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, key or field.

    Attributes:
        key: its name in the source; what is neither a profile nor ``active`` is ignored.
        where: what messages call it.
        raw: its bytes, at most one more than ``MAX_BYTES`` need be read; None if it cannot be read.
        reason: why, then.
    """

    key: str
    where: str
    raw: bytes | None
    reason: str = ""


def counts(key: str) -> bool:
    """Whether a key is a profile or ``active``. Hidden ones are an editor's or the kubelet's."""
    return key == ACTIVE or (key.endswith(SUFFIXES) and not key.startswith("."))


def rank(key: str) -> tuple[bool, str]:
    """Sorts keys: ``active`` first, so that no bound on the profiles leaves it out."""
    return key != ACTIVE, key


def bundle_of(entries: Iterable[Entry]) -> Bundle:
    """What they say; of too many profiles the first ``MAX_TEXTS`` by key."""
    texts: dict[str, str] = {}
    problems: dict[str, str] = {}
    active = active_from = ""
    profiles = 0
    for entry in sorted(entries, key=lambda entry: rank(entry.key)):
        if not counts(entry.key):
            continue
        where = entry.where
        if entry.key != ACTIVE:
            profiles += 1
            if profiles > MAX_TEXTS:
                problems[where] = f"{where}: is one profile too many; {MAX_TEXTS} are read"
                break
        try:
            text = _text(entry)
            if entry.key == ACTIVE:
                active_from = where
                active = _active(text, where)
            else:
                texts[where] = text
        except ValueError as error:
            problems[where] = str(error)
    return Bundle(texts=texts, active=active, active_from=active_from, problems=problems)


def _text(entry: Entry) -> str:
    """The entry's text.

    Raises:
        ValueError: it has none; holds the problem's line.
    """
    where, raw = entry.where, entry.raw
    if raw is None:
        raise ValueError(f"{where}: {entry.reason}")
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{where}: is larger than {MAX_BYTES} bytes; a profile is small")
    try:
        # Windows' editors put a mark before the first character.
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{where}:{line}: is not UTF-8 text") from error


def _active(text: str, where: str) -> str:
    """The name in the text of ``active``; empty where it says nothing.

    Raises:
        ValueError: it says something else; holds the problem's line.
    """
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        return ""
    head, colon, tail = lines[0].partition(":")
    name = tail.strip() if colon and head.strip() == ACTIVE else lines[0]
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    if len(lines) > 1 or not name or any(c.isspace() or c == ":" for c in name):
        raise ValueError(
            f"{where}: must be the name of a profile, alone or as `active: NAME` "
            f"(got {show(' / '.join(lines[:3]))})"
        )
    return name
