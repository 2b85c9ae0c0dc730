"""What two profiles decide differently, field by field, for people who are about to switch.

It compares what profiles mean, defaults filled in, so that two spellings of one profile do not
differ. It does not say what a difference is worth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

from profiles.document import FieldPath, show, show_path
from profiles.schema import ServingProfile

ABSENT = "absent"
"""The text of a field that one side does not have."""

_MAX_TEXT = 200


class Change(msgspec.Struct, frozen=True):
    """One field that differs.

    Attributes:
        path: such as ``spec.classify.threshold_tokens``.
        old, new: values as in JSON; unset (left out of JSON) on a side that lacks the field.
        old_text, new_text: the same for people, short and on one line.
    """

    path: str
    old_text: str
    new_text: str
    old: object = msgspec.UNSET
    new: object = msgspec.UNSET


def difference(a: ServingProfile, b: ServingProfile) -> tuple[Change, ...]:
    """Everything in which ``b`` differs from ``a``, sorted by path; name and description too.

    Nothing under ``spec`` is reported exactly when both have the same version.
    """
    metadata = [{"metadata": profile.metadata.model_dump(mode="json")} for profile in (a, b)]
    found = [
        *_changes((), metadata[0], metadata[1]),
        *_changes(("spec",), a.canonical_spec(), b.canonical_spec()),
    ]
    return tuple(sorted(found, key=lambda change: change.path))


def _changes(path: FieldPath, old: object, new: object) -> Iterator[Change]:
    if isinstance(old, dict) or isinstance(new, dict):
        # A section that is null is one that is not there.
        sides = [side if isinstance(side, dict) else {} for side in (old, new)]
        for key in sides[0].keys() | sides[1].keys():
            lacking = msgspec.UNSET
            yield from _changes(
                (*path, key), sides[0].get(key, lacking), sides[1].get(key, lacking)
            )
    elif type(old) is not type(new) or old != new:
        # By type too: to an engine's flag, true and 1 are not the same.
        yield Change(show_path(path), _text(old), _text(new), old, new)


def _text(value: object) -> str:
    if value is msgspec.UNSET:
        return ABSENT
    if isinstance(value, list):
        text = json.dumps(value)
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
    return show(value)
