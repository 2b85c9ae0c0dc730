"""What several integration tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load generator that a busy machine holds up is not what the test is about; the unit tests
    of ``validity`` are."""
    monkeypatch.setattr("benchmarks.load.validity.LAG_FLOOR_S", 1.0)
