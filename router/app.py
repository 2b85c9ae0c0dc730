"""The router's HTTP application: OpenAI endpoints, health, metrics, registry, admin view."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Route

from baton import __version__
from baton.errors import BatonError, InvalidRequest, ModelNotFound
from baton.types import Role, WorkerId, WorkerRecord, WorkerState
from router.access import require_cluster_token
from router.endpoint import GenerateEndpoint
from router.requests import Endpoint
from router.state import RouterSettings, RouterState

_MAX_RECORD_BYTES = 64 * 1024
_MAX_TTL_S = 60.0

log = logging.getLogger("baton.router")


def build_app(settings: RouterSettings) -> FastAPI:
    """The application; its state is made when the server starts and closed when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = RouterState(settings)
        await state.start()
        app.state.router = state
        try:
            yield
        finally:
            await state.close()

    app = FastAPI(
        title="Baton router",
        version=__version__,
        lifespan=lifespan,
        description="OpenAI-compatible front door of disaggregated prefill and decode workers.",
    )
    _add_error_handlers(app)
    for endpoint in Endpoint:
        app.router.routes.append(
            Route(endpoint, endpoint=GenerateEndpoint(endpoint), methods=["POST"])
        )
    _add_openai_routes(app)
    _add_operator_routes(app)
    _add_cluster_routes(app)
    return app


def _state(request: Request) -> RouterState:
    state: RouterState = request.app.state.router
    return state


def _openai_error(error: BatonError, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error.to_openai(), status_code=error.status, headers=headers)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(BatonError)
    async def on_baton_error(_: Request, error: BatonError) -> JSONResponse:
        return _openai_error(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        said = {
            404: f"There is no {request.url.path} here.",
            405: f"{request.method} is not allowed on {request.url.path}.",
        }.get(error.status_code, str(error.detail))
        body = BatonError(said).to_openai()
        body["error"]["type"] = "invalid_request_error"
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _openai_error(InvalidRequest(f"{where}: {first['msg']}", param=where))


def _model_object(record: WorkerRecord) -> dict[str, Any]:
    return {
        "id": record.model,
        "object": "model",
        "created": int(record.started_s),
        "owned_by": "baton",
        "max_model_len": record.limits.max_model_len,
    }


def _models(state: RouterState) -> dict[str, dict[str, Any]]:
    """Models that a ready decode or standard worker serves, with the smallest of their limits."""
    found: dict[str, dict[str, Any]] = {}
    for view in state.pool.views():
        record = view.record
        if record.state is not WorkerState.READY or record.role is Role.PREFILL:
            continue
        model = _model_object(record)
        other = found.get(record.model)
        if other is None or model["max_model_len"] < other["max_model_len"]:
            found[record.model] = model
    return found


def _add_openai_routes(app: FastAPI) -> None:
    @app.get("/v1/models", summary="Models that can be asked for now")
    async def models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": list(_models(_state(request)).values())}

    @app.get("/v1/models/{model:path}", summary="One model")
    async def model(request: Request, model: str) -> dict[str, Any]:
        found = _models(_state(request)).get(model)
        if found is None:
            raise ModelNotFound(f"The model {model!r} does not exist here.", param="model")
        return found


def _add_operator_routes(app: FastAPI) -> None:
    @app.get("/healthz", summary="The process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Requests can be served")
    async def readyz(request: Request) -> Response:
        state = _state(request)
        ready = {role.value: 0 for role in state.profile.spec.pools.by_role}
        for view in state.pool.views():
            if view.usable:
                ready[view.record.role] = ready.get(view.record.role, 0) + 1
        serving = ready.get(Role.DECODE, 0) + ready.get(Role.STANDARD, 0) > 0
        return JSONResponse(
            {"status": "ready" if serving else "no worker", "ready_workers": ready},
            status_code=200 if serving else 503,
        )

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics(request: Request) -> Response:
        page = generate_latest(_state(request).metrics.registry)
        return Response(page, media_type=CONTENT_TYPE_LATEST)


def _add_cluster_routes(app: FastAPI) -> None:

    @app.put("/internal/workers/{worker_id}", status_code=204, summary="A worker's heartbeat")
    async def put_worker(
        request: Request,
        worker_id: str,
        ttl_s: Annotated[float, Query(gt=0, le=_MAX_TTL_S)] = 5.0,
    ) -> Response:
        state = _state(request)
        require_cluster_token(request, state.settings.token)
        raw = bytearray()
        async for part in request.stream():
            raw += part
            if len(raw) > _MAX_RECORD_BYTES:
                raise InvalidRequest(f"A worker record has at most {_MAX_RECORD_BYTES} bytes.")
        try:
            record = msgspec.json.decode(bytes(raw), type=WorkerRecord)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"Not a worker record: {error}") from error
        if record.id != worker_id:
            raise InvalidRequest(f"The record is of {record.id!r}, the path says {worker_id!r}.")
        known = state.pool.record(record.id)
        await state.store.put_worker(record, ttl_s=ttl_s)
        # News is seen at once; mere heartbeats at the pool's own next refresh.
        if known is None or (known.state, known.engine_id) != (record.state, record.engine_id):
            await state.pool.refresh()
        return Response(status_code=204)

    @app.delete("/internal/workers/{worker_id}", status_code=204, summary="A worker leaves")
    async def delete_worker(request: Request, worker_id: str) -> Response:
        state = _state(request)
        require_cluster_token(request, state.settings.token)
        await state.store.remove_worker(WorkerId(worker_id))
        await state.pool.refresh()
        return Response(status_code=204)

    @app.get("/admin/status", summary="Workers, handoffs and profile, for operators")
    async def status(request: Request) -> Response:
        state = _state(request)
        require_cluster_token(request, state.settings.token)
        report = {
            "version": __version__,
            "profile": {
                "name": state.profile.metadata.name,
                "version": state.profile.version,
                "mode": state.profile.spec.mode,
                "threshold_tokens": (
                    state.profile.spec.classify.threshold_tokens
                    if state.profile.spec.classify
                    else None
                ),
            },
            "store": state.store.describe(),
            "in_flight": state.in_flight,
            "workers": [
                {"record": view.record, "legs": view.in_flight, "suspect": view.suspect}
                for view in state.pool.views()
            ],
            "handoffs": {
                "open": [_handoff(h) for h in state.ledger.open_handoffs()],
                "stranded": [_handoff(h) for h in state.ledger.stranded_handoffs()],
            },
        }
        return Response(msgspec.json.encode(report), media_type="application/json")

    def _handoff(handoff: Any) -> dict[str, Any]:
        return {
            "request_id": handoff.request_id,
            "state": handoff.state,
            "prefill": handoff.prefill,
            "decode": handoff.decode,
            "kv_bytes": handoff.kv_bytes,
            "reason": handoff.reason,
        }


__all__ = ["build_app"]
