"""What is particular about folders, mounted ConfigMaps and a Redis as sources of profiles."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from baton.clock import VirtualClock
from baton.errors import SettingsError, SourceUnavailable
from profiles.sources import MAX_TEXTS, FolderSource, RedisProfiles
from profiles.sources.redis import TEXTS
from tests.fakes.redis_server import RedisServer
from tests.integration.source_contract import reading, texts
from tests.integration.test_sources_contract import EVERY_S, Mounted


@pytest.fixture(name="server")
def _server() -> Iterator[RedisServer]:
    with RedisServer(password="swordfish") as server:
        yield server


async def test_a_read_is_of_one_change(tmp_path: Path) -> None:
    """While the kubelet swaps versions as fast as it can."""
    mounted = Mounted(tmp_path / "profiles")
    done = asyncio.Event()

    def versions() -> None:
        for number in range(150):
            raw = b"%d" % number
            entries = {f"p{key}.yaml": raw for key in range(5)} | {"active": b"v" + raw}
            asyncio.run(mounted.write(entries))

    async def write() -> None:
        await asyncio.to_thread(versions)
        done.set()

    await mounted.write({})
    writing = asyncio.create_task(write())
    seen = set()
    while not done.is_set():
        try:
            bundle = await mounted.source.read()
        except SourceUnavailable:
            # Five swaps during five reads: said, and not made up for.
            continue
        if bundle.texts:
            (number,) = texts(bundle)
            assert bundle.active == f"v{number}"
            assert len(bundle.texts) == 5
            assert not bundle.problems
            seen.add(number)
    await writing
    assert len(seen) > 3
    assert texts(await mounted.source.read()) == {"149"}


async def test_a_write_in_the_same_tick(tmp_path: Path) -> None:
    """Of the same length, with the same times: seen, as long as the file is young."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"1")
    status = path.stat()
    async with reading(FolderSource(tmp_path, every_s=EVERY_S)) as reader:
        await reader.until(lambda bundle: texts(bundle) == {"1"})
        path.write_bytes(b"2")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        await reader.until(lambda bundle: texts(bundle) == {"2"})


async def test_things_that_are_no_files(tmp_path: Path) -> None:
    """A pipe, a folder, a link to nothing and a file that is too large: each a problem of its own;
    nothing hangs."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "link.yaml").symlink_to("nowhere")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1024 * 1024 + 1))
    (tmp_path / "fine.yaml").write_text("fine")
    async with asyncio.timeout(5):
        bundle = await FolderSource(tmp_path).read()
    assert texts(bundle) == {"fine"}
    assert [line.removeprefix(f"{tmp_path}/") for line in sorted(bundle.problems.values())] == [
        "folder.yaml: is not a regular file",
        "large.yaml: is larger than 1048576 bytes; a profile is small",
        "link.yaml: cannot be read: No such file or directory",
        "pipe.yaml: is not a regular file",
    ]


async def test_too_many_files(tmp_path: Path) -> None:
    """The first of them are read, and the active one's name whatever it sorts like."""
    for number in range(MAX_TEXTS + 2):
        (tmp_path / f"a{number:03}.yaml").write_text("x")
    (tmp_path / "active").write_text("z")
    bundle = await FolderSource(tmp_path).read()
    assert len(bundle.texts) == MAX_TEXTS
    assert bundle.active == "z"
    (line,) = bundle.problems.values()
    assert "one profile too many" in line


async def test_redis_writes(server: RedisServer) -> None:
    """Each change is seen by routers, and says whether it was one."""
    redis = RedisProfiles(server.url, every_s=EVERY_S)
    async with reading(redis) as reader:
        await reader.until(lambda bundle: not bundle.texts)
        assert await redis.put("fast", "one")
        await reader.until(lambda bundle: texts(bundle) == {"one"})
        assert not await redis.put("fast", "one")
        assert await redis.set_active("fast")
        bundle = await reader.until(lambda bundle: bundle.active == "fast")
        assert bundle.active_from.endswith("field active")
        assert not await redis.set_active("fast")
        assert await redis.remove("fast")
        await reader.until(lambda bundle: not bundle.texts)
        assert not await redis.remove("fast")
        assert await redis.set_active("")
        await reader.until(lambda bundle: not bundle.active)
    await redis.close()


async def test_redis_refuses(server: RedisServer) -> None:
    """Names that no profile has, empty and endless texts, and too many."""
    redis = RedisProfiles(server.url)
    for name in ("", "Upper", "a b", "../x", "a" * 101):
        with pytest.raises(SettingsError):
            await redis.put(name, "x")
    for text in ("", " \n", "x" * (1024 * 1024 + 1)):
        with pytest.raises(SettingsError):
            await redis.put("a", text)
    await redis.set_active("p0")
    for number in range(MAX_TEXTS):
        await redis.put(f"p{number}", "x")
    with pytest.raises(SettingsError, match="remove some"):
        await redis.put("one-more", "x")
    assert await redis.put("p0", "another")
    assert await redis.set_active("p1")
    server.kill()
    with pytest.raises(SourceUnavailable) as caught:
        await redis.put("p0", "x")
    assert "swordfish" not in caught.value.message
    await redis.close()


async def test_redis_written_by_hand(server: RedisServer) -> None:
    """Round the number: seen within half a minute."""
    clock = VirtualClock()
    redis = RedisProfiles(server.url, clock, every_s=EVERY_S)
    await redis.put("a", "1")
    async with reading(redis) as reader:
        await reader.until(lambda bundle: texts(bundle) == {"1"})
        await redis._client.hset("baton:{profiles}:texts", "a.yaml", "2")
        await asyncio.sleep(10 * EVERY_S)
        assert len(reader.bundles) == 1
        clock.advance(31)
        await reader.until(lambda bundle: texts(bundle) == {"2"})
    await redis.close()


async def test_a_cluster_that_is_not_there() -> None:
    """Is said as any other outage, at the first reading and later ones."""
    source = RedisProfiles("redis+cluster://127.0.0.1:1", every_s=0.01)
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:1"):
        await source.read()
    changes = source.changes()
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await changes.aclose()
    await source.close()


async def test_texts_that_are_too_much_together(server: RedisServer) -> None:
    """Are not read at all, so that nobody's hash fills a router's memory."""
    source = RedisProfiles(server.url)
    async with Redis.from_url(server.url) as client:
        for number in range(9):
            await client.hset(TEXTS, f"p{number}.yaml", b"x" * 1024 * 1024)
    with pytest.raises(SourceUnavailable, match="bytes; at most 8388608"):
        await source.read()
    await source.close()
