"""References to sources, bundles, and how sources wait."""

from __future__ import annotations

import importlib
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from baton.clock import VirtualClock
from baton.errors import SettingsError, SourceUnavailable
from profiles.sources import FORMS, Bundle, FolderSource, RedisProfiles, open_source
from profiles.sources.texts import Entry, bundle_of
from profiles.sources.waiting import Backoff, polled
from tests.fakes.kubernetes_api import FakeKubernetes
from tests.fakes.virtual_loop import run_virtual


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what looks like a path, there or not, or by a name that is a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for ref in ("./later", "/nowhere/at/all", ".", "here", "~/profiles"):
        source = open_source(ref, VirtualClock())
        assert isinstance(source, FolderSource)
        assert source.describe().startswith("folder ")
    assert "~" not in source.describe()


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "nothing",
        "here.yaml",
        "a\0b",
        "~nobody-of-that-name/x",
        "http://example.org/profiles",
        "configmap:",
        "configmap:a/",
        "configmap:/b",
        "configmap:a/b/c",
        "configmap:A/b",
        "configmap:a/b_c",
    ],
)
def test_no_source(ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has none of the forms is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.yaml").write_text("x")
    with pytest.raises(SettingsError) as caught:
        open_source(ref, VirtualClock())
    assert FORMS in caught.value.message or "home folder" in caught.value.message


async def test_redis() -> None:
    """A URL is never repeated: it may hold a password."""
    source = open_source("redis://:swordfish@localhost:1/2", VirtualClock())
    assert isinstance(source, RedisProfiles)
    assert source.describe() == "profiles in redis://localhost:1/2"
    await source.close()
    for bad in ("redis://:swordfish@localhost:1/x", "ftp://:swordfish@localhost"):
        with pytest.raises(SettingsError) as caught:
            open_source(bad, VirtualClock())
        assert "swordfish" not in caught.value.message


def test_configmaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the namespace that is named, or else in the context's."""
    kubeconfig = FakeKubernetes().kubeconfig(tmp_path, namespace="ours")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    assert open_source("configmap:p", VirtualClock()).describe() == "configmap ours/p"
    assert open_source("configmap:n/p.q", VirtualClock()).describe() == "configmap n/p.q"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names it."""
    real = importlib.import_module

    def missing(name: str, *arguments: Any) -> Any:
        if name.startswith("kubernetes"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SettingsError, match=r"baton-serving\[kubernetes\]"):
        open_source("configmap:p", VirtualClock())


def test_digest() -> None:
    """The same for the same content, and another one for each part that differs."""
    bundles = [
        Bundle(),
        Bundle({"a": "b"}),
        Bundle({"ab": ""}),
        Bundle({"a": "b"}, "x"),
        Bundle({"a": "b"}, "x", "f"),
        Bundle({}, "", "", {"a": "b"}),
        Bundle({"a": "b"}, "", "", {"a": "b"}),
    ]
    assert len({bundle.digest for bundle in bundles}) == len(bundles)
    assert Bundle({"a": "1", "b": "2"}).digest == Bundle({"b": "2", "a": "1"}).digest


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fast", "fast"),
        ("fast\n", "fast"),
        ("\ufeff fast \r\n", "fast"),
        ("active: fast", "fast"),
        ("# a note\n\nactive:   'fast'\n", "fast"),
        ('"fast"', "fast"),
        ("", ""),
        ("# nothing yet\n", ""),
        ("active:", None),
        ("active: a\nb: c", None),
        ("one two", None),
        ("other: fast", None),
    ],
)
def test_active(text: str, name: str | None) -> None:
    """A name, alone or after ``active:``; what else there is is a problem."""
    bundle = bundle_of([Entry("active", "here/active", text.encode())])
    assert bundle.active == (name or "")
    assert bundle.active_from == "here/active"
    assert bool(bundle.problems) is (name is None)


def test_backoff() -> None:
    """Grows to its bound, is never without jitter, and begins anew."""
    backoff = Backoff(random.Random(1), least_s=0.5, most_s=15.0)
    for most_s in (0.5, 1, 2, 4, 8, 15, 15):
        assert most_s / 2 <= backoff.next_s() <= most_s
    backoff.reset()
    assert backoff.next_s() <= 0.5


def test_polled(caplog: pytest.LogCaptureFixture) -> None:
    """Gives each change once; an outage is told when it begins, when its reason changes, and when
    it ends."""
    caplog.set_level("INFO", "profiles.sources")
    down = SourceUnavailable("no folder")
    answers: list[Bundle | SourceUnavailable | None] = [
        *(down, down, SourceUnavailable("no disk")),
        *(Bundle({"a": "1"}), None, Bundle({"a": "1"}), down, None, Bundle({"a": "2"})),
    ]
    read = _answering(answers)

    async def main() -> list[str]:
        async with aclosing(polled(read, what="there", every_s=1.0)) as bundles:
            return [(await anext(bundles)).texts["a"] for _ in range(2)]

    assert run_virtual(main()) == ["1", "2"]
    assert [record.levelname for record in caplog.records] == [
        *("WARNING", "WARNING", "INFO", "WARNING", "INFO")
    ]


def _answering(
    answers: list[Bundle | SourceUnavailable | None],
) -> Callable[[], Awaitable[Bundle | None]]:
    left = iter(answers)

    async def read() -> Bundle | None:
        answer = next(left)
        if isinstance(answer, SourceUnavailable):
            raise answer
        return answer

    return read
