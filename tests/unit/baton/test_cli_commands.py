"""The command line as people type it: help, versions, profiles, status; messages and statuses."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from baton import __version__
from baton.cli.app import app
from baton.cli.runfile import RunNote, write_note
from profiles import builtin_names, parse_profile, resolve_profile


def run(*arguments: str) -> Result:
    """One command."""
    return CliRunner().invoke(app, arguments, prog_name="baton")


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("up",),
        ("status",),
        ("explain",),
        ("drain",),
        ("pairs",),
        ("handoffs",),
        ("version",),
        ("profile",),
        ("profile", "list"),
        ("profile", "show"),
        ("profile", "validate"),
        ("profile", "schema"),
    ],
)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    """--help says what it does; commands with something to choose show an example."""
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"Usage: baton {' '.join(command)}".strip() in result.stdout
    plain = (("up",), ("status",), ("drain",), ("pairs",), ("handoffs",))
    if command in (*plain, ("profile", "show"), ("profile", "validate")):
        assert f"    baton {' '.join(command)}" in result.stdout


def test_an_unknown_command() -> None:
    """Is named."""
    result = run("bogus")
    assert result.exit_code == 2
    assert "No such command 'bogus'" in result.stderr


def test_version_says_what_is_there() -> None:
    """Baton's own version, and each package's or that it is not installed."""
    result = run("version", "--json")
    about = json.loads(result.stdout)
    assert about["baton"] == __version__
    assert about["packages"]["msgspec"]
    lines = [line.split(maxsplit=1) for line in run("version").stdout.splitlines()]
    shown = dict((line[0], line[1]) for line in lines)
    assert shown["baton"] == __version__
    for name, version in about["packages"].items():
        assert shown[name] == (version or "not installed")


def test_profiles_are_listed() -> None:
    """Each built-in one, with its mode."""
    lines = run("profile", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(builtin_names())
    assert all(line.split()[1] in ("disaggregated", "standard") for line in lines[1:])


@pytest.mark.parametrize("name", builtin_names())
def test_a_shown_profile_reads_back_as_the_same(name: str) -> None:
    """What is printed is a profile of the same version, with defaults filled in."""
    text = run("profile", "show", name).stdout
    again = parse_profile(text, source="shown")
    assert again.version == resolve_profile(name).version
    assert again.metadata == resolve_profile(name).metadata
    assert yaml.safe_load(text)["spec"]["transfer"]["progress_delay_us"] == 1000


def test_a_profile_that_is_not_there() -> None:
    """One line on stderr, status 2, no traceback."""
    result = run("profile", "show", "standart")
    assert result.exit_code == 2
    assert result.stderr.startswith("baton: no built-in profile is called")
    assert result.stderr.count("\n") == 1


def test_profiles_are_checked(tmp_path: Path) -> None:
    """Sound files are said to be sound on stdout, each problem is a line on stderr, and one bad
    file is enough for status 2."""
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(run("profile", "show", "standard").stdout)
    bad.write_text(good.read_text().replace("mode: standard", "mode: fast\n  colour: red"))
    assert run("profile", "validate", str(good)).exit_code == 0
    result = run("profile", "validate", str(good), str(bad), str(tmp_path / "none.yaml"))
    assert result.exit_code == 2
    assert result.stdout.startswith(f"{good}: ok, profile standard (standard), version ")
    problems = result.stderr.splitlines()
    assert all(line.startswith(str(tmp_path)) for line in problems)
    assert any("colour" in line for line in problems)
    assert any("none.yaml: no such file" in line for line in problems)


def test_the_schema_is_json() -> None:
    """Editors can read it."""
    assert json.loads(run("profile", "schema").stdout)["title"] == "ServingProfile"


def test_status_without_a_router(tmp_path: Path) -> None:
    """Status 1, and what to do."""
    result = run("status", "--home", str(tmp_path))
    assert result.exit_code == 1
    assert "run `baton up`" in result.stderr
    assert list(tmp_path.iterdir()) == []


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_status_after_a_killed_up(tmp_path: Path) -> None:
    """Its note is no proof: the router is asked, and its absence explained."""
    (tmp_path / "cluster-token").write_text("a-token-of-good-length")
    (tmp_path / "cluster-token").chmod(0o600)
    url = f"http://127.0.0.1:{closed_port()}"
    # No process has this pid: it is above the kernel's limit.
    write_note(tmp_path, RunNote(url, 2**22 + 1, 2, "cpu-demo", "v", "demo", 1.0, "ready", ()))
    result = run("status", "--home", str(tmp_path))
    assert result.exit_code == 1
    assert f"no router at {url}: nothing listens there" in result.stderr
    assert "is gone without a goodbye" in result.stderr


def test_status_makes_no_token(tmp_path: Path) -> None:
    """A token made up here would be refused: the missing one is asked for instead."""
    result = run("status", "--home", str(tmp_path), "--router", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert "there is no cluster token" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_up_refuses_before_it_starts(tmp_path: Path) -> None:
    """A wrong profile is one message and status 2; nothing was made."""
    result = run("up", "--home", str(tmp_path / "home"), "--profile", "nope")
    assert result.exit_code == 2
    assert result.stderr.startswith('baton: no built-in profile is called "nope"')
    assert not (tmp_path / "home").exists()
