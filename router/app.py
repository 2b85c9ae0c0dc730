"""What the router serves besides generation, on its public port: models, health, metrics, the
registry of workers, and the documentation. The hot endpoints are in ``endpoint``, heartbeats in
``registry``; what operators use is in ``admin``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from baton import __version__
from baton.errors import BatonError, InvalidRequest, ModelNotFound
from baton.types import Role, WorkerId, WorkerRecord, WorkerState
from router.access import require_token
from router.api import Endpoint, engine_error
from router.openapi import describe_hot_endpoints
from router.report import status_report
from router.state import RouterState
from router.tenants import Tenant

_ANSWERING = (Role.DECODE, Role.STANDARD)
_NOT_POST = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"]

ReadyWorkers = Annotated[
    int,
    Query(
        ge=0,
        description="How many workers that can answer there have to be. With 0 a router is ready "
        "once it has read its store, so that it holds requests while workers are yet to come.",
    ),
]
"""What readiness is asked to mean: 1 for whoever wants an answer now, 0 for what decides whether
connections come here at all, where a router without workers is better than nobody."""

AskWhole = Callable[[str], Awaitable[Response]]
"""Of a process that is one of several: what the whole router answers to a GET of a path."""


def build_app(state: RouterState, whole: AskWhole | None = None) -> FastAPI:
    """The application of the public port.

    Args:
        state: this process's.
        whole: asked for what has to be about all processes, where there are several: connections
            are dealt out by chance, so that one process's numbers would tell nobody anything.
    """
    app = FastAPI(
        title="Baton router",
        version=__version__,
        description="OpenAI-compatible front door of disaggregated prefill and decode workers.",
        # Behind a proxy with TLS they would lead to http, with whatever Host the client named.
        redirect_slashes=False,
    )
    add_error_handlers(app)
    add_health_routes(app, state, whole)
    _add_openai_routes(app, state)
    _add_cluster_routes(app, state, whole)
    for endpoint in Endpoint:
        # POST never comes here: it is answered before (``router.endpoint``).
        app.add_route(endpoint, _only_post, methods=_NOT_POST, include_in_schema=False)
    describe_hot_endpoints(app)
    return app


def _only_post(request: Request) -> Response:
    raise HTTPException(405, headers={"allow": "POST"})


def openai_error(error: BatonError, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as the OpenAI API writes it."""
    return JSONResponse(error.to_openai(), status_code=error.status, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Every error of the application becomes an OpenAI error object."""

    @app.exception_handler(BatonError)
    async def on_baton_error(_: Request, error: BatonError) -> JSONResponse:
        return openai_error(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        said = {
            404: f"There is no {request.url.path} here.",
            405: f"{request.method} is not allowed on {request.url.path}.",
        }.get(error.status_code, str(error.detail))
        body = BatonError(said).to_openai()
        body["error"]["type"] = "invalid_request_error"
        content = msgspec.json.encode(body)
        if request.url.path == Endpoint.MESSAGES:
            content = engine_error(Endpoint.MESSAGES, error.status_code, content)
        return Response(content, error.status_code, error.headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return openai_error(InvalidRequest(f"{where}: {first['msg']}", param=where))


def add_health_routes(app: FastAPI, state: RouterState, whole: AskWhole | None = None) -> None:
    """Health and metrics: on both ports, since whoever probes or scrapes may reach only one.
    Added before the state is started: the first reading of the store has to be heard."""
    read_store = asyncio.Event()
    state.pool.listen(lambda _: read_store.set())

    @app.get("/healthz", summary="The process is alive", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Requests can be served", tags=["health"])
    async def readyz(workers: ReadyWorkers = 1) -> Response:
        ready = state.ready_workers()
        status = "ready"
        if state.stopping:
            status = "stopping"
        elif not read_store.is_set():
            status = "no store"
        elif sum(state.pool.ready_by_role()[role] for role in _ANSWERING) < workers:
            status = "no worker" if workers == 1 else "too few workers"
        return JSONResponse(
            {"status": status, "ready_workers": ready},
            status_code=200 if status == "ready" else 503,
        )

    @app.get("/metrics", summary="Prometheus metrics", tags=["health"])
    async def metrics(request: Request) -> Response:
        if whole is not None:
            return await whole("/metrics")
        page, content_type = state.metrics.render(request.headers.get("accept", ""))
        return Response(page, media_type=content_type)


def _add_openai_routes(app: FastAPI, state: RouterState) -> None:
    def tenant_of(request: Request) -> Tenant:
        given = [request.headers.get(name) for name in ("authorization", "x-api-key")]
        bearer, key = (None if v is None else v.encode("latin-1", "replace") for v in given)
        return state.directory.tenant(bearer, key)

    @app.get("/v1/models", summary="Models that can be asked for now", tags=["models"])
    async def models(request: Request) -> dict[str, Any]:
        tenant = tenant_of(request)
        found = [model for name, model in _models(state).items() if tenant.allows(name)]
        return {"object": "list", "data": found}

    @app.get("/v1/models/{model:path}", summary="One model", tags=["models"])
    async def model(request: Request, model: str) -> dict[str, Any]:
        tenant = tenant_of(request)
        found = _models(state).get(model) if tenant.allows(model) else None
        if found is None:
            raise ModelNotFound(f"The model {model!r} does not exist here.", param="model")
        return found


def _models(state: RouterState) -> dict[str, dict[str, Any]]:
    """Models that a ready decode or standard worker serves, with the smallest of their limits;
    adapters as models of their own whose ``parent`` is the base."""
    found: dict[str, dict[str, Any]] = {}
    for record in state.pool.seated():
        if record.state is not WorkerState.READY or record.role is Role.PREFILL:
            continue
        names = [(record.model, None)] + [(a.name, record.model) for a in record.adapters]
        for name, parent in names:
            model = _model_object(record, name, parent)
            other = found.get(name)
            if other is None or model["max_model_len"] < other["max_model_len"]:
                found[name] = model
    return found


def _model_object(record: WorkerRecord, name: str, parent: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(record.started_s),
        "owned_by": "baton",
        "parent": parent,
        "max_model_len": record.limits.max_model_len,
    }


def _add_cluster_routes(app: FastAPI, state: RouterState, whole: AskWhole | None) -> None:
    token = state.settings.token

    @app.delete(
        "/internal/workers/{worker_id}",
        status_code=204,
        summary="A worker leaves",
        tags=["cluster"],
    )
    async def delete_worker(request: Request, worker_id: str) -> Response:
        require_token(request, token)
        await state.store.remove_worker(WorkerId(worker_id))
        await state.pool.refresh()
        return Response(status_code=204)

    @app.get("/admin/status", summary="Workers, handoffs and profile", tags=["cluster"])
    async def status(request: Request) -> Response:
        require_token(request, token)
        if whole is not None:
            return await whole("/admin/status")
        return Response(msgspec.json.encode(status_report(state)), media_type="application/json")


__all__ = [
    "AskWhole",
    "ReadyWorkers",
    "add_error_handlers",
    "add_health_routes",
    "build_app",
    "openai_error",
]
