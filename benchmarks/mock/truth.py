"""What the mock really did: one line of JSON per request, times of the machine's monotonic clock.

A timer may be late, and on a busy machine it is; so the instrument is compared with when bytes
were handed to the kernel, never with when they should have been.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.records import RequestRecord

_FLUSH_LINES = 512


class Truth(msgspec.Struct, kw_only=True):
    """One request as the server saw it.

    Attributes:
        number: in order of arrival, from 0.
        request_id: the client's ``x-request-id``, or empty.
        received_s: when its last byte was read.
        started_s: when it got a place to be worked on.
        chunks_s: when each chunk with content was written; an answer that is not streamed has one.
        chunk_tokens: tokens of each.
        late_s: the most that a write was later than the script wanted it.
        end_s: when the last byte was written.
        outcome: ``whole``, ``error``, ``error_event``, ``cut`` or ``client_gone``.
    """

    number: int
    request_id: str = ""
    received_s: float
    started_s: float = 0.0
    chunks_s: list[float] = []
    chunk_tokens: list[int] = []
    late_s: float = 0.0
    end_s: float = 0.0
    status: int = 200
    outcome: str = "whole"
    prompt_tokens: int = 0
    cached_tokens: int = 0


class TruthLog:
    """Appends to a file, some hundred lines at a time; with no path it only forgets."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("wb") if path is not None else None
        self._lines: list[bytes] = []

    def add(self, truth: Truth) -> None:
        """Keeps one request."""
        if self._file is not None:
            self._lines.append(msgspec.json.encode(truth))
            if len(self._lines) >= _FLUSH_LINES:
                self.flush()

    def flush(self) -> None:
        """Writes what is kept."""
        if self._file is not None and self._lines:
            self._file.write(b"\n".join(self._lines) + b"\n")
            self._file.flush()
            self._lines.clear()

    def close(self) -> None:
        """Writes what is kept and closes the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


def read_truth(path: Path) -> list[Truth]:
    """All requests of a log, in order of arrival.

    Raises:
        msgspec.DecodeError: not a truth log.
    """
    lines = path.read_bytes().splitlines()
    found = [msgspec.json.decode(line, type=Truth) for line in lines if line]
    return sorted(found, key=lambda truth: truth.number)


def as_records(
    truths: Iterable[Truth], zero_s: float, class_name: str = "all"
) -> list[RequestRecord]:
    """The truth in the form of a client's records, so that one computation serves both.

    A request counts as sent when the server had it. ``zero_s`` is second zero of the run, on the
    monotonic clock.
    """
    records = []
    for truth in truths:
        times = [at_s - zero_s for at_s in truth.chunks_s]
        whole = truth.outcome == "whole"
        records.append(
            RequestRecord(
                index=truth.number,
                class_name=class_name,
                scheduled_s=truth.received_s - zero_s,
                sent_s=truth.received_s - zero_s,
                headers_s=truth.received_s - zero_s,
                first_content_s=times[0] if times else None,
                last_content_s=times[-1] if times else None,
                end_s=truth.end_s - zero_s,
                status=truth.status,
                error=None if whole else truth.outcome,
                prompt_tokens=truth.prompt_tokens,
                output_tokens=sum(truth.chunk_tokens) if whole else None,
                chunks=len(times),
                chunks_s=times,
            )
        )
    return records
