"""Asks the routers: what they agree on, how their workers are; and has them switch and drain.

A small client of the admin API, of one URL behind which any router may answer. What it cannot make
sense of counts as no answer: nothing is taken away on a guess.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from baton.errors import PeerFault
from baton.types import WorkerRecord
from profiles.switching import Ref, Report, Switch

T = TypeVar("T")

ASK_S = 10.0
"""For one answer; of a router whose processes ask each other, some seconds each."""
_MAX_BYTES = 16 * 1024 * 1024
"""Of an answer; a thousand workers are about one."""


class RoutersAway(PeerFault):
    """No router answers, or not as an admin API does; the message says what was found."""

    status = 503
    code = "routers_away"


class RoutersRefused(PeerFault):
    """A router answered, and will not do it.

    Attributes:
        http_status: what it answered with.
    """

    code = "routers_refused"

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class RouterRow(msgspec.Struct, frozen=True):
    """One router of all."""

    id: str
    profile_version: str = ""


class Agreement(msgspec.Struct, frozen=True):
    """``GET /admin/switch``."""

    active: Ref
    previous: Ref | None = None
    switch: Switch | None = None
    routers: tuple[RouterRow, ...] = ()
    store_lost: bool = False


class WorkerRow(msgspec.Struct, frozen=True):
    """One worker of ``GET /admin/workers``."""

    record: WorkerRecord
    legs: float = 0
    cordoned: bool = False
    drained: bool = False


class ActiveProfile(msgspec.Struct, frozen=True):
    """``GET /admin/profile``."""

    name: str
    version: str
    spec: dict[str, Any]


class _Workers(msgspec.Struct, frozen=True):
    workers: tuple[WorkerRow, ...]


class _History(msgspec.Struct, frozen=True):
    history: tuple[Report, ...]


class RoutersApi:
    """One connection to the routers' admin API; made when it is first used.

    Args:
        url: without a path.
        token: the admin token.
        ask_s: for one answer.
        act_s: for one answer where something is changed; what is longer on its way than that is
            given up.
    """

    def __init__(self, url: str, token: str, *, ask_s: float = ASK_S, act_s: float = ASK_S) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._ask_s, self._act_s = ask_s, act_s
        self._http: aiohttp.ClientSession | None = None

    async def agreement(self) -> Agreement:
        """What routers agree on.

        Raises:
            RoutersAway: nobody says; so for the others below.
        """
        return _read(await self._ask("GET", "/admin/switch"), Agreement)

    async def history(self) -> tuple[Report, ...]:
        """How the last switches ended."""
        return _read(await self._ask("GET", "/admin/history"), _History).history

    async def workers(self) -> tuple[WorkerRow, ...]:
        """All registered workers."""
        return _read(await self._ask("GET", "/admin/workers"), _Workers).workers

    async def profile(self) -> ActiveProfile:
        """The profile that is active, whole."""
        return _read(await self._ask("GET", "/admin/profile"), ActiveProfile)

    async def switch(self, text: str, *, origin: str, by: str, hurried: bool) -> None:
        """Asks for a switch.

        Args:
            text: the profile.
            origin: where the text is from, for messages.
            by: who asks, for the history.
            hurried: without a shadow and a canary.

        Raises:
            RoutersRefused: it cannot begin.
        """
        body: dict[str, Any] = {"text": text, "origin": origin, "by": by}
        if hurried:
            body["skip"] = ["shadow", "canary"]
        await self._ask("POST", "/admin/switch", msgspec.json.encode(body))

    async def drain(self, worker: str) -> None:
        """Has routers send a worker nothing new; one that has left is none to drain.

        Raises:
            RoutersRefused: they will not.
        """
        try:
            await self._ask("POST", _drain_path(worker))
        except RoutersRefused as error:
            if error.http_status != 404:
                raise

    async def undrain(self, worker: str) -> None:
        """Takes a drain back.

        Raises:
            RoutersRefused: they will not.
        """
        await self._ask("DELETE", _drain_path(worker))

    async def close(self) -> None:
        """Closes the connections; may be called again."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        if self._http is None:
            # A connection of its own each time: behind a Service another router may answer, and one
            # that stops does not take a question with it.
            connector = aiohttp.TCPConnector(force_close=True)
            self._http = aiohttp.ClientSession(connector=connector)
        limit_s = self._ask_s if method == "GET" else self._act_s
        try:
            async with self._http.request(
                method,
                self.url + path,
                data=body,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=limit_s),
                # A redirect would carry the token to wherever it points.
                allow_redirects=False,
            ) as response:
                raw = bytearray()
                async for chunk in response.content.iter_chunked(65_536):
                    raw += chunk
                    if len(raw) > _MAX_BYTES:
                        raise RoutersAway(f"an answer is larger than {_MAX_BYTES} bytes")
                status = response.status
        except (aiohttp.ClientConnectorError, ConnectionError) as error:
            raise RoutersAway(f"nothing listens at {self.url}") from error
        except TimeoutError as error:
            raise RoutersAway(f"no answer within {limit_s:g} s") from error
        except aiohttp.ClientError as error:
            raise RoutersAway(f"no sound answer: {error}") from error
        if status in (401, 403):
            raise RoutersAway(
                "they refuse our admin token: give the controller the routers' own "
                "(BATON_ADMIN_TOKEN or BATON_ADMIN_TOKEN_FILE)"
            )
        if status >= 500:
            raise RoutersAway(f"{path} answers {status}: {_message(bytes(raw))}")
        if status >= 300:
            raise RoutersRefused(_message(bytes(raw)), status)
        return bytes(raw)


async def look(api: RoutersApi) -> tuple[Agreement, tuple[Report, ...], tuple[WorkerRow, ...]]:
    """What routers agree on, how switches ended, and the workers.

    Raises:
        RoutersAway: one of the three cannot be had.
    """
    try:
        async with asyncio.TaskGroup() as group:
            agreement = group.create_task(api.agreement())
            history = group.create_task(api.history())
            workers = group.create_task(api.workers())
    except* (RoutersAway, RoutersRefused) as errors:
        first = errors.exceptions[0]
        raise RoutersAway(str(first)) from first
    return agreement.result(), history.result(), workers.result()


def _drain_path(worker: str) -> str:
    return f"/admin/workers/{quote(worker, safe='')}/drain"


def _read(raw: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.DecodeError as error:
        raise RoutersAway(f"an answer is not as expected: {error}") from error


def _message(raw: bytes) -> str:
    """What an error says, in its own words where it has some."""
    try:
        said: Mapping[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        return str(said["error"]["message"])[:1000]
    except (msgspec.DecodeError, KeyError, TypeError):
        return raw[:200].decode("utf-8", "replace") or "no reason given"


__all__ = [
    "ActiveProfile",
    "Agreement",
    "RoutersApi",
    "RoutersAway",
    "RoutersRefused",
    "WorkerRow",
    "look",
]
