"""What the parent of several router processes answers: one router's admin API, made of theirs.

Operators, scrapers and the processes themselves (for what their public port says of the whole
router) get the same. Who asks is checked here; a process is asked with the family's token. An
answer is made of the processes that gave one, and says of each process how it is (``processes``);
only the metrics are all or nothing, because a sum that lacks a part looks like a fall.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from baton import __version__
from baton.errors import InvalidRequest, Overload, PeerFault
from router.access import require_token
from router.app import ReadyWorkers, add_error_handlers
from router.merging import (
    Merge,
    merge_any,
    merge_drain,
    merge_handoffs,
    merge_metrics,
    merge_pairs,
    merge_queue,
    merge_ready,
    merge_status,
    merge_tenants,
    merge_workers,
)
from router.processes import ANNOUNCE_PATH, Member, Processes, Reply, ask

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_MAX_BODY_BYTES = 64 * 1024 * 1024
"""Far above any profile's own bound, which the process that explains applies."""
_MAX_URL_BYTES = 256

_VIEWS: dict[str, tuple[str, Merge]] = {
    "/status": ("Profile, store, workers and handoffs", merge_status),
    "/workers": ("Workers, their breakers, cordons and stranded bytes", merge_workers),
    "/handoffs": ("Handoffs in progress, and those that may hold KV for nobody", merge_handoffs),
    "/pairs": ("Pairs of prefill and decode workers, as each process sees them", merge_pairs),
    "/queue": ("Who waits in this router", merge_queue),
    "/tenants": ("Tenants, their limits and what they use; no keys", merge_tenants),
    "/profile": ("The active profile, with every default", merge_any),
    "/profiles": ("Profiles that can be switched to, and what is refused", merge_any),
    "/switch": ("The active profile, the switch that is on, the routers", merge_any),
    "/history": ("How the last switches ended", merge_any),
}


class Family:
    """Asks the processes.

    Args:
        http: the session to ask with.
        processes: who is asked.
        token: the family's.
    """

    def __init__(self, http: aiohttp.ClientSession, processes: Processes, token: str) -> None:
        self._http = http
        self._processes = processes
        self._token = token

    async def all(self, method: str, path: str) -> dict[int, Reply | None]:
        """What each serving process answers, by number; None from one that is silent.

        Raises:
            Overload: none serves.
        """
        members = self._serving()
        replies = await asyncio.gather(*(self._ask(m, method, path) for m in members))
        return {member.number: reply for member, reply in zip(members, replies, strict=True)}

    async def any(self, method: str, path: str, body: bytes) -> tuple[int, Reply]:
        """The answer of the first process that gives one, with its number. What changes something
        is asked of one process only: one that is silent may be doing it all the same.

        Raises:
            Overload: none serves.
            PeerFault: all are silent.
        """
        for member in self._serving():
            reply = await self._ask(member, method, path, body)
            if reply is not None:
                return member.number, reply
            if method != "GET" and not path.startswith("/admin/explain"):
                raise PeerFault(f"process {member.number} of this router does not answer in time")
        raise PeerFault("no process of this router answers")

    async def merged(self, method: str, path: str, merge: Merge) -> Response:
        """The answers to one question as one; the first error if all are errors.

        Raises:
            Overload: none serves.
            PeerFault: all are silent.
        """
        replies = await self.all(method, path)
        said = {number: reply for number, reply in replies.items() if reply is not None}
        good = {number: reply for number, reply in said.items() if reply.status < 400}
        if not good:
            for reply in said.values():
                return _response(reply)
            raise PeerFault("no process of this router answers")
        merged = merge({n: msgspec.json.decode(reply.body) for n, reply in good.items()})
        silent = {number for number, reply in replies.items() if reply is None}
        merged["processes"] = self.report(silent)
        return JSONResponse(merged, status_code=next(iter(good.values())).status)

    async def metrics(self) -> str:
        """All processes' metrics in one page, those of ended ones included.

        Raises:
            Overload: none serves.
            PeerFault: a process that serves is silent, or its page cannot be read.
        """
        members = self._serving()
        runs = [member.starts for member in members]
        replies = await asyncio.gather(*(self._ask(m, "GET", "/metrics") for m in members))
        pages = []
        for member, run, reply in zip(members, runs, replies, strict=True):
            if member.starts != run or member.url is None:
                continue  # It ended meanwhile; what it had counted is in ``ended``.
            if reply is None or reply.status != 200:
                raise PeerFault(f"process {member.number} of this router does not answer")
            member.page = reply.body.decode()
            pages.append(member.page)
        try:
            return await asyncio.to_thread(merge_metrics, pages, self._processes.ended)
        except ValueError as error:
            raise PeerFault("a process of this router answers with no page of metrics") from error

    def report(self, silent: set[int] | None = None) -> list[dict[str, Any]]:
        """How each process is."""
        return [
            {
                "process": member.number,
                "pid": member.pid,
                "state": "silent" if member.number in (silent or ()) else member.state,
                "restarts": max(0, member.starts - 1),
            }
            for member in self._processes.members
        ]

    def _serving(self) -> tuple[Member, ...]:
        members = self._processes.serving
        if not members:
            raise Overload("No process of this router serves now.", retry_after_s=1.0)
        return members

    async def _ask(self, member: Member, method: str, path: str, body: bytes = b"") -> Reply | None:
        if member.url is None:
            return None
        return await ask(self._http, method, member.url + path, self._token, body=body)


def build_family_app(
    family: Family, processes: Processes, token: str, *, whose: str, announcing: bool
) -> FastAPI:
    """The parent's application.

    Args:
        family: asks the processes.
        processes: for readiness and announcements.
        token: what callers have to show.
        whose: its name in the refusal.
        announcing: whether processes announce themselves here.
    """
    app = FastAPI(
        title="Baton router, admin",
        version=__version__,
        description="What a router of several processes does and why. Answers are made of all "
        "processes'; rows that belong to one carry its number as `process`, and `processes` says "
        "how each is. Every call needs the admin token.",
    )
    add_error_handlers(app)

    def holders_only(request: Request) -> None:
        require_token(request, token, whose=whose)

    _add_health(app, family, processes)
    admin = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(holders_only)])
    for path, (summary, merge) in _VIEWS.items():
        admin.get(path, summary=summary)(_view(family, path, merge))
    _add_actions(admin, family)
    app.include_router(admin)
    if announcing:

        @app.put(f"{ANNOUNCE_PATH}/{{number}}", dependencies=[Depends(holders_only)])
        async def announce(request: Request, number: int) -> Response:
            url = (await _body_of(request, _MAX_URL_BYTES)).decode("latin-1")
            if not processes.announced(number, url):
                raise InvalidRequest(f"There is no process {number}.")
            return Response(status_code=204)

    return app


def _add_health(app: FastAPI, family: Family, processes: Processes) -> None:
    @app.get("/healthz", summary="The parent process is alive", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="A process can serve requests", tags=["health"])
    async def readyz(workers: ReadyWorkers = 1) -> Response:
        merged: dict[str, Any] = {"status": "no process", "ready_workers": {}}
        silent: set[int] = set()
        if processes.serving:
            replies = await family.all("GET", f"/readyz?workers={workers}")
            said = {n: msgspec.json.decode(r.body) for n, r in replies.items() if r is not None}
            silent = {n for n, reply in replies.items() if reply is None}
            merged = merge_ready(said) if said else merged
        if processes.stopping:
            merged["status"] = "stopping"
        merged["processes"] = family.report(silent)
        return JSONResponse(merged, status_code=200 if merged["status"] == "ready" else 503)

    @app.get("/metrics", summary="Prometheus metrics of all processes", tags=["health"])
    async def metrics() -> Response:
        return Response(await family.metrics(), media_type=_TEXT)


def _view(family: Family, path: str, merge: Merge) -> Any:
    async def view() -> Response:
        return await family.merged("GET", f"/admin{path}", merge)

    return view


def _add_actions(admin: APIRouter, family: Family) -> None:
    # What the processes agree on needs to be told to one of them.
    async def tell_one(request: Request, path: str) -> Response:
        body = await _body_of(request, _MAX_BODY_BYTES)
        _, reply = await family.any(request.method, path, body)
        return _response(reply)

    # To all: the store carries a cordon to everybody, but each one that is told knows it at once.
    @admin.post("/workers/{worker_id:path}/drain", summary="Drain a worker")
    async def drain(worker_id: str) -> Response:
        return await family.merged("POST", _drain_path(worker_id), merge_drain)

    @admin.get("/workers/{worker_id:path}/drain", summary="How far a drain is")
    async def drain_state(worker_id: str) -> Response:
        return await family.merged("GET", _drain_path(worker_id), merge_drain)

    @admin.delete("/workers/{worker_id:path}/drain", summary="Take a drain back")
    async def undrain(worker_id: str) -> Response:
        return await family.merged("DELETE", _drain_path(worker_id), merge_drain)

    @admin.put("/workers/{worker_id:path}/role", summary="Use a worker in another role")
    async def assign(request: Request, worker_id: str) -> Response:
        return await tell_one(request, f"/admin/workers/{quote(worker_id, safe='/')}/role")

    @admin.delete("/workers/{worker_id:path}/role", summary="Use it in its own role again")
    async def unassign(request: Request, worker_id: str) -> Response:
        return await tell_one(request, f"/admin/workers/{quote(worker_id, safe='/')}/role")

    @admin.post("/pairs/{prefill}/{decode}/release", summary="Use a quarantined pair again")
    async def release(prefill: str, decode: str) -> Response:
        path = f"/admin/pairs/{quote(prefill, safe='')}/{quote(decode, safe='')}/release"
        return await family.merged("POST", path, merge_pairs)

    @admin.post("/explain", summary="What one process would decide for a body")
    async def explain(request: Request) -> Response:
        body = await _body_of(request, _MAX_BODY_BYTES)
        query = request.url.query
        path = f"/admin/explain?{query}" if query else "/admin/explain"
        number, reply = await family.any("POST", path, body)
        if reply.status != 200:
            return _response(reply)
        return JSONResponse(merge_any({number: msgspec.json.decode(reply.body)}))

    @admin.get("/profiles/{name}", summary="One profile, with every default")
    async def profile(request: Request, name: str) -> Response:
        return await tell_one(request, f"/admin/profiles/{quote(name, safe='')}")

    @admin.post("/switch", summary="Switch to another profile")
    async def switch(request: Request) -> Response:
        return await tell_one(request, "/admin/switch")

    @admin.post("/switch/skip", summary="End the phase that a switch is in")
    async def skip(request: Request) -> Response:
        query = request.url.query
        path = "/admin/switch/skip"
        return await tell_one(request, f"{path}?{query}" if query else path)

    @admin.post("/rollback", summary="Roll back the switch that is on, or go back")
    async def rollback(request: Request) -> Response:
        query = request.url.query
        return await tell_one(request, f"/admin/rollback?{query}" if query else "/admin/rollback")

    @admin.get("/processes", summary="The processes of this router")
    async def processes() -> dict[str, Any]:
        return {"processes": family.report()}


def _drain_path(worker_id: str) -> str:
    return f"/admin/workers/{quote(worker_id, safe='/')}/drain"


async def _body_of(request: Request, most_bytes: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise InvalidRequest(f"The body is larger than {most_bytes} bytes.")
    return bytes(body)


def _response(reply: Reply) -> Response:
    return Response(reply.body, status_code=reply.status, media_type=reply.content_type)


__all__ = ["Family", "build_family_app"]
