"""The tokens of an installation: the cluster's, which workers and routers show each other, and
the operators', for the admin API.

It refuses to be weak or to lie open: a short token, or a file that others can read, stops the
start with a message that says what to do. Nothing here logs a token or puts one in a message.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from baton.errors import SettingsError

VALUE_ENV = "BATON_CLUSTER_TOKEN"
"""Holds the cluster token itself; wins over the files."""

FILE_ENV = "BATON_CLUSTER_TOKEN_FILE"
"""Names a file that holds the cluster token, for mounted secrets."""

FILE_NAME = "cluster-token"
"""The file in Baton's home that is made when neither variable is set."""

ADMIN_VALUE_ENV = "BATON_ADMIN_TOKEN"
ADMIN_FILE_ENV = "BATON_ADMIN_TOKEN_FILE"
ADMIN_FILE_NAME = "admin-token"
"""The same three for the admin token."""

MIN_TOKEN_CHARS = 16
"""Characters; below that a token is worth guessing at."""

_MAX_FILE_BYTES = 4096
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Places:
    """Where one token comes from."""

    noun: str
    value_env: str
    file_env: str
    file_name: str


_CLUSTER = _Places("cluster token", VALUE_ENV, FILE_ENV, FILE_NAME)
_ADMIN = _Places("admin token", ADMIN_VALUE_ENV, ADMIN_FILE_ENV, ADMIN_FILE_NAME)


def cluster_token(home: Path, env: Mapping[str, str]) -> str:
    """The cluster's token, from the environment, the file it names, or ``home``.

    The file in ``home`` is made, with a random token, if it does not exist. Processes that start
    at the same time end up with the same one.

    Raises:
        SettingsError: too short, not printable ASCII without blanks, or in a file that is missing,
            unreadable, or readable by others.
    """
    return _token(_CLUSTER, home, env)


def admin_token(home: Path, env: Mapping[str, str]) -> str:
    """The operators' token; from its own variables or file, otherwise like ``cluster_token``."""
    return _token(_ADMIN, home, env)


def _token(places: _Places, home: Path, env: Mapping[str, str]) -> str:
    if places.value_env in env:
        return _checked(env[places.value_env], places.value_env, places)
    if places.file_env in env:
        path = Path(env[places.file_env])
        if not path.is_file():
            raise SettingsError(f"{places.file_env} names {path}, which is not a file")
        return _read(path, places)
    path = home / places.file_name
    if not path.exists():
        _create(path, places)
    return _read(path, places)


def tokens_equal(a: str, b: str) -> bool:
    """Whether two tokens are the same, in a time that does not tell where they differ.

    An empty token equals nothing, so that a token that is not set never lets anybody in.
    """
    if not a or not b:
        return False
    return hmac.compare_digest(_bytes(a), _bytes(b))


def _bytes(token: str) -> bytes:
    # Header values can hold lone surrogates; a comparison must not fail on a hostile one.
    return token.encode("utf-8", "surrogatepass")


def _create(path: Path, places: _Places) -> None:
    """Makes the file whole or not at all, and leaves one that another process made meanwhile.

    Written under a name of its own and linked into place: a reader never sees half a token, and
    the link fails if the name is taken.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(
            f"the {places.noun} cannot be kept in {path} ({error.strerror}); make the folder "
            f"writable or set {places.value_env}"
        ) from error


def _read(path: Path, places: _Places) -> str:
    try:
        with path.open("rb") as file:
            # Of the open file, not of the path: nobody can swap it between check and reading.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise SettingsError(
            f"the {places.noun} in {path} cannot be read: {error.strerror}"
        ) from error
    if mode & 0o077:
        raise SettingsError(
            f"the {places.noun} in {path} is open to other users (mode {mode:04o}); "
            f"run: chmod 600 {path}"
        )
    return _checked(content.decode("utf-8", "replace"), str(path), places)


def _checked(text: str, source: str, places: _Places) -> str:
    token = text.strip()
    if len(token) < MIN_TOKEN_CHARS:
        raise SettingsError(
            f"the {places.noun} in {source} has {len(token)} characters, fewer than "
            f"{MIN_TOKEN_CHARS}; put a longer one there, or take it away and one is made"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise SettingsError(
            f"the {places.noun} in {source} has characters that an HTTP header cannot carry; "
            "use printable ASCII without blanks, on one line"
        )
    return token
