"""The model that ``baton up`` serves: found, made or fetched in a process that can be ended."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from baton.cli.logs import ChildLog
from baton.cli.model import prepare_model, run_child
from baton.cli.stack import StartFailed
from baton.errors import ModelError
from profiles import ModelSpec
from tests.unit.baton.cli_fakes import Screen, runs
from training.demo.recipe import DemoRecipe, model_folder


def make_model(folder: Path) -> Path:
    """Files that pass for a model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    return folder


def offline(home: Path) -> dict[str, str]:
    """An environment whose hub cache is in ``home``, without a network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HF_HUB_CACHE": str(home)}


async def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """If it holds a model; otherwise the error says what is missing."""
    folder = make_model(tmp_path / "m")
    spec = ModelSpec(source=str(folder))
    assert await prepare_model(spec, home=tmp_path, env={}, board=Screen()) == folder
    with pytest.raises(ModelError, match=r"no config\.json"):
        await prepare_model(ModelSpec(source="/"), home=tmp_path, env={}, board=Screen())


async def test_a_demo_model_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    """No process is started for it: there is no environment to start one with."""
    folder = make_model(model_folder(tmp_path, DemoRecipe()))
    screen = Screen()
    found = await prepare_model(ModelSpec(source="demo"), home=tmp_path, env={}, board=screen)
    assert found == folder
    assert screen.lines() == ["model: ready (the demo model, made earlier)"]


async def test_a_model_from_the_hub(tmp_path: Path) -> None:
    """The folder is the hub cache's."""
    cache = tmp_path / "models--owner--tiny"
    folder = make_model(cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    found = await prepare_model(
        ModelSpec(source="owner/tiny"), home=tmp_path, env=offline(tmp_path), board=Screen()
    )
    assert found == folder


async def test_a_model_that_cannot_be_fetched(tmp_path: Path) -> None:
    """What the child said is in the error."""
    with pytest.raises(StartFailed, match=r"owner/none could not be fetched \(status 2\)") as at:
        await prepare_model(
            ModelSpec(source="owner/none"), home=tmp_path, env=offline(tmp_path), board=Screen()
        )
    assert any("owner/none is not a folder" in line for line in at.value.lines)
    assert at.value.log == tmp_path / "logs" / "model.log"


async def test_making_can_be_cut_short(tmp_path: Path) -> None:
    """A stop in the middle ends the child."""
    screen, log = Screen(), ChildLog(tmp_path / "model.log")
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    screen.set("model", "making")
    making = asyncio.create_task(
        run_child([sys.executable, "-S", "-c", script], dict(os.environ), screen, log, "it failed")
    )
    for _ in range(1000):
        if log.path.exists() and log.path.read_text().strip():
            break
        await asyncio.sleep(0.01)
    pid = int(log.path.read_text())
    making.cancel()
    await asyncio.gather(making, return_exceptions=True)
    assert not runs(pid)
