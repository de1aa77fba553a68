"""What stands before every route: who may send what from where, how much, and what is written down about it.

All of it is plain ASGI, so that streams stay streams and a reader who goes away is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve.errors import APIS, ApiError, as_api_error, refusal
from pipeline.serve.meter import Meter

logger = logging.getLogger("gonggam.access")

READING = ("GET", "HEAD", "OPTIONS")
BODY_SECONDS = 30
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"
# Gradio's page writes its own scripts and styles inline; all of it comes from here, nothing from elsewhere.
PAGE = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


class Watch:
    """The outermost layer: security headers on every response, a line and a number for every request.

    A line tells method, route, status and milliseconds: no query, no address, nothing anybody wrote.
    """

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self.app, self.meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 499

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _dress(scope["path"], MutableHeaders(scope=message))
            await send(message)

        try:
            await self.app(scope, receive, dressed)
        except Exception as error:
            if status == 499:
                await refusal(scope["path"], as_api_error(error))(scope, receive, dressed)
            else:  # the response has begun: it cannot be taken back, only cut off
                as_api_error(error)
        finally:
            route = _route(scope)
            seconds = time.perf_counter() - began
            self.meter.requests.labels(scope["method"], route, str(status)).inc()
            self.meter.seconds.labels(route).observe(seconds)
            logger.info("%s %s %d %.0f ms", scope["method"], route, status, 1000 * seconds)


class SameOrigin:
    """Refuses requests that change something and come from another site's page.

    A browser names the page's origin with every such request; where it names another than ours or the allowed ones,
    or where a cookie comes without any, the request is refused. Programs send neither cookie nor origin and pass.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        self.app, self.origins = app, frozenset(origin.rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] not in READING and not self._ours(Headers(scope=scope)):
            error = ApiError(403, "This request comes from another site's page.", code="cross_site")
            return await refusal(scope["path"], error)(scope, receive, send)
        await self.app(scope, receive, send)

    def _ours(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            site = headers.get("sec-fetch-site")
            return site in ("same-origin", "none") if site or "cookie" in headers else True
        return origin in self.origins or urlsplit(origin).netloc == headers.get("host")


class BodyLimit:
    """Reads a request's body before anything else does, and no more of it than may be."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float = BODY_SECONDS) -> None:
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] in READING:
            return await self.app(scope, receive, send)
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            body = ApiError(408, "The request's body did not come in time.", code="timeout")
        if isinstance(body, ApiError):
            answer = refusal(scope["path"], body)
            answer.headers["Connection"] = "close"
            return await answer(scope, receive, send)
        told = False

        async def replayed() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replayed, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | ApiError:
        too_large = ApiError(413, f"A request may have {self.limit // 1024} KiB.", code="request_too_large")
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > self.limit:
            return too_large
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.limit:
                return too_large
            if not message.get("more_body"):
                return bytes(body)


def _route(scope: Scope) -> str:
    """The path with names in place of values, as it was declared; a path that is unknown may hold anything."""
    if "route" not in scope:
        return "(other)"
    path = scope["path"]
    for name, value in reversed(scope.get("path_params", {}).items()):
        if value:
            head, found, tail = path.rpartition(str(value))
            path = f"{head}{{{name}}}{tail}" if found else path
    return path


def _dress(path: str, headers: MutableHeaders) -> None:
    """Security headers; what the API says is kept by no cache."""
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    api = path.startswith(APIS)
    headers.setdefault("Content-Security-Policy", NOTHING if api else PAGE)
    if api:
        headers["Cache-Control"] = "no-store"
