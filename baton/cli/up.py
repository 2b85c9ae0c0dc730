"""``baton up``: a whole installation on this machine, from nothing to a proven answer to its end.

It checks what can be checked before it starts anything, starts what the profile says, and stays
until it is told to stop. The model's memory, the engines and the router are child processes; this
one only watches, so it imports no engine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import site
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import baton
from baton.cli import welcome
from baton.cli.board import Board, say
from baton.cli.client import Proof, RouterClient, prove
from baton.cli.model import prepare_model
from baton.cli.plan import (
    Plan,
    Seating,
    Wish,
    child_environment,
    cpu_threads_for,
    make_plan,
    seat,
)
from baton.cli.ports import PortPicker, check_host
from baton.cli.runfile import RunNote, WorkerNote, remove_note, sole_owner, write_note
from baton.cli.signals import StopSignals
from baton.cli.stack import Stack, StartFailed
from baton.engine import Device, detect_device, remove_stale_run_dirs
from baton.errors import SettingsError
from baton.process import die_with_parent
from baton.secrets import cluster_token
from baton.settings import ROUTER_PORT, SIDE_CHANNEL_PORT, WORKER_PORT
from baton.stopping import unless_stopped
from profiles import PrefixKnowledge, ServingProfile, SourceKind, resolve_profile, with_overrides
from training.demo import demo_model_path

_ANSWER_MARGIN_S = 5.0
"""On top of the profile's deadline for a request: the router should be the one to give up."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The flags of ``baton up``; None where a default is chosen by looking around."""

    profile: str | None
    model: str | None
    served_name: str | None
    host: str
    port: int | None
    worker_port: int | None
    side_channel_port: int | None
    cpu_threads: int | None
    home: Path
    log_level: str
    timeout_s: float
    admin_port: int | None = None


def run_up(options: UpOptions) -> int:
    """Runs an installation until it is told to stop. Returns the exit status.

    Raises:
        BatonError: a setting, profile, file or model is wrong; nothing was started.
    """
    die_with_parent(signal.SIGTERM)
    wish = make_wish(options, os.environ)
    check_host(options.host)
    check_installed(wish.profile, wish.home)
    token = cluster_token(options.home, os.environ)
    with sole_owner(options.home):
        return asyncio.run(_run(options, wish, token))


def make_wish(options: UpOptions, env: Mapping[str, str]) -> Wish:
    """The options with the defaults of this machine filled in.

    Raises:
        ProfileError: no such profile, or it is wrong.
        SettingsError: the profile has a model name where a folder was meant, or the like.
    """
    device = detect_device()
    ref = options.profile or ("cpu-demo" if device is Device.CPU else "disaggregated")
    if "/" in ref or ref.endswith((".yaml", ".yml")):
        ref = str(Path(ref).expanduser().absolute())
    source = options.model
    if source is not None and source != "demo" and Path(source).expanduser().is_dir():
        source = str(Path(source).expanduser().resolve())
    profile = with_overrides(
        resolve_profile(ref), model_source=source, served_name=options.served_name
    )
    workers = sum(pool.replicas for pool in profile.spec.pools.by_role.values())
    return Wish(
        profile_ref=ref,
        profile=profile,
        host=options.host,
        port=options.port,
        worker_port=options.worker_port,
        side_channel_port=options.side_channel_port,
        home=options.home,
        log_level=options.log_level,
        cpu_threads=options.cpu_threads or cpu_threads_for(workers, _cores()),
        gpus=find_gpus(env) if device is Device.CUDA else (),
        admin_port=options.admin_port,
    )


def _cores() -> int:
    # What this process may use, which in a container can be less than there are.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def find_gpus(env: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs that engines may use, as CUDA_VISIBLE_DEVICES names them; empty if unknown."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip())
    count = sum(1 for path in devices.glob("nvidia[0-9]*") if path.name[6:].isdigit())
    return tuple(str(index) for index in range(count))


def check_installed(profile: ServingProfile, home: Path) -> None:
    """Finds out whether the children could be started at all, without importing anything.

    Raises:
        SettingsError: a package is missing; the message names the extra to install.
    """
    worker = "gpu-worker" if Path("/dev/nvidiactl").exists() else "cpu-worker"
    needed = {
        "router": ["fastapi", "httptools", "jinja2", "tokenizers", "uvloop"],
        worker: ["nixl", "torch", "vllm"],
    }
    if profile.spec.routing.prefix is PrefixKnowledge.EXACT:
        needed["router"].append("zmq")
    if profile.spec.model.kind is SourceKind.DEMO and demo_model_path(home) is None:
        needed["training"] = ["safetensors", "tokenizers", "torch", "transformers"]
    missing = {
        extra: [name for name in names if importlib.util.find_spec(name) is None]
        for extra, names in needed.items()
    }
    lacking = {extra: names for extra, names in missing.items() if names}
    if lacking:
        what = "; ".join(f"{', '.join(names)} ({extra})" for extra, names in lacking.items())
        raise SettingsError(
            f"not installed: {what}. `baton up` runs router and workers on this machine; install "
            f"Baton with the extras it needs: pip install 'baton-serving[{','.join(lacking)}]'"
        )


def base_environment(env: Mapping[str, str]) -> dict[str, str]:
    """An environment in which children import the same Baton as this process does.

    ``python -m router`` would otherwise look into the current folder first, and a folder or file
    of that name there is more likely somebody else's.
    """
    root = str(Path(baton.__file__).resolve().parent.parent)
    result = {**env, "PYTHONSAFEPATH": "1"}
    installed = {*site.getsitepackages(), site.getusersitepackages()}
    if root not in {str(Path(folder).resolve()) for folder in installed}:
        result["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    return result


async def _run(options: UpOptions, wish: Wish, token: str) -> int:
    began_s = time.monotonic()
    _seat(wish)
    board = Board(sys.stdout, time.monotonic)
    env = base_environment(os.environ)
    with StopSignals() as signals:
        try:
            async with board.ticking():
                preparing = prepare_model(
                    wish.profile.spec.model,
                    home=wish.home,
                    env=child_environment(env, wish.home),
                    board=board,
                )
                folder = await unless_stopped(preparing, signals.first)
                if folder is None:
                    say(sys.stdout, "stopped.")
                    return 0
                # Anew: ports that were free before a model was made may be taken now.
                seating, moves = _seat(wish)
                for move in moves:
                    board.note(move)
                plan = make_plan(wish, seating, folder, env)
                async with RouterClient.open(plan.router.url, token) as client:
                    return await serve(options, wish, plan, client, board, signals, began_s=began_s)
        except StartFailed as error:
            board.close()
            say(sys.stderr, welcome.failure(error))
            return 1
        finally:
            board.close()


def _seat(wish: Wish) -> tuple[Seating, list[str]]:
    """Ports and devices, and what is to be told about them."""
    picker = PortPicker()
    seating = seat(wish, picker, defaults=(ROUTER_PORT, WORKER_PORT, SIDE_CHANNEL_PORT))
    return seating, picker.moves


async def serve(
    options: UpOptions,
    wish: Wish,
    plan: Plan,
    client: RouterClient,
    board: Board,
    signals: StopSignals,
    *,
    began_s: float,
) -> int:
    """From the first start to the last stop.

    Args:
        options: the flags.
        wish: what they ask for.
        plan: what is started.
        client: asks the plan's router.
        board: shows the states.
        signals: say when to stop.
        began_s: when the command began, on the monotonic clock.

    Returns:
        The exit status: 0 after a stop that was asked for, 1 if it did not come up.
    """
    proofs: list[Proof] = []

    async def show_path() -> None:
        proofs.append(await _first_answer(client, wish, board))

    stack = Stack(
        plan,
        log_folder=wish.home / "logs",
        board=board,
        check=client.sights,
        clock=time.monotonic,
        on_change=lambda: write(stack),
        sweep=remove_stale_run_dirs,
    )
    write = _note_writer(wish, plan, board)
    status, hurry = 0, signals.second
    try:
        await unless_stopped(stack.come_up(show_path, options.timeout_s), signals.first)
        if stack.ready:
            board.close()
            took_s = time.monotonic() - began_s
            say(sys.stdout, welcome.welcome(wish, plan, proofs[0], took_s))
            await unless_stopped(stack.watch(), signals.first)
        board.close()
        say(sys.stdout, welcome.stopping(plan))
    except StartFailed as error:
        board.close()
        say(sys.stderr, welcome.failure(error))
        # Nobody has asked to stop yet, so the first time they do they mean now.
        status, hurry = 1, signals.first
    finally:
        await stack.stop(hurry)
        remove_note(wish.home)
    say(sys.stdout, "stopped; nothing is left running.")
    return status


async def _first_answer(client: RouterClient, wish: Wish, board: Board) -> Proof:
    spec = wish.profile.spec
    board.set("first answer", "asking")
    proof = await prove(
        client,
        wish.profile.served_name,
        spec.classify.threshold_tokens if spec.classify else None,
        timeout_s=spec.deadlines.total_s + _ANSWER_MARGIN_S,
    )
    how = "through a handoff" if proof.handed_over else "from one worker"
    board.set("first answer", f"came {how}", done=True)
    return proof


def _note_writer(wish: Wish, plan: Plan, board: Board) -> Callable[[Stack], None]:
    """Writes ``up.json`` as a stack is now."""
    started_s = time.time()

    def write(stack: Stack) -> None:
        pids = {member.process.name: member.pid for member in stack.members}
        note = RunNote(
            router=plan.router.url,
            pid=os.getpid(),
            router_pid=pids[plan.router.name],
            profile=plan.profile.name,
            profile_version=plan.profile.version,
            model=plan.profile.served_name,
            started_s=started_s,
            state="ready" if stack.ready else "starting",
            workers=tuple(
                WorkerNote(
                    name=member.process.name,
                    role=str(member.process.role),
                    url=member.process.url,
                    pid=member.pid,
                    log=str(member.log.path),
                )
                for member in stack.members
                if member.process.role is not None
            ),
            admin=plan.admin_url,
        )
        try:
            write_note(wish.home, note)
        except OSError as error:
            board.note(f"`baton status` will not find this: up.json cannot be written ({error})")

    return write
