"""The native API under /api: accounts, rooms, what is said in them, memories, emotions.

Whatever belongs to somebody else is answered as if it were not there (404). Refusals are
``{"detail": sentence in Korean, "code": word for programs}``.
"""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, FastAPI

from pipeline.serve.accounts import Accounts
from pipeline.serve.native import admin, dialogs, memory, moods, people, rooms
from pipeline.serve.native.access import UNKEPT, refusals
from pipeline.serve.talks import Talks


def install(app: FastAPI) -> None:
    """Add the native API to an application whose state has ``store``, ``counselor``, ``queue`` and ``settings``.

    Sets ``app.state.accounts`` (None where everybody is one) and ``app.state.talks``, and puts right what a process
    that died has left half done.
    """
    state = app.state
    lasts = timedelta(days=state.settings.session_days)
    state.accounts = Accounts(state.store, lasts=lasts) if state.settings.accounts else None
    state.talks = Talks(state.store, state.counselor, state.queue)
    state.talks.erasure.recover()
    api = APIRouter(prefix="/api", responses=refusals("bad_body", *UNKEPT))
    for part in (dialogs, rooms, people, memory, moods, admin):  # tried in this order: messages come most often
        api.include_router(part.router)
    app.include_router(api)
