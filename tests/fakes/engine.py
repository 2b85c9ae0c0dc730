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
from dataclasses import dataclass, field, replace
from typing import Any

from baton.clock import Clock, SystemClock
from baton.engine.guard import OPEN_PATHS
from baton.types import EngineId, KvGeometry, Limits, Role, WorkerId, WorkerRecord
from tests.fakes.byte_tokenizer import chat_text
from tests.fakes.engine_answers import Answer, Cached, announced, streamed, whole_of
from tests.fakes.engine_faults import Fault, Leg, Seen, Trouble
from tests.fakes.engine_job import (
    DEFAULT_ANSWER_TOKENS,
    GENERATING,
    MESSAGES,
    RESPONSES,
    Job,
    parse_job,
)
from tests.fakes.engine_kv import (
    DEFAULT_WEIGHTS,
    Corruption,
    KvSide,
    Offer,
    Token,
    generate,
    words,
)
from tests.fakes.engine_plain import EMBEDDINGS, PLAIN, Side, models
from tests.fakes.engine_wire import (
    INTERNAL_ERROR,
    Refused,
    Reply,
    encode,
    encode_event,
    encode_named,
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
        prompt_tokens_details: as if started with ``--enable-prompt-tokens-details``.
        embeds: whether the model has ``/v1/embeddings``; one that generates has not.
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
        self.prompt_tokens_details = False
        self.embeds = False
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
                    await reply.json(200, models(self.model, self.max_model_len))
                case "POST", path if path in PLAIN and (self.embeds or path != EMBEDDINGS):
                    side = Side(self.model, self.max_model_len, self._tokenize)
                    await reply.json(200, PLAIN[path](seen.body, side))
                case "POST", path if path in GENERATING:
                    await self._generate(seen, reply)
                case _:
                    raise Refused(404, "Not Found", "Not Found")
        except Refused as refused:
            await reply.json(refused.status, refused.body(seen.path))

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

    # --- generation ---

    async def _generate(self, seen: Seen, reply: Reply) -> None:
        fault = self._take_fault(seen.leg)
        if fault.trouble is Trouble.STATUS:
            raise Refused(fault.status, "injected", "InternalServerError")
        if fault.trouble is Trouble.HANG_BEFORE_HEADERS:
            await asyncio.Event().wait()
        if fault.trouble is Trouble.CUT_BEFORE_HEADERS:
            await reply.cut()
        try:
            job = parse_job(
                seen.path,
                seen.body,
                model=self.model,
                max_model_len=self.max_model_len,
                tokenize=self._tokenize,
            )
        except Refused as refused:
            if refused.status == 404:
                self._give_back(seen.body.get("kv_transfer_params") or {})
            raise
        label = seen.headers.get("x-request-id", f"random-{next(self._ids)}")
        if job.stream:
            await self._stream(job, label, fault, reply)
        else:
            await self._whole(job, label, fault, reply)

    def _take_fault(self, leg: Leg) -> Fault:
        for fault in self.faults:
            if fault.leg in (None, leg):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return Fault(Trouble.DELAY)

    async def _texts(self, job: Job) -> list[list[Token]]:
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
            generate(
                prompt,
                job.tokens,
                weights=self.kv.weights,
                spoiled=bool(set(wrong) - only_others) or (bool(wrong) and index > 0),
            )
            for index, prompt in enumerate(p for p in job.prompts for _ in range(job.choices))
        ]

    def _give_back(self, params: dict[str, Any]) -> None:
        """Tells prefill that nobody will pull: what vLLM does for a model that it does not have."""
        peer = self.fleet.engines.get(params.get("remote_engine_id", ""))
        if peer is not None and params.get("do_remote_prefill"):
            peer.kv.give_back(params["remote_request_id"])

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

    def _cache(self, job: Job) -> Cached:
        """What decode pulled counts as cached; it says what prefill had in its cache."""
        found = [self.kv.cache(prompt) for prompt in job.prompts]
        if job.params.get("do_remote_prefill") and not job.computes_prompt_itself:
            told = job.params.get("remote_prefill_cached_tokens")
            return Cached(told if isinstance(told, int) else job.prompt_tokens, 0)
        return Cached(sum(had for had, _ in found), sum(got for _, got in found))

    def _offer(self, job: Job, cached: Cached) -> dict[str, Any] | None:
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
            "remote_prefill_cached_tokens": cached.read,
        }

    def _answer(self, job: Job, label: str, texts: list[list[Token]]) -> Answer:
        return Answer(job, label, texts, self._cache(job), self.prompt_tokens_details)

    async def _whole(self, job: Job, label: str, fault: Fault, reply: Reply) -> None:
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
        answer = self._answer(job, label, texts)
        if fault.trouble is not Trouble.NO_PARAMS:
            answer = replace(answer, params=self._offer(job, answer.cached))
        body = whole_of(answer)
        if fault.trouble in (Trouble.CUT, Trouble.HALF_EVENT):
            await reply.start(200, "application/json")
            await reply.send(encode(body)[:40])
            await reply.cut()
        if fault.trouble is Trouble.NOT_JSON:
            await reply.body(200, "application/json", b'{"choices": [')
            return
        await reply.json(200, body)

    async def _stream(self, job: Job, label: str, fault: Fault, reply: Reply) -> None:
        # As the real one: the headers go out before anything is known.
        await reply.start(200, "text/event-stream; charset=utf-8")
        try:
            sent = 0
            async for event, content in self._events(job, label, fault):
                if content and sent == fault.after_chunks:
                    await self._misbehave(fault, event, reply)
                    if fault.trouble is Trouble.SILENT_END:
                        await reply.end()
                        return
                sent += content
                await reply.send(event)
        except _LoadFailed:
            await self._give_up(job, INTERNAL_ERROR, reply)
        except Refused as refused:
            await self._give_up(job, refused.error, reply)
        if job.path not in (RESPONSES, MESSAGES):
            await reply.send(b"data: [DONE]\n\n")
        await reply.end()

    async def _give_up(self, job: Job, error: dict[str, Any], reply: Reply) -> None:
        if job.path == RESPONSES:
            # The real one fails to write its error event, and the connection breaks.
            await reply.cut()
        elif job.path == MESSAGES:
            told = {"type": "internal_error", "message": error["message"]}
            await reply.send(encode_named("error", error=told))
        else:
            await reply.send(encode_event({"error": error}))

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

    async def _events(
        self, job: Job, label: str, fault: Fault
    ) -> AsyncIterator[tuple[bytes, bool]]:
        for event in announced(Answer(job, label, [], Cached(0, 0), self.prompt_tokens_details)):
            yield event, False
        await asyncio.sleep(fault.delay_s)
        texts = await self._texts(job)
        with self._counted("running"):
            for event, content in streamed(self._answer(job, label, texts)):
                if content:
                    await asyncio.sleep(self.token_s)
                    await self._thawed.wait()
                yield event, content

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
