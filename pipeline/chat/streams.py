"""Replies piece by piece, for loops and for asynchronous loops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from threading import Event

from gonggam.errors import UserError
from pipeline.chat.reply import Reply


class ReplyStream(Iterator[str]):
    """The text of a reply, sentence by sentence; `reply` is there once it is exhausted.

    Every piece was checked before it came out; none is ever taken back. Closing it early makes the model stop, and
    nothing of the exchange is kept.
    """

    def __init__(self, steps: Generator[str, None, Reply | None], cancelled: Event) -> None:
        self._steps, self._cancelled = steps, cancelled
        self._reply: Reply | None = None

    def __next__(self) -> str:
        try:
            return next(self._steps)
        except StopIteration as stop:
            self._reply = self._reply or stop.value
            raise StopIteration from None

    @property
    def reply(self) -> Reply:
        """The whole reply.

        Raises:
            UserError: the stream is not exhausted, or was cancelled.
        """
        if self._reply is None:
            raise UserError("this reply was cancelled or is not complete", "read the stream to its end first")
        return self._reply

    def cancel(self) -> None:
        """Ask for an end, from any thread."""
        self._cancelled.set()

    def close(self) -> None:
        """Give up on the reply."""
        self.cancel()
        self._steps.close()


class AsyncReplyStream:
    """`ReplyStream` for `async for`; leaving the loop early cancels the reply."""

    def __init__(self, stream: ReplyStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[str]:
        import asyncio

        try:
            while (piece := await asyncio.to_thread(next, self._stream, None)) is not None:
                yield piece
        finally:
            self._stream.cancel()

    @property
    def reply(self) -> Reply:
        """The whole reply, once the loop is through."""
        return self._stream.reply
