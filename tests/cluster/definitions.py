"""LWS's kinds in a real server: those that it lacks are installed from files, and stay."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton.kube import KubeApi

Json = dict[str, Any]

FOLDER = "BATON_CRDS"
_KINDS = {
    "leaderworkersets": "leaderworkerset.x-k8s.io",
    "disaggregatedsets": "disaggregatedset.x-k8s.io",
    "disaggregatedsetrolescalers": "disaggregatedset.x-k8s.io",
}
_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_STEP_S = 0.2
_SERVED_S = 30.0


def definitions_folder() -> Path | None:
    """Where the CustomResourceDefinitions of LWS lie: in ``$BATON_CRDS/lws``, or beside the
    checkout in ``shared/crds/lws``; None where they do not."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "crds"
    folder = Path(os.environ.get(FOLDER) or beside) / "lws"
    return folder if folder.is_dir() else None


def definition(plural: str, folder: Path) -> Json:
    """One of them."""
    text = (folder / f"{_KINDS[plural]}_{plural}.yaml").read_text("utf-8")
    found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert isinstance(found, dict)
    return found


async def ensure_kinds(api: KubeApi, say: Callable[[str], None]) -> None:
    """Installs what is missing, and says what. It stays: another's objects may need it by then."""
    for plural, group in _KINDS.items():
        name = f"{plural}.{group}"
        status, _ = await api.call("GET", f"{_PATH}/{name}")
        if status == 200:
            continue
        folder = definitions_folder()
        if folder is None:
            pytest.fail(f"this cluster lacks {name}: install LWS, or set {FOLDER} to its CRDs")
        status, found = await api.call("POST", _PATH, body=definition(plural, folder))
        assert status == 201, found
        say(f"installed the CustomResourceDefinition {name}, which stays")
        await _served(api, group, plural)


async def _served(api: KubeApi, group: str, plural: str) -> None:
    for _ in range(round(_SERVED_S / _STEP_S)):
        if (await api.call("GET", f"/apis/{group}/v1/{plural}"))[0] == 200:
            return
        await asyncio.sleep(_STEP_S)
    pytest.fail(f"{plural}.{group} is installed, and not served after {_SERVED_S:g} s")
