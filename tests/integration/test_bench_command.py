"""``baton bench`` as a person types it: real processes, a real mock server, signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.load import read_run
from benchmarks.mock import Delay, Script, mock_process
from tests.fakes.waiting import until

BATON = [sys.executable, "-m", "baton.cli", "bench"]
SCRIPT = Script(ttft=Delay(0.02), itl=Delay(0.005))


def bench(home: Path, *args: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BATON, *args],
        env={**os.environ, "BATON_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def has_records(folder: Path) -> bool:
    file = folder / "requests.jsonl"
    return file.exists() and file.stat().st_size > 0


async def in_thread(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(bench, home, *args)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["run", "127.0.0.1:9"], "http://"),
        (["run", "http://127.0.0.1:9", "-w", "nonsense"], "nonsense"),
        (["run", "http://127.0.0.1:9", "-w", "./nowhere.yaml"], "nowhere.yaml"),
        (["run", "http://127.0.0.1:9", "--slo", "speed=1"], "ttft=0.5"),
        (["run", "http://127.0.0.1:9", "--sweep", "a,b"], "0.5,1,1.5"),
        (["run", "http://127.0.0.1:9", "--sweep", "1,2", "--rate-scale", "3"], "leave out"),
        (["run", "http://127.0.0.1:9", "--output", __file__], "is a file"),
        (["compare", "standard"], "at least two"),
        (["compare", "cpu-standard", "cpu-disaggregated", "--cluster-token", "x"], "their own"),
        (["compare", "standart", "disaggregated"], "did you mean standard"),
        (["compare", "a=http://127.0.0.1:9", "b=http://127.0.0.1:9"], "127.0.0.1:9"),
        (["compare", "cpu-standard", "cpu-disaggregated", "--levels", "0"], "factors"),
        (["compare", "cpu-standard", "cpu-disaggregated", "--model", "./nowhere"], "nowhere"),
        (["show", "latest"], "no results"),
        (["export", "x", "--format", "parquet", "--output", "x"], "no results"),
    ],
)
def test_what_cannot_work_is_one_clear_line(tmp_path: Path, args: list[str], says: str) -> None:
    """Status 2, one message that names what is wrong, no traceback, nothing started."""
    done = bench(tmp_path, *args)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: Workload\n", "apiVersion"),
        (
            "apiVersion: baton/v1\nkind: Workload\nmetadata: {name: x}\nspec:\n  duration_s: 5\n"
            "  classes:\n    a:\n      arrivals: {kind: poison, rate: 1}\n"
            "      prompt_tokens: 5\n      output_tokens: 5\n",
            "w.yaml:8",
        ),
        (
            "apiVersion: baton/v1\nkind: Workload\nmetadata: {name: x}\nspec:\n"
            "  trace: {format: azure, file: t.csv}\n",
            "t.csv",
        ),
    ],
)
def test_a_broken_workload_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    """Before the endpoint is even looked at: there is none."""
    (tmp_path / "w.yaml").write_text(text)
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n")
    done = bench(tmp_path, "run", "http://127.0.0.1:9", "-w", str(tmp_path / "w.yaml"))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_run_is_kept_shown_listed_and_exported(tmp_path: Path) -> None:
    """From one command to the next, by ``latest``."""
    async with mock_process(SCRIPT) as mock:
        done = await in_thread(
            tmp_path, "run", mock.url, "--duration", "2", "--warmup", "0.3", "--processes", "2"
        )
    # 0, or 3 where this machine was too busy for the run to believe itself.
    assert done.returncode in (0, 3), done.stderr
    assert "TTFT" in done.stdout
    shown = await in_thread(tmp_path, "show", "latest", "--json")
    found = json.loads(shown.stdout)
    assert found["meta"]["target"]["model"] == "mock"
    assert found["summary"]["all"]["errors"]["value"] == 0
    listed = await in_thread(tmp_path, "history", "--json")
    assert [entry["id"] for entry in json.loads(listed.stdout)] == [found["meta"]["id"]]
    for form, name in (("parquet", "run.parquet"), ("inference-perf", "perf")):
        done = await in_thread(
            tmp_path, "export", "latest", "--format", form, "--output", str(tmp_path / name)
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).exists()


async def test_a_missing_model_is_named_with_what_there_is(tmp_path: Path) -> None:
    """Before the first request."""
    async with mock_process(SCRIPT) as mock:
        done = await in_thread(tmp_path, "run", mock.url, "--model", "gpt-7")
    assert done.returncode == 2
    assert "gpt-7" in done.stderr
    assert "mock" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_is_readable(tmp_path: Path, number: signal.Signals) -> None:
    """Status 130, quickly; the records are there and say that the run is not whole."""
    folder = tmp_path / "out"
    async with mock_process(SCRIPT) as mock:
        process = await asyncio.create_subprocess_exec(
            *BATON,
            *("run", mock.url, "--duration", "60", "--warmup", "0", "--output", str(folder)),
            env={**os.environ, "BATON_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        await until(lambda: has_records(folder), timeout_s=30, what="a first record")
        process.send_signal(number)
        async with asyncio.timeout(15):
            out, err = await process.communicate()
    assert process.returncode == 130, err.decode()
    assert b"Traceback" not in err
    assert b"interrupted" in out.lower()
    found = read_run(folder)
    assert found.records
    assert not found.meta.complete


async def test_a_killed_run_is_readable_too(tmp_path: Path) -> None:
    """SIGKILL leaves no chance to tidy up; what was written stands."""
    folder = tmp_path / "out"
    async with mock_process(SCRIPT) as mock:
        process = await asyncio.create_subprocess_exec(
            *BATON,
            *("run", mock.url, "--duration", "60", "--warmup", "0", "--output", str(folder)),
            env={**os.environ, "BATON_HOME": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await until(lambda: has_records(folder), timeout_s=30, what="a first record")
        process.kill()
        await process.wait()
    found = read_run(folder)
    assert found.records
    assert not found.meta.complete
    shown = await in_thread(tmp_path, "show", str(folder))
    assert "interrupted" in shown.stdout.lower()


async def test_endpoints_are_compared_by_a_model_name_and_without_forcing(tmp_path: Path) -> None:
    """``--model`` names the model where nothing is started; the token of the cluster is in no file
    and not in the command that repeats the comparison."""
    async with mock_process(SCRIPT) as mock:
        arms = (f"a={mock.url}", f"b={mock.url}")
        wrong = await in_thread(tmp_path, "compare", *arms, "--model", "other")
        done = await in_thread(
            *(tmp_path, "compare", *arms, "--model", "mock", "--no-force-output"),
            *("--cluster-token", "sesame", "--workload", "smoke", "--pairs", "1"),
            *("--duration", "1.5", "--warmup", "0", "--output", str(tmp_path / "out"), "--json"),
        )
    assert wrong.returncode == 2
    assert "no model 'other'; it has: mock" in wrong.stderr
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert "--no-force-output" in found["command"]
    run = read_run(tmp_path / "out" / found["blocks"][0]["folder"])
    assert (run.meta.target["model"], run.meta.target["force_output"]) == ("mock", False)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    assert not any(b"sesame" in path.read_bytes() for path in files)
