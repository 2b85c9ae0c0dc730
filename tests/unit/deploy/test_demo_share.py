"""The demo model in a cluster: made by one pod, fetched by the others, whole or not at all."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from baton.errors import ModelError
from deploy.lws.demo_share import fetch_model, made, server


@contextmanager
def serving(found: http.server.ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_port}"
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    return folder


def test_a_worker_gets_the_files_as_they_are(tmp_path: Path) -> None:
    """All files of the folder, byte for byte, and nothing beside it is left over."""
    source, target = model(tmp_path / "source"), tmp_path / "models" / "demo"
    with serving(server(source, "127.0.0.1", 0)) as url:
        fetch_model(url, target, limit_s=10)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }
    assert [path.name for path in target.parent.iterdir()] == ["demo"]


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    """A container that is restarted keeps the model; nobody has to serve it."""
    fetch_model("http://127.0.0.1:1", model(tmp_path / "demo"), limit_s=1)


class Clock:
    """Time that passes in sleeps alone."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_worker_waits_for_the_model(tmp_path: Path) -> None:
    """Nobody serves it yet: the worker tries until it is there."""
    source, clock, found = model(tmp_path / "source"), Clock(), server(tmp_path, "127.0.0.1", 0)
    found.server_close()  # its port is free, and nobody answers there
    later = None

    def sleep(seconds: float) -> None:
        nonlocal later
        clock.sleep(seconds)
        if clock.now_s >= 20 and later is None:
            later = server(source, "127.0.0.1", found.server_port)
            threading.Thread(target=later.serve_forever, args=(0.01,)).start()

    url = f"http://127.0.0.1:{found.server_port}"
    fetch_model(url, tmp_path / "demo", limit_s=60, now_s=lambda: clock.now_s, sleep=sleep)
    assert later is not None
    later.shutdown()
    later.server_close()
    assert (tmp_path / "demo" / "config.json").read_text() == "{}"


def test_waiting_has_an_end(tmp_path: Path) -> None:
    """After the limit it is told where to look."""
    clock, found = Clock(), server(tmp_path, "127.0.0.1", 0)
    found.server_close()
    with pytest.raises(ModelError, match=r"within 60 s.* the pod that makes it"):
        fetch_model(
            f"http://127.0.0.1:{found.server_port}",
            tmp_path / "demo",
            limit_s=60,
            now_s=lambda: clock.now_s,
            sleep=clock.sleep,
        )
    assert list(tmp_path.iterdir()) == []
    assert 60 <= clock.now_s < 70


def test_half_a_model_is_none(tmp_path: Path) -> None:
    """An answer that breaks off leaves no folder that a worker could take for the model."""

    class Broken(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"demo\0" + b"\0" * 300)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    clock = Clock()
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)) as url:
        with pytest.raises(ModelError):
            fetch_model(
                url,
                tmp_path / "demo",
                limit_s=3,
                now_s=lambda: clock.now_s,
                sleep=clock.sleep,
            )
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_made_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command says where the model is; when it fails, there is none."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho working >&2\necho "$4/models/demo-1 of $*"\nexit 0\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert str(made(tmp_path)) == (
        f"{tmp_path}/models/demo-1 of -m training.demo --home {tmp_path}"
    )
    script.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ModelError, match="could not be made"):
        made(tmp_path)
