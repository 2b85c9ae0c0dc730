"""A real router over HTTP in front of fake engines, and what must hold after every test.

``async with cluster() as c`` gives a router, prefill engine ``c.p`` and decode engine ``c.d``,
registered as workers register themselves. When the block ends, whatever happened in it: no answer
was corrupt, no transfer parameters were used twice, no handoff is open, no worker is counted busy,
no task of a request is left, and nothing was logged as a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

import router
from baton.clock import VirtualClock
from baton.types import Role, WorkerRecord
from profiles import ServingProfile, parse_profile
from router.server import RouterServer
from router.settings import RouterSettings
from router.state import RouterState
from tests.fakes.byte_tokenizer import make_tokenizer
from tests.fakes.engine import KEY, MODEL, FakeEngine, Fleet, Leg, expected_chat, expected_text
from tests.fakes.waiting import until

ADMIN_KEY = "fake-admin-token-0123456789"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
THRESHOLD = 64

PROFILE = f"""\
apiVersion: baton/v1
kind: ServingProfile
metadata:
  name: test
spec:
  mode: disaggregated
  model: {{source: demo, served_name: {MODEL}, max_model_len: 2048}}
  classify: {{threshold_tokens: {THRESHOLD}}}
  pools:
    prefill: {{accelerator: cpu}}
    decode: {{accelerator: cpu}}
  transfer: {{block_size: 32, lease_s: 30, warm_pairs: false, canary_rate: 0}}
  deadlines: {{connect_s: 0.5, prefill_s: 1, first_token_s: 1, idle_s: 0.5, total_s: 3}}
  limits: {{in_flight: 32, body_bytes: 65536, drain_s: 1}}
  flow: {{worker_wait_s: 0, slots_factor: 10}}
  routing: {{prefix: "off"}}
"""

STANDARD_PROFILE = f"""\
apiVersion: baton/v1
kind: ServingProfile
metadata:
  name: plain
spec:
  mode: standard
  model: {{source: demo, served_name: {MODEL}}}
  pools:
    standard: {{accelerator: cpu}}
"""

LONG = "a long prompt about a baton, " * 8
"""Well over the threshold, by any tokenizer here."""
SHORT = "short"


def long_chat(text: str = LONG) -> list[dict[str, Any]]:
    """Messages over the threshold."""
    return [{"role": "user", "content": text}]


@dataclass(slots=True)
class Answer:
    """A whole answer of the router."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI error object; fails if the answer is none."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["type"], str)
        result: dict[str, Any] = error
        return result

    @property
    def text(self) -> str:
        """The answer's text, streamed or not."""
        if self.headers["content-type"].startswith("text/event-stream"):
            return "".join(self._pieces())
        choice = self.json["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        assert isinstance(text, str)
        return text

    @property
    def events(self) -> list[bytes]:
        """The events of a stream, without borders; fails if the last is not complete."""
        *events, rest = self.body.split(b"\n\n")
        assert rest == b"", f"a partial event was forwarded: {rest!r}"
        assert all(event.startswith(b"data: ") for event in events)
        return [event.removeprefix(b"data: ") for event in events]

    @property
    def stream_error(self) -> dict[str, Any] | None:
        """The error event of a stream, which must be the last before ``[DONE]``; else None."""
        assert self.events[-1] == b"[DONE]"
        chunks = [msgspec.json.decode(event) for event in self.events[:-1]]
        assert not any("error" in chunk for chunk in chunks[:-1])
        error: dict[str, Any] | None = chunks[-1].get("error")
        return error

    def _pieces(self) -> list[str]:
        pieces = []
        for event in self.events:
            if event != b"[DONE]":
                for choice in msgspec.json.decode(event).get("choices", ()):
                    piece = choice["delta"].get("content") if "delta" in choice else choice["text"]
                    pieces.append(piece or "")
        return pieces

    @property
    def path(self) -> str | None:
        """``x-baton-path``."""
        return self.headers.get("x-baton-path")

    @property
    def reason(self) -> str | None:
        """``x-baton-reason``."""
        return self.headers.get("x-baton-reason")


class Complaints(logging.Handler):
    """Keeps what is logged as a traceback, or by anybody as an error."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.records.append(record)


@dataclass
class Cluster:
    """The router, its engines, and a client."""

    fleet: Fleet
    server: RouterServer
    state: RouterState
    http: aiohttp.ClientSession
    prefills: list[FakeEngine]
    decodes: list[FakeEngine]
    complaints: Complaints = field(default_factory=Complaints)
    expected_errors: list[str] = field(default_factory=list)
    """Beginnings of messages that may be logged as errors in this test."""

    @property
    def p(self) -> FakeEngine:
        return self.prefills[0]

    @property
    def d(self) -> FakeEngine:
        return self.decodes[0]

    @property
    def engines(self) -> list[FakeEngine]:
        return [*self.prefills, *self.decodes]

    @property
    def url(self) -> str:
        return self.server.url

    # --- workers ---

    async def put(self, record: WorkerRecord, ttl_s: float = 60.0, token: str = KEY) -> Answer:
        """Registers a worker as the registrar does."""
        return await self.call(
            "PUT",
            f"/internal/workers/{record.id}?ttl_s={ttl_s}",
            data=msgspec.json.encode(record),
            headers={"Authorization": f"Bearer {token}"},
        )

    async def register(self, engine: FakeEngine, **changes: Any) -> None:
        """Registers an engine's worker, or registers it again with other fields; known at once."""
        answer = await self.put(engine.record(**changes))
        assert answer.status == 204, answer
        await self.state.pool.refresh()

    async def remove(self, engine: FakeEngine) -> None:
        """Withdraws a worker as the registrar does."""
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = await self.call("DELETE", f"/internal/workers/{engine.name}", headers=headers)
        assert answer.status == 204, answer

    # --- requests ---

    async def new_client(self) -> None:
        """Goes on with new connections. A test under which the router ends idle ones needs it: one
        that ends while a request is being written to it is the client's to bear."""
        await self.http.close()
        self.http = _client()

    async def call(self, method: str, path: str, **more: Any) -> Answer:
        """Any request."""
        async with self.http.request(method, self.url + path, **more) as response:
            return await read(response)

    async def admin(self, method: str, path: str, token: str = ADMIN_KEY, **more: Any) -> Answer:
        """A request to the admin port."""
        assert self.server.admin is not None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = self.server.admin.url + path
        async with self.http.request(method, url, headers=headers, **more) as response:
            return await read(response)

    async def post(self, path: str, **body: Any) -> Answer:
        """A JSON request."""
        return await self.call("POST", path, json=body)

    async def complete(self, prompt: Any = LONG, **more: Any) -> Answer:
        """A completion of eight tokens."""
        return await self.post(
            COMPLETIONS, **{"model": MODEL, "prompt": prompt, "max_tokens": 8, **more}
        )

    async def occupy(self, **more: Any) -> asyncio.Task[Answer]:
        """A stream that is in the middle at ``d``, and ends soon after ``d.thaw()``."""
        self.d.token_s = 0.05
        running = self.d.running
        task = asyncio.create_task(self.complete(SHORT, stream=True, **{"max_tokens": 900, **more}))
        await until(lambda: self.d.running > running)
        self.d.freeze()
        self.d.token_s = 0.0
        return task

    async def chat(self, messages: Any = None, **more: Any) -> Answer:
        """A chat answer of eight tokens."""
        messages = long_chat() if messages is None else messages
        return await self.post(
            CHAT, **{"model": MODEL, "messages": messages, "max_tokens": 8, **more}
        )

    @contextlib.asynccontextmanager
    async def open(self, path: str = COMPLETIONS, **body: Any) -> AsyncIterator[Any]:
        """A request whose answer is read bit by bit; leaving the block drops the connection."""
        fields = {"model": MODEL, "max_tokens": 8, **body}
        if path == COMPLETIONS:
            fields.setdefault("prompt", LONG)
        response = await self.http.post(self.url + path, json=fields)
        try:
            yield response
        finally:
            response.close()

    async def metric(self, name: str, /, **labels: str) -> float:
        """A sample of the router's own metrics page; 0 if it is not there."""
        page = (await self.call("GET", "/metrics")).body.decode()
        total = 0.0
        for line in page.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(
                f'{key}="{wanted}"' in sample for key, wanted in labels.items()
            ):
                total += float(value)
        return total

    # --- what must hold ---

    async def settled(self) -> None:
        """Waits until the router has nothing left to do."""
        state = self.state
        await until(lambda: state.in_flight == 0, what="requests in flight ended")
        assert state.ledger.open_handoffs() == ()
        assert {
            r.id: state.pool.legs(r.id) for r in state.pool.records() if state.pool.legs(r.id)
        } == {}
        assert {
            r.id: state.pool.prefilling(r.id)
            for r in state.pool.records()
            if state.pool.prefilling(r.id)
        } == {}
        assert state.gate.held == 0
        await until(lambda: not _request_tasks(), what=f"tasks ended: {_request_tasks()}")
        for engine in self.engines:
            if engine._thawed.is_set():
                await until(
                    lambda engine=engine: all(s.finished for s in engine.seen),  # type: ignore[misc]
                    what=f"{engine.name} ended all requests",
                )

    def check(self) -> None:
        """Nothing was corrupt, nothing used twice, nothing logged that should not be."""
        used = [
            seen.body["kv_transfer_params"]["remote_request_id"]
            for engine in self.engines
            for seen in engine.requests(Leg.DECODE)
            # A request that decode has to refuse pulls nothing: that is how offers are given back.
            if seen.body["model"] != "baton-release-blocks"
        ]
        assert len(used) == len(set(used)), "transfer parameters were used twice"
        assert [engine.corruptions for engine in self.engines] == [[] for _ in self.engines]
        unexpected = [
            record
            for record in self.complaints.records
            if record.exc_info
            or not record.getMessage().startswith(tuple(self.expected_errors or ("\0",)))
        ]
        assert [logging.Formatter().format(record) for record in unexpected] == []


def _request_tasks() -> list[str]:
    """Tasks that the router made for requests and that still run."""
    left = []
    for task in asyncio.all_tasks():
        if _is_of_router(task.get_coro()) and not task.get_name().startswith(_STANDING):
            left.append(f"{task.get_name()}: {task.get_coro()!r}")
    return left


_STANDING = (
    *("pool", "tenants", "housekeeping", "conductor", "profile-source", "tell-profile-source"),
    *("lifespan", "pairs-", "breaker-", "kv-events-"),
)
"""Names of tasks that are there without requests."""


def _is_of_router(coroutine: object) -> bool:
    code = getattr(coroutine, "cr_code", None)
    if code is None:
        # A compiled one has a class of its own.
        return type(coroutine).__module__.startswith("router.")
    return Path(code.co_filename).is_relative_to(Path(router.__file__).parent)


async def read(response: aiohttp.ClientResponse) -> Answer:
    """The whole of an answer."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, await response.read())


@contextlib.asynccontextmanager
async def cluster(
    *,
    prefills: int = 1,
    decodes: int = 1,
    profile: str = PROFILE,
    replace: Sequence[tuple[str, str]] = (),
    tokenizer: Path | None = None,
    register: bool = True,
    clock: VirtualClock | None = None,
    make: Callable[[Fleet, str, Role], FakeEngine] | None = None,
    tenants: Path | None = None,
    store: str = "memory://",
    profiles: str | None = None,
    profiles_at_start: bool = False,
) -> AsyncIterator[Cluster]:
    """A running cluster.

    Args:
        prefills, decodes: how many engines of each role (``standard`` in that mode).
        replace: changes to the profile's text.
        tokenizer: folder that the router may count with; without it workers are asked.
        register: whether the engines are registered.
        clock: for the leases of the fake engines, if they are to run out.
        make: builds an engine; else a plain one that tokenizes as the folder says.
        tenants: the tenants file; without it the router is open.
        store, profiles, profiles_at_start: of the router's settings.
    """
    fleet = Fleet(clock) if clock else Fleet()
    settings = _profile(profile, replace)
    answering = Role.DECODE if settings.spec.classify else Role.STANDARD
    build = make or _plain_engine
    keys = None if tenants is None else str(tenants)
    server = RouterServer(
        RouterSettings(
            settings,
            KEY,
            store_url=store,
            admin_token=ADMIN_KEY,
            tenants=keys,
            profiles=profiles,
            profiles_at_start=profiles_at_start,
        )
    )
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    http = _client()
    p_engines = [build(fleet, f"p{i}", Role.PREFILL) for i in range(prefills)]
    d_engines = [build(fleet, f"d{i}", answering) for i in range(decodes)]
    c = None
    try:
        await asyncio.gather(*(engine.start() for engine in (*p_engines, *d_engines)))
        await server.start()
        c = Cluster(fleet, server, server.state, http, p_engines, d_engines, complaints=complaints)
        if register:
            changes = {"tokenizer_path": str(tokenizer)} if tokenizer else {}
            for engine in c.engines:
                await c.register(engine, **changes)
            await c.state.counting.prepare()
        yield c
        await c.settled()
        c.check()
    finally:
        await (http if c is None else c.http).close()
        engines = (*p_engines, *d_engines)
        await asyncio.gather(server.kill(), *(engine.kill() for engine in engines))
        logging.getLogger().removeHandler(complaints)


def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))


def _profile(text: str, replace: Sequence[tuple[str, str]]) -> ServingProfile:
    for old, new in replace:
        assert old in text, old
        text = text.replace(old, new, 1)
    return parse_profile(text, source="test profile")


TOKENIZER = make_tokenizer()


def tokens_of(text: str) -> list[int]:
    """Token ids as the engines and the folder of ``byte_tokenizer`` count them."""
    ids: list[int] = TOKENIZER.encode(text).ids
    return ids


def _plain_engine(fleet: Fleet, name: str, role: Role) -> FakeEngine:
    return FakeEngine(fleet, name, role, tokenize=tokens_of)


def right_text(prompt: Any = LONG, tokens: int = 8) -> str:
    """What one engine alone answers to a completion."""
    return expected_text(prompt, tokens, tokenize=tokens_of)


def right_chat(messages: Any = None, tokens: int = 8) -> str:
    """What one engine alone answers to a chat."""
    messages = long_chat() if messages is None else messages
    return expected_chat(messages, tokens, tokenize=tokens_of)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    @property
    def s(self) -> float:
        return time.monotonic() - self._began_s
