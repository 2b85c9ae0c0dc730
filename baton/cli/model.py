"""Gets the model that ``baton up`` serves: makes the demo model, fetches one, or takes a folder.

Making and fetching happen in a child process, so that Ctrl-C ends them at once and their memory is
free before engines start.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from baton.cli.board import Board
from baton.cli.fetch import RESULT
from baton.cli.logs import ChildLog
from baton.cli.stack import StartFailed, describe_status
from baton.models import resolve_model
from baton.process import Child
from profiles import ModelSpec, SourceKind

_STOP_S = 3.0
_TAIL_LINES = 15


async def prepare_model(
    model: ModelSpec, *, home: Path, env: Mapping[str, str], board: Board
) -> Path:
    """The folder of the model that a profile names; made or fetched if it is not there yet.

    Raises:
        StartFailed: it could not be made or fetched.
        ModelError: it is a folder that holds no model.
    """
    if model.kind is SourceKind.DEMO:
        return await _demo(home, env, board)
    if model.kind is SourceKind.FOLDER:
        return resolve_model(model.source, home=home)
    argv = [sys.executable, "-m", "baton.cli.fetch", model.source, "--home", str(home)]
    board.set("model", f"fetching {model.source} from the hub")
    log = ChildLog(home / "logs" / "model.log")
    lines = await run_child(argv, env, board, log, f"{model.source} could not be fetched")
    board.set("model", "ready", done=True)
    found = [line for line in lines if line.startswith(RESULT)]
    if not found:
        raise StartFailed(f"{model.source} was fetched to nowhere", lines=lines, log=log.path)
    return Path(found[-1].removeprefix(RESULT))


async def _demo(home: Path, env: Mapping[str, str], board: Board) -> Path:
    from training.demo import demo_model_path

    folder = demo_model_path(home)
    if folder is not None:
        board.set("model", "ready (the demo model, made earlier)", done=True)
        return folder
    board.note("Making the demo model first, which takes about a minute; the next start finds it.")
    board.set("model", "being made")
    argv = [sys.executable, "-m", "training.demo", "--home", str(home)]
    log = ChildLog(home / "logs" / "model.log")
    await run_child(argv, env, board, log, "the demo model could not be made")
    folder = demo_model_path(home)
    if folder is None:
        raise StartFailed("the demo model was made but is not where it should be", log=log.path)
    board.set("model", "ready", done=True)
    return folder


async def run_child(
    argv: Sequence[str], env: Mapping[str, str], board: Board, log: ChildLog, failure: str
) -> tuple[str, ...]:
    """Runs a child to its end; returns its last lines."""
    child = Child("model", argv, env, on_line=_tee(log, board))
    try:
        await child.start()
        code = await child.wait()
    except OSError as error:
        raise StartFailed(f"{failure}: {error}") from error
    finally:
        await child.stop(grace_s=_STOP_S)
        log.close()
    if code != 0:
        tail = child.tail[-_TAIL_LINES:]
        raise StartFailed(f"{failure} ({describe_status(code)})", lines=tail, log=log.path)
    return child.tail


def _tee(log: ChildLog, board: Board) -> Callable[[str], None]:
    def write(line: str) -> None:
        log.write(line)
        board.detail("model", " ".join(line.split()))

    return write
