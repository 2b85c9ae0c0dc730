"""The event loop to send from: uvloop where it is installed, which takes a quarter less CPU."""

from __future__ import annotations

import asyncio


def new_loop() -> asyncio.AbstractEventLoop:
    """A new loop, for ``asyncio.Runner(loop_factory=new_loop)``."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
