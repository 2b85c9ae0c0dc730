"""The operators' API: what a router does and why, on a port of its own with a token of its own.

Nothing here is for clients or workers. What changes something (a drain, a pair's release) is a POST
or DELETE; everything else only looks.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from baton import __version__
from baton.errors import BodyTooLarge, InvalidRequest, WorkerNotFound
from baton.types import Role, WorkerId
from router.access import require_token
from router.api import GENERATING, Endpoint
from router.app import add_error_handlers, add_health_routes
from router.explain import explain_request
from router.report import handoffs_report, status_report, workers_report
from router.state import RouterState
from router.switch_admin import add_profile_routes

_DRAIN_HELP = (
    "All routers send the worker nothing new; what it has in flight ends, and blocks that it "
    "offered are pulled or expire. `drained` becomes true when nothing is left; then it can be "
    "stopped. The cordon stays until DELETE, or until the worker leaves."
)


_ROLE_HELP = (
    "All routers use the worker in this role, as far as the active profile has such a pool, until "
    "DELETE, or until the worker leaves. One that changes between prefilling and answering ends "
    "its old work first; meanwhile it gets nothing new (`turning`)."
)


class RoleRequest(BaseModel):
    """The role that a worker is to have."""

    model_config = ConfigDict(extra="forbid")

    role: Role


def build_admin_app(state: RouterState, admin_token: str) -> FastAPI:
    """The application of the admin port."""
    app = FastAPI(
        title="Baton router, admin",
        version=__version__,
        description="What a router does and why. Every call needs the admin token.",
        redirect_slashes=False,
    )
    add_error_handlers(app)
    add_health_routes(app, state)

    def operators_only(request: Request) -> None:
        require_token(request, admin_token, whose="admin")

    admin = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(operators_only)])
    _add_views(admin, state)
    _add_actions(admin, state)
    add_profile_routes(admin, state)
    app.include_router(admin)
    return app


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def _add_views(admin: APIRouter, state: RouterState) -> None:
    @admin.get("/status", summary="Profile, store, workers and handoffs")
    async def status() -> Response:
        return _json(status_report(state))

    @admin.get("/workers", summary="Workers, their breakers, cordons and stranded bytes")
    async def workers() -> Response:
        return _json({"workers": workers_report(state)})

    @admin.get("/handoffs", summary="Handoffs in progress, and those that may hold KV for nobody")
    async def handoffs() -> Response:
        return _json(handoffs_report(state))

    @admin.get("/pairs", summary="Pairs of prefill and decode workers: state, reason, bandwidth")
    async def pairs() -> Response:
        return _json({"pairs": state.care.pairs.table()})

    @admin.get("/queue", summary="Who waits in this router")
    async def queue() -> Response:
        return _json(state.gate.snapshot())

    @admin.get("/tenants", summary="Tenants, their limits and what they use; no keys")
    async def tenants() -> Response:
        return _json(state.tenants_report())

    @admin.get("/profile", summary="The active profile, with every default")
    async def profile() -> Response:
        return _json(
            {
                "name": state.profile.name,
                "version": state.profile.version,
                "spec": state.profile.canonical_spec(),
            }
        )

    @admin.post("/explain", summary="What would be decided for a body, without running it")
    async def explain(
        request: Request,
        endpoint: Annotated[
            str, Query(description="Path that the body is meant for.")
        ] = Endpoint.CHAT.value,
    ) -> Response:
        if endpoint not in GENERATING:
            known = ", ".join(GENERATING)
            raise InvalidRequest(f"endpoint must be one of {known}", param="endpoint")
        limit = state.profile.spec.limits.body_bytes
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise BodyTooLarge(f"The body is larger than {limit} bytes.")
        return _json(await explain_request(state, Endpoint(endpoint), bytes(body)))


def _add_actions(admin: APIRouter, state: RouterState) -> None:
    @admin.post(
        "/workers/{worker_id:path}/drain", summary="Drain a worker", description=_DRAIN_HELP
    )
    async def drain(worker_id: str) -> Response:
        if state.pool.record(WorkerId(worker_id)) is None:
            raise WorkerNotFound(f"No worker {worker_id!r} is registered.")
        await state.store.cordon(WorkerId(worker_id))
        await state.pool.refresh()
        return _drain_state(worker_id, 202)

    @admin.get("/workers/{worker_id:path}/drain", summary="How far a drain is")
    async def drain_state(worker_id: str) -> Response:
        return _drain_state(worker_id, 200)

    @admin.delete("/workers/{worker_id:path}/drain", summary="Take a drain back")
    async def undrain(worker_id: str) -> Response:
        await state.store.uncordon(WorkerId(worker_id))
        await state.pool.refresh()
        return _drain_state(worker_id, 200)

    @admin.put(
        "/workers/{worker_id:path}/role",
        summary="Use a worker in another role, without a restart",
        description=_ROLE_HELP,
    )
    async def assign(worker_id: str, role: RoleRequest) -> Response:
        if state.pool.record(WorkerId(worker_id)) is None:
            raise WorkerNotFound(f"No worker {worker_id!r} is registered.")
        await state.store.assign(WorkerId(worker_id), role.role)
        await state.pool.refresh()
        return _json({"workers": workers_report(state)})

    @admin.delete("/workers/{worker_id:path}/role", summary="Use a worker in its own role again")
    async def unassign(worker_id: str) -> Response:
        await state.store.assign(WorkerId(worker_id), None)
        await state.pool.refresh()
        return _json({"workers": workers_report(state)})

    @admin.post("/pairs/{prefill}/{decode}/release", summary="Use a quarantined pair again")
    async def release(prefill: str, decode: str) -> Response:
        if not state.care.pairs.release(WorkerId(prefill), WorkerId(decode)):
            raise WorkerNotFound(f"There is no quarantined pair of {prefill!r} and {decode!r}.")
        return _json({"pairs": state.care.pairs.table()})

    def _drain_state(worker_id: str, status: int) -> Response:
        name = WorkerId(worker_id)
        cordoned = state.pool.is_cordoned(name)
        return _json(
            {
                "worker": worker_id,
                "registered": state.pool.record(name) is not None,
                "cordoned": cordoned,
                "drained": cordoned and state.is_drained(name),
                "legs": state.pool.legs(name),
                "stranded_bytes": state.ledger.stranded_bytes().get(name, 0),
            },
            status,
        )


__all__ = ["build_admin_app"]
