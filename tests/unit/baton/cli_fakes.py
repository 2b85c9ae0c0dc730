"""Small child processes that behave like a router and its workers, for tests of ``baton up``."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from baton.cli.board import Board
from baton.cli.plan import Plan, Process
from baton.cli.stack import Sight
from baton.types import Role
from profiles import resolve_profile

_WORKER = """
import os, pathlib, signal, sys, time
folder, name, manner = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
told = 0
def on_term(*_):
    global told
    told += 1
    with (folder / "order").open("a") as order:
        order.write(name + "\\n")
    if manner == "stubborn" or (manner == "busy" and told < 2):
        return
    (folder / f"{name}.ready").unlink(missing_ok=True)
    os._exit(0)
signal.signal(signal.SIGTERM, on_term)
print("hello from", name, flush=True)
if manner == "broken":
    print("ValueError: the model does not fit", flush=True)
    print("giving up", flush=True)
    sys.exit(2)
if manner != "slow":
    scratch = folder / f"{name}.tmp"
    scratch.write_text(str(os.getpid()))
    scratch.rename(folder / f"{name}.ready")
while True:
    time.sleep(60)
"""

_ROUTER = """
import http.server, json, pathlib, signal, sys, os
folder, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
def on_term(*_):
    with (folder / "order").open("a") as order:
        order.write("router\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, on_term)
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body, headers=()):
        raw = json.dumps(body).encode()
        self.send_response(200)
        for name, value in (("content-length", str(len(raw))), ("content-type", "application/json"),
                            *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)
    def do_GET(self):
        workers = [
            {"record": {"id": path.stem, "state": "ready", "engine_id": path.read_text()}}
            for path in folder.glob("*.ready")
        ]
        self.answer({"workers": workers})
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.answer({}, [("x-baton-path", "disaggregated"), ("x-baton-reason", "long_prompt")])
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def fake_worker(folder: Path, name: str, manner: str = "good") -> Process:
    """A child that says it is ready by a file in ``folder``.

    ``manner``: ``good`` leaves at SIGTERM, ``stubborn`` never, ``busy`` at the second one; ``slow``
    never becomes ready; ``broken`` ends at once with status 2.
    """
    argv = (sys.executable, "-S", "-c", _WORKER, str(folder), name, manner)
    return Process(name, Role.DECODE, argv, dict(os.environ), f"http://127.0.0.1/{name}")


def fake_router(folder: Path, port: int) -> Process:
    """A child that answers as a router whose workers are those that said they are ready."""
    argv = (sys.executable, "-S", "-c", _ROUTER, str(folder), str(port))
    return Process("router", None, argv, dict(os.environ), f"http://127.0.0.1:{port}")


def fake_plan(folder: Path, **manners: str) -> Plan:
    """A plan whose "router" is a child without a port; worker names and manners as given."""
    router = fake_worker(folder, "router")
    return Plan(
        resolve_profile("cpu-demo"),
        Process("router", None, router.argv, router.env, "http://127.0.0.1:1"),
        tuple(fake_worker(folder, name, manner) for name, manner in manners.items()),
        router_grace_s=5.0,
        worker_grace_s=5.0,
    )


class Folder:
    """Looks at workers by the files that they write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def check(self) -> Mapping[str, Sight] | None:
        """As a router would tell; None until the router itself is ready."""
        found = {path.stem: path.read_text() for path in self.path.glob("*.ready")}
        if "router" not in found:
            return None
        return {name: Sight("ready", pid) for name, pid in found.items()}

    def order(self) -> list[str]:
        """Who was told to stop, in order."""
        return (self.path / "order").read_text().split()


class Screen(Board):
    """A board that writes lines into memory."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        super().__init__(self.text, time.monotonic, live=False)

    def lines(self) -> list[str]:
        """What was written so far."""
        return self.text.getvalue().splitlines()


def runs(pid: int | None) -> bool:
    """Whether the process exists."""
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
