"""Routers that end with the test, and that had no error nobody foresaw."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.router.switching.routers import Cluster


@pytest.fixture
async def cluster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Cluster]:
    made = Cluster(monkeypatch)
    yield made
    await made.close()
    assert "could not be seen to" not in caplog.text
