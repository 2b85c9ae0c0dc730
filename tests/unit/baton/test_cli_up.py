"""``baton up`` around its processes: what it looks at first, what it says, what it leaves."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from baton.cli import up, welcome
from baton.cli.client import CHAT, COMPLETIONS, Proof, RouterClient
from baton.cli.plan import Plan, Seating, WorkerSeat, make_plan
from baton.cli.runfile import read_note, run_file
from baton.cli.signals import StopSignals
from baton.cli.stack import StartFailed
from baton.cli.up import UpOptions
from baton.errors import ProfileError, SettingsError
from baton.settings import free_port
from baton.types import Role
from profiles import ServingProfile, resolve_profile
from tests.unit.baton.cli_fakes import Screen, fake_router, fake_worker, runs


def options_for(home: Path, **changes: object) -> UpOptions:
    """The options of a plain ``baton up``."""
    options = UpOptions(
        profile=None,
        model=None,
        served_name=None,
        host="127.0.0.1",
        port=None,
        worker_port=None,
        side_channel_port=None,
        cpu_threads=None,
        home=home,
        log_level="info",
        timeout_s=20,
    )
    return dataclasses.replace(options, **changes)  # type: ignore[arg-type]


@pytest.fixture
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_DEVICE", "cpu")


async def serve(home: Path, manner: str, screen: Screen) -> int:
    """Serves with a fake router and one fake worker."""
    options = options_for(home, profile="cpu-demo")
    router = fake_router(home, free_port("127.0.0.1", 30_000 + os.getpid() % 20_000))
    wish = up.make_wish(options, {})
    worker = fake_worker(home, "decode-1", manner)
    plan = Plan(wish.profile, router, (worker,), 5.0, 5.0, admin_url="http://127.0.0.1:1")
    with StopSignals() as signals:
        async with RouterClient.open(router.url, "token") as client:
            return await up.serve(options, wish, plan, client, screen, signals, began_s=0.0)


async def note_of(home: Path, state: str) -> dict[str, object]:
    """``up.json`` as soon as it says so."""
    async with asyncio.timeout(10):
        while True:
            note = read_note(home)
            if note is not None and note.state == state:
                data: dict[str, object] = json.loads(run_file(home).read_text())
                return data
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("_on_cpu")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_it_serves_until_told_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """Ready: a private up.json, an address, commands to try. Told to stop: status 0, the file and
    every process gone."""
    screen = Screen()
    serving = asyncio.create_task(serve(tmp_path, "good", screen))
    note = await note_of(tmp_path, "ready")
    assert stat.S_IMODE(run_file(tmp_path).stat().st_mode) == 0o600
    assert note["pid"] == os.getpid()
    assert (note["profile"], note["model"]) == ("cpu-demo", "demo")
    assert note["admin"] == "http://127.0.0.1:1"
    workers = note["workers"]
    assert isinstance(workers, list)
    (worker,) = workers
    assert worker["name"] == "decode-1"
    assert worker["log"] == str(tmp_path / "logs" / "decode-1.log")
    pids = [worker["pid"], note["router_pid"]]
    assert all(runs(pid) for pid in pids)
    os.kill(os.getpid(), number)
    assert await serving == 0
    assert not any(runs(pid) for pid in pids)
    assert read_note(tmp_path) is None
    said = capsys.readouterr().out
    assert f"{note['router']}/v1" in said
    assert "\ncurl " in said
    assert "Stop it with Ctrl-C" in said
    assert "http://127.0.0.1:1 (baton pairs" in said
    assert said.endswith("stopped; nothing is left running.\n")
    assert any("first answer: came through a handoff" in line for line in screen.lines())


@pytest.mark.usefixtures("_on_cpu")
async def test_a_start_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1; stderr has the process, its last words and its log; nothing is left."""
    assert await serve(tmp_path, "broken", Screen()) == 1
    said = capsys.readouterr().err
    assert said.startswith("baton up: decode-1 ended during the start (status 2).")
    assert "    ValueError: the model does not fit" in said
    assert f"Its whole log: {tmp_path / 'logs' / 'decode-1.log'}" in said
    assert read_note(tmp_path) is None


@pytest.mark.usefixtures("_on_cpu")
async def test_told_to_stop_while_starting(tmp_path: Path) -> None:
    """A stop that was asked for is no failure, whenever it comes."""
    serving = asyncio.create_task(serve(tmp_path, "slow", Screen()))
    note = await note_of(tmp_path, "starting")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await serving == 0
    router_pid = note["router_pid"]
    assert isinstance(router_pid, int)
    assert not runs(router_pid)
    assert read_note(tmp_path) is None


def test_nohup_is_respected() -> None:
    """A hang-up that is ignored stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        async def look() -> None:
            with StopSignals() as signals:
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(0)
                assert not signals.first.is_set()

        asyncio.run(look())
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_twice_means_now() -> None:
    """The first signal is a request, the second one is an order."""
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(signals.first.wait(), 5)
        assert not signals.second.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(signals.second.wait(), 5)


@pytest.mark.parametrize(("device", "profile"), [("cpu", "cpu-demo"), ("cuda", "disaggregated")])
def test_the_profile_that_fits_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, profile: str
) -> None:
    """Is the default; one that is asked for wins."""
    monkeypatch.setenv("BATON_DEVICE", device)
    assert up.make_wish(options_for(tmp_path), {}).profile.name == profile
    chosen = up.make_wish(options_for(tmp_path, profile="standard"), {})
    assert chosen.profile.name == "standard"


@pytest.mark.usefixtures("_on_cpu")
def test_the_demo_model_keeps_its_name(tmp_path: Path) -> None:
    """Though children get a folder, clients ask for "demo"."""
    wish = up.make_wish(options_for(tmp_path), {})
    seating = Seating(8000, 8001, (WorkerSeat("decode-1", Role.DECODE, 8100, 5600),))
    plan = make_plan(wish, seating, tmp_path / "demo-0123", {})
    assert "demo" in plan.router.argv
    assert wish.profile.served_name == "demo"


@pytest.mark.usefixtures("_on_cpu")
def test_a_folder_is_a_folder_however_it_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--model weights`` means the folder that is there; its name is what clients ask for."""
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    for spelling in ("weights", "./weights", str(tmp_path / "weights")):
        wish = up.make_wish(options_for(tmp_path, model=spelling), {})
        assert wish.profile.spec.model.source == str(tmp_path / "weights")
        assert wish.profile.served_name == "weights"
    assert up.make_wish(options_for(tmp_path, model="owner/x"), {}).profile.served_name == "owner/x"


@pytest.mark.usefixtures("_on_cpu")
def test_a_profile_file_is_found_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children get its absolute path."""
    text = Path(str(up.__file__)).parents[2] / "profiles" / "builtin" / "cpu-demo.yaml"
    (tmp_path / "mine.yaml").write_text(text.read_text())
    monkeypatch.chdir(tmp_path)
    wish = up.make_wish(options_for(tmp_path, profile="mine.yaml"), {})
    assert wish.profile_ref == str(tmp_path / "mine.yaml")
    with pytest.raises(ProfileError, match="no such file"):
        up.make_wish(options_for(tmp_path, profile="other.yaml"), {})


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that has it; nothing is imported to find out."""
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("vllm", "uvloop") else object()
    )
    with pytest.raises(SettingsError, match=r"uvloop \(router\); vllm \(.pu-worker\)") as caught:
        up.check_installed(resolve_profile("cpu-demo"), tmp_path)
    assert "pip install 'baton-serving[router," in caught.value.message
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    up.check_installed(resolve_profile("cpu-demo"), tmp_path)


def test_what_only_exact_prefixes_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is asked for by profiles that have them, and by no other; tracing is never asked for."""
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name in ("zmq", "opentelemetry", "uvicorn") else object(),
    )
    profile = resolve_profile("cpu-demo")
    up.check_installed(profile, tmp_path)
    text = profile.model_dump(mode="json", by_alias=True)
    text["spec"]["routing"]["prefix"] = "exact"
    with pytest.raises(SettingsError, match=r"not installed: zmq \(router\)"):
        up.check_installed(ServingProfile.model_validate(text), tmp_path)


def test_gpus_of_the_machine(tmp_path: Path) -> None:
    """Those that the environment allows, else the devices that are there."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert up.find_gpus({}, tmp_path) == ("0", "1")
    assert up.find_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-a"}, tmp_path) == ("3", "GPU-a")
    assert up.find_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()


def test_children_import_the_same_baton(tmp_path: Path) -> None:
    """A folder that happens to hold a router.py does not get in the way."""
    for name in ("router.py", "profiles.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')")
    env = up.base_environment({**os.environ})
    argv = [sys.executable, "-m", "baton.cli", "profile", "list"]
    found = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "cpu-demo" in found.stdout


def test_commands_to_try_survive_pasting(tmp_path: Path) -> None:
    """The curl line is one line whose body is JSON as the shell reads it; the Python lines are
    Python; with quotes in a name, too."""
    for proof in (Proof(CHAT, True), Proof(COMPLETIONS, False)):
        line = welcome.curl_line("http://127.0.0.1:8000", "it's", proof, "What's up?")
        assert "\n" not in line
        words = shlex.split(line)
        assert words[:3] == ["curl", "-i", f"http://127.0.0.1:8000{proof.endpoint}"]
        body = json.loads(words[words.index("-d") + 1])
        assert body["model"] == "it's"
        lines = welcome.python_lines("http://127.0.0.1:8000", "it's", proof, "What's up?")
        compile(lines, "pasted", "exec")


@pytest.mark.usefixtures("_on_cpu")
def test_the_demo_says_that_it_is_one(tmp_path: Path) -> None:
    """And a real model does not."""
    demo = up.make_wish(options_for(tmp_path), {})
    plan = Plan(demo.profile, fake_router(tmp_path, 1), (fake_worker(tmp_path, "d"),))
    real = up.make_wish(options_for(tmp_path, model="owner/x"), {})
    assert "demo: tiny" in welcome.welcome(demo, plan, Proof(CHAT, True), 9)
    assert "demo: tiny" not in welcome.welcome(real, plan, Proof(CHAT, False, "a note"), 9)
    assert "Note: a note." in welcome.welcome(real, plan, Proof(CHAT, False, "a note"), 9)


def test_failures_are_told_whole(tmp_path: Path) -> None:
    """What, why, and where more is."""
    text = welcome.failure(StartFailed("it broke", lines=("a", "b"), log=tmp_path / "x.log"))
    assert text.splitlines() == [
        "baton up: it broke.",
        "It said:",
        "    a",
        "    b",
        f"Its whole log: {tmp_path / 'x.log'}",
    ]


def test_it_imports_no_engine() -> None:
    """This process watches; what weighs a gigabyte is in others."""
    script = (
        "import sys, baton.cli.up, baton.cli.app, baton.cli.status, baton.cli.version\n"
        "assert not {'torch', 'vllm', 'transformers', 'nixl', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_is_quick_to_import() -> None:
    """``baton --help`` loads neither HTTP client nor profiles."""
    script = (
        "import sys, baton.cli.app\n"
        "assert not {'aiohttp', 'pydantic', 'profiles', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.usefixtures("_on_cpu")
def test_ports_are_looked_at_before_a_model_is_made(tmp_path: Path) -> None:
    """A taken one is told at once, not after a minute of work."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} .* is taken"):
            up.run_up(options_for(tmp_path / "home", port=port))
    assert not (tmp_path / "home" / "models").exists()
