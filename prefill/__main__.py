"""``python -m prefill``: one prefill worker."""

from __future__ import annotations

from baton.worker import worker_app
from prefill import plan

app = worker_app(
    "prefill",
    "Starts one prefill worker: an engine that computes long prompts and offers their KV cache.",
    plan,
)

if __name__ == "__main__":
    app()
