"""A target that was looked at: what a run needs to know of it, ready to be sent to a child."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.target import Api


class ResolvedTarget(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that answered; the fields not named here are those of ``Target``.

    Attributes:
        url: base URL, without ``/v1`` and without a slash at its end.
        model: the name to ask for.
        tokens_per_word: measured length of a word of our prompts; None with a tokenizer.
        version: of the server's software, where it says one.
    """

    url: str
    model: str
    api: Api = Api.COMPLETIONS
    api_key: str | None = None
    tokenizer: Path | None = None
    tokens_per_word: float | None = None
    force_output: bool = True
    stream: bool = True
    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    cluster_token: str | None = None
    metrics_urls: tuple[str, ...] = ()
    version: str | None = None
