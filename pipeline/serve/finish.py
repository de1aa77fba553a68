"""Work that is carried to its end, whoever goes away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def finish(work: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
    """Run ``work`` in a thread to its end, also if the request is given up meanwhile; then ``undo`` what it made."""
    running: asyncio.Future[Any] = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if undo:
            running = asyncio.ensure_future(_undone(running, undo))
        # The scope around a stream cancels at every await anew, and would cancel `running` if that were awaited.
        with anyio.CancelScope(shield=True):
            await asyncio.wait([running])
        raise


async def _undone(running: Awaitable[T], undo: Callable[[T], None]) -> None:
    await asyncio.to_thread(undo, await running)
