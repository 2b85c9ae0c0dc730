"""``python -m baton.worker.drain``: asks this machine's worker to drain, and waits until it has.

For a container's preStop hook: the container gets its SIGTERM once the hook is over, and the worker
has then nothing left to finish. Settings come from the worker's own environment.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from baton.errors import BatonError, SettingsError
from baton.secrets import cluster_token
from baton.settings import default_home
from baton.worker.group import HEALTH_PORT, group_place
from baton.worker.health import DRAIN_PATH

LIMIT_S = 600.0
"""Longer than drains of the built-in profiles may take; the pod's grace period ends it before."""

app = typer.Typer(add_completion=False)


@app.command(help="Asks the worker of this machine to drain, and waits until it has.")
def main(
    limit: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds to wait at most.")
    ] = LIMIT_S,
) -> None:
    """Exits with 0 when the worker has drained or none is there, else with 1."""
    try:
        print(drain(os.environ, limit))  # noqa: T201
    except BatonError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        sys.exit(1)


def drain(env: Mapping[str, str], limit_s: float) -> str:
    """Asks, and waits. Returns what came of it, in words.

    Raises:
        SettingsError: the worker refuses the token, or a setting is wrong.
        BatonError: it did not drain within ``limit_s`` seconds, or its group was lost.
    """
    host, port = health_address(env)
    if port == 0:
        return "the worker has no health server (BATON_HEALTH_PORT), so there is none to ask"
    token = cluster_token(default_home(env), env)
    connection = http.client.HTTPConnection(host, port, timeout=limit_s)
    try:
        connection.request("POST", DRAIN_PATH, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        said = response.read(300).decode("utf-8", "replace")
    except TimeoutError as error:
        raise BatonError(f"the worker did not drain within {limit_s:g} s") from error
    except ConnectionRefusedError:
        return f"nothing listens on {host}:{port}, so there is nothing to drain"
    except (OSError, http.client.HTTPException):
        return f"the worker on {host}:{port} ended while it drained"
    finally:
        connection.close()
    if response.status != 200:
        kind = SettingsError if response.status == 401 else BatonError
        raise kind(f"the worker on {host}:{port} answered {response.status}: {said}")
    return "drained"


def health_address(env: Mapping[str, str]) -> tuple[str, int]:
    """Where the worker with this environment has its health server; port 0 for nowhere.

    Raises:
        SettingsError: a variable cannot be understood.
    """
    said = env.get("BATON_HEALTH_PORT") or "0"
    if not said.isdigit() or int(said) > 65_535:
        raise SettingsError(f"BATON_HEALTH_PORT is {said!r}; it has to be a port")
    port = int(said)
    if port == 0 and group_place(env, leader_health_port=0, rendezvous_port=0) is not None:
        port = HEALTH_PORT
    host = env.get("BATON_HOST") or "127.0.0.1"
    if host == "::":
        return "::1", port
    return ("127.0.0.1" if host in ("0.0.0.0", "localhost") else host), port


if __name__ == "__main__":
    app()
