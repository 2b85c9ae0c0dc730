"""Where Baton keeps its things on a machine, and the ports it uses by default.

Every process takes these as flags first and environment variables second; nothing here reads a
settings file, since what an operator tunes belongs to the serving profile.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

ROUTER_PORT = 8000
ADMIN_PORT = 8001
"""The admin API, on loopback unless told otherwise."""
WORKER_PORT = 8100
"""HTTP port of the first worker on a machine; further ones count up."""
SIDE_CHANNEL_PORT = 5600
"""NIXL handshake port of the first worker on a machine; further ones count up."""
KV_EVENTS_PORT = 5700
"""Where an engine publishes its KV events if other machines have to reach it and its profile asks
for them; the port above it belongs to it as well."""

HOME_VARIABLE = "BATON_HOME"


def default_home(env: Mapping[str, str]) -> Path:
    """Folder for the demo model, digests, logs and the cluster token.

    ``BATON_HOME``, else ``$XDG_STATE_HOME/baton``, else ``~/.local/state/baton``. Absolute.
    """
    if env.get(HOME_VARIABLE):
        return Path(env[HOME_VARIABLE]).expanduser().resolve()
    state = env.get("XDG_STATE_HOME")
    base = Path(state).expanduser() if state else Path.home() / ".local" / "state"
    return (base / "baton").resolve()


def node_name(env: Mapping[str, str]) -> str:
    """``BATON_NODE_NAME`` (in a cluster, from the pod's spec), else the host's name."""
    return env.get("BATON_NODE_NAME") or socket.gethostname()


def free_port(host: str, wanted: int, *, tries: int = 100) -> int:
    """The first free TCP port of ``host`` at or above ``wanted``.

    Another process may take it before it is used; whoever binds it reports that.

    Raises:
        OSError: none of ``tries`` ports is free.
    """
    for port in range(wanted, min(wanted + tries, 65536)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do, so that a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port on {host} from {wanted} to {wanted + tries - 1}")
