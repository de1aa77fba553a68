"""The way to the chat: who may see it, and which of Gradio's own routes there are at all."""

from __future__ import annotations

import asyncio

from starlette.datastructures import MutableHeaders, State
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve.accounts import TERMS_VERSION
from pipeline.serve.native.access import member_of
from pipeline.serve.store import Store

CHAT = "/chat"
# Gradio also takes uploads, fetches other hosts' pages, lists its users and much else: none of it is needed here.
OPEN = ("/assets/", "/static/", "/theme.css", "/gradio_api/run/", "/gradio_api/startup-events", "/gradio_api/app_id")


class Door:
    """Sends whoever is not logged in to the log-in, and to the terms whoever has not agreed to them.

    Of what Gradio says of its own answers two things are put right: it allows every page of this machine's to read
    them, and it leaves open how long files may be kept whose names change with what is in them.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        path = scope.get("path", "").rstrip("/")
        if scope["type"] == "http" and path.startswith(f"{CHAT}/") and not path.removeprefix(CHAT).startswith(OPEN):
            return await Response(status_code=404)(scope, receive, send)
        if scope["type"] == "http" and (path in (CHAT, "/consent") or path.startswith("/account")):
            elsewhere = await asyncio.to_thread(self._elsewhere, Request(scope), path)
            if elsewhere:
                return await RedirectResponse(elsewhere, 303)(scope, receive, send)

        async def ours(message: Message) -> None:
            if message["type"] == "http.response.start":
                _keep(path, MutableHeaders(scope=message))
            await send(message)

        await self.app(scope, receive, ours if path.startswith((CHAT, "/static/")) else send)

    def _elsewhere(self, request: Request, path: str) -> str | None:
        found = member_of(self.state, request)
        if found is None:
            return "/log-in"
        return None if path != CHAT or agreed(self.state.store, found.person.id) else "/consent"


def _keep(path: str, headers: MutableHeaders) -> None:
    """How long a browser keeps a part of the page, and that no other page reads it."""
    for name in ("access-control-allow-origin", "access-control-allow-credentials"):
        del headers[name]
    if path.startswith(f"{CHAT}/assets/"):
        headers["Cache-Control"] = "public, max-age=31536000, immutable"
    else:
        headers["Cache-Control"] = "no-cache" if path.startswith("/static/") else "no-store"


def agreed(store: Store, user: str, kind: str = "terms") -> bool:
    """Whether a user agrees to something, as it is worded now."""
    return any(
        row.kind == kind and row.granted and row.version == TERMS_VERSION for row in store.people.agreements(user)
    )
