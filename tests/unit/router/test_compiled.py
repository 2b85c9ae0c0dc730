"""What is compiled: the list, the stamp, and the rule that can be seen in the sources."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from router import compiled

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES: list[str] = SETTINGS["tool"]["baton"]["compiled"]


def source(name: str) -> Path:
    return ROOT / (name.replace(".", "/") + ".py")


def test_the_list_names_modules_once_and_in_order() -> None:
    """A name that is wrong would be noticed two minutes later."""
    assert sorted(set(NAMES)) == NAMES
    assert [name for name in NAMES if not source(name).is_file()] == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_decoded_into_a_compiled_class(name: str) -> None:
    """Compiled classes have no annotations, and msgspec would refuse every message."""
    tree = ast.parse(source(name).read_text())
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Decoder", ".decode")):
            asked = [*node.args, *(k.value for k in node.keywords if k.arg == "type")]
            assert not classes & {ast.unparse(value) for value in asked}


@pytest.mark.parametrize("name", NAMES)
def test_nobody_waits_in_a_handler(name: str) -> None:
    """What a compiled coroutine handles while it waits becomes other tasks' exception."""
    for node in ast.walk(ast.parse(source(name).read_text())):
        held: list[ast.stmt] = []
        if isinstance(node, ast.ExceptHandler):
            held = node.body
        elif isinstance(node, ast.Try):
            held = node.finalbody
        waits = (ast.Await, ast.AsyncWith, ast.AsyncFor)
        assert [n.lineno for s in held for n in ast.walk(s) if isinstance(n, waits)] == []


def test_a_stamp_tells_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing compiled is not stale; an edited or a missing source is."""
    monkeypatch.setattr(compiled, "_ROOT", tmp_path)
    (tmp_path / "router").mkdir()
    assert compiled.modules() == {}
    assert compiled.stale() == []
    for name in ("a", "b", "c"):
        (tmp_path / "router" / f"{name}.py").write_text(f"{name} = 1\n")
    names = ["router.a", "router.b", "router.c"]
    compiled.write_stamp(tmp_path, compiled.stamp_of(tmp_path, names))
    assert sorted(compiled.modules()) == ["router.a", "router.b", "router.c"]
    assert compiled.stale() == []
    (tmp_path / "router" / "a.py").write_text("a = 2\n")
    (tmp_path / "router" / "b.py").unlink()
    assert compiled.stale() == ["router.a", "router.b"]
    monkeypatch.setattr(compiled, "_SUFFIX", ".another-python.so")
    assert compiled.modules() == {}


def test_what_no_stamp_tells_of_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would run it all the same."""
    monkeypatch.setattr(compiled, "_ROOT", tmp_path)
    (tmp_path / "router" / "wire").mkdir(parents=True)
    (tmp_path / "router" / "wire" / f"leg{compiled._SUFFIX}").write_bytes(b"")
    (tmp_path / "router" / "wire" / "link.another-python.so").write_bytes(b"")
    assert compiled.stale() == ["router.wire.leg"]


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"suffix": "SUFFIX"}', '{"modules": 1}'])
def test_a_broken_stamp_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing, and nothing fails."""
    monkeypatch.setattr(compiled, "_ROOT", tmp_path)
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "compiled.json").write_text(text.replace("SUFFIX", compiled._SUFFIX))
    assert compiled.modules() == {}
