"""A worker whose engine is a fake one: as a process, and its parts for tests that run it inside.

Run as ``python -m tests.fakes.group_member FLAGS`` it is ``python -m prefill`` in all but the
engine and the pace of its beats. A file named by ``FAKE_BUSY`` is work in flight while it exists.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from baton.engine import Device, EngineSpec, server
from baton.types import EngineId, Load, Role
from baton.worker import WorkerOptions, WorkerPlan, cli, worker, worker_app
from baton.worker.members import Timing
from tests.fakes.worker_records import worker_record

QUICK = Timing(beat_s=0.1, again_s=0.05, answer_s=0.5, lost_after_s=1.2, tell_s=1.0)
"""Silence is long against the beats: tests run on machines that are busy."""

BUSY_VARIABLE = "FAKE_BUSY"


def fake_plan(options: WorkerOptions, busy: Path) -> WorkerPlan:
    """A prefill worker with a fake engine; never drained while the file ``busy`` is there."""

    def make_spec(engine_id: EngineId, run_dir: Path) -> EngineSpec:
        return EngineSpec(
            name=str(options.worker_id),
            role=Role.PREFILL,
            device=Device.CPU,
            model=Path("/nowhere"),
            served_name="tiny",
            host=options.host,
            port=options.port,
            api_key=options.token,
            engine_id=engine_id,
            run_dir=run_dir,
            side_channel_host=options.host,
            side_channel_port=options.side_channel_port,
            block_size=32,
            lease_s=30,
            tensor_parallel=2,
        )

    def drained(load: Load) -> bool:
        return not busy.exists()

    return WorkerPlan(
        role=Role.PREFILL,
        make_spec=make_spec,
        model="tiny",
        model_folder=Path("/nowhere"),
        model_digest="sha256:00",
        geometry=worker_record().geometry,
        slots=8,
        accelerator="cpu",
        profile="test",
        profile_version="v1",
        drained=drained,
        drain_limit_s=20.0,
    )


def fake_command(spec: EngineSpec) -> list[str]:
    """The fake engine's command, in the place of ``baton.engine.spec.command``."""
    group = spec.group
    meeting: tuple[object, ...] = (1, 0, "127.0.0.1", 0)
    if group is not None:
        meeting = (group.nodes, group.rank, group.master_address, group.master_port)
    return [
        *(sys.executable, "-m", "tests.fakes.group_engine"),
        *(str(spec.port), spec.api_key, *map(str, meeting)),
    ]


def main() -> None:
    """Runs as a worker process."""
    server.command = fake_command  # type: ignore[attr-defined]
    server._POLL_S = server._WATCH_S = 0.05
    worker._SETTLE_S = 0.2
    cli.run_worker = functools.partial(cli.run_worker, timing=QUICK)  # type: ignore[attr-defined]
    busy = Path(os.environ[BUSY_VARIABLE])
    worker_app("fake", "A worker with a fake engine.", lambda o: fake_plan(o, busy))()


if __name__ == "__main__":
    main()
