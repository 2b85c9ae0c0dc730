"""Waiting for what other tasks or processes do, with an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_STEP_S = 0.005


async def until(condition: Callable[[], object], *, timeout_s: float = 5.0, what: str = "") -> None:
    """Polls until ``condition()`` is true.

    Raises:
        AssertionError: it is not, after ``timeout_s`` seconds.
    """
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + timeout_s
    while not condition():
        if loop.time() > ends_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        await asyncio.sleep(_STEP_S)
