"""Replies on demand: a bounded number at once, the waiting ones served in turn by user, all given up when unread."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

from pipeline.chat.counselor import Counselor
from pipeline.chat.reply import Reply
from pipeline.chat.turn import Ask
from pipeline.serve.errors import ApiError
from pipeline.serve.meter import Meter


class ReplyQueue:
    """Lets ``parallel`` replies be worked on at once, each in a thread of its own so that the backend can batch them.

    Whoever comes later waits; a freed place goes to the users in turn (round robin), so that one user with many
    requests delays nobody else by more than one.

    Args:
        counselor: makes the replies.
        meter: counts them.
        parallel: replies at once.
        waiting: requests that may wait in all.
        per_user: requests of one user that may wait.
        spend: counts a message of a user and returns the seconds to wait if it is one too many; None: any number.
    """

    def __init__(
        self,
        counselor: Counselor,
        meter: Meter,
        *,
        parallel: int,
        waiting: int,
        per_user: int,
        spend: Callable[[str], int] | None = None,
    ) -> None:
        self.counselor, self.meter, self.spend = counselor, meter, spend
        self.parallel, self.limit, self.per_user = parallel, waiting, per_user
        self.running = self.waiting = 0
        self.mean_seconds = 1.0
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="gonggam-reply")
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self.running >= self.parallel and self.waiting >= self.limit

    async def stream(self, ask: Ask, owner: str) -> AsyncGenerator[str | Reply, None]:
        """Yield the reply's pieces, and last the `Reply` itself; leaving early makes the model stop.

        Args:
            ask: the message.
            owner: whose turn this takes.

        Raises:
            ApiError: 429, too many are waiting, or this user sends too many.
            UserError: as `Counselor.reply`.
        """
        began = time.monotonic()
        await self._enter(owner)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | Reply | Exception] = asyncio.Queue()
        stream = self.counselor.stream(ask)

        over = asyncio.Event()

        def end(last: Reply | Exception) -> None:
            self._leave(time.monotonic() - began)
            over.set()
            pieces.put_nowait(last)

        def pump() -> None:
            last: Reply | Exception
            try:
                self._pay(owner)
                for piece in stream:
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)
                last = stream.reply
            except Exception as error:  # it is raised where the reply is awaited
                last = error
            loop.call_soon_threadsafe(end, last)

        self._pool.submit(pump)
        first = True
        try:
            while not isinstance(item := await pieces.get(), Reply):
                if isinstance(item, Exception):
                    raise item
                if first:
                    self.meter.first.observe(time.monotonic() - began)
                    first = False
                yield item
            self.meter.replied(item)
            yield item
        except (asyncio.CancelledError, GeneratorExit):
            if not over.is_set():
                self.meter.cancelled.inc()
            raise
        finally:
            stream.cancel()

    async def reply(self, ask: Ask, owner: str) -> Reply:
        """The whole reply; raises as `stream`."""
        return [item async for item in self.stream(ask, owner) if isinstance(item, Reply)][-1]

    async def close(self) -> None:
        """Wait for running replies; requests that still wait are refused."""
        for line in self._lines.values():
            for turn in line:
                turn.cancel()
        await asyncio.to_thread(self._pool.shutdown)

    async def _enter(self, owner: str) -> None:
        if self.running < self.parallel:
            self._count(running=1)
            return
        line = self._lines.setdefault(owner, deque())
        if self.waiting >= self.limit or len(line) >= self.per_user:
            if not line:
                del self._lines[owner]
            wait = math.ceil(self.mean_seconds * (self.waiting + 1) / self.parallel)
            self._refuse("queue", "Too many requests are waiting.", min(60, max(1, wait)))
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        self._count(waiting=1)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the turn came just when its reader went away
                self._leave(None)
            else:
                self._drop(owner, turn)
            raise

    def _pay(self, owner: str) -> None:
        """Count a message only now that its turn has come: one that the queue refused cost nothing."""
        if self.spend and (wait := self.spend(owner)):
            self._refuse("pace", "This user sent too many messages within a minute.", wait)

    def _leave(self, seconds: float | None) -> None:
        """A place is free: it goes to whoever is next."""
        if seconds is not None:
            self.mean_seconds += 0.1 * (seconds - self.mean_seconds)
        self._count(running=-1)
        while self._lines:
            owner, line = next(iter(self._lines.items()))
            turn = line.popleft()
            self._lines.move_to_end(owner)
            if not line:
                del self._lines[owner]
            self._count(waiting=-1)
            if not turn.done():
                self._count(running=1)
                turn.set_result(None)
                return

    def _drop(self, owner: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(owner)
        if line and turn in line:
            line.remove(turn)
            self._count(waiting=-1)
            if not line:
                del self._lines[owner]

    def _refuse(self, why: str, message: str, wait: int) -> None:
        self.meter.refused.labels(why).inc()
        raise ApiError(429, message, code=f"{why}_exceeded", retry_after=wait)

    def _count(self, running: int = 0, waiting: int = 0) -> None:
        self.running, self.waiting = self.running + running, self.waiting + waiting
        self.meter.running.set(self.running)
        self.meter.waiting.set(self.waiting)
