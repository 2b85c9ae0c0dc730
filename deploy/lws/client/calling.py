"""Calls that are repeated where that is safe and may help, and whose refusals are exceptions.

Repeated are calls that mean the same when they are made twice, after 429, 500, 502, 503, 504 and
where no answer came. Others are repeated after 429 alone, which says that nothing was done.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Protocol

from baton.errors import KubernetesUnavailable
from baton.kube import Json, Query
from deploy.lws.client.errors import Asked, Busy, error_of

_PASSING = frozenset({429, 500, 502, 503, 504})


class Api(Protocol):
    """What is used of :class:`baton.kube.KubeApi`."""

    async def call(  # noqa: D102
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Json]: ...


@dataclass(frozen=True, slots=True)
class Retries:
    """How calls are repeated.

    Attributes:
        tries: calls in all, the first included.
        first_s: the longest pause after the first try; each next one may be twice as long.
        most_s: the longest pause that is drawn.
        budget_s: all pauses of a call together. A server that asks for a longer one is not
            waited for: the error says when to come back.
    """

    tries: int = 4
    first_s: float = 0.25
    most_s: float = 4.0
    budget_s: float = 15.0


def pause_s(retries: Retries, tried: int, retry_after_s: float | None, rng: random.Random) -> float:
    """The pause after ``tried`` tries: half of it fixed, half of it drawn, so that clients which
    failed together come back apart. What the server asks for is the least of it."""
    longest = min(retries.most_s, retries.first_s * 2.0 ** min(tried - 1, 30))
    drawn: float = longest * rng.uniform(0.5, 1.0)
    return drawn if retry_after_s is None else retry_after_s + drawn


class Caller:
    """Calls of one client.

    Args:
        api: the cluster.
        retries: how calls are repeated.
        rng: draws pauses.
    """

    def __init__(self, api: Api, retries: Retries, rng: random.Random) -> None:
        self._api = api
        self.retries = retries
        self.rng = rng

    async def call(
        self,
        asked: Asked,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: Json | None = None,
        content_type: str = "application/json",
        again: bool = True,
    ) -> Json:
        """The object that came back.

        Args:
            asked: for the error's words.
            method, path, query, body, content_type: of the call.
            again: whether it means the same when it is made twice.

        Raises:
            Refused: the API server said no.
            KubernetesUnavailable: no answer that helps, after all tries.
        """
        left_s = self.retries.budget_s
        for tried in range(1, self.retries.tries + 1):
            after_s: float | None = None
            try:
                status, answer = await self._api.call(
                    method, path, query=query, body=body, content_type=content_type
                )
            except KubernetesUnavailable as error:
                problem: Exception = error
                passing = again
            else:
                if status < 300:
                    return answer
                refusal = error_of(asked, status, answer)
                problem = refusal
                passing = status == 429 or (again and status in _PASSING)
                after_s = refusal.retry_after_s if isinstance(refusal, Busy) else None
            wait_s = pause_s(self.retries, tried, after_s, self.rng)
            if not passing or tried == self.retries.tries or wait_s > left_s:
                raise problem
            left_s -= wait_s
            await asyncio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")
