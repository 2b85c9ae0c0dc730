"""A doctor on the machine that the tests run on: real NIXL, real pulls between two processes."""

from __future__ import annotations

import importlib.util
import json
import secrets
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baton.cli.app import app
from baton.engine import Device
from deploy.doctor import MACHINE_CHECKS, Level, Patient, ThisMachine, examine
from deploy.doctor.engine_checks import _local_pull
from kvtransfer.probe import SECRET_ENV
from profiles import Transport

needs_nixl = pytest.mark.skipif(
    importlib.util.find_spec("nixl") is None, reason="no NIXL in this environment"
)


def this(folder: Path) -> Patient:
    return Patient(ThisMachine(), Device.CPU, None, folder, secrets.token_hex(16))


async def test_no_traceback_and_no_nonsense(tmp_path: Path) -> None:
    """Each check that measures nothing ends by itself on whatever machine this is, and none says
    that it could not be run."""
    quick = [check for check in MACHINE_CHECKS if check.name not in ("nixl", "ucx", "pair")]
    found = await examine(quick, this(tmp_path))
    assert {"python", "memory", "cores", "shm", "limits", "clock", "ports", "home"} <= {
        finding.check for finding in found
    }
    assert [finding for finding in found if finding.seen.startswith("not checked")] == []


@needs_nixl
async def test_agent(tmp_path: Path) -> None:
    """An agent can be made, and UCX's own table says which transports it has."""
    found = await examine([c for c in MACHINE_CHECKS if c.name in ("nixl", "ucx")], this(tmp_path))
    assert [(finding.check, finding.level) for finding in found] == [
        ("nixl", Level.OK),
        ("ucx", Level.OK),
    ]
    assert "tcp" in found[1].seen
    assert "lo" in found[1].seen


@needs_nixl
async def test_pull(tmp_path: Path) -> None:
    """Two processes hand over, the bytes arrive as they were, and it is said over what."""
    measured = await _local_pull(this(tmp_path), Transport.TCP)
    assert "error" not in measured, measured
    assert measured["best_bytes_per_s"] >= measured["bytes_per_s"] > 1e6
    assert measured["over"].startswith("tcp/")
    assert abs(measured["clock_offset_s"]) < 1


@needs_nixl
async def test_transport_that_is_not_there(tmp_path: Path) -> None:
    """A transport that UCX does not have ends in an error with UCX's reason, and not in a hang."""
    patient = this(tmp_path)
    answer = await patient.probe(["agent"], env={"UCX_TLS": "rc,self"}, limit_s=60)
    if not answer["error"]:
        pytest.skip("this machine has RDMA")
    assert any("'rc' is not available" in line for line in answer["complaints"])


def test_command(tmp_path: Path) -> None:
    """Status 0 without a problem, 1 with one, 2 for what cannot be meant; JSON has the findings."""
    runner, env = CliRunner(), {"BATON_HOME": str(tmp_path), "BATON_PROFILE": ""}
    quick = ["doctor", "machine", "--only", "python", "--only", "home"]
    result = runner.invoke(app, [*quick, "--json"], env=env)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert (answer["examined"], answer["worst"]) == ("machine", "ok")
    assert [finding["check"] for finding in answer["findings"]] == ["python", "home"]
    token = tmp_path / "cluster-token"
    token.write_text("x" * 32)
    token.chmod(0o644)
    result = runner.invoke(app, [*quick, "-v"], env=env)
    assert result.exit_code == 1
    assert f"-> chmod 600 {token}" in result.stdout
    assert "1 ok, 1 problem" in result.stdout
    for wrong in (["--only", "nothing"], ["--peer", "here", "--only", "python"]):
        assert runner.invoke(app, ["doctor", "machine", *wrong], env=env).exit_code == 2
    assert runner.invoke(app, ["doctor", "--json", "machine"], env=env).exit_code == 2


async def test_probe_without_a_secret(tmp_path: Path) -> None:
    """Without a secret nothing is offered and nothing pulled."""
    patient = this(tmp_path)
    patient.secret = ""
    for what in ("serve", "pull"):
        answer = await patient.probe([what, "127.0.0.1", "1"], env={}, limit_s=30)
        assert SECRET_ENV in answer["error"]
