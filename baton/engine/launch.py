"""The child's entry point: ``python -m baton.engine.launch <vLLM flags>``.

Runs vLLM's OpenAI server in a process that dies with the supervisor and has asked for AMX. The
CPU build of vLLM carries no ``vllm`` distribution metadata, so the ``vllm serve`` command does
not work with it; the module behind that command serves both builds.
"""

from __future__ import annotations

import importlib.util
import runpy
import signal
import sys

from baton.engine.host import allow_amx
from baton.process import die_with_parent

_ENTRY = "vllm.entrypoints.launchers.api_server.entry"


def main() -> None:
    """Becomes a vLLM server; never returns normally before the server ends."""
    die_with_parent(signal.SIGKILL)
    allow_amx()
    if importlib.util.find_spec("vllm") is None:
        sys.exit(
            "vLLM is not installed in this environment. Install one of Baton's worker extras: "
            "[cpu-worker] or [gpu-worker]."
        )
    runpy.run_module(_ENTRY, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
