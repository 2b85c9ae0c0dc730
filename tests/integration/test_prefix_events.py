"""KV events over real sockets: from publishers through the feed into an index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from baton.cli.ports import PortPicker
from baton.kv_events import socket_url, tcp_url
from baton.types import EngineId, WorkerId, WorkerRecord
from router.prefix.chains import chain_seed, request_chain
from router.prefix.feed import FeedStatus, KvEventFeed
from tests.fakes.kv_publisher import KvPublisher, removed, stored
from tests.fakes.waiting import until
from tests.fakes.worker_records import worker_record
from tests.unit.router.prefix.recording_index import RecordingIndex

BLOCK = 32
IDS = [*range(1000, 1000 + 4 * BLOCK)]
W = WorkerId("w-1")
PATIENCE_S = 30.0


class Listening:
    """A feed, its index, and questions to them."""

    def __init__(self, replay_wait_s: float) -> None:
        self.index = RecordingIndex()
        self.feed = KvEventFeed(self.index, replay_wait_s=replay_wait_s)

    def matched(self, worker: WorkerId = W) -> int:
        """Blocks of the test prompt that the worker has."""
        chain = request_chain(chain_seed("tiny"), [*IDS, 1], block_size=BLOCK)
        return self.index.matched(worker, chain)

    async def until_matched(self, blocks: int, worker: WorkerId = W) -> None:
        await until(
            lambda: self.matched(worker) == blocks,
            timeout_s=PATIENCE_S,
            what=f"{blocks} blocks matched, of {worker}",
        )

    @property
    def status(self) -> FeedStatus:
        return self.feed.status()[W]


@asynccontextmanager
async def listening(replay_wait_s: float = PATIENCE_S) -> AsyncIterator[Listening]:
    """A feed that is closed at the end, and leaves no task."""
    before = asyncio.all_tasks()
    listening = Listening(replay_wait_s)
    try:
        yield listening
    finally:
        await listening.feed.close()
    assert {t for t in asyncio.all_tasks() - before if t.get_name().startswith("kv-")} == set()
    assert listening.index.has == {}


def record(url: str, engine: str = "run-1", worker: WorkerId = W) -> WorkerRecord:
    return worker_record(worker, engine_id=EngineId(engine), kv_events_url=url)


@pytest.fixture(params=["ipc", "tcp"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address of either kind."""
    if request.param == "tcp":
        port = PortPicker().take("", "127.0.0.1", 24_000, flag="", fixed=False, width=2)
        return tcp_url("127.0.0.1", port)
    return socket_url(tmp_path)


async def test_from_the_wire_into_the_index(url: str) -> None:
    """What an engine stores and removes is matched and no longer matched; and each is told of
    removals only of what was there."""
    async with listening() as it, KvPublisher(url) as engine:
        it.feed.follow([record(url)])
        assert await engine.subscribed() == b"kv"
        await engine.publish(stored(1, IDS[: 2 * BLOCK], block=BLOCK))
        await it.until_matched(2)
        await engine.publish(stored(3, IDS[2 * BLOCK :], block=BLOCK, parent=2))
        await it.until_matched(4)
        await engine.publish(removed(4))
        await it.until_matched(3)
        await engine.publish({"type": "AllBlocksCleared"})
        await it.until_matched(0)
        assert it.status == FeedStatus(batches=4)
        assert it.feed.follows(W)


async def test_a_late_router_learns_what_was_there_before(url: str) -> None:
    """The engine repeats what it keeps; live batches go on from there."""
    async with KvPublisher(url) as engine, listening() as it:
        await engine.publish(stored(1, IDS[: 2 * BLOCK], block=BLOCK))
        await engine.publish(stored(3, IDS[2 * BLOCK :], block=BLOCK, parent=2))
        it.feed.follow([record(url)])
        await it.until_matched(4)
        await engine.subscribed()
        await engine.publish(removed(4))
        await it.until_matched(3)
        assert it.status == FeedStatus(batches=3, blocks=3)


async def test_a_worker_that_starts_late(url: str) -> None:
    """Its record comes before its engine listens; nothing is lost."""
    async with listening(replay_wait_s=0.01) as it:
        it.feed.follow([record(url)])
        async with KvPublisher(url) as engine:
            await engine.subscribed()
            await engine.publish(stored(1, IDS, block=BLOCK))
            await it.until_matched(4)


async def test_a_gap_is_asked_for_again(url: str) -> None:
    """Batches that did not arrive are fetched before the next one is applied."""
    async with listening() as it, KvPublisher(url) as engine:
        it.feed.follow([record(url)])
        await engine.subscribed()
        await engine.publish(stored(1, IDS[:BLOCK], block=BLOCK))
        await it.until_matched(1)
        await engine.publish(stored(2, IDS[BLOCK : 3 * BLOCK], block=BLOCK, parent=1), lost=True)
        await engine.publish(removed(3), lost=True)
        await engine.publish(stored(3, IDS[2 * BLOCK :], block=BLOCK, parent=2))
        await it.until_matched(4)
        assert engine.replays[-1] == 1
        assert (it.status.gaps, it.status.losses, it.status.batches) == (1, 0, 4)


@pytest.mark.parametrize("answers", [True, False], ids=["forgotten", "no answer"])
async def test_a_gap_that_cannot_be_filled_empties_the_worker(url: str, answers: bool) -> None:
    """Among what is missing may be removals, so nothing known before may be kept."""
    async with listening(PATIENCE_S if answers else 0.05) as it, KvPublisher(url) as engine:
        it.feed.follow([record(url)])
        await engine.subscribed()
        await engine.publish(stored(1, IDS, block=BLOCK))
        await it.until_matched(4)
        engine.answers = answers
        await engine.publish(removed(4), lost=True)
        engine.kept.clear()
        await engine.publish(stored(101, [7] * BLOCK, block=BLOCK))
        await it.until_matched(0)
        await until(lambda: it.status.blocks == 1, timeout_s=PATIENCE_S)
        assert (it.status.gaps, it.status.losses) == (1, 1)
        await engine.publish(stored(1, IDS, block=BLOCK))
        await it.until_matched(4)


async def test_an_engine_that_starts_again(url: str) -> None:
    """Its new id empties the worker at once, before the new engine has said anything; what the
    new one says counts."""
    async with listening() as it:
        async with KvPublisher(url) as engine:
            it.feed.follow([record(url)])
            await engine.subscribed()
            await engine.publish(stored(1, IDS, block=BLOCK))
            await it.until_matched(4)
        it.feed.follow([record(url, engine="run-2")])
        assert it.matched() == 0
        async with KvPublisher(url) as engine:
            await engine.subscribed()
            await engine.publish(stored(1, IDS[: 2 * BLOCK], block=BLOCK))
            await it.until_matched(2)


async def test_a_new_engine_that_the_registry_does_not_know_yet(url: str) -> None:
    """Numbers that begin anew empty the worker, without a word from the registry."""
    async with listening() as it:
        async with KvPublisher(url) as engine:
            it.feed.follow([record(url)])
            await engine.subscribed()
            for _ in range(3):
                await engine.publish(stored(1, IDS, block=BLOCK))
            await until(lambda: it.status.batches == 3, timeout_s=PATIENCE_S)
        async with KvPublisher(url, began_s=100.0) as engine:
            await engine.subscribed()
            await engine.publish(stored(1, IDS[:BLOCK], block=BLOCK), lost=True)
            await engine.publish(stored(2, IDS[BLOCK : 2 * BLOCK], block=BLOCK, parent=1))
            await it.until_matched(2)


async def test_workers_come_and_go(tmp_path: Path) -> None:
    """Each has its own blocks; one that leaves, or stops publishing, is emptied at once."""
    urls = [socket_url(tmp_path / name) for name in ("1", "2")]
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    other = WorkerId("w-2")
    async with listening() as it, KvPublisher(urls[0]) as one, KvPublisher(urls[1]) as two:
        both = [record(urls[0]), record(urls[1], worker=other)]
        it.feed.follow([*both, worker_record("w-3")])
        assert (it.feed.follows(other), it.feed.follows(WorkerId("w-3"))) == (True, False)
        await one.publish(stored(1, IDS, block=BLOCK))
        await two.publish(stored(1, IDS[:BLOCK], block=BLOCK))
        await asyncio.gather(one.subscribed(), two.subscribed())
        await one.publish()
        await two.publish()
        await it.until_matched(4)
        await it.until_matched(1, other)
        it.feed.follow(both[1:])
        assert (it.matched(), it.matched(other)) == (0, 1)
        it.feed.follow([*both[1:], record("")])
        assert not it.feed.follows(W)
        it.feed.follow([])
        assert it.index.has == {}


async def test_nonsense_does_not_end_it(url: str) -> None:
    """Messages of another make are passed over; a batch that cannot be read costs the knowledge,
    not the feed, and is not asked for again and again."""
    async with listening() as it, KvPublisher(url) as engine:
        it.feed.follow([record(url)])
        await engine.subscribed()
        await engine.publish(stored(1, IDS, block=BLOCK))
        await it.until_matched(4)
        await engine.send(b"kv")
        await engine.send(b"kv", b"\x00", b"")
        await engine.send(b"kv", b"1", b"2", b"3")
        await engine.publish_raw(b"\xc1")
        await it.until_matched(0)
        assert it.status.unreadable == 4
        await engine.publish(stored(1, IDS[:BLOCK], block=BLOCK))
        await it.until_matched(1)
        assert (it.status.gaps, it.status.errors) == (0, 0)


async def test_an_index_that_fails_does_not_end_it(url: str) -> None:
    """An error of ours is logged, and the worker is learnt anew."""
    async with listening() as it, KvPublisher(url) as engine:
        real, it.index.stored = it.index.stored, None  # type: ignore[assignment,method-assign]
        it.feed.follow([record(url)])
        await engine.subscribed()
        await engine.publish(stored(1, IDS, block=BLOCK))
        await until(lambda: it.status.errors == 1, timeout_s=PATIENCE_S)
        it.index.stored = real  # type: ignore[method-assign]
        await it.until_matched(4)


async def test_other_addresses_are_left_alone() -> None:
    """A record cannot make the router open anything but its own kind of address; said once."""
    async with listening() as it:
        bad = record("inproc://elsewhere")
        for _ in range(2):
            it.feed.follow([bad])
        assert it.status == FeedStatus()


async def test_closing_in_the_middle_of_a_replay(url: str) -> None:
    """Closed while an engine does not answer: no task, no socket, and no more following."""
    async with KvPublisher(url) as engine, listening() as it:
        engine.answers = False
        it.feed.follow([record(url)])
        await until(lambda: engine.replays == [0], timeout_s=PATIENCE_S)
        await it.feed.close()
        it.feed.follow([record(url)])
        assert it.feed.status() == {}
