"""Plans made by hand, a writer of plain words, and a sender that answers without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from benchmarks.load.endpoint import ResolvedTarget
from benchmarks.plan import Lane, Piece, Plan, PlannedRequest
from benchmarks.records import RequestRecord

TARGET = ResolvedTarget(url="http://127.0.0.1:1", model="m")


class Words:
    """``tokens`` words that start with the piece's key; counts how often it was asked."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, pieces: Sequence[Piece]) -> str:
        self.written += 1
        return " ".join(f"{piece.key}.{n}" for piece in pieces for n in range(piece.tokens))


def request(index: int, at_s: float | None = None, **more: object) -> PlannedRequest:
    fields: dict[str, object] = {
        "index": index,
        "class_name": "short",
        "pieces": (Piece(f"k{index}", 3),),
        "at_s": at_s,
        "output_tokens": 4,
        **more,
    }
    return PlannedRequest(**fields)  # type: ignore[arg-type]


def plan(requests: Sequence[PlannedRequest] = (), duration_s: float = 1.0, **more: object) -> Plan:
    return Plan("w", "abc", 7, duration_s, requests=tuple(requests), **more)  # type: ignore[arg-type]


def evenly(count: int, duration_s: float = 1.0) -> Plan:
    return plan([request(n, n * duration_s / count) for n in range(count)], duration_s)


def lane(name: str, requests: int | None = None, think_s: float = 0.0) -> Lane:
    def draw(k: int) -> PlannedRequest:
        return request(k, pieces=(Piece(f"{name}/{k}", 3),), lane=name, think_s=think_s)

    return Lane(name, "short", draw, requests)


class FakeSender:
    """Answers after ``seconds(index)``; keeps what was sent."""

    def __init__(self, now: Callable[[], float], seconds: Callable[[int], float]) -> None:
        self._now = now
        self._seconds = seconds
        self.bodies: list[bytes] = []
        self.fails: set[int] = set()
        self.most = 0
        self._flying = 0

    async def send(self, body: bytes, record: RequestRecord, *, keep_text: bool) -> str:
        self.bodies.append(body)
        record.sent_s = self._now()
        self._flying += 1
        self.most = max(self.most, self._flying)
        try:
            await asyncio.sleep(self._seconds(record.index))
            record.first_content_s = record.last_content_s = self._now()
            record.chunks, record.status, record.output_tokens = 1, 200, 4
            if record.index in self.fails:
                record.error = "http_503"
        except asyncio.CancelledError:
            record.error = "cancelled"
            raise
        finally:
            self._flying -= 1
            record.end_s = self._now()
        return f"answer{record.index}" if keep_text else ""
