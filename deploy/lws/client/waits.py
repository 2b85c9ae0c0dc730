"""What can be waited for, besides a rollout: plain functions that say what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deploy.lws.client.objects import T, condition

Until = Callable[[T | None], Sequence[str]]
"""Told an object, or None where there is none, says what is missing: nothing ends the wait."""


def exists(found: T | None) -> Sequence[str]:
    """For ``wait``: the object is there."""
    return () if found is not None else ("it does not exist",)


def gone(found: T | None) -> Sequence[str]:
    """For ``wait``: the object is not there."""
    if found is None:
        return ()
    return ("it is being deleted",) if found.meta.deleting else ("it still exists",)


def has_condition(type_: str, status: str = "True") -> Until[T]:
    """For ``wait``: a condition of the object has this status."""

    def until(found: T | None) -> Sequence[str]:
        if found is None:
            return exists(found)
        entry = condition(found, type_)
        if entry is None:
            return (f"condition {type_} is not there",)
        if entry.status != status:
            return (f"condition {type_} is {entry.status}, not {status}",)
        return ()

    return until
