"""A model's files: where they are, whether they are complete, and what their digest is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ModelError
from baton.models import model_digest, read_model_config, resolve_model


def make_model(folder: Path, **files: str) -> Path:
    """A folder that passes for a model; ``files`` are further names (``_`` for ``.``)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_text("weights")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


class FakeHub(types.ModuleType):
    """Stands where huggingface_hub is; ``answer`` is a folder or an error to be raised."""

    def __init__(self, answer: Path | Exception) -> None:
        super().__init__("huggingface_hub")
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(self, source: str, **options: Any) -> str:
        self.asked.append((source, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path | Exception], FakeHub]:
    """Puts a hub with a given answer in place."""

    def put(answer: Path | Exception) -> FakeHub:
        fake = FakeHub(answer)
        monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
        return fake

    return put


class TestResolve:
    """From what a person writes to a folder with a model."""

    def test_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Is given back absolute, also when it was written relative or looks like a hub id."""
        folder = make_model(tmp_path / "owner" / "name")
        monkeypatch.chdir(tmp_path)
        for source in (str(folder), "owner/name", "./owner/name"):
            assert resolve_model(source, home=tmp_path) == folder

    def test_a_folder_in_the_users_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A tilde is the user's home."""
        monkeypatch.setenv("HOME", str(tmp_path))
        folder = make_model(tmp_path / "m")
        assert resolve_model("~/m", home=tmp_path) == folder

    @pytest.mark.parametrize(
        "source", ["./none", "/none/here", "~/none", "a/b/c", "a b", "", "../x"]
    )
    def test_a_path_that_is_not_there(
        self, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Any
    ) -> None:
        """What can only be a path is never asked of the hub."""
        monkeypatch.chdir(tmp_path)
        fake = hub(AssertionError("asked"))
        with pytest.raises(ModelError, match=r"no such folder|no config\.json"):
            resolve_model(source, home=tmp_path)
        assert fake.asked == []

    def test_a_file(self, tmp_path: Path) -> None:
        """The message asks for its folder."""
        folder = make_model(tmp_path / "m")
        with pytest.raises(ModelError, match="is a file; give the folder"):
            resolve_model(str(folder / "model.safetensors"), home=tmp_path)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: (f / "config.json").unlink(), "no config.json"),
            (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
            (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
            (lambda f: (f / "config.json").write_bytes(b"\xff"), "cannot be read"),
            (lambda f: (f / "model.safetensors").rename(f / "model.bin"), "no .*safetensors"),
            (
                lambda f: (f / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"a": "model.safetensors", "b": "two.safetensors"}}'
                ),
                "not complete: two.safetensors is missing",
            ),
            (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "cannot be read"),
        ],
    )
    def test_a_folder_that_is_no_model(
        self, spoil: Callable[[Path], object], message: str, tmp_path: Path
    ) -> None:
        """The message names what is missing."""
        folder = make_model(tmp_path / "m")
        spoil(folder)
        with pytest.raises(ModelError, match=message):
            resolve_model(str(folder), home=tmp_path)

    def test_a_hub_id(self, tmp_path: Path, hub: Any) -> None:
        """Weights and texts of its top folder are fetched, and progress is told."""
        folder = make_model(tmp_path / "cache")
        fake = hub(folder)
        told: list[float] = []
        found = resolve_model("o/n", home=tmp_path, progress=lambda _, done: told.append(done))
        assert found == folder
        assert told == [0.0, 1.0]
        [(source, options)] = fake.asked
        assert source == "o/n"
        assert "*.safetensors" in options["allow_patterns"]
        assert options["ignore_patterns"] == ["*/*"]

    def test_a_hub_model_without_usable_weights(self, tmp_path: Path, hub: Any) -> None:
        """Is refused like a folder."""
        folder = make_model(tmp_path / "cache")
        (folder / "model.safetensors").unlink()
        hub(folder)
        with pytest.raises(ModelError, match=r"no .*safetensors"):
            resolve_model("o/n", home=tmp_path)

    @pytest.mark.parametrize(
        ("name", "parents", "message"),
        [
            ("GatedRepoError", ["RepositoryNotFoundError"], "gated.*HF_TOKEN"),
            ("RepositoryNotFoundError", [], "no such model, or it is private.*HF_TOKEN"),
            ("HFValidationError", [], "owner/name"),
            ("OfflineModeIsEnabled", [], "not reached.*HF_HUB_OFFLINE"),
            ("LocalEntryNotFoundError", [], "Check the network.*HF_HOME"),
            ("ReadTimeout", [], "ReadTimeout: boom.*network"),
        ],
    )
    def test_what_the_hub_says(
        self, name: str, parents: list[str], message: str, tmp_path: Path, hub: Any
    ) -> None:
        """Each failure says what to do, and keeps the hub's error as its cause."""
        base: type[Exception] = Exception
        for parent in parents:
            base = type(parent, (base,), {})
        error = type(name, (base,), {})("boom")
        hub(error)
        with pytest.raises(ModelError, match=message) as caught:
            resolve_model("o/n", home=tmp_path)
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OSError(errno.ENOSPC, "full"), "disk is full.*HF_HOME"),
            (PermissionError(errno.EACCES, "no"), "cannot be written.*HF_HOME"),
        ],
    )
    def test_what_the_disk_says(
        self, error: Exception, message: str, tmp_path: Path, hub: Any
    ) -> None:
        """A full or a closed disk is not taken for a missing network."""
        hub(error)
        with pytest.raises(ModelError, match=message):
            resolve_model("o/n", home=tmp_path)

    def test_the_names_are_those_of_the_hub_library(self) -> None:
        """The classes that are told apart by name exist under these names."""
        errors = pytest.importorskip("huggingface_hub.errors")
        for name in (
            "GatedRepoError",
            "RepositoryNotFoundError",
            "HFValidationError",
            "OfflineModeIsEnabled",
            "LocalEntryNotFoundError",
        ):
            assert issubclass(getattr(errors, name), Exception)

    def test_without_the_hub_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Folders still work; an id says what to install."""
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        folder = make_model(tmp_path / "m")
        assert resolve_model(str(folder), home=tmp_path) == folder
        with pytest.raises(ModelError, match="huggingface_hub is not installed"):
            resolve_model("o/n", home=tmp_path)


class TestConfig:
    """Reading config.json."""

    def test_is_read(self, tmp_path: Path) -> None:
        """As it stands."""
        assert read_model_config(make_model(tmp_path / "m")) == {"model_type": "llama"}


class TestDigest:
    """Equal for equal contents, and for nothing else."""

    def test_follows_the_content(self, tmp_path: Path) -> None:
        """A copy has the same digest; other weights, another config or name have another."""
        one, two = make_model(tmp_path / "1"), make_model(tmp_path / "2")
        first = model_digest(one)
        assert first.startswith("sha256:")
        assert len(first) == len("sha256:") + 64
        assert model_digest(two) == first
        (two / "model.safetensors").write_text("Weights")
        assert model_digest(two) != first
        (two / "model.safetensors").write_text("weights")
        assert model_digest(two) == first
        (two / "config.json").write_text('{"model_type": "other"}')
        assert model_digest(two) != first
        (one / "model.safetensors").rename(one / "renamed.safetensors")
        assert model_digest(one) != first

    def test_ignores_other_files(self, tmp_path: Path) -> None:
        """A readme or a tokenizer does not change what the weights are."""
        assert model_digest(make_model(tmp_path / "1", README_md="x")) == model_digest(
            make_model(tmp_path / "2")
        )

    def test_reads_large_files_in_pieces(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The digest does not depend on the size of a piece."""
        folder = make_model(tmp_path / "m")
        whole = model_digest(folder)
        monkeypatch.setattr("baton.models._CHUNK_BYTES", 3)
        assert model_digest(folder) == whole

    def test_believes_the_names_of_hub_blobs(self, tmp_path: Path) -> None:
        """A hub cache's link is digested without reading, and equals a plain copy."""
        plain = make_model(tmp_path / "plain")
        name = hashlib.sha256(b"weights").hexdigest()
        blobs = tmp_path / "models--o--n" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / name).write_text("never read")
        snapshot = make_model(tmp_path / "models--o--n" / "snapshots" / "0")
        (snapshot / "model.safetensors").unlink()
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{name}")
        assert model_digest(snapshot) == model_digest(plain)
        (blobs / name).unlink()
        with pytest.raises(ModelError):
            model_digest(snapshot)

    def test_reads_other_links(self, tmp_path: Path) -> None:
        """A name of 64 hex digits proves nothing outside a hub cache."""
        plain = make_model(tmp_path / "plain")
        linked = make_model(tmp_path / "linked")
        target = tmp_path / ("0" * 64)
        target.write_text("weights")
        (linked / "model.safetensors").unlink()
        (linked / "model.safetensors").symlink_to(target)
        assert model_digest(linked) == model_digest(plain)

    def test_without_weights(self, tmp_path: Path) -> None:
        """There is no digest of nothing, and none without a config."""
        folder = make_model(tmp_path / "m")
        (folder / "config.json").unlink()
        with pytest.raises(ModelError, match="cannot be read"):
            model_digest(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"no .*safetensors"):
            model_digest(folder)


class TestDigestCache:
    """Digests remembered by path, size and time."""

    def test_spares_a_second_reading(self, tmp_path: Path) -> None:
        """A file of the same size and time is not read again; of another time, it is."""
        folder, cache = make_model(tmp_path / "m"), tmp_path / "c" / "digests.json"
        weights = folder / "model.safetensors"
        first = model_digest(folder, cache_file=cache)
        assert first == model_digest(folder)
        stat = weights.stat()
        weights.write_text("WEIGHTS")
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert model_digest(folder, cache_file=cache) == first
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert model_digest(folder, cache_file=cache) == model_digest(folder) != first

    def test_is_bounded(self, tmp_path: Path) -> None:
        """It keeps the last 256 entries and leaves no temporary files."""
        folder, cache = make_model(tmp_path / "m"), tmp_path / "digests.json"
        cache.write_text(json.dumps({f"/old/{number}|1|1": "0" * 64 for number in range(300)}))
        model_digest(folder, cache_file=cache)
        kept = json.loads(cache.read_text())
        assert len(kept) == 256
        assert sum(str(folder) in key for key in kept) == 2
        assert [path.name for path in tmp_path.iterdir() if "digests" in path.name] == [cache.name]

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
    def test_survives_a_broken_cache(self, text: str, tmp_path: Path) -> None:
        """Rubbish is replaced."""
        folder, cache = make_model(tmp_path / "m"), tmp_path / "digests.json"
        cache.write_text(text)
        assert model_digest(folder, cache_file=cache) == model_digest(folder)
        assert len(json.loads(cache.read_text())) == 2

    def test_does_without_a_cache_it_cannot_write(self, tmp_path: Path) -> None:
        """A digest is more important than remembering it."""
        folder = make_model(tmp_path / "m")
        (tmp_path / "file").write_text("")
        cache = tmp_path / "file" / "digests.json"
        assert model_digest(folder, cache_file=cache) == model_digest(folder)

    def test_leaves_nothing_behind_when_it_cannot_be_replaced(self, tmp_path: Path) -> None:
        """A folder in its place."""
        folder, cache = make_model(tmp_path / "m"), tmp_path / "c" / "digests.json"
        cache.mkdir(parents=True)
        assert model_digest(folder, cache_file=cache) == model_digest(folder)
        assert list(cache.parent.iterdir()) == [cache]
