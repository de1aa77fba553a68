"""Health that tells the truth, and the numbers for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process runs and answers."""
    return {"status": "alive"}


@router.get("/health/ready", responses={503: {"description": "something is missing; the body says what"}})
async def ready(request: Request) -> JSONResponse:
    """Whether a message would be answered now: the model is there, what is said can be kept, the queue has room."""
    state = request.app.state
    memory = state.counselor.memory
    checks = {
        "model": await run_in_threadpool(state.counselor.backend.alive),
        "database": state.store is None or await run_in_threadpool(state.store.alive),
        "memory": memory is None or await run_in_threadpool(memory.alive),
        "queue": not state.queue.full,
    }
    well = all(checks.values())
    return JSONResponse({"status": "ready" if well else "not ready", "checks": checks}, 200 if well else 503)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    state = request.app.state
    if not state.settings.metrics:
        return Response(status_code=404)
    return Response(await run_in_threadpool(state.meter.text), media_type="text/plain; version=0.0.4")
