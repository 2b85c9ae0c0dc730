"""Starts ``baton controller`` again and again, without importing everything each time.

Run as a script: each line on stdin starts one in a forked process, whose number is printed; the
arguments of the script are those of the command, and stderr is where it logs. What is forked has
imported modules and done nothing: the controller in it begins as any other does.
"""

from __future__ import annotations

import os
import signal
import sys

from baton.cli.app import app
from baton.cli.controller_run import run_controller
from deploy.lws.render import pool_objects


def main() -> None:
    """Forks on demand; ends with its stdin."""
    assert run_controller is not None
    assert pool_objects is not None
    # Nobody waits for them; without this they would stay as zombies.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            app(["controller", *sys.argv[1:]])
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
