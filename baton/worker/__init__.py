"""A worker: one engine, its entry in the registry, and an orderly end.

The same for every role; what differs (engine arguments, when a drain is over) comes in a
``WorkerPlan`` from the role's package.
"""

from baton.worker.cli import worker_app
from baton.worker.options import WorkerOptions, WorkerPlan
from baton.worker.worker import Worker, run_worker

__all__ = ["Worker", "WorkerOptions", "WorkerPlan", "run_worker", "worker_app"]
