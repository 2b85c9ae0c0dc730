"""A fake vLLM engine: what Baton uses of vLLM 0.32 over HTTP, and everything that can go wrong.

It answers with text that depends on the whole prompt (``engine_kv.words``), and with *wrong* text,
status 200, in each of the nine cases in which the real engine does: a fault in the router shows as
a wrong answer. Faults are injected one by one; every request is kept, and whether its client left.

It is not a model of speed, of scheduling, or of what the engine says besides the fields that the
router and the workers read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.clock import Clock, SystemClock
from baton.engine.guard import OPEN_PATHS
from baton.types import EngineId, KvGeometry, Limits, Role, WorkerId, WorkerRecord
from tests.fakes.byte_tokenizer import chat_text
from tests.fakes.engine_faults import Fault, Leg, Seen, Trouble
from tests.fakes.engine_job import DEFAULT_ANSWER_TOKENS, Job, parse_job, parse_prompt
from tests.fakes.engine_kv import DEFAULT_WEIGHTS, Corruption, KvSide, Offer, words
from tests.fakes.engine_wire import (
    INTERNAL_ERROR,
    Refused,
    Reply,
    choice_delta,
    encode_event,
    read_body,
    until_gone,
)
from tests.fakes.http_server import LoopServer
from tests.fakes.worker_records import worker_record

__all__ = [
    "DEFAULT_ANSWER_TOKENS",
    "KEY",
    "MODEL",
    "FakeEngine",
    "Fault",
    "Fleet",
    "Leg",
    "Refused",
    "Seen",
    "Trouble",
    "expected_chat",
    "expected_text",
]

KEY = "fake-cluster-token-0123456789"
MODEL = "tiny"
_HANDSHAKE_S = 0.02


class _LoadFailed(Exception):
    """KV could not be loaded, and the policy is to fail."""


@dataclass
class Fleet:
    """Engines that can pull from each other, and their common clock."""

    clock: Clock = field(default_factory=SystemClock)
    engines: dict[str, FakeEngine] = field(default_factory=dict)


class FakeEngine:
    """One engine on a loopback port.

    Args:
        fleet: the engines that it can pull from.
        name: worker id, and start of the engine id.
        role: for ``record`` only; like the real engine it does not enforce it.
        tokenize: text to token ids; one token per byte by default.
        weights: stands for the content of the weights.
        lease_s: how long offered blocks are kept.

    Attributes:
        seen: every request.
        corruptions: why answers of this engine were wrong; must stay empty behind a sound router.
        faults: what goes wrong next; see ``inject``.
        token_s: pause before each content event, in seconds.
        model: the only model served.
    """

    def __init__(
        self,
        fleet: Fleet,
        name: str,
        role: Role,
        *,
        tokenize: Callable[[str], Sequence[int]] | None = None,
        max_model_len: int = 2048,
        block_size: int = 32,
        weights: str = DEFAULT_WEIGHTS,
        lease_s: float = 30.0,
        model: str = MODEL,
    ) -> None:
        self.fleet = fleet
        self.name = name
        self.role = role
        self.model = model
        self.kv = KvSide(f"{name}-run-1", block_size, weights)
        self.max_model_len = max_model_len
        self.lease_s = lease_s
        self.token_s = 0.0
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.corruptions: list[Corruption] = []
        self.alive = False
        self.running = 0
        self.waiting = 0
        self.waiting_override: int | None = None
        self.server = LoopServer(self)
        self._tokenize = tokenize or (lambda text: list(text.encode()))
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._ids = itertools.count(1)

    # --- for tests ---

    @property
    def url(self) -> str:
        """Base URL."""
        return self.server.url

    async def start(self) -> None:
        """Starts, or starts again as another run with nothing in its cache."""
        if self.kv.engine_id in self.fleet.engines:
            run = int(self.kv.engine_id.rpartition("-")[2]) + 1
            self.kv = KvSide(f"{self.name}-run-{run}", self.kv.block_size, self.kv.weights)
        self.fleet.engines[self.kv.engine_id] = self
        await self.server.start()
        self.alive = True

    async def kill(self) -> None:
        """SIGKILL: connections are reset, the port refuses."""
        self.alive = False
        self.thaw()
        await self.server.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections are taken, nothing is answered, nothing can be pulled."""
        self._thawed.clear()

    def thaw(self) -> None:
        """SIGCONT."""
        self._thawed.set()

    def inject(self, trouble: Trouble, leg: Leg | None = None, **more: Any) -> None:
        """Has something go wrong; ``more`` are fields of ``Fault``."""
        self.faults.append(Fault(trouble, leg, **more))

    def requests(self, leg: Leg | None = None) -> list[Seen]:
        """The requests for text that came, of one kind or all."""
        return [s for s in self.seen if s.generates and leg in (None, s.leg)]

    def record(self, **changes: Any) -> WorkerRecord:
        """What a worker with this engine registers."""
        fields: dict[str, Any] = {
            "role": self.role,
            "url": self.url,
            "model": self.model,
            "model_digest": f"sha256:{self.kv.weights}",
            "engine_id": EngineId(self.kv.engine_id),
            "geometry": KvGeometry(
                layers=2,
                kv_heads=2,
                head_size=16,
                dtype="bfloat16",
                block_size=self.kv.block_size,
                bytes_per_token=256,
            ),
            "limits": Limits(max_model_len=self.max_model_len, slots=16),
        }
        return worker_record(WorkerId(self.name), **(fields | changes))

    # --- HTTP ---

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        seen = Seen(
            scope["method"],
            scope["path"],
            {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]},
        )
        raw = await read_body(receive)
        with contextlib.suppress(ValueError):
            seen.body = json.loads(raw) if raw else None
        params = seen.body.get("kv_transfer_params") if isinstance(seen.body, dict) else None
        if isinstance(params, dict):
            seen.leg = Leg.PREFILL if params.get("do_remote_decode") else Leg.DECODE
        self.seen.append(seen)
        reply = Reply(send, lambda: self.server.cut(scope))
        work = asyncio.create_task(self._serve(seen, reply))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not reply.complete:
                seen.aborted = not reply.cut_by_us
            elif work.done():
                work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            seen.finished = True

    async def _serve(self, seen: Seen, reply: Reply) -> None:
        await self._thawed.wait()
        try:
            if seen.path not in OPEN_PATHS and seen.headers.get("authorization") != f"Bearer {KEY}":
                raise Refused(401, "the key is missing or wrong", "invalid_request_error")
            match seen.method, seen.path:
                case "GET", "/health":
                    await reply.body(200, "text/plain", b"")
                case "GET", "/metrics":
                    await reply.body(200, "text/plain; version=0.0.4", self._metrics().encode())
                case "GET", "/v1/models":
                    await reply.json(200, self._models())
                case "POST", "/tokenize":
                    await reply.json(200, self._tokenized(seen))
                case "POST", "/v1/completions" | "/v1/chat/completions":
                    await self._generate(seen, reply)
                case _:
                    await reply.json(404, {"detail": "Not Found"})
        except Refused as refused:
            await reply.json(refused.status, {"error": refused.error})

    def _metrics(self) -> str:
        held = self.kv.held(self.fleet.clock.monotonic_s())
        blocks = sum(-(-len(offer.prompt) // self.kv.block_size) for offer in held) + self.running
        waiting = self.waiting if self.waiting_override is None else self.waiting_override
        labels = f'{{engine="0",model_name="{self.model}"}}'
        return (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{labels} {float(self.running)}\n"
            f"vllm:num_requests_waiting{labels} {float(waiting)}\n"
            f"vllm:kv_cache_usage_perc{labels} {min(1.0, blocks / 1024)}\n"
        )

    def _models(self) -> dict[str, Any]:
        model = {
            "id": self.model,
            "object": "model",
            "created": 1_000_000,
            "owned_by": "vllm",
            "root": self.model,
            "max_model_len": self.max_model_len,
        }
        return {"object": "list", "data": [model]}

    def _tokenized(self, seen: Seen) -> dict[str, Any]:
        tokens = parse_prompt(seen.body, self.model, self._tokenize)
        return {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}

    # --- generation ---

    async def _generate(self, seen: Seen, reply: Reply) -> None:
        fault = self._take_fault(seen.leg)
        if fault.trouble is Trouble.STATUS:
            raise Refused(fault.status, "injected", "InternalServerError")
        if fault.trouble is Trouble.HANG_BEFORE_HEADERS:
            await asyncio.Event().wait()
        if fault.trouble is Trouble.CUT_BEFORE_HEADERS:
            await reply.cut()
        job = parse_job(
            seen.path,
            seen.body,
            model=self.model,
            max_model_len=self.max_model_len,
            tokenize=self._tokenize,
        )
        label = seen.headers.get("x-request-id", f"random-{next(self._ids)}")
        answer_id = f"{'chatcmpl' if job.chat else 'cmpl'}-{label}"
        if job.stream:
            await self._stream(job, answer_id, fault, reply)
        else:
            await self._whole(job, answer_id, fault, reply)

    def _take_fault(self, leg: Leg) -> Fault:
        for fault in self.faults:
            if fault.leg in (None, leg):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return Fault(Trouble.DELAY)

    async def _texts(self, job: Job) -> list[list[str]]:
        """The tokens of each answer, once KV is here.

        Raises:
            _LoadFailed: it cannot be pulled.
        """
        wrong: list[Corruption] = []
        if job.params.get("do_remote_prefill") and not job.computes_prompt_itself:
            with self._counted("waiting"):
                wrong = await self._pull(job)
        self.corruptions += wrong
        only_others = {Corruption.PROMPT_LIST, Corruption.SEVERAL_CHOICES}
        return [
            words(
                prompt,
                job.tokens,
                weights=self.kv.weights,
                spoiled=bool(set(wrong) - only_others) or (bool(wrong) and index > 0),
            )
            for index, prompt in enumerate(p for p in job.prompts for _ in range(job.choices))
        ]

    async def _pull(self, job: Job) -> list[Corruption]:
        params = job.params
        needed = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
        if not all(params.get(key) for key in (*needed, "remote_block_ids")):
            # The real engine waits for blocks that nobody sends.
            await asyncio.Event().wait()
        await asyncio.sleep(_HANDSHAKE_S)
        peer = self.fleet.engines.get(params["remote_engine_id"])
        if peer is not None:
            await peer._thawed.wait()
        if peer is None or not peer.alive or peer.kv.engine_id != params["remote_engine_id"]:
            raise _LoadFailed
        return peer.kv.pull(
            self.kv,
            params["remote_request_id"],
            job.prompts,
            job.choices,
            job.model,
            self.fleet.clock.monotonic_s(),
        )

    def _offer(self, job: Job) -> dict[str, Any] | None:
        if not job.params.get("do_remote_decode"):
            return None
        request_id = f"{self.name}-request-{next(self._ids)}"
        prompt = job.prompts[0]
        self.kv.offers[request_id] = Offer(
            request_id,
            prompt,
            job.model,
            job.tokens,
            self.fleet.clock.monotonic_s() + self.lease_s,
        )
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, 1 + -(-len(prompt) // self.kv.block_size)))],
            "remote_engine_id": self.kv.engine_id,
            "remote_request_id": request_id,
            "remote_host": "127.0.0.1",
            "remote_port": 5600,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": len(prompt),
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
        }

    async def _whole(self, job: Job, answer_id: str, fault: Fault, reply: Reply) -> None:
        if fault.trouble is Trouble.ERROR_EVENT:
            raise Refused(500, "injected", "InternalServerError")
        await asyncio.sleep(fault.delay_s)
        try:
            texts = await self._texts(job)
        except _LoadFailed:
            raise Refused(500, "Internal server error", "InternalServerError") from None
        with self._counted("running"):
            await asyncio.sleep(self.token_s * job.tokens)
            if fault.trouble is Trouble.HANG:
                await asyncio.Event().wait()
        choices = []
        for index, tokens in enumerate(texts):
            text = "".join(tokens)
            choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": "length"}
            if job.chat:
                choice["message"] = {"role": "assistant", "content": text}
            else:
                choice["text"] = text
            choices.append(choice)
        body = {**self._frame(job, answer_id, "chat.completion"), "choices": choices}
        body["usage"] = job.usage
        body["kv_transfer_params"] = (
            None if fault.trouble is Trouble.NO_PARAMS else self._offer(job)
        )
        if fault.trouble in (Trouble.CUT, Trouble.HALF_EVENT):
            await reply.start(200, "application/json")
            await reply.send(json.dumps(body).encode()[:40])
            await reply.cut()
        if fault.trouble is Trouble.NOT_JSON:
            await reply.body(200, "application/json", b'{"choices": [')
            return
        await reply.json(200, body)

    async def _stream(self, job: Job, answer_id: str, fault: Fault, reply: Reply) -> None:
        # As the real one: the headers go out before anything is known.
        await reply.start(200, "text/event-stream; charset=utf-8")
        try:
            sent = 0
            async for event in self._events(job, answer_id, fault):
                content = b'"finish_reason"' in event and b'"role"' not in event
                if content and sent == fault.after_chunks:
                    await self._misbehave(fault, event, reply)
                    if fault.trouble is Trouble.SILENT_END:
                        await reply.end()
                        return
                sent += content
                await reply.send(event)
        except _LoadFailed:
            await reply.send(encode_event({"error": INTERNAL_ERROR}))
        except Refused as refused:
            await reply.send(encode_event({"error": refused.error}))
        await reply.send(b"data: [DONE]\n\n")
        await reply.end()

    async def _misbehave(self, fault: Fault, event: bytes, reply: Reply) -> None:
        match fault.trouble:
            case Trouble.ERROR_EVENT:
                raise Refused(500, "injected", "InternalServerError")
            case Trouble.HANG:
                await asyncio.Event().wait()
            case Trouble.CUT:
                await reply.cut()
            case Trouble.HALF_EVENT:
                await reply.send(event[: len(event) // 2])
                await reply.cut()
            case Trouble.NOT_JSON:
                await reply.send(b"data: {nonsense\n\n")

    async def _events(self, job: Job, answer_id: str, fault: Fault) -> AsyncIterator[bytes]:
        await asyncio.sleep(fault.delay_s)
        texts = await self._texts(job)
        frame = self._frame(job, answer_id, "chat.completion.chunk")
        with self._counted("running"):
            for index in range(len(texts)):
                if job.chat:
                    yield encode_event(
                        frame
                        | {"choices": [choice_delta(index, {"role": "assistant", "content": ""})]}
                    )
            for position in range(job.tokens):
                for index, tokens in enumerate(texts):
                    await asyncio.sleep(self.token_s)
                    await self._thawed.wait()
                    finish = "length" if position == job.tokens - 1 else None
                    choice = choice_delta(index, {"content": tokens[position]})
                    if not job.chat:
                        choice = {"index": index, "text": tokens[position], "logprobs": None}
                    yield encode_event(frame | {"choices": [choice | {"finish_reason": finish}]})
        if job.include_usage:
            yield encode_event(frame | {"choices": [], "usage": job.usage})

    def _frame(self, job: Job, answer_id: str, chat_object: str) -> dict[str, Any]:
        return {
            "id": answer_id,
            "object": chat_object if job.chat else "text_completion",
            "created": 1_000_000,
            "model": job.model,
        }

    @contextlib.contextmanager
    def _counted(self, gauge: str) -> Iterator[None]:
        setattr(self, gauge, getattr(self, gauge) + 1)
        try:
            yield
        finally:
            setattr(self, gauge, getattr(self, gauge) - 1)


def expected_text(
    prompt: str | Sequence[int],
    tokens: int = DEFAULT_ANSWER_TOKENS,
    *,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    weights: str = DEFAULT_WEIGHTS,
) -> str:
    """What an engine alone answers to a completion's prompt."""
    if isinstance(prompt, str):
        prompt = tokenize(prompt) if tokenize else list(prompt.encode())
    return "".join(words(prompt, tokens, weights=weights))


def expected_chat(messages: Sequence[dict[str, Any]], tokens: int, **more: Any) -> str:
    """What an engine alone answers to a chat."""
    return expected_text(chat_text(messages), tokens, **more)
