"""Hatchling's hook: with ``BATON_COMPILED=1`` a wheel has the hot modules compiled.

``BATON_COMPILED=1 python -m build --wheel --no-isolation``, where mypy and setuptools are.
Without the variable the wheel is pure Python, one for all platforms.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledModules(BuildHookInterface):  # type: ignore[type-arg]
    """Adds what ``requirements/compiled.py`` makes, when it is asked for."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Hatchling's: before the wheel is put together."""
        if self.target_name != "wheel" or os.environ.get("BATON_COMPILED") != "1":
            return
        root = Path(self.root)
        sys.path[:0] = [str(root), str(root / "requirements")]
        import compiled as recipe

        from router import compiled

        target = root / "build" / "wheel"
        shutil.rmtree(target, ignore_errors=True)
        names = recipe.modules(root)
        stamp = compiled.stamp_of(root, names)
        if not recipe.build(root, names, target):
            raise RuntimeError("the modules did not compile; see above")
        (target / "router").mkdir(parents=True, exist_ok=True)
        compiled.write_stamp(target, stamp)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path in sorted(target.rglob("*")):
            if path.is_file():
                build_data["force_include"][str(path)] = str(path.relative_to(target))
