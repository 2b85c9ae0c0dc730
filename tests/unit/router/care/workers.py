"""Workers without sockets: what the care of handoffs asks them, and what they answer."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import dataclass, field
from typing import Any

import msgspec

from baton.errors import PeerFault, WorkerTimeout, WorkerUnreachable
from baton.types import EngineId, RequestId, Role, WorkerId, WorkerRecord
from router.care.first_token import CHAT
from tests.fakes.worker_records import worker_record


class LoopClock:
    """The event loop's time, which is virtual here."""

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        return 1_000_000.0 + self.monotonic_s()


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    content_type: str = "application/json"


@dataclass(eq=False)
class FakeWorker:
    """One engine. ``spoil`` is added to the log probabilities of the next ``spoiled_pulls``."""

    record: WorkerRecord
    offers: dict[str, list[Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    fault: PeerFault | None = None
    status: int | None = None
    hangs: bool = False
    steps: int = 0
    working: bool = False
    spoil: float = 0.0
    spoiled_pulls: int = 1000
    flipped: bool = False
    logprobs: bool = True
    bytes_per_s: float = 1e9
    handshake_s: float = 0.5
    leg_s: float = 0.01
    transfers: int = 0
    transfer_s: float = 0.0
    transfer_bytes: float = 0.0
    others: int = 0
    knows: set[str] = field(default_factory=set)
    pulled: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Offers that this worker released without a pull."""

    @property
    def generations(self) -> list[dict[str, Any]]:
        return [body for method, _, body in self.asked if method == "POST"]


class FakeCluster:
    """Answers as the router's client does. One task per call, as over HTTP."""

    def __init__(self) -> None:
        self.workers: dict[WorkerId, FakeWorker] = {}
        self.in_flight = 0
        self.most_in_flight = 0
        self._ids = itertools.count(1)

    def add(self, name: str, role: Role, **changes: Any) -> FakeWorker:
        engine = EngineId(changes.pop("engine_id", f"{name}-1"))
        record = worker_record(name, role=role, engine_id=engine, **changes)
        worker = self.workers[record.id] = FakeWorker(record)
        return worker

    def pair(self) -> tuple[FakeWorker, FakeWorker]:
        return self.add("p", Role.PREFILL), self.add("d", Role.DECODE)

    @property
    def records(self) -> tuple[WorkerRecord, ...]:
        return tuple(worker.record for worker in self.workers.values())

    async def ask(
        self,
        worker: WorkerRecord,
        path: str,
        body: bytes,
        request_id: RequestId,
        *,
        timeout_s: float,
        method: str = "POST",
    ) -> Reply:
        engine = self.workers[worker.id]
        engine.asked.append((method, path, msgspec.json.decode(body) if body else {}))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answer(engine, path, engine.asked[-1][2])
        except TimeoutError as error:
            raise WorkerTimeout(f"worker {worker.id} did not answer") from error
        finally:
            self.in_flight -= 1

    async def _answer(self, engine: FakeWorker, path: str, body: dict[str, Any]) -> Reply:
        if engine.fault is not None:
            raise engine.fault
        if path == "/metrics":
            engine.steps += engine.working
            return Reply(200, self._metrics(engine))
        if path == "/health":
            return Reply(200, b"")
        if engine.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(engine.leg_s)
        if engine.status is not None:
            return Reply(engine.status, b'{"error": {}}')
        params = body.get("kv_transfer_params") or {}
        peer = self._peer(params)
        if body.get("model") != engine.record.model:
            if peer is not None and peer.record.id in engine.knows:
                engine.told.append(params["remote_request_id"])
                del peer.offers[params["remote_request_id"]]
            return Reply(404, b'{"error": {}}')
        offset = await self._pull(engine, peer, params) if peer is not None else 0.0
        return Reply(200, msgspec.json.encode(self._generated(engine, path, body, offset)))

    def _peer(self, params: dict[str, Any]) -> FakeWorker | None:
        if not params.get("do_remote_prefill"):
            return None
        return next(
            w for w in self.workers.values() if w.record.engine_id == params["remote_engine_id"]
        )

    async def _pull(self, engine: FakeWorker, peer: FakeWorker, params: dict[str, Any]) -> float:
        offered = peer.offers.pop(params["remote_request_id"])
        if peer.record.id not in engine.knows:
            await asyncio.sleep(engine.handshake_s)
            engine.knows.add(peer.record.id)
        size = float(len(offered) * 512)
        await asyncio.sleep(size / engine.bytes_per_s)
        engine.transfers += 1 + engine.others
        engine.transfer_s += size / engine.bytes_per_s
        engine.transfer_bytes += size
        engine.pulled.append(params["remote_request_id"])
        engine.spoiled_pulls -= 1
        return engine.spoil if engine.spoiled_pulls >= 0 else 0.0

    def _generated(
        self, engine: FakeWorker, path: str, body: dict[str, Any], offset: float
    ) -> dict[str, Any]:
        prompt = body.get("prompt") or [m["content"] for m in body["messages"]]
        params = None
        if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
            offer = f"{engine.record.id}-{next(self._ids)}"
            engine.offers[offer] = list(prompt)
            params = {
                "do_remote_prefill": True,
                "remote_engine_id": engine.record.engine_id,
                "remote_request_id": offer,
                "remote_block_ids": [[1]],
            }
        digest = hashlib.sha256(repr(prompt).encode()).digest()
        first = ("token_id:7", -0.7 - digest[0] / 512 + offset)
        second = ("token_id:9", first[1] - 0.01 - offset)
        if engine.flipped and offset:
            first, second = ("token_id:9", second[1] + 0.02), ("token_id:7", first[1])
        logprobs: dict[str, Any] | None = {
            "tokens": [first[0]],
            "token_logprobs": [first[1]],
            "top_logprobs": [dict((first, second))],
        }
        if path == CHAT:
            top = [{"token": t, "logprob": p} for t, p in (first, second)]
            logprobs = {"content": [{**top[0], "top_logprobs": top}]}
        if not engine.logprobs:
            logprobs = None
        return {
            "choices": [{"index": 0, "text": "x", "logprobs": logprobs}],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": 1},
            "kv_transfer_params": params,
        }

    def _metrics(self, engine: FakeWorker) -> bytes:
        labels = '{engine="0",model_name="tiny"}'
        lines = [
            "# TYPE vllm:iteration_tokens_total histogram",
            f"vllm:iteration_tokens_total_count{labels} {engine.steps}",
        ]
        if engine.transfers:
            lines += [
                f"vllm:nixl_xfer_time_seconds_count{labels} {engine.transfers}",
                f"vllm:nixl_xfer_time_seconds_sum{labels} {engine.transfer_s}",
                f"vllm:nixl_bytes_transferred_sum{labels} {engine.transfer_bytes}",
            ]
        return "\n".join(lines).encode()


UNREACHABLE = WorkerUnreachable("connection refused")
