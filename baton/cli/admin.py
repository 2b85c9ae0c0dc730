"""How commands find a router's admin API, ask it, and tell what went wrong.

The URL is the one given, else that of the router that ``baton up`` started. The token is looked for
as the router does, but never made here: the router would refuse it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from baton.cli.runfile import read_note
from baton.errors import SettingsError
from baton.secrets import ADMIN_FILE_ENV, ADMIN_FILE_NAME, ADMIN_VALUE_ENV, admin_token

NO_ANSWER = 1
REFUSED = 2
NOT_DONE = 3

_ASK_S = 10.0
"""Of a router whose processes ask each other, some seconds each."""


class AdminAway(Exception):
    """Nobody answers at the URL, or not as an admin API does.

    Attributes:
        message: what was found.
        refused: whether somebody answered, and refused the token.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.refused = refused


class AdminRefused(Exception):
    """The admin API answered, and will not do it; ``message`` is its reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class AdminClient:
    """Asks one router's admin API.

    Args:
        http: the session to use.
        url: its URL, without a path.
        token: the admin token.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> dict[str, Any]:
        """One question and its answer.

        Raises:
            AdminAway: no answer within 10 s, or no sound one.
            AdminRefused: the answer is an error.
        """
        try:
            async with self._http.request(
                method,
                self.url + path,
                params=params,
                data=body,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=_ASK_S),
                # A redirect would carry the token to wherever it points.
                allow_redirects=False,
            ) as response:
                raw = await response.read()
                status = response.status
        except (aiohttp.ClientConnectorError, ConnectionError) as error:
            raise AdminAway("nothing listens there") from error
        except TimeoutError as error:
            raise AdminAway(f"no answer within {_ASK_S:g} s") from error
        except aiohttp.ClientError as error:
            raise AdminAway(f"no sound answer ({error})") from error
        if status in (401, 403):
            raise AdminAway("it refuses our admin token", refused=True)
        try:
            answer = json.loads(raw)
        except ValueError as error:
            raise AdminAway(f"it answers {status}, and no JSON; is it an admin API?") from error
        if not isinstance(answer, dict):
            raise AdminAway("its answer is no JSON object; is it an admin API?")
        if status >= 400:
            said = answer.get("error")
            message = said.get("message") if isinstance(said, dict) else None
            if message is None or f"There is no {path} here" in message:
                raise AdminAway(f"it answers {status}; is it an admin API?")
            raise AdminRefused(str(message))
        return answer


def worker_path(worker: str, action: str) -> str:
    """The path of an action on a worker."""
    return f"/admin/workers/{quote(worker, safe='')}/{action}"


def run_with_admin(
    admin: str | None, home: Path, work: Callable[[AdminClient], Awaitable[int]]
) -> int:
    """Has ``work`` done with a client. Returns its status, 1 without an answer, 2 for a refusal.

    Raises:
        SettingsError: there is no admin token here, or it or the URL is not usable.
    """
    url = admin or _noted(home)
    if url is None:
        sys.stderr.write(
            f"baton: nothing was started from {home}: run `baton up`, or name a router's admin API "
            "with --admin http://HOST:PORT, or its home with --home\n"
        )
        return NO_ANSWER
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{url!r} is no URL of an admin API, such as http://127.0.0.1:8001")
    token = _token(home, os.environ)

    async def do() -> int:
        async with aiohttp.ClientSession() as http:
            return await work(AdminClient(http, url, token))

    try:
        return asyncio.run(do())
    except AdminAway as error:
        hint = (
            f"Use the router's own token: its home with --home, {ADMIN_VALUE_ENV} or "
            f"{ADMIN_FILE_ENV}"
            if error.refused
            else "Check the address, and whether the router runs"
        )
        sys.stderr.write(f"baton: no admin API at {url}: {error.message}. {hint}\n")
        return NO_ANSWER
    except AdminRefused as error:
        sys.stderr.write(f"baton: {error.message}\n")
        return REFUSED


def _noted(home: Path) -> str | None:
    note = read_note(home)
    return note.admin or None if note else None


def _token(home: Path, env: Mapping[str, str]) -> str:
    given = ADMIN_VALUE_ENV in env or ADMIN_FILE_ENV in env
    if not given and not (home / ADMIN_FILE_NAME).exists():
        raise SettingsError(
            f"there is no admin token in {home}: name the router's home with --home, or set "
            f"{ADMIN_VALUE_ENV} or {ADMIN_FILE_ENV}"
        )
    return admin_token(home, env)
