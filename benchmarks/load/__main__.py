"""``python -m benchmarks.load``: one sending process of several; started by ``processes`` alone.

Reads its job and its orders from stdin, one JSON line each; the end of stdin is an order to stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from baton.errors import BatonError
from baton.process import die_with_parent
from benchmarks.load.crew import LocalCrew
from benchmarks.load.loops import new_loop
from benchmarks.load.priority import first_in_line
from benchmarks.load.processes import Job, Order, Word, decode_job
from benchmarks.workloads import PromptWriter, Workload, build_plan

_SAY_EVERY_S = 0.25
_MAX_LINE = 16 << 20


def _say(word: Word) -> None:
    os.write(sys.stdout.fileno(), msgspec.json.encode(word) + b"\n")


async def _orders() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=_MAX_LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    return reader


def _crew(job: Job) -> LocalCrew:
    plan = build_plan(
        Workload.model_validate(job.workload),
        seed=job.seed,
        rate_scale=job.rate_scale,
        time_scale=job.time_scale,
        duration_s=job.duration_s,
    ).shard(job.shard, job.shards)
    writer = PromptWriter(
        job.salt, tokenizer=job.target.tokenizer, tokens_per_word=job.target.tokens_per_word
    )
    return LocalCrew(plan, job.target, writer, path=Path(job.path), keep=False, process=job.shard)


async def _work() -> None:
    orders = await _orders()
    job = decode_job(await orders.readline())
    crew = _crew(job)
    stop = asyncio.Event()
    try:
        await crew.prepare()
        _say(Word(ready=True))
        first = await orders.readline()
        order = msgspec.json.decode(first, type=Order) if first else Order(stop=True)
        if order.zero_s is None:
            return
        listening = asyncio.create_task(_listen(orders, stop), name="orders")
        talking = asyncio.create_task(_talk(crew), name="counts")
        try:
            with first_in_line():
                health = await crew.run(order.zero_s, stop)
        finally:
            for task in (listening, talking):
                task.cancel()
            await asyncio.gather(listening, talking, return_exceptions=True)
        counts = crew.counts()
        _say(Word(counts=(counts.done, counts.in_flight, counts.errors)))
    finally:
        await crew.close()
    _say(Word(health=health))


async def _listen(orders: asyncio.StreamReader, stop: asyncio.Event) -> None:
    while line := await orders.readline():
        if msgspec.json.decode(line, type=Order).stop:
            break
    stop.set()


async def _talk(crew: LocalCrew) -> None:
    while True:
        await asyncio.sleep(_SAY_EVERY_S)
        counts = crew.counts()
        _say(Word(counts=(counts.done, counts.in_flight, counts.errors)))
        crew.tick()


def main() -> int:
    """Runs the job of stdin; returns the exit status."""
    # Records are flushed twice a second; a parent that was killed wants nothing more from us.
    die_with_parent(signal.SIGKILL)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_work())
    except BatonError as error:
        _say(Word(error=error.message, kind=type(error).__name__))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
