"""Makes the demo model once for a whole cluster, and hands it to the workers.

Workers are paired by what their weights are, and a training run is not the same twice on two
machines: so that one pod makes the model (``serve``), and each worker's pod fetches it before it
starts (``fetch``). For the demo model alone; a real one has volumes and registries.
"""

from __future__ import annotations

import http.server
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import typer

from baton.errors import BatonError, ModelError

PORT = 8080
PATH = "/model.tar"
LIMIT_S = 1800.0
"""How long workers wait for the model; it takes minutes on half a core."""

_AGAIN_S = 2.0
_CALL_S = 60.0

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def serve(
    home: Annotated[Path, typer.Option(help="Folder to keep the model in.")],
    port: Annotated[int, typer.Option(min=0, max=65_535)] = PORT,
) -> None:
    """Makes the demo model if it is not there, and serves it until the process is ended."""
    folder = made(home)
    with server(folder, "", port) as found:
        print(f"serving {folder} on port {found.server_port}", flush=True)  # noqa: T201
        found.serve_forever()


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="Of the pod that serves it.")],
    folder: Annotated[Path, typer.Argument(help="Where the model is put.")],
    limit: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = LIMIT_S,
) -> None:
    """Fetches the model, once it is there. Does nothing where the folder is there already."""
    try:
        fetch_model(url, folder, limit_s=limit)
    except BatonError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        sys.exit(1)


def made(home: Path) -> Path:
    """The folder of the demo model below ``home``; made first, by ``python -m training.demo``.

    Raises:
        ModelError: it could not be made; the reason is on stderr.
    """
    command = [sys.executable, "-m", "training.demo", "--home", str(home)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ModelError(f"the demo model could not be made (status {done.returncode})")
    return Path(done.stdout.strip().splitlines()[-1])


def server(folder: Path, host: str, port: int) -> http.server.ThreadingHTTPServer:
    """Serves a folder as one archive at ``/model.tar``; anything else is 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != PATH:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("content-type", "application/x-tar")
            self.end_headers()
            with tarfile.open(fileobj=self.wfile, mode="w|") as archive:
                for path in sorted(folder.iterdir()):
                    archive.add(path, arcname=path.name)

    Handler.do_GET.__doc__ = "The model, or 404."
    return http.server.ThreadingHTTPServer((host, port), Handler)


def fetch_model(
    url: str,
    folder: Path,
    *,
    limit_s: float,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Puts the model into ``folder``, which is complete when it is there.

    Raises:
        ModelError: not within ``limit_s`` seconds, or the folder cannot be written.
    """
    if folder.exists():
        return
    end_s = now_s() + limit_s
    while True:
        try:
            _fetch_once(url.rstrip("/") + PATH, folder)
            return
        except (urllib.error.URLError, tarfile.TarError, ConnectionError, TimeoutError) as error:
            if now_s() >= end_s:
                raise ModelError(
                    f"the demo model did not come from {url} within {limit_s:g} s: {error}. Look "
                    "at the log of the pod that makes it"
                ) from error
        except OSError as error:
            raise ModelError(f"{folder} cannot be written: {error}") from error
        sleep(_AGAIN_S)


def _fetch_once(url: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with urllib.request.urlopen(url, timeout=_CALL_S) as answer:  # noqa: S310 - our own
            with tarfile.open(fileobj=answer, mode="r|") as archive:
                archive.extractall(making, filter="data")
        making.chmod(0o755)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


if __name__ == "__main__":
    app()
