"""The page for people: small pages of our own (log-in, account) and the chat, drawn by Gradio in the same application.

Nothing of the page lives in a process: Gradio's handlers are plain requests without its queue, replies stream from
the native API, and which room is open is the room list's own value. So any number of workers may serve one page.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from pipeline.serve.web import account, entry
from pipeline.serve.web.door import CHAT, Door
from pipeline.serve.web.looks import trouble

__all__ = ["install", "trouble"]

HERE = Path(__file__).parent


def install(app: FastAPI) -> None:
    """Add the page to an application that has the native API."""
    from pipeline.serve.web.chat import mount

    for part in (entry, account):
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    mount(app, CHAT)
    app.add_middleware(Door, state=app.state)
