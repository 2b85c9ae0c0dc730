"""Runs the install steps of an image's first stage in a folder, where no container engine is.

Each RUN is a real shell command, with ``/opt`` and ``/src`` put into the folder; what only root of
a container of its own may do (Debian's packages, users) is left out and named.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "images"
NOT_HERE = ("apt-get", "groupadd")


@dataclass
class Built:
    """What a build left.

    Attributes:
        opt: the folder that is ``/opt`` in the image.
        wheel: Baton's.
        left_out: RUN steps that were not run.
    """

    opt: Path
    wheel: Path
    left_out: list[str] = field(default_factory=list)

    @property
    def python(self) -> Path:
        """The interpreter that the image starts."""
        return self.opt / "baton" / "bin" / "python"


def names() -> list[str]:
    """Of the images."""
    return sorted(path.name.split(".")[0] for path in FOLDER.glob("*.Dockerfile"))


def path(name: str) -> Path:
    """An image's Dockerfile."""
    return FOLDER / f"{name}.Dockerfile"


def steps(name: str) -> list[dict[str, Any]]:
    """Its instructions in order: ``instruction`` and ``value``."""
    with path(name).open("rb") as file:
        structure: list[dict[str, Any]] = DockerfileParser(fileobj=file).structure
    return [step for step in structure if step["instruction"] != "COMMENT"]


def build(name: str, folder: Path, *, env: dict[str, str] | None = None) -> Built:
    """Runs the first stage; fails with the output of the step that failed."""
    context = folder / "context"
    _copy_context(context)
    built = Built(folder / "opt", Path())
    source = folder / "src"
    stages = 0
    for step in steps(name):
        if step["instruction"] == "FROM":
            stages += 1
        if stages != 1:
            continue
        if step["instruction"] == "COPY":
            *what, where = step["value"].split()
            _copy(context, what, source / where)
        elif step["instruction"] == "RUN":
            if any(word in step["value"] for word in NOT_HERE):
                built.left_out.append(step["value"])
                continue
            _run(step["value"], source, built.opt, env or {})
    (built.wheel,) = (built.opt / "wheel").glob("*.whl")
    return built


def _run(value: str, source: Path, opt: Path, env: dict[str, str]) -> None:
    command = value.replace("/opt/", f"{opt}/")
    clean = {
        **{key: value for key, value in os.environ.items() if key.startswith(("PIP_", "HTTP"))},
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(source),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    for key, value in env.items():
        # A variable that the step sets for itself.
        command = command.replace(f"{key}=1 ", f"{key}={value} ")
    done = subprocess.run(
        ["/bin/sh", "-ec", command],
        cwd=source,
        env=clean,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def _copy(context: Path, what: list[str], where: Path) -> None:
    for name in what:
        if name == ".":
            shutil.copytree(context, where, dirs_exist_ok=True)
        else:
            where.mkdir(parents=True, exist_ok=True)
            shutil.copy(context / name, where)


def _copy_context(context: Path) -> None:
    """What ``.dockerignore`` lets through."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    ignored = [line for line in lines if line and line[0] not in "#!*"]
    ignored += [line for line in lines if line.startswith("**/")]

    def ignore(folder: str, found: list[str]) -> set[str]:
        relative = Path(folder).relative_to(ROOT)
        return {
            name
            for name in found
            if any(
                fnmatch.fnmatch(name, rule.removeprefix("**/"))
                if rule.startswith("**/")
                else str(relative / name) == rule
                for rule in ignored
            )
        }

    context.mkdir(parents=True)
    for name in kept:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=ignore)
        else:
            shutil.copy(source, context / name)


def installed(python: Path) -> set[str]:
    """Names of the distributions that an interpreter has, in lower case."""
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps([d.metadata['Name'].lower() for d in m.distributions()]))"
    )
    done = subprocess.run(
        [str(python), "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout))


__all__ = ["Built", "build", "installed", "names", "path", "steps"]
