"""What goes wrong with an API server, on demand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from tests.fakes.kubernetes.errors import Refused

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(eq=False)
class Fault:
    """What happens to the next requests that it is meant for.

    Attributes:
        how: fail, hang or lose.
        left: how many more.
        verb, plural: those meant; empty for any.
        status: that it fails with.
        again_s: when to come again, in seconds.
    """

    how: str
    left: int
    verb: str
    plural: str
    status: int = 0
    again_s: int | None = None


class Faults:
    """Those that are still to come.

    Attributes:
        delay_s: before every answer, in seconds.
        hanging: requests that are held now.
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.hanging = 0
        self._planned: list[Fault] = []
        self._released = asyncio.Event()

    def plan(self, fault: Fault) -> None:
        """Adds one."""
        self._planned.append(fault)

    def release(self) -> None:
        """Lets those go on that hang."""
        self._released.set()
        self._released = asyncio.Event()

    async def before(self, verb: str, plural: str) -> bool:
        """What happens to a request before it is looked at.

        Returns:
            Whether its answer is to be lost.

        Raises:
            Refused: it fails.
        """
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        for fault in self._planned:
            if fault.verb in ("", verb) and fault.plural in ("", plural):
                fault.left -= 1
                if not fault.left:
                    self._planned.remove(fault)
                if fault.how == "fail":
                    reason = REASONS.get(fault.status, "")
                    details = {} if fault.again_s is None else {"retryAfterSeconds": fault.again_s}
                    raise Refused(fault.status, reason, "the server is made to fail", details)
                if fault.how == "hang":
                    await self._hang()
                return fault.how == "lose"
        return False

    async def _hang(self) -> None:
        self.hanging += 1
        try:
            await self._released.wait()
        finally:
            self.hanging -= 1


def drop(request: web.Request) -> web.StreamResponse:
    """Breaks the connection instead of an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
