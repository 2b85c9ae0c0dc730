"""What all tests need to be true."""

from __future__ import annotations

import gc

import pytest

from router import compiled


def pytest_configure(config: pytest.Config) -> None:
    """Tests of sources that do not run would prove nothing."""
    if stale := compiled.stale():
        raise pytest.UsageError(
            f"compiled modules are older than their sources ({', '.join(stale[:3])}"
            f"{', ...' if len(stale) > 3 else ''}): run make compiled, or make uncompiled"
        )


def pytest_collection_finish() -> None:
    """What was imported by now stays for good. Garbage collections that walk over all of it would
    hold every event loop up for a third of a second and more, past the deadlines of the tests."""
    gc.collect()
    gc.freeze()
