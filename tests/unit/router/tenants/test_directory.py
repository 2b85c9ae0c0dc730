"""Tenants of a running router: hot reload, what is bad never replaces what is good, files and
their writers."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path

import pytest

from baton.clock import VirtualClock
from baton.errors import NotAllowed, NotAuthorized, SettingsError, StoreUnavailable
from router.tenants import (
    Directory,
    FileBook,
    FileSource,
    Limits,
    RedisTenants,
    Tenant,
    TenantSpec,
    hash_key,
    load_tenants,
    new_key,
    open_source,
    require_model,
)
from router.tenants.sources import Tenants, render_tenants
from router.tenants.spec import tenant_of

KEY = new_key()
HEADER = f"Bearer {KEY}".encode()


def write(path: Path, text: str) -> None:
    """With a time of its own: two writes in a test may fall on one tick of the file system."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def tenants_text(priority: int = 0) -> str:
    return render_tenants({"a": TenantSpec(priority=priority, key_hashes=[hash_key(KEY)])})


async def test_an_open_router() -> None:
    """Without a source everybody is the same tenant."""
    directory = Directory(None, VirtualClock())
    await directory.start()
    await directory.refresh()
    assert directory.tenant(None).name == "anonymous"
    assert directory.tenant(b"Bearer whatever").name == "anonymous"
    assert directory.status().source is None
    await directory.close()


async def test_a_change_of_the_file_is_seen(tmp_path: Path) -> None:
    """Tenants, keys and limits follow; an unchanged file is not read again."""
    path = tmp_path / "tenants.yaml"
    write(path, tenants_text())
    clock = VirtualClock()
    seen: list[dict[str, Tenant]] = []
    directory = Directory(FileSource(path), clock, seen.append)
    await directory.start()
    assert directory.tenant(HEADER).priority == 0
    await directory.refresh()
    assert len(seen) == 1
    write(path, tenants_text(priority=3))
    clock.advance(1)
    await directory.refresh()
    assert directory.tenant(HEADER).priority == 3
    assert [tenants["a"].priority for tenants in seen] == [0, 3]
    write(path, render_tenants({}))
    await directory.refresh()
    with pytest.raises(NotAuthorized):
        directory.tenant(HEADER)


async def test_a_bad_file_never_replaces_a_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, with its reason, and stands in the status until it is mended."""
    path = tmp_path / "tenants.yaml"
    write(path, tenants_text())
    directory = Directory(FileSource(path), VirtualClock())
    await directory.start()
    write(path, "tenants: [")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await directory.refresh()
    assert directory.tenant(HEADER).name == "a"
    assert "not valid YAML" in directory.status().problem
    assert len(caplog.records) == 1
    path.unlink()
    await directory.refresh()
    assert directory.tenant(HEADER).name == "a"
    assert "No such file" in directory.status().problem
    write(path, tenants_text())
    await directory.refresh()
    assert directory.status().problem == ""
    assert directory.status().tenants == 1


@pytest.mark.parametrize("text", [None, "nonsense", ""])
async def test_a_router_does_not_start_with_a_bad_file(tmp_path: Path, text: str | None) -> None:
    """The operator is told at once."""
    path = tmp_path / "tenants.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=r"tenants\.yaml"):
        await Directory(FileSource(path), VirtualClock()).start()


class Away:
    """A source that cannot be reached at first."""

    def __init__(self) -> None:
        self.answer: Tenants | Exception = StoreUnavailable("away")

    async def read(self) -> Tenants | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def problems(self) -> tuple[str, ...]:
        return ()

    def describe(self) -> str:
        return "redis://x:1/0"

    async def close(self) -> None:
        pass


async def test_a_store_that_is_away() -> None:
    """Nobody gets in until it has been read; afterwards its absence changes nothing."""
    source = Away()
    directory = Directory(source, VirtualClock())
    await directory.start()
    with pytest.raises(StoreUnavailable):
        directory.tenant(HEADER)
    source.answer = {"a": TenantSpec(key_hashes=[hash_key(KEY)])}
    await directory.refresh()
    assert directory.tenant(HEADER).name == "a"
    for error in (StoreUnavailable("away"), RuntimeError("a bug")):
        source.answer = error
        await directory.refresh()
        assert directory.tenant(HEADER).name == "a"
        assert directory.status().problem


async def test_limits_follow(tmp_path: Path) -> None:
    """The directory tells the limits of a new set."""
    path = tmp_path / "tenants.yaml"
    write(path, tenants_text())
    clock = VirtualClock()
    limits = Limits()
    directory = Directory(
        FileSource(path), clock, lambda found: limits.configure(found, clock.monotonic_s())
    )
    await directory.start()
    limits.reserve(directory.tenant(HEADER), 1, clock.monotonic_s())
    write(path, render_tenants({}))
    await directory.refresh()
    assert limits.running() == {}


def test_models_that_are_not_allowed() -> None:
    """403 with its code."""
    require_model(Tenant("t"), "m")
    limited = tenant_of("t", TenantSpec(models=["x"]))
    with pytest.raises(NotAllowed) as caught:
        require_model(limited, "m")
    assert caught.value.status == 403
    assert caught.value.to_openai()["error"] == {
        "message": "t does not have access to the model 'm'.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "permission_denied",
    }


async def test_sources_by_name() -> None:
    """A URL or a path."""
    assert isinstance(open_source("some/tenants.yaml", VirtualClock()), FileSource)
    redis = open_source("redis://:secret@localhost:1/2", VirtualClock())
    assert isinstance(redis, RedisTenants)
    assert redis.describe() == "redis://localhost:1/2"
    await redis.close()
    with pytest.raises(SettingsError):
        open_source("redis://", VirtualClock())


def add(name: str) -> Tenants:
    return {name: TenantSpec(key_hashes=[hash_key(new_key())])}


async def test_the_book_replaces_the_file(tmp_path: Path) -> None:
    """As a whole, private, with nothing left beside it."""
    path = tmp_path / "new" / "tenants.yaml"
    book = FileBook(path)
    await book.change(lambda tenants: tenants.update(add("a")))
    os.chmod(path, 0o644)
    await book.change(lambda tenants: tenants.update(add("b")))
    assert set(load_tenants(path)) == {"a", "b"} == set(await book.tenants())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["tenants.yaml"]


async def test_a_failed_change_changes_nothing(tmp_path: Path) -> None:
    """Neither an edit that raises, nor one that a router would refuse."""
    path = tmp_path / "tenants.yaml"
    book = FileBook(path)
    await book.change(lambda tenants: tenants.update(add("a")))
    before = path.read_bytes()

    def fails(tenants: Tenants) -> None:
        tenants.clear()
        raise SettingsError("no")

    with pytest.raises(SettingsError):
        await book.change(fails)
    with pytest.raises(SettingsError, match="a's already"):
        await book.change(lambda tenants: tenants.update(b=tenants["a"]))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tenants.yaml"]


async def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file that it points to is replaced."""
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    await FileBook(real).change(lambda tenants: tenants.update(add("a")))
    link.symlink_to(real)
    await FileBook(link).change(lambda tenants: tenants.update(add("b")))
    assert link.is_symlink()
    assert set(load_tenants(real)) == {"a", "b"}


async def test_two_writers(tmp_path: Path) -> None:
    """None undoes the other's change."""
    path = tmp_path / "tenants.yaml"

    def one(name: str) -> None:
        asyncio.run(FileBook(path).change(lambda tenants: tenants.update(add(name))))

    await asyncio.gather(*(asyncio.to_thread(one, f"t{number}") for number in range(8)))
    assert len(load_tenants(path)) == 8
