"""The examples of the client's page run."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kubernetes import FakeKubernetes

PAGE = Path(__file__).resolve().parents[3] / "docs" / "kubernetes" / "lws-client.md"


async def test_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, against a server that starts out empty, with the output that the page tells of."""
    text = PAGE.read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    names: dict[str, Any] = {}
    async with FakeKubernetes() as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path, namespace="serving")))
        try:
            for block in blocks:
                code = compile(block, PAGE.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(code, names)
                if inspect.isawaitable(result):
                    await result
        finally:
            if "api" in names:
                await names["api"].close()
        assert fake.all("leaderworkersets", "serving") == []
    told = capsys.readouterr().out
    for said in (
        "llama 2 4 1",
        "ADDED llama 0",
        "not yet: its controller has not seen it",
        "is not as wanted after 0.2 s",
        "set its scaling.mode to External",
        "51 39",
    ):
        assert said in told
