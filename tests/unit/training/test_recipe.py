"""The recipe's digest, and asking for the demo model without torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from training.demo import recipe as module
from training.demo.recipe import DemoRecipe, Stage, demo_model_path, model_folder


def test_the_digest_covers_the_recipe_and_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change of what comes out has a folder of its own."""
    plain = DemoRecipe().digest()
    assert DemoRecipe().digest() == plain
    assert dataclasses.replace(DemoRecipe(), seed=99).digest() != plain
    stages = (Stage(steps=1, tokens=2, longest_filler=3, turns=4),)
    assert dataclasses.replace(DemoRecipe(), stages=stages).digest() != plain
    monkeypatch.setattr(module, "page_sources", lambda: ["# another page"])
    assert DemoRecipe().digest() != plain


def test_is_found_only_when_it_is_complete(tmp_path: Path) -> None:
    """A folder without a config is no model."""
    assert demo_model_path(tmp_path) is None
    folder = model_folder(tmp_path, DemoRecipe())
    assert folder == tmp_path / "models" / f"demo-{DemoRecipe().digest()}"
    folder.mkdir(parents=True)
    assert demo_model_path(tmp_path) is None
    (folder / "config.json").write_text("{}")
    assert demo_model_path(tmp_path) == folder


def test_asking_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """The command line asks at every start."""
    program = (
        "import sys, pathlib; from training.demo import demo_model_path;"
        f"assert demo_model_path(pathlib.Path({str(tmp_path)!r})) is None;"
        "found = {'torch', 'transformers', 'tokenizers', 'safetensors'} & set(sys.modules);"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
