"""The cluster token: where it comes from, what is refused, and the race at the first start."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from baton.errors import SettingsError
from baton.secrets import admin_token, cluster_token, tokens_equal

TOKEN = "abcdefgh-ijklmnop"


def private_file(path: Path, text: str, mode: int = 0o600) -> Path:
    """A file that holds ``text``."""
    path.write_text(text)
    path.chmod(mode)
    return path


def start_with_others(home: Path, barrier: threading.Barrier, tokens: list[str]) -> None:
    """Waits for the others, then notes the token that it gets."""
    barrier.wait()
    tokens.append(cluster_token(home, {}))


def test_the_environment_wins(tmp_path: Path) -> None:
    """The variable is taken before any file, stripped, and no file is made."""
    named = private_file(tmp_path / "named", "another-token-of-length")
    env = {"BATON_CLUSTER_TOKEN": f" {TOKEN}\n", "BATON_CLUSTER_TOKEN_FILE": str(named)}
    assert cluster_token(tmp_path, env) == TOKEN
    assert os.listdir(tmp_path) == ["named"]


def test_the_admin_token_is_another_one(tmp_path: Path) -> None:
    """It has its own variables and its own file: who may serve need not be able to operate."""
    assert admin_token(tmp_path, {"BATON_ADMIN_TOKEN": TOKEN}) == TOKEN
    made = admin_token(tmp_path, {"BATON_CLUSTER_TOKEN": TOKEN})
    assert made not in (TOKEN, cluster_token(tmp_path, {}))
    assert sorted(os.listdir(tmp_path)) == ["admin-token", "cluster-token"]
    with pytest.raises(SettingsError, match="the admin token in BATON_ADMIN_TOKEN has 2 char"):
        admin_token(tmp_path, {"BATON_ADMIN_TOKEN": "ab"})


def test_the_named_file_comes_next(tmp_path: Path) -> None:
    """A file named by the environment is read, stripped, and left as it is."""
    named = private_file(tmp_path / "named", f"{TOKEN}\n", 0o400)
    assert cluster_token(tmp_path, {"BATON_CLUSTER_TOKEN_FILE": str(named)}) == TOKEN
    assert os.listdir(tmp_path) == ["named"]


def test_a_named_file_is_never_made(tmp_path: Path) -> None:
    """If it is missing somebody forgot to mount it; a token of our own would not help."""
    missing = tmp_path / "missing"
    with pytest.raises(SettingsError, match="BATON_CLUSTER_TOKEN_FILE"):
        cluster_token(tmp_path, {"BATON_CLUSTER_TOKEN_FILE": str(missing)})
    assert not missing.exists()


def test_one_is_made_at_the_first_start(tmp_path: Path) -> None:
    """In the home folder, which is made too; for the user only; the same one ever after."""
    home = tmp_path / "deep" / "home"
    token = cluster_token(home, {})
    assert len(token) >= 40
    assert cluster_token(home, {}) == token
    assert os.listdir(home) == ["cluster-token"]
    assert stat.S_IMODE((home / "cluster-token").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_tokens_differ(tmp_path: Path) -> None:
    """Two installations do not share a token."""
    assert cluster_token(tmp_path / "a", {}) != cluster_token(tmp_path / "b", {})


def test_all_who_start_at_once_get_the_same(tmp_path: Path) -> None:
    """Whoever loses the race reads the winner's token, whole, and leaves nothing behind."""
    starters = 8
    for attempt in range(20):
        home = tmp_path / str(attempt)
        barrier = threading.Barrier(starters)
        tokens: list[str] = []

        threads = [
            threading.Thread(target=start_with_others, args=(home, barrier, tokens))
            for _ in range(starters)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(tokens) == starters
        assert len(set(tokens)) == 1
        assert os.listdir(home) == ["cluster-token"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_an_open_file_is_refused(tmp_path: Path, mode: int) -> None:
    """A token that others can read is no secret; the message is the command that mends it."""
    path = private_file(tmp_path / "cluster-token", TOKEN, mode)
    with pytest.raises(SettingsError, match=f"chmod 600 {path}"):
        cluster_token(tmp_path, {})


@pytest.mark.parametrize("text", ["", "   \n", "tiny-one", "fifteen-letters", f"   {'x' * 15}   "])
def test_a_short_token_is_refused(tmp_path: Path, text: str) -> None:
    """From either source; blanks around do not count, and what is there is not repeated."""
    private_file(tmp_path / "cluster-token", text)
    for env in ({}, {"BATON_CLUSTER_TOKEN": text}):
        with pytest.raises(SettingsError, match="16") as caught:
            cluster_token(tmp_path, env)
        assert not text.strip() or text.strip() not in str(caught.value)


@pytest.mark.parametrize("middle", ["\n", " ", "\x00", "\x7f", "ü", "\ufffd"])
def test_a_token_must_fit_a_header(tmp_path: Path, middle: str) -> None:
    """Two lines, blanks, control and non-ASCII characters would break the Authorization header."""
    env = {"BATON_CLUSTER_TOKEN": f"{TOKEN}{middle}{TOKEN}"}
    with pytest.raises(SettingsError, match="HTTP header") as caught:
        cluster_token(tmp_path, env)
    assert TOKEN not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A binary file is an error of ours, not a decoding error."""
    path = tmp_path / "cluster-token"
    path.write_bytes(b"\xff\xfe" * 32)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="HTTP header"):
        cluster_token(tmp_path, {})


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    """The message names the way out."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="BATON_CLUSTER_TOKEN") as caught:
        cluster_token(tmp_path / "file" / "home", {})
    assert isinstance(caught.value.__cause__, OSError)


def test_a_folder_is_no_token(tmp_path: Path) -> None:
    """A folder where the file should be is an error of ours."""
    (tmp_path / "cluster-token").mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        cluster_token(tmp_path, {})


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (TOKEN, TOKEN, True),
        (TOKEN, TOKEN + "x", False),
        (TOKEN, TOKEN.upper(), False),
        ("", "", False),
        ("", TOKEN, False),
        ("\udcff", "\udcff", True),
        ("ü", "u", False),
    ],
)
def test_comparing(a: str, b: str, equal: bool) -> None:
    """Equal strings are equal, an empty one equals nothing, no string is an error."""
    assert tokens_equal(a, b) is equal
