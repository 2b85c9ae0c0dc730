"""Compiles the router's hot modules with mypyc, beside their sources; ``make compiled``.

    python requirements/compiled.py            compile what is not compiled yet
    python requirements/compiled.py --ahead    compile, and let the sources run until then
    python requirements/compiled.py --remove   go back to the sources

The modules stand in ``pyproject.toml`` under ``[tool.baton] compiled``. Needs a C compiler and some
three minutes. Python prefers a compiled module to its source, so a stamp of the sources is kept:
when one has changed, the router warns at its start, and the tests refuse to run.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AHEAD = ROOT / "build" / "ahead"
"""Where it is made before it is moved to the sources."""
GROUP = "baton"
"""Of the one library that holds the code of all modules."""


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Compiles the router's hot modules.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--ahead", action="store_true", help="compile, and change nothing yet")
    group.add_argument("--remove", action="store_true", help="remove what was compiled")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from router import compiled

    if options.remove:
        remove(ROOT)
        return 0
    names = modules(ROOT)
    if compiled.modules() and not compiled.stale() and set(compiled.modules()) == set(names):
        return 0
    if compiler() is None:
        sys.stderr.write(
            "[compiled] no C compiler here: install one (Debian: gcc and python3-dev), or say "
            "which with CC; until then the router runs from its sources\n"
        )
        return 1
    # A shell starts what runs beside others deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    AHEAD.parent.mkdir(exist_ok=True)
    with (AHEAD.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return compile_all(names, ahead=options.ahead)


def compile_all(names: list[str], *, ahead: bool) -> int:
    """Compiles, unless that has been done ahead, and moves the result to its place unless this is
    ahead. Returns the exit status."""
    from router import compiled

    stamp = compiled.stamp_of(ROOT, names)
    if compiled.read_stamp(AHEAD) != stamp:
        shutil.rmtree(AHEAD, ignore_errors=True)
        began_s = time.monotonic()
        print(f"[compiled] compiling {len(names)} modules, some three minutes", flush=True)
        if not build(ROOT, names, AHEAD):
            return 1
        compiled.write_stamp(AHEAD, stamp)
        print(f"[compiled] done in {time.monotonic() - began_s:.0f} s", flush=True)
    if not ahead:
        remove(ROOT)
        # Without its stamp, what is left after an interruption is compiled anew.
        compiled.remove_stamp(AHEAD)
        for path in [path for path in AHEAD.rglob("*") if path.is_file()]:
            path.rename(ROOT / path.relative_to(AHEAD))
        compiled.write_stamp(ROOT, stamp)
        shutil.rmtree(AHEAD)
    return 0


def modules(root: Path) -> list[str]:
    """The dotted names of what is compiled."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    names: list[str] = settings["tool"]["baton"]["compiled"]
    return names


def compiler() -> str | None:
    """The C compiler, if there is one."""
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return shutil.which(named.split()[0]) or shutil.which("cc")


def build(root: Path, names: list[str], target: Path) -> bool:
    """Compiles ``names`` of the checkout ``root`` into the folder ``target``."""
    with_paths = [name.replace(".", "/") + ".py" for name in names]
    scratch = root / "build" / "compiled"
    shutil.rmtree(scratch, ignore_errors=True)
    script = (
        "import sys\n"
        "from setuptools import setup\n"
        "from mypyc.build import mypycify\n"
        f"modules = mypycify({with_paths!r}, opt_level='2', group_name={GROUP!r}, "
        f"target_dir={str(scratch / 'c')!r})\n"
        "setup(name='baton-compiled', packages=[], py_modules=[], ext_modules=modules)\n"
    )
    argv = [sys.executable, "-c", script, "-q", "build_ext"]
    argv += ["--build-lib", str(target), "--build-temp", str(scratch / "o")]
    done = subprocess.run(argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-4000:])
        sys.stderr.write("[compiled] failed; the router runs from its sources\n")
        return False
    return True


def remove(root: Path) -> None:
    """Removes what was compiled."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for package in ("baton", "kvtransfer", "router"):
        for path in (root / package).rglob(f"*{suffix}"):
            path.unlink()
    for path in root.glob(f"{GROUP}__mypyc*"):
        path.unlink()
    (root / "router" / "compiled.json").unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
