"""``python -m decode``: one decode worker, or one standard worker."""

from __future__ import annotations

import os

from baton.errors import SettingsError
from baton.types import Role
from baton.worker import WorkerOptions, WorkerPlan, worker_app
from decode import plan, standard_plan

ROLE_VARIABLE = "BATON_ROLE"


def _plan(options: WorkerOptions) -> WorkerPlan:
    role = os.environ.get(ROLE_VARIABLE) or Role.DECODE
    if role == Role.STANDARD:
        return standard_plan(options)
    if role == Role.DECODE:
        return plan(options)
    raise SettingsError(f"{ROLE_VARIABLE} is {role!r}; it may be decode or standard")


app = worker_app(
    os.environ.get(ROLE_VARIABLE) or "decode",
    "Starts one decode worker: an engine that pulls KV caches, serves short prompts, and streams "
    "answers. With BATON_ROLE=standard it serves a profile's standard pool.",
    _plan,
)

if __name__ == "__main__":
    app()
