"""How Baton's processes speak: one logging set-up for all of them.

Metrics belong to the process that has something to count; the router's stand in
``router.metrics``. Logs go to stderr, one line an event, so that a container runtime or the
``baton up`` command can collect them.
"""

from __future__ import annotations

import logging
import sys

from baton.errors import SettingsError

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Sets the root logger up; to be called once, by an entry point.

    Raises:
        SettingsError: the level has no meaning.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise SettingsError(
            f"unknown log level {level!r}: use debug, info, warning or error (BATON_LOG_LEVEL)"
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=number, handlers=[handler], force=True)
    # Libraries that narrate their normal work.
    for noisy in ("aiohttp.access", "httpx", "uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
