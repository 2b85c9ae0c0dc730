"""What workers have in their prefix caches, as far as a router can know it.

``chains`` turns prompts into hashes, ``events`` and ``feed`` keep the index true to what engines
report, ``routing`` is what requests use. The index itself is ``router.policy.prefix``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from baton.errors import SettingsError
from router.prefix.chains import Chain, chain_seed, request_chain, text_chain
from router.prefix.events import ExactIndex
from router.prefix.routing import PIECE_BYTES, Feed, PrefixRouting

if TYPE_CHECKING:
    from router.prefix.feed import KvEventFeed

__all__ = [
    "PIECE_BYTES",
    "Chain",
    "ExactIndex",
    "Feed",
    "PrefixRouting",
    "chain_seed",
    "open_feed",
    "request_chain",
    "text_chain",
]


def open_feed(index: ExactIndex) -> KvEventFeed:
    """The feed of KV events into ``index``; for exact knowledge only, since it needs pyzmq.

    Raises:
        SettingsError: pyzmq is not installed.
    """
    try:
        from router.prefix.feed import KvEventFeed
    except ModuleNotFoundError as error:
        raise SettingsError(
            "the profile's routing.prefix is exact, which needs the package pyzmq: install it, or "
            "choose approximate"
        ) from error
    return KvEventFeed(index)
