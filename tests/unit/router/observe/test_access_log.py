"""The access log's line."""

from __future__ import annotations

import logging

import msgspec
import pytest

from baton.telemetry import ACCESS_LOGGER, _JsonFormatter
from router.observe import access


@pytest.mark.parametrize("on", [True, False])
def test_a_line_says_what_a_request_was_and_only_if_asked_for(
    on: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Every field of the request is in the JSON line; off, nothing is written."""
    with caplog.at_level(logging.INFO if on else logging.WARNING, logger=ACCESS_LOGGER):
        access(
            request_id="baton-1",
            endpoint="/v1/completions",
            path="disaggregated",
            reason="long_prompt",
            status=200,
            duration_s=1.23456789,
            ttft_s=0.25,
            prompt_tokens=900,
            output_tokens=0,
            attempts=1,
            tenant="acme",
            trace_id="ab" * 16,
            profile_version="abc123",
            prefill="p-0",
            decode="d-0",
        )
    assert len(caplog.records) == on
    if on:
        line = msgspec.json.decode(_JsonFormatter().format(caplog.records[0]))
        del line["ts"]
        assert line == {
            "level": "info",
            "logger": "baton.router.access",
            "message": "/v1/completions 200 disaggregated long_prompt 1.2346 s",
            "request_id": "baton-1",
            "tenant": "acme",
            "trace_id": "ab" * 16,
            "profile_version": "abc123",
            "endpoint": "/v1/completions",
            "path": "disaggregated",
            "reason": "long_prompt",
            "status": 200,
            "duration_s": 1.234568,
            "ttft_s": 0.25,
            "prompt_tokens": 900,
            "output_tokens": 0,
            "attempts": 1,
            "prefill": "p-0",
            "decode": "d-0",
        }


def test_what_is_not_known_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A request that was turned away has no path, no tokens and no workers."""
    with caplog.at_level(logging.INFO, logger=ACCESS_LOGGER):
        access(
            request_id="baton-1",
            endpoint="/v1/completions",
            path="",
            reason="",
            status=401,
            duration_s=0.001,
        )
    line = msgspec.json.decode(_JsonFormatter().format(caplog.records[0]))
    assert line["message"] == "/v1/completions 401 - - 0.0010 s"
    assert set(line) == {
        *("ts", "level", "logger", "message", "request_id"),
        *("endpoint", "status", "duration_s", "attempts"),
    }
