"""How routers are found and started, and what the command line makes of its words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from baton.errors import SettingsError, TargetError
from baton.types import Role, WorkerState
from benchmarks.router import ours
from benchmarks.router.__main__ import main, make_plan
from benchmarks.router.fleet import Fleet
from benchmarks.router.records import Cell, Mode
from benchmarks.router.run import Plan, order
from benchmarks.router.targets import (
    Choices,
    find,
    smg_argv,
    smg_workers,
    version,
    vllm_router_argv,
)
from profiles import load_profile

P, D, S = "http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"


def fleet(folder: Path = Path("/none")) -> Fleet:
    return Fleet((P,), (D,), (S,), folder, 1)


def executable(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_vllm_router_hands_over_with_nixl() -> None:
    """Its P/D mode names both pools and the connector; its plain mode the standard workers."""
    argv = vllm_router_argv(Path("/x/vllm-router"), Mode.PD, fleet(), 5, 6)
    assert argv[argv.index("--prefill") :][:4] == ["--prefill", P, "--decode", D]
    assert "nixl" in argv
    assert S not in argv
    plain = vllm_router_argv(Path("/x/vllm-router"), Mode.PLAIN, fleet(), 5, 6)
    assert plain[plain.index("--worker-urls") + 1] == S
    assert not {P, D} & {*plain}


def test_smg_is_told_of_its_workers_with_their_connector() -> None:
    """Named on its command line they would get no transfer parameters."""
    argv = smg_argv(Path("/x/smg"), Mode.PD, fleet(), 5, 6)
    assert not {P, D} & {*argv}
    told = smg_workers(fleet())
    assert [(w["url"], w["worker_type"]) for w in told] == [(P, "prefill"), (D, "decode")]
    assert {w["kv_connector"] for w in told} == {"NixlConnector"}


@pytest.mark.parametrize("build", [vllm_router_argv, smg_argv])
@pytest.mark.parametrize("mode", Mode)
def test_peers_listen_on_the_loopback_alone(build: object, mode: Mode) -> None:
    """Their metrics as well."""
    assert callable(build)
    argv = build(Path("/x/peer"), mode, fleet(), 5, 6)
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert argv[argv.index("--prometheus-host") + 1] == "127.0.0.1"


def test_a_peer_that_is_not_there_is_an_error_that_helps(tmp_path: Path) -> None:
    """It says what to install and how to name it."""
    nowhere = {"smg": tmp_path / "smg"}
    with pytest.raises(TargetError, match=r"pip install smg.*--peer-bin DIR, or --path smg="):
        find("smg", Choices(paths=nowhere))


def test_a_peer_is_found_where_it_was_said_to_be(tmp_path: Path) -> None:
    """A path goes before folders, folders before PATH."""
    (tmp_path / "other").mkdir()
    one, other = executable(tmp_path, "smg"), executable(tmp_path / "other", "smg")
    assert find("smg", Choices(folders=[tmp_path])) == one
    assert find("smg", Choices(folders=[tmp_path], paths={"smg": other})) == other


def test_a_version_that_nobody_knows_is_empty(tmp_path: Path) -> None:
    """No Python beside the executable, no version."""
    assert version("smg", executable(tmp_path, "smg")) == ""


@pytest.mark.parametrize("mode", Mode)
def test_our_profile_is_valid_and_serves_the_mode(mode: Mode, tmp_path: Path) -> None:
    """What the router is started with is a profile of today."""
    argv, env = ours.start(None, mode, 5, tmp_path)
    profile = load_profile(Path(argv[argv.index("--profile") + 1]))
    assert (profile.spec.classify is not None) == (mode is Mode.PD)
    assert profile.served_name == "bench"
    assert len(env["BATON_CLUSTER_TOKEN"]) >= 16


def test_our_router_can_come_from_another_checkout(tmp_path: Path) -> None:
    """A folder is a checkout, a file is a Python."""
    argv, env = ours.start(tmp_path, Mode.PLAIN, 5, tmp_path)
    assert argv[1] == "-P"
    assert env["PYTHONPATH"] == str(tmp_path)
    argv, env = ours.start(Path("/x/python"), Mode.PLAIN, 5, tmp_path)
    assert argv[0] == "/x/python"
    assert "PYTHONPATH" not in env


def test_our_workers_are_those_of_the_mode(tmp_path: Path) -> None:
    """Ready, with the tokenizer, and equal enough to be paired."""
    plain = ours.records(Mode.PLAIN, fleet(tmp_path))
    assert [(w.role, w.url) for w in plain] == [(Role.STANDARD, S)]
    prefill, decode = ours.records(Mode.PD, fleet(tmp_path))
    assert (prefill.role, prefill.url) == (Role.PREFILL, P)
    assert (decode.role, decode.url) == (Role.DECODE, D)
    assert prefill.geometry == decode.geometry
    assert prefill.model_digest == decode.model_digest
    assert {w.state for w in (*plain, prefill, decode)} == {WorkerState.READY}
    assert {w.tokenizer_path for w in (*plain, prefill, decode)} == {str(tmp_path)}
    msgspec.json.encode(prefill)


# --- what is measured -------------------------------------------------------------------------


def test_the_order_turns_with_every_round() -> None:
    """A B C, C B A, A B C: what drifts falls on all alike."""
    assert order("ABC", 0) == ["A", "B", "C"]
    assert order("ABC", 1) == ["C", "B", "A"]
    assert order("ABC", 2) == ["A", "B", "C"]


def test_cells_of_a_mode() -> None:
    """Every concurrency, then the streams, unless there are none."""
    plan = Plan(targets=("direct",), concurrencies=(1, 16), streams=(4,))
    assert plan.cells(Mode.PD) == [
        Cell(Mode.PD, 1),
        Cell(Mode.PD, 16),
        Cell(Mode.PD, 4, stream=True),
    ]
    assert len(Plan(targets=("direct",), streams=()).cells(Mode.PLAIN)) == 3
    assert Cell(Mode.PD, 4, stream=True).name == "pd sse4"


def test_the_command_line_has_defaults_for_all() -> None:
    """Ours against no router, both modes, three rounds of some seconds."""
    plan, options = make_plan([])
    assert plan.targets == ("direct", "baton")
    assert plan.modes == (Mode.PLAIN, Mode.PD)
    assert plan.concurrencies == (1, 16, 64)
    assert plan.rounds >= 3
    assert plan.block_s >= 1.5
    assert options.json is None


def test_quick_is_short_and_flags_go_before_it() -> None:
    """For CI; what is said explicitly counts."""
    plan, _ = make_plan(["smg", "direct", "smg", "--quick", "--rounds", "2", "--mode", "pd"])
    assert plan.targets == ("smg", "direct")
    assert (plan.rounds, plan.modes) == (2, (Mode.PD,))
    assert plan.block_s < 1.0


def test_arguments_and_paths_are_by_target() -> None:
    """Several for one target keep their order."""
    words = ["--arg", "baton=--workers=2", "--arg", "smg=-x", "--arg", "baton=--log-level=debug"]
    plan, _ = make_plan([*words, "--path", "smg=/x/smg", "--peer-bin", "/y"])
    assert plan.choices.extra == {
        "baton": ["--workers=2", "--log-level=debug"],
        "smg": ["-x"],
    }
    assert plan.choices.paths == {"smg": Path("/x/smg")}
    assert plan.choices.folders == (Path("/y"),)


@pytest.mark.parametrize(
    "words",
    [["nginx"], ["--arg", "nginx=-x"], ["--path", "smg"], ["--prompt-bytes", "100"]],
)
def test_what_cannot_be_done_is_refused(words: list[str]) -> None:
    """Before anything is started."""
    with pytest.raises(SettingsError):
        make_plan(words)


def test_a_missing_peer_ends_the_program_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the words that help, and status 2."""
    assert main(["direct", "smg", "--path", f"smg={tmp_path}/smg"]) == 2
    assert "pip install smg" in capsys.readouterr().err
