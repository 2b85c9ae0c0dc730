"""Runs the suite of ``source_contract`` against every kind of source."""

from __future__ import annotations

import base64
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from baton.kube import Access, KubeApi
from profiles.sources import FolderSource, ProfileSource, RedisProfiles
from profiles.sources.kubernetes import KubernetesSource
from profiles.sources.redis import TEXTS, VERSION
from tests.fakes.kubernetes_api import FakeKubernetes
from tests.fakes.redis_server import RedisServer
from tests.integration.source_contract import SourceContract

EVERY_S = 0.02


class Hasty(random.Random):
    """Draws short pauses."""

    def uniform(self, a: float, b: float) -> float:
        return 0.05


class Folder:
    """Files that are written elsewhere and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.source: ProfileSource = FolderSource(folder, every_s=EVERY_S)

    async def write(self, entries: Mapping[str, bytes]) -> None:
        for path in self.folder.iterdir():
            if path.name not in entries:
                path.unlink()
        for name, raw in entries.items():
            path = self.folder / name
            if not path.exists() or path.read_bytes() != raw:
                scratch = self.folder / f".{name}.tmp"
                scratch.write_bytes(raw)
                scratch.replace(path)

    async def vanish(self) -> None:
        self.folder.rename(self.folder.with_name("elsewhere"))

    async def come_back(self, entries: Mapping[str, bytes]) -> None:
        self.folder.mkdir()
        await self.write(entries)


class Mounted:
    """A mounted ConfigMap, with the kubelet's steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._count = 0
        self.source: ProfileSource = FolderSource(folder, every_s=EVERY_S)

    async def write(self, entries: Mapping[str, bytes]) -> None:
        self._count += 1
        payload = self.folder / f"..2026_11_28_21_00_{self._count:02}.{self._count}"
        payload.mkdir()
        for name, raw in entries.items():
            (payload / name).write_bytes(raw)
        data, scratch = self.folder / "..data", self.folder / "..data_tmp"
        before = os.readlink(data) if data.is_symlink() else None
        scratch.symlink_to(payload.name)
        scratch.replace(data)
        for name in entries:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(Path("..data", name))
        for path in self.folder.iterdir():
            if not path.name.startswith("..") and path.name not in entries:
                path.unlink()
        if before is not None:
            shutil.rmtree(self.folder / before)

    async def vanish(self) -> None:
        self.folder.rename(self.folder.with_name("elsewhere"))

    async def come_back(self, entries: Mapping[str, bytes]) -> None:
        self.folder.mkdir()
        await self.write(entries)


class ConfigMap:
    """A ConfigMap in a fake cluster."""

    def __init__(self, cluster: FakeKubernetes, kubeconfig: Path) -> None:
        self.cluster = cluster
        api = KubeApi(Access(str(kubeconfig), "serving"))
        self.source: ProfileSource = KubernetesSource(api, "serving", "profiles", rng=Hasty())

    async def write(self, entries: Mapping[str, bytes]) -> None:
        data: dict[str, str] = {}
        binary: dict[str, str] = {}
        for key, raw in entries.items():
            try:
                data[key] = raw.decode()
            except UnicodeDecodeError:
                binary[key] = base64.b64encode(raw).decode()
        self.cluster.put("configmaps", "serving", "profiles", {"data": data, "binaryData": binary})

    async def vanish(self) -> None:
        await self.cluster.down()

    async def come_back(self, entries: Mapping[str, bytes]) -> None:
        await self.write(entries)
        await self.cluster.up()


class Hash:
    """A hash in a real Redis; a new one after an outage."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.redis = RedisProfiles(server.url, every_s=EVERY_S)
        self.source: ProfileSource = self.redis

    async def write(self, entries: Mapping[str, bytes]) -> None:
        async with self.redis._client.pipeline(transaction=True) as pipe:
            pipe.delete(TEXTS)
            if entries:
                pipe.hset(TEXTS, mapping=dict(entries))
            pipe.incr(VERSION)
            await pipe.execute()

    async def vanish(self) -> None:
        self.server.kill()

    async def come_back(self, entries: Mapping[str, bytes]) -> None:
        self.server.start()
        await self.write(entries)


class TestFolder(SourceContract):
    """A folder that people write."""

    @pytest.fixture(name="place")
    async def _place(self, tmp_path: Path) -> AsyncIterator[Folder]:
        place = Folder(tmp_path / "profiles")
        yield place
        await place.source.close()


class TestMounted(SourceContract):
    """A folder that the kubelet writes."""

    @pytest.fixture(name="place")
    async def _place(self, tmp_path: Path) -> AsyncIterator[Mounted]:
        place = Mounted(tmp_path / "profiles")
        yield place
        await place.source.close()


class TestKubernetes(SourceContract):
    """The Kubernetes API, by the real client over HTTP."""

    @pytest.fixture(name="place")
    async def _place(self, tmp_path: Path) -> AsyncIterator[ConfigMap]:
        async with FakeKubernetes() as cluster:
            place = ConfigMap(cluster, cluster.kubeconfig(tmp_path))
            yield place
            await place.source.close()


class TestRedis(SourceContract):
    """A real Redis."""

    @pytest.fixture(name="server")
    def _server(self) -> Iterator[RedisServer]:
        with RedisServer(password="swordfish") as server:
            yield server

    @pytest.fixture(name="place")
    async def _place(self, server: RedisServer) -> AsyncIterator[Hash]:
        place = Hash(server)
        yield place
        await place.source.close()
