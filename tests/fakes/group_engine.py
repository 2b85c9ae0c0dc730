"""One node of an engine that spans several, for a supervisor: ranks that meet, and no model.

Run as ``python -m tests.fakes.group_engine PORT KEY NODES RANK MASTER_ADDRESS MASTER_PORT``. As the
real one, node 0 is healthy only once all others have come to the master's port, and stays so when
one of them dies; the others serve nothing. It dies with its supervisor.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from http.server import ThreadingHTTPServer

from baton.process import die_with_parent
from tests.fakes.engine_process import Handler


def main() -> None:
    """Serves, or waits, until killed."""
    die_with_parent(signal.SIGKILL)
    port, Handler.key, nodes, rank = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    master = (sys.argv[5], int(sys.argv[6]))
    print(f"rank {rank} of {nodes}", flush=True)
    if rank != "0":
        _meet(master)
        time.sleep(600)
        return
    with socket.create_server(master) as meeting:
        others = [meeting.accept()[0] for _ in range(nodes - 1)]
    print(f"{len(others)} others came", flush=True)
    ThreadingHTTPServer.allow_reuse_address = True
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def _meet(master: tuple[str, int]) -> None:
    for _ in range(200):
        try:
            socket.create_connection(master)
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit("nobody to meet")


if __name__ == "__main__":
    main()
