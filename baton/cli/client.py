"""What the command line asks of a router: its status, whether it serves, and one real answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from baton.cli.stack import Sight, StartFailed

_STATUS_S = 2.0
_PROOF_TRIES = 20
"""A second apart. A router uses a pair of workers once it has checked it by handoffs of its own,
which takes seconds where prefill is slow."""
_PAUSE_S = 1.0
_PROOF_TOKENS = 8

_WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "and", "saw", "the", "sun", "go", "down", "so"),
    *("it", "ran", "to", "the", "old", "red", "barn", "by", "the", "sea", "for", "a", "day"),
)
"""Plain short words: no tokenizer makes less than one token of each, and few make more."""


class RouterAway(Exception):
    """Nobody answers at the router's URL, or not as a router does.

    Attributes:
        message: what was found.
        refused: whether somebody answered, and refused the token.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.refused = refused


class RouterClient:
    """Asks one router.

    Args:
        http: the session to use.
        url: the router's, without a path.
        token: the cluster token.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, token: str) -> AsyncIterator[RouterClient]:
        """A client with a session of its own."""
        async with aiohttp.ClientSession() as http:
            yield cls(http, url, token)

    async def status(self) -> dict[str, Any]:
        """The ``/admin/status`` report.

        Raises:
            RouterAway: no answer within 2 s, or not a report.
        """
        try:
            async with self._http.get(
                f"{self.url}/admin/status",
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=_STATUS_S),
                # A redirect would carry the token to wherever it points.
                allow_redirects=False,
            ) as response:
                if response.status in (401, 403):
                    raise RouterAway("it refuses our cluster token", refused=True)
                if response.status != 200:
                    raise RouterAway(f"it answers {response.status}; is it a Baton router?")
                report = await response.json()
        except (aiohttp.ClientConnectorError, ConnectionError) as error:
            raise RouterAway("nothing listens there") from error
        except TimeoutError as error:
            raise RouterAway(f"no answer within {_STATUS_S:g} s") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise RouterAway(f"no sound answer ({error})") from error
        if not isinstance(report, dict) or not isinstance(report.get("workers"), list):
            raise RouterAway("its answer is no status report; is it a Baton router?")
        return report

    async def serving(self) -> bool:
        """Whether requests can be served, as the router's ``/readyz`` says."""
        timeout = aiohttp.ClientTimeout(total=_STATUS_S)
        try:
            async with self._http.get(f"{self.url}/readyz", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def sights(self) -> dict[str, Sight] | None:
        """The workers by id, or None while there is no report."""
        try:
            report = await self.status()
        except RouterAway:
            return None
        found = {}
        for worker in report["workers"]:
            record = worker.get("record", {})
            found[str(record.get("id"))] = Sight(
                state=str(record.get("state", "")), engine_id=str(record.get("engine_id", ""))
            )
        return found

    async def ask(self, path: str, body: dict[str, Any], timeout_s: float) -> Answer:
        """One request of a client.

        Raises:
            RouterAway: no answer.
        """
        try:
            async with self._http.post(
                f"{self.url}{path}", json=body, timeout=aiohttp.ClientTimeout(total=timeout_s)
            ) as response:
                text = await response.text()
                return Answer(
                    status=response.status,
                    path=response.headers.get("x-baton-path", "none"),
                    reason=response.headers.get("x-baton-reason", "none"),
                    text=text,
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RouterAway(f"no answer to a request ({error!r})") from error


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, ``x-baton-path`` and ``x-baton-reason`` (``none`` where not given), body."""

    status: int
    path: str
    reason: str
    text: str

    def __str__(self) -> str:
        if self.status != 200:
            return f"{self.status} {self.text[:300]}"
        return f"{self.status}, path {self.path}, reason {self.reason}"


@dataclass(frozen=True, slots=True)
class Proof:
    """What the first answer showed.

    Attributes:
        endpoint: the path that answered: chat where the model has a template, else completions.
        handed_over: whether it came through a handoff.
        note: why it did not, though the profile disaggregates; or empty.
    """

    endpoint: str
    handed_over: bool
    note: str = ""


CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


async def prove(
    client: RouterClient, model: str, threshold_tokens: int | None, *, timeout_s: float
) -> Proof:
    """Has the router answer one real request over the path that the profile is about.

    Args:
        client: asks the router.
        model: the served name.
        threshold_tokens: prompts of so many tokens are handed over; None if none are.
        timeout_s: for one answer.

    Raises:
        StartFailed: no answer, or only answers that took another path.
    """
    words = max(8, threshold_tokens or 0)
    endpoint, said = CHAT, "nothing"
    for attempt in range(_PROOF_TRIES):
        if attempt:
            await asyncio.sleep(_PAUSE_S)
        try:
            answer = await client.ask(endpoint, _body(endpoint, model, words), timeout_s)
        except RouterAway as error:
            said = error.message
            continue
        said = str(answer)
        if answer.status == 200:
            if threshold_tokens is None or answer.path == "disaggregated":
                return Proof(endpoint, handed_over=answer.path == "disaggregated")
            if answer.reason == "over_limits":
                return _too_long(endpoint, threshold_tokens)
            if answer.reason == "short_prompt":
                # Bounds that straddle the threshold count as short.
                words += words // 2
        elif answer.status == 400 and "context_length_exceeded" in answer.text:
            if words <= 8:
                break
            return await _short(client, endpoint, model, threshold_tokens, timeout_s)
        elif answer.status == 400 and endpoint == CHAT:
            # A base model has no chat template.
            endpoint = COMPLETIONS
    raise StartFailed(
        "everything is up, but no answer came "
        + ("" if threshold_tokens is None else "through a handoff ")
        + f"in {_PROOF_TRIES} tries; the last one: {said}"
    )


async def _short(
    client: RouterClient, endpoint: str, model: str, threshold_tokens: int | None, timeout_s: float
) -> Proof:
    """A short request, where a prompt of the threshold's length does not fit the model."""
    try:
        answer = await client.ask(endpoint, _body(endpoint, model, 8), timeout_s)
    except RouterAway as error:
        raise StartFailed(f"everything is up, but nothing answers: {error.message}") from error
    if answer.status != 200:
        raise StartFailed(f"everything is up, but a short request got: {answer}")
    return _too_long(endpoint, threshold_tokens)


def _too_long(endpoint: str, threshold_tokens: int | None) -> Proof:
    return Proof(
        endpoint,
        handed_over=False,
        note=f"a prompt of {threshold_tokens} tokens, the profile's threshold, does not fit this "
        "model with its answer, so no handoff was tried; lower the threshold in the profile",
    )


def _body(endpoint: str, model: str, words: int) -> dict[str, Any]:
    text = " ".join(itertools.islice(itertools.cycle(_WORDS), words))
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": _PROOF_TOKENS,
        "temperature": 0,
        # Each try is new to the workers: a prompt that decode has cached is not handed over.
        "cache_salt": uuid.uuid4().hex,
    }
    if endpoint == CHAT:
        return {**body, "messages": [{"role": "user", "content": text}]}
    return {**body, "prompt": text}
