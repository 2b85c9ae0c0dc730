"""Which of the router's modules run as compiled code, and whether it is their sources' code.

``make compiled`` compiles the hot ones with mypyc and leaves a stamp of the sources beside this
file. Python prefers a compiled module to a source that was edited since, without a word; hence
``stale``. A plain install compiles nothing, and everything works without.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).resolve().parent.parent
_PACKAGES: Final = ("baton", "kvtransfer", "router")
_STAMP: Final = "router/compiled.json"
_SUFFIX: Final = str(sysconfig.get_config_var("EXT_SUFFIX"))


def modules() -> dict[str, str]:
    """Compiled modules, with the digests of the sources that they were made from."""
    stamp = read_stamp(_ROOT)
    # Another Python, or another platform, does not see them.
    found: dict[str, str] = stamp["modules"] if stamp.get("suffix") == _SUFFIX else {}
    return found


def stale() -> list[str]:
    """Compiled modules whose source is another one now, or of which nobody knows what they were
    made from; run ``make compiled`` again."""
    known = modules()
    changed = [name for name, digest in known.items() if _digest(_ROOT, name) != digest]
    found = (
        ".".join(path.relative_to(_ROOT).parts).removesuffix(_SUFFIX)
        for package in _PACKAGES
        for path in (_ROOT / package).rglob(f"*{_SUFFIX}")
    )
    return changed + sorted(set(found) - set(known))


def stamp_of(root: Path, names: Iterable[str]) -> dict[str, Any]:
    """What will have been compiled of the sources in ``root``, as they are now."""
    return {"suffix": _SUFFIX, "modules": {name: _digest(root, name) for name in names}}


def read_stamp(target: Path) -> dict[str, Any]:
    """What was compiled into the folder ``target``; empty if nobody knows."""
    try:
        stamp: dict[str, Any] = json.loads((target / _STAMP).read_text())
    except (OSError, ValueError):
        return {}
    sound = isinstance(stamp, dict) and isinstance(stamp.get("modules"), dict)
    return stamp if sound else {}


def write_stamp(target: Path, stamp: dict[str, Any]) -> None:
    """Writes down what was compiled into the folder ``target``."""
    (target / _STAMP).write_text(json.dumps(stamp, indent=1) + "\n")


def remove_stamp(target: Path) -> None:
    """Forgets it."""
    (target / _STAMP).unlink(missing_ok=True)


def _digest(root: Path, name: str) -> str:
    path = root / (name.replace(".", "/") + ".py")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
