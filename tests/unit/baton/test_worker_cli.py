"""What a worker process does before it is a worker."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from baton.errors import SettingsError
from baton.worker import WorkerOptions, cli, worker_app


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_asked_to_stop_while_it_makes_its_plan(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends at once, with the status of one that was stopped, and says so: a container's first
    process has no other end by a signal."""
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(cli, "configure_logging", lambda level: None)
    monkeypatch.setenv("BATON_CLUSTER_TOKEN", "cluster-token-0123456789")

    def plan(options: WorkerOptions) -> Any:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        raise SettingsError("and so on")

    result = CliRunner().invoke(worker_app("test", "A worker.", plan), [])
    assert exits == [143, 130]
    assert "leaving: SIGTERM before the worker started" in caplog.text
    assert result.exit_code == 2
