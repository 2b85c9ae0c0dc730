"""A worker: one engine, its entry in the registry, and an orderly end.

The same for every role; what differs (engine arguments, when a drain is over) comes in a
``WorkerPlan`` from the role's package. An engine that spans nodes is one worker too, of which each
node runs a member: docs/groups.md.
"""

from baton.worker.cli import worker_app
from baton.worker.group import GroupPlace
from baton.worker.options import WorkerOptions, WorkerPlan
from baton.worker.run import run_worker
from baton.worker.worker import Worker

__all__ = ["GroupPlace", "Worker", "WorkerOptions", "WorkerPlan", "run_worker", "worker_app"]
