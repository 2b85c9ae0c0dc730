"""Whom a run talks to: one OpenAI endpoint, and how prompts are written for it."""

from __future__ import annotations

import enum
from pathlib import Path

import msgspec


class Api(enum.StrEnum):
    """Which endpoint the load goes to."""

    COMPLETIONS = "completions"
    CHAT = "chat"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An OpenAI endpoint.

    Attributes:
        url: base URL; a trailing ``/v1`` is understood and taken off by ``resolve``.
        model: name to ask for; None takes the only one that ``/v1/models`` lists.
        api_key: sent as a bearer token; never written to a result.
        api: which endpoint.
        tokenizer: ``tokenizer.json`` or a folder with one, for prompts of exact length. Without
            it the length of a sample text is asked of the server once, and lengths are
            approximate; what the server counted is recorded either way.
        force_output: ask for exactly the planned output length (``min_tokens``, ``ignore_eos``,
            which vLLM and most engines honour and the OpenAI service refuses).
        stream: False measures whole answers: no TTFT, no ITL.
        timeout_s: for one whole request.
        connect_timeout_s: for opening a connection.
        cluster_token: Baton's, to find the workers behind a router and scrape them. None: only
            the router's own metrics are scraped, if it has any.
        metrics_urls: further Prometheus pages to scrape.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    api: Api = Api.COMPLETIONS
    tokenizer: Path | None = None
    force_output: bool = True
    stream: bool = True
    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    cluster_token: str | None = None
    metrics_urls: tuple[str, ...] = ()
