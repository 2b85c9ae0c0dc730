"""The child's entry point: ``python -m baton.engine.launch <vLLM flags>``.

Runs vLLM's OpenAI server in a process that dies with the supervisor and has asked for AMX. The
CPU build of vLLM carries no ``vllm`` distribution metadata, so the ``vllm serve`` command does
not work with it; the module behind that command serves both builds. That module knows no
``--headless``, which a group's further nodes need: they are started by the ``serve`` subcommand's
own functions, which ask for no metadata.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import runpy
import signal
import sys
import threading
import time

from baton.engine.host import allow_amx
from baton.process import die_with_parent

_RANK = "VllmWorker"
"""How vLLM's multi-process executor names the processes of its ranks."""
_LOOK_S = 0.5
_LAST_MOMENT_S = 1.0
"""For the rest of an orderly end, which begins with the end of a rank too."""
_PROGRAM = "baton.engine.launch"
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
    if "--headless" in sys.argv:
        _serve_headless()
    else:
        runpy.run_module(_ENTRY, run_name="__main__", alter_sys=True)


def _serve_headless() -> None:
    """Becomes the ranks of one further node: what ``vllm serve --headless`` does, without its
    command line's look at the installed ``vllm`` distribution."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    threading.Thread(target=_end_with_ranks, name="ranks", daemon=True).start()
    args = make_arg_parser(FlexibleArgumentParser(prog=_PROGRAM)).parse_args()
    ServeSubcommand().validate(args)
    ServeSubcommand.cmd(args)
    # It returns when a rank has ended. Python's own way out of a process with torch in it takes
    # seconds (8 were seen on a busy machine), in which the group would go on.
    os._exit(1)


def _end_with_ranks() -> None:
    """Ends this process soon after one of its ranks.

    vLLM then gives the other ranks, which wait for the lost one, up to nine seconds; a group has to
    be gone sooner. They die with this process, by the plug-in.
    """
    ranks: set[multiprocessing.process.BaseProcess] = set()
    while True:
        # Added to, never replaced: one that has ended is in the list of the living no more.
        ranks.update(each for each in multiprocessing.active_children() if _RANK in each.name)
        if ranks and multiprocessing.connection.wait([each.sentinel for each in ranks], _LOOK_S):
            time.sleep(_LAST_MOMENT_S)
            os._exit(1)
        if not ranks:
            time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
