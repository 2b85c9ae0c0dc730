"""A worker as this process: on its own, or as one member of a group."""

from __future__ import annotations

from baton.registrar import Registrar, open_registrar
from baton.worker.follower import Follower
from baton.worker.health import HealthServer, Vitals
from baton.worker.leader import Leader
from baton.worker.members import Timing
from baton.worker.options import WorkerOptions, WorkerPlan
from baton.worker.stops import Stops
from baton.worker.worker import Worker


async def run_worker(
    options: WorkerOptions, plan: WorkerPlan, *, timing: Timing | None = None
) -> int:
    """Runs a worker as this process: signals included. Returns the exit status.

    Args:
        options: what the process was told.
        plan: what its role makes of that.
        timing: how long members of a group may be silent; None for the usual.
    """
    stops = Stops()
    with stops.on_signals():
        if options.group is not None and not options.group.leads:
            return await Follower(options, plan, stops, timing=timing).run()
        registrar = open_registrar(options.registry, options.token)
        if options.group is not None:
            return await Leader(options, plan, registrar, stops, timing=timing).run()
        return await run_alone(options, plan, registrar, stops)


async def run_alone(
    options: WorkerOptions, plan: WorkerPlan, registrar: Registrar, stops: Stops
) -> int:
    """A worker that is one process, with its health server if it has a port."""
    worker = Worker(options, plan, registrar)

    async def drain() -> None:
        stops.drain.set()
        await worker.drained.wait()

    vitals = Vitals(dead=worker.dead, unready=worker.unready, drain=drain)
    async with HealthServer(options.host, options.health_port, options.token, vitals):
        await worker.run(stops.drain, stops.now, stops.leave)
    return 0
