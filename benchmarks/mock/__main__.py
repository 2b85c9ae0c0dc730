"""``python -m benchmarks.mock``: an OpenAI server that makes known delays and no text."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from baton.process import die_with_parent
from benchmarks.mock.launch import LISTENING
from benchmarks.mock.script import Delay, Script, Shape, Stall
from benchmarks.mock.server import MockServer


def parse_delay(text: str) -> Delay:
    """``MEAN``, ``SHAPE:MEAN`` or ``SHAPE:MEAN:SPREAD``, in seconds.

    Raises:
        ValueError: anything else.
    """
    parts = text.split(":")
    if len(parts) == 1:
        return Delay(float(parts[0]))
    shape, mean_s = Shape(parts[0]), float(parts[1])
    return Delay(mean_s, shape, float(parts[2])) if len(parts) == 3 else Delay(mean_s, shape)


def parse_stall(text: str) -> Stall:
    """``AT:LENGTH``, in seconds.

    Raises:
        ValueError: anything else.
    """
    at_s, length_s = (float(part) for part in text.split(":"))
    return Stall(at_s, length_s)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mock", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--truth", type=Path, help="file for one line of JSON per request")
    parser.add_argument("--script", help="the whole script as JSON; other flags change it")
    delay = "seconds: MEAN, or SHAPE:MEAN[:SPREAD] with constant, uniform, exponential, lognormal"
    parser.add_argument("--ttft", type=parse_delay, help=delay)
    parser.add_argument("--itl", type=parse_delay, help=delay)
    parser.add_argument("--stalls", type=parse_stall, nargs="*", metavar="AT:LENGTH")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--tokens-per-chunk", type=int)
    parser.add_argument("--prompt-tokens-per-s", type=float)
    parser.add_argument("--slots", type=int, help="requests worked on at a time; 0: all")
    parser.add_argument("--accept-s", type=float, help="wait of a connection's first request")
    parser.add_argument("--error-rate", type=float)
    parser.add_argument("--error-event-rate", type=float)
    parser.add_argument("--cut-rate", type=float)
    return parser


def _script(options: argparse.Namespace) -> Script:
    script = msgspec.json.decode(options.script, type=Script) if options.script else Script()
    names = [field for field in Script.__struct_fields__ if hasattr(options, field)]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "stalls" in given:
        given["stalls"] = tuple(given["stalls"])
    return msgspec.structs.replace(script, **given)


async def _serve(options: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = MockServer(_script(options), model=options.model, truth=options.truth)
    await server.start(options.host, options.port)
    sys.stdout.write(f"{LISTENING}http://{options.host}:{server.port}\n")
    sys.stdout.flush()
    # What stands now is never garbage; a collection in the middle of a run would be a delay.
    gc.collect()
    gc.freeze()
    try:
        await stopping.wait()
    finally:
        await server.stop()


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT."""
    options = _arguments().parse_args(argv)
    die_with_parent(signal.SIGTERM)
    uvloop.run(_serve(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
