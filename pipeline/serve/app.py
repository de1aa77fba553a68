"""The application: one counsellor behind the OpenAI-compatible API, the native API and the page."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gonggam.errors import UserError
from pipeline.serve import completions, health, web
from pipeline.serve.errors import add_handlers
from pipeline.serve.guard import BodyLimit, SameOrigin, Watch
from pipeline.serve.meter import Meter
from pipeline.serve.native import install
from pipeline.serve.options import ServeOptions
from pipeline.serve.queue import ReplyQueue

if TYPE_CHECKING:
    from pipeline.chat.counselor import Counselor
    from pipeline.serve.store import Store

LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
# FastAPI would hand spans, validation errors and stack traces to any OpenTelemetry exporter it finds.
SILENT: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


def create_app(counselor: Counselor, settings: ServeOptions, store: Store | None = None) -> FastAPI:
    """The ASGI application.

    Handlers find what they need in ``app.state``: ``counselor``, ``settings``, ``store``, ``accounts`` (None where
    everybody is one), ``queue`` (makes replies, see `ReplyQueue`), ``talks`` (rooms), ``meter`` and ``began``.

    Args:
        counselor: makes the replies; closed when the application ends.
        settings: the recipe's `serve:` section.
        store: accounts, rooms and messages; None: only the OpenAI-compatible API, without accounts.

    Raises:
        UserError: accounts are on, and there is no store to keep them.
    """
    if settings.accounts and store is None:
        raise UserError("accounts need a database", "name one with --database or serve.database")
    app = FastAPI(
        title="gonggam (공감)", lifespan=_lifespan, docs_url=None, redoc_url=None, telemetry=SILENT,
        description="A Korean counselling model that remembers each user.",
    )  # fmt: skip
    state = app.state
    state.counselor, state.settings, state.store, state.began = counselor, settings, store, int(time.time())
    state.accounts = None
    state.meter = Meter()
    state.queue = ReplyQueue(
        counselor,
        state.meter,
        parallel=settings.parallel,
        waiting=settings.queue // settings.workers,
        per_user=max(1, settings.per_user // settings.workers),
        spend=partial(store.pace.spend, per_minute=settings.per_minute) if store and settings.accounts else None,
    )
    for router in (completions.router, health.router):
        app.include_router(router)
    if store is not None:
        install(app)
        if settings.page:
            web.install(app)
    add_handlers(app, web.trouble if store is not None and settings.page else None)
    _guard(app, settings, state.meter)
    return app


def _guard(app: FastAPI, settings: ServeOptions, meter: Meter) -> None:
    """The layers before the routes; the last one added is the outermost."""
    app.add_middleware(BodyLimit, limit=settings.max_body_kb * 1024)
    app.add_middleware(SameOrigin, origins=settings.origins)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("Authorization", "Content-Type"),
        )
    # A page elsewhere can give its own name this machine's address; it cannot make the browser send another name.
    hosts = settings.hosts or (LOCAL if settings.host in LOCAL else ("*",))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(Watch, meter=meter)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """At the end replies are finished, then memories saved, then the database closed."""
    # What has been loaded stays; looking through it for garbage would hold every reply up for a fifth of a second.
    # Replies leave little garbage in rings: looking for it after every 700 objects costs more than it frees.
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(20_000, *before[1:])
    yield
    gc.set_threshold(*before)
    gc.unfreeze()
    await app.state.queue.close()
    app.state.counselor.close()
    if app.state.store is not None:
        app.state.store.close()
