"""The way to the chat: who may see it, and which of Gradio's own routes there are at all."""

from __future__ import annotations

import asyncio

from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.serve.accounts import TERMS_VERSION
from pipeline.serve.native.access import member_of
from pipeline.serve.store import Store

CHAT = "/chat"
# Gradio also takes uploads, fetches other hosts' pages, lists its users and much else: none of it is needed here.
OPEN = ("/assets/", "/static/", "/theme.css", "/gradio_api/run/", "/gradio_api/startup-events")


class Door:
    """Sends whoever is not logged in to the log-in, and to the terms whoever has not agreed to them."""

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
        await self.app(scope, receive, send)

    def _elsewhere(self, request: Request, path: str) -> str | None:
        found = member_of(self.state, request)
        if found is None:
            return "/log-in"
        return None if path != CHAT or agreed(self.state.store, found.person.id) else "/consent"


def agreed(store: Store, user: str, kind: str = "terms") -> bool:
    """Whether a user agrees to something, as it is worded now."""
    return any(
        row.kind == kind and row.granted and row.version == TERMS_VERSION for row in store.people.agreements(user)
    )
