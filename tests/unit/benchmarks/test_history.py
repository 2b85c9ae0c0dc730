"""Results in their folder: what is listed, how one is found, what is noted of the machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import baton
from baton.errors import SettingsError
from benchmarks.compare.files import write_result
from benchmarks.comparison import Arm, CompareResult
from benchmarks.history import entries, environment, find, new_id, results_folder
from benchmarks.load.files import write_meta
from benchmarks.records import Problem, RunMeta


def _compare(ident: str, created_wall_s: float = 10.0, **more: object) -> CompareResult:
    result = CompareResult(
        id=ident,
        created_wall_s=created_wall_s,
        took_s=1.0,
        command="c",
        headline=["B wins.", "Details."],
        arms=[Arm(name="a", profile_version="v1"), Arm(name="b")],
        workload={"metadata": {"name": "mixed"}, "spec": {"seed": 1}, "trace_sha256": "ff"},
        commit="abc",
    )
    for name, value in more.items():
        setattr(result, name, value)
    return result


def _run(ident: str, started_wall_s: float = 20.0, **more: object) -> RunMeta:
    meta = RunMeta(
        id=ident,
        started_wall_s=started_wall_s,
        duration_s=1.0,
        ended_s=1.0,
        complete=True,
        salt="s",
        plan={"workload": "chat", "trace_sha256": None},
        target={"url": "http://127.0.0.1:8000"},
        versions={"baton_commit": "def"},
    )
    for name, value in more.items():
        setattr(meta, name, value)
    return meta


def _add(home: Path, result: CompareResult | RunMeta) -> Path:
    """Writes a result where the commands would."""
    folder = results_folder(home) / result.id
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(result, CompareResult):
        write_result(folder, result)
    else:
        write_meta(folder, result)
    return folder


def test_ids_say_when_and_what() -> None:
    """UTC to the second, the kind, and a tail that tells two of one second apart."""
    assert new_id("compare", now_s=1_795_212_930.0, tail="ab12") == "20261120-221530-compare-ab12"
    assert re.fullmatch(r"\d{8}-\d{6}-run-[0-9a-f]{4}", new_id("run"))


def test_results_are_listed_newest_first(tmp_path: Path) -> None:
    """A comparison and a run, each with what the list shows."""
    _add(tmp_path, _compare("old"))
    _add(tmp_path, _run("new"))
    (results_folder(tmp_path) / "scratch").mkdir()
    run, comparison = entries(tmp_path)
    assert (run.id, run.kind, run.workload, run.arms) == (
        *("new", "run", "chat"),
        ["http://127.0.0.1:8000"],
    )
    assert run.commit == "def"
    assert (comparison.id, comparison.kind, comparison.workload) == ("old", "compare", "mixed")
    assert comparison.arms == ["a", "b"]
    assert comparison.profile_versions == {"a": "v1"}
    assert (comparison.commit, comparison.trace_sha256) == ("abc", "ff")
    assert comparison.headline == "B wins."
    assert comparison.valid


def test_runs_of_a_sweep_are_listed_and_found(tmp_path: Path) -> None:
    """Each under the sweep's id."""
    for place, level in enumerate(("01-x1", "02-x2")):
        folder = results_folder(tmp_path) / "20261120-1-run-ab" / level
        folder.mkdir(parents=True)
        write_meta(folder, _run(level, 20.0 + place))
    assert [entry.id for entry in entries(tmp_path)] == [
        "20261120-1-run-ab/02-x2",
        "20261120-1-run-ab/01-x1",
    ]
    assert find(tmp_path, "latest").name == "02-x2"
    assert find(tmp_path, "20261120-1-run-ab/01").name == "01-x1"
    with pytest.raises(SettingsError, match="fits 2 results"):
        find(tmp_path, "20261120-1")


def test_what_is_wrong_with_a_result_is_its_headline(tmp_path: Path) -> None:
    """Fatal problems and interruptions are said, and the result is not valid."""
    lagged = Problem(code="client_lagged", text="The client lagged.")
    _add(tmp_path, _compare("a", problems=[lagged]))
    _add(tmp_path, _compare("b", complete=False))
    _add(tmp_path, _run("c", complete=False, problems=[lagged]))
    found = {entry.id: entry for entry in entries(tmp_path)}
    assert not any(entry.valid for entry in found.values())
    assert found["a"].headline == "The client lagged."
    assert found["b"].headline == "interrupted: B wins."
    assert found["c"].headline == "interrupted; The client lagged."


@pytest.mark.parametrize("content", ["", "{", '{"id": 3}', '{"format": "other/v9"}', "\x00"])
def test_a_broken_result_hides_no_other(tmp_path: Path, content: str) -> None:
    """It is listed with the reason, and ``latest`` passes over it."""
    good = _add(tmp_path, _compare("good"))
    broken = results_folder(tmp_path) / "broken"
    broken.mkdir()
    (broken / "compare.json").write_text(content, encoding="utf-8")
    found = {entry.id: entry for entry in entries(tmp_path)}
    assert found["good"].valid
    assert found["broken"].kind == "broken"
    assert found["broken"].headline.startswith("cannot be read: ")
    assert find(tmp_path, "latest") == good


def test_a_format_of_a_later_baton_is_broken_here(tmp_path: Path) -> None:
    """A layout that this version does not know is not guessed at."""
    _add(tmp_path, _compare("later", format="baton/bench-compare/v2"))
    (entry,) = entries(tmp_path)
    assert entry.kind == "broken"
    assert "v2" in entry.headline


def test_results_are_found_by_beginning_path_and_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exact id wins over those that it begins."""
    short = _add(tmp_path, _compare("20261120-1", 1.0))
    long = _add(tmp_path, _compare("20261120-12", 2.0))
    assert find(tmp_path, "latest") == long
    assert find(tmp_path, "20261120-1") == short
    assert find(tmp_path, "20261120-12") == long
    assert find(tmp_path, str(long)) == long
    monkeypatch.chdir(results_folder(tmp_path))
    assert find(tmp_path, "./20261120-12").samefile(long)


def test_what_cannot_be_found_is_explained(tmp_path: Path) -> None:
    """Nothing there, nothing that fits, too much that fits, a folder that is no result."""
    with pytest.raises(SettingsError, match="there are no results"):
        find(tmp_path, "latest")
    _add(tmp_path, _compare("2026a", 1.0))
    _add(tmp_path, _compare("2026b", 2.0))
    with pytest.raises(SettingsError, match="'2026' fits 2 results: 2026b, 2026a"):
        find(tmp_path, "2026")
    with pytest.raises(SettingsError, match="no result begins with '2025'; the newest are 2026b"):
        find(tmp_path, "2025")
    with pytest.raises(SettingsError, match="no result begins with ''"):
        find(tmp_path, "")
    with pytest.raises(SettingsError, match="is no result"):
        find(tmp_path, str(tmp_path))


def test_the_environment_names_versions_and_machine() -> None:
    """Baton, Python, cores and memory are always known."""
    found = environment()
    assert found.versions["baton"] == baton.__version__
    assert found.versions["python"].startswith(f"{sys.version_info.major}.")
    assert found.machine["cores"] >= 1
    assert found.machine["memory_bytes"] > 2**20
    assert found.machine["cpu"]
    assert found.machine["system"]


def test_looking_at_versions_imports_no_engine() -> None:
    """Importing torch to ask its version would take seconds and gigabytes."""
    code = (
        "import sys, benchmarks.history as h; h.environment();"
        "print([m for m in ('torch', 'vllm', 'nixl', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _git(folder: Path, *arguments: str) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", *who, "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_commit_is_named_only_for_a_checkout_of_baton_itself(tmp_path: Path) -> None:
    """Clean, changed, installed inside somebody's repository, and no repository at all."""
    package = tmp_path / "baton"
    package.mkdir()
    assert environment(package).commit is None
    (package / "__init__.py").write_text("", encoding="utf-8")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert (environment(package).commit, environment(package).dirty) == (commit, False)
    (package / "__init__.py").write_text("x = 1\n", encoding="utf-8")
    changed = environment(package)
    assert (changed.commit, changed.dirty) == (f"{commit}+changes", True)
    nested = tmp_path / "site-packages" / "baton"
    nested.mkdir(parents=True)
    assert environment(nested).commit is None
