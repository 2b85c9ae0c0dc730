"""What ``baton up`` writes: bounded logs, the note for ``baton status``, lines on a screen."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from baton.cli.board import SILENCE_S, Board
from baton.cli.logs import ChildLog
from baton.cli.runfile import (
    RunNote,
    WorkerNote,
    read_note,
    remove_note,
    run_file,
    sole_owner,
    write_note,
)
from baton.clock import VirtualClock
from baton.errors import SettingsError


def note(**changes: object) -> RunNote:
    """A note of a small installation."""
    worker = WorkerNote("decode-1", "decode", "http://127.0.0.1:8101", 3, "/x/decode-1.log")
    fields = {
        "router": "http://127.0.0.1:8000",
        "pid": 1,
        "router_pid": 2,
        "profile": "cpu-demo",
        "profile_version": "abc",
        "model": "demo",
        "started_s": 1.0,
        "state": "ready",
        "workers": (worker,),
    }
    return RunNote(**{**fields, **changes})  # type: ignore[arg-type]


def test_logs_are_bounded(tmp_path: Path) -> None:
    """However much is said, there are two files of about the bound, with the newest lines."""
    log = ChildLog(tmp_path / "logs" / "decode.log", max_bytes=1000)
    for number in range(500):
        log.write(f"line {number:04d}")
    log.close()
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files] == ["decode.log", "decode.log.1"]
    assert all(file.stat().st_size <= 1010 for file in files)
    lines = (files[1].read_text() + files[0].read_text()).splitlines()
    assert lines[-1] == "line 0499"
    assert lines == [f"line {n:04d}" for n in range(500 - len(lines), 500)]


def test_logs_go_on_where_the_last_run_ended(tmp_path: Path) -> None:
    """A second run appends, and counts what was there towards the bound."""
    for text in ("first", "second", "third"):
        log = ChildLog(tmp_path / "a.log", max_bytes=10)
        log.write(text)
        log.close()
    assert (tmp_path / "a.log").read_text() == "first\nsecond\nthird\n"
    log.write("fourth")
    log.close()
    assert (tmp_path / "a.log").read_text() == "fourth\n"


def test_logs_are_private(tmp_path: Path) -> None:
    """Prompts may stand in them."""
    log = ChildLog(tmp_path / "logs" / "a.log")
    log.write("x")
    log.close()
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700


def test_a_log_that_cannot_be_written_loses_lines_only(tmp_path: Path) -> None:
    """The child's pipe has to be emptied all the same."""
    (tmp_path / "file").write_text("in the way")
    log = ChildLog(tmp_path / "file" / "a.log")
    log.write("ValueError: gone \ud800")
    assert log.telling == ["ValueError: gone \ud800"]


def test_telling_lines_are_the_first_of_a_run(tmp_path: Path) -> None:
    """Causes stand before consequences, and a new run has its own."""
    log = ChildLog(tmp_path / "a.log")
    for line in ("fine", "ValueError: no room", "Traceback", *["RuntimeError: see above"] * 5):
        log.write(line)
    assert log.telling == ["ValueError: no room", *["RuntimeError: see above"] * 2]
    log.new_run()
    assert log.telling == []
    log.close()


def test_the_note_is_whole_private_and_goes(tmp_path: Path) -> None:
    """It is read back as written, with mode 0600 and no scratch file beside it."""
    assert read_note(tmp_path) is None
    write_note(tmp_path, note(state="starting"))
    write_note(tmp_path, note())
    assert read_note(tmp_path) == note()
    assert stat.S_IMODE(run_file(tmp_path).stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "run") == ["up.json"]
    remove_note(tmp_path)
    remove_note(tmp_path)
    assert read_note(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"router": 3}'])
def test_a_note_that_is_broken_is_none(tmp_path: Path, text: str) -> None:
    """Whatever lies there, nobody fails over it."""
    run_file(tmp_path).parent.mkdir()
    run_file(tmp_path).write_text(text)
    assert read_note(tmp_path) is None


def test_a_home_has_one_owner(tmp_path: Path) -> None:
    """A second ``baton up`` is told where the first one is; when it ends, the next may have it."""
    with sole_owner(tmp_path):
        write_note(tmp_path, note(pid=77))
        with pytest.raises(SettingsError, match=r"up already in .* \(pid 77\).*--home"):
            with sole_owner(tmp_path):
                pass
    with sole_owner(tmp_path):
        pass


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    """The lock goes with the process, however it ends."""
    script = (
        "import os, pathlib, sys; from baton.cli.runfile import sole_owner\n"
        "with sole_owner(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == -9
    with sole_owner(tmp_path):
        pass


def test_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Is an error that says what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot write to .*--home"):
        with sole_owner(tmp_path / "file"):
            pass


def test_changes_are_lines_of_their_own() -> None:
    """Where lines cannot change in place, each state is written once, with its seconds."""
    clock, out = VirtualClock(), io.StringIO()
    board = Board(out, clock.monotonic_s)
    board.set("router", "starting")
    board.set("router", "starting")
    clock.advance(2)
    board.set("router", "ready", done=True)
    board.set("router", "ready", done=True)
    assert out.getvalue().splitlines() == ["router: starting", "router: ready, after 2 s"]


def test_waiting_is_never_silent() -> None:
    """What still runs is told every few seconds, with how far it is; what is done is not."""
    clock, out = VirtualClock(), io.StringIO()
    board = Board(out, clock.monotonic_s)
    board.set("router", "ready", done=True)
    board.set("prefill-1", "starting")
    board.set("model", "making")
    board.detail("model", "step 3 of 9")
    before = len(out.getvalue().splitlines())
    for _ in range(4 * 10):
        clock.advance(0.25)
        board.tick()
    lines = out.getvalue().splitlines()[before:]
    assert lines[0] == "prefill-1: starting, 3 s; model: making, 3 s, step 3 of 9"
    assert len(lines) == int(10 / SILENCE_S)


def test_nothing_to_wait_for_is_silent() -> None:
    """Once all is done, time says nothing."""
    clock, out = VirtualClock(), io.StringIO()
    board = Board(out, clock.monotonic_s)
    board.set("router", "ready", done=True)
    clock.advance(100)
    board.tick()
    assert out.getvalue() == "router: ready\n"


def test_lines_change_in_place_on_a_terminal() -> None:
    """There the parts are a table, and notes stay above it, taken literally."""
    clock, out = VirtualClock(), io.StringIO()
    board = Board(out, clock.monotonic_s, live=True)
    board.set("router", "starting")
    board.note("port [8000] is taken")
    clock.advance(7)
    board.set("router", "ready", done=True)
    board.close()
    assert "port [8000] is taken" in out.getvalue()
    last = out.getvalue().splitlines()[-1]
    assert "router" in last
    assert "ready" in last
    assert "7 s" in last


def test_a_screen_that_is_gone_stops_nothing() -> None:
    """A closed pipe or terminal is not worth an error."""
    out = io.StringIO()
    board = Board(out, VirtualClock().monotonic_s)
    out.close()
    board.set("router", "starting")
    board.note("x")
    board.tick()
    board.close()
