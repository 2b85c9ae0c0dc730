"""The benchmark of the registry, small: real processes, a real server, real figures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from benchmarks.registry.__main__ import main
from benchmarks.registry.records import Report
from tests.fakes.redis_server import find_redis_server


async def test_a_small_registry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One router is measured against none, sees all workers, and both tables show it."""
    file = tmp_path / "report.json"
    arguments = ["--workers", "5", "--routers", "1", "--seconds", "1", "--json", str(file)]
    # In a thread: the command runs an event loop of its own.
    status = await asyncio.to_thread(main, [*arguments, "--server", find_redis_server()])
    report = msgspec.json.decode(file.read_bytes(), type=Report)
    assert (status, report.problems) == (0, [])
    alone, followed = report.cells
    assert (alone.routers, followed.routers, followed.workers) == (0, 1, 5)
    assert followed.router_cpu_ms
    assert followed.sent_bytes > alone.sent_bytes
    assert followed.calls > alone.calls >= 4.5
    assert "Each router adds" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--routers", "x"], ["--seconds", "0"]])
def test_what_cannot_be_measured(arguments: list[str]) -> None:
    """Is refused before anything is started."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what was looked for."""
    assert main(["--server", str(tmp_path / "none")]) == 2
    assert "none is no executable" in capsys.readouterr().err
