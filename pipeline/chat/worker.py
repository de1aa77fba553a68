"""The thread that decodes: requests join and leave one running batch, and sessions keep their computed prefixes."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.chat.backends import BackendError, Piece, Request, Usage
from pipeline.chat.decode import Row, Running
from pipeline.chat.prefixes import Prefixes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.chat.block import States

T = TypeVar("T")
_DONE = object()
HAND_OUT_S = 0.05
"""Tokens are handed on at least this far apart: a reader woken for each would take the worker's time from it."""


class LocalStream:
    """Pieces of one reply, filled by the worker."""

    def __init__(self, request: Request, row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
        self.request, self.row, self.usage = request, row, Usage(prompt_tokens=len(row.prompt))
        self.cached_tokens = 0
        self._tokenizer, self._finished = tokenizer, False
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ready: list[object] = []
        self._handed_at = 0.0

    def __iter__(self) -> Generator[Piece, None, None]:
        ids: list[int] = []
        shown, logprob, tokens = "", 0.0, 0
        try:
            while (items := self._queue.get()) is not _DONE:
                for item in items:
                    if isinstance(item, BaseException):
                        raise item
                    token, value = item
                    ids.append(token)
                    logprob, tokens = logprob + value, tokens + 1
                text = self._tokenizer.decode(ids, skip_special_tokens=True)
                # Half a syllable decodes to U+FFFD: it is held back until its other bytes are there.
                if not text.endswith("�") and text != shown:
                    yield Piece(text[len(shown) :], tokens, logprob)
                    shown, logprob, tokens = text, 0.0, 0
            if tokens:
                rest = self._tokenizer.decode(ids, skip_special_tokens=True)[len(shown) :]
                yield Piece(rest, tokens, logprob)
        finally:
            self.close()
            self.usage = Usage(len(self.row.prompt), len(ids), self.cached_tokens)

    def close(self) -> None:
        """Give up: the worker drops this row at its next step."""
        self.request.cancelled.set()

    def put(self, item: object) -> None:
        """Called by the worker: a (token, logprob) or an exception."""
        self._ready.append(item)
        if time.monotonic() - self._handed_at >= HAND_OUT_S:
            self._hand_on()

    def finish(self) -> None:
        """Called by the worker, once or more: no token will come."""
        if not self._finished:
            self._finished = True
            self._hand_on()
            self._queue.put(_DONE)

    def _hand_on(self) -> None:
        if self._ready:
            self._queue.put(self._ready)
        self._ready, self._handed_at = [], time.monotonic()


class Worker:
    """Decodes for one model, in a thread that begins with the first request.

    Args:
        model: the model, its adapters loaded.
        eos: tokens that end a reply.
        pad: the padding token, which is never chosen.
        max_batch: rows that are worked on together at most.
        keep_bytes: memory for the computed prefixes of sessions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos: frozenset[int],
        *,
        pad: int | None = None,
        max_batch: int,
        keep_bytes: int,
    ) -> None:
        self.model, self.max_batch = model, max_batch
        self._eos, self._pad, self._room, self._closed = eos, pad, max_batch, False
        self._waiting: list[LocalStream] = []
        self._jobs: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._prefixes = Prefixes(keep_bytes)

    def take(self, streams: Sequence[LocalStream]) -> None:
        """Begin work on requests.

        Raises:
            BackendError: the worker was closed.
        """
        with self._wake:
            self._begin()
            self._waiting.extend(streams)

    def call(self, work: Callable[[], T]) -> T:
        """Let the thread do something else with the model between two steps, as nobody else may use it.

        Raises:
            BackendError: the worker was closed; else whatever ``work`` raises.
        """
        done: Future[T] = Future()

        def job() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # it is raised where the result is awaited
                done.set_exception(error)

        with self._wake:
            self._begin()
            self._jobs.append(job)
        return done.result()

    def forget(self, session: str) -> None:
        """Drop what was computed for a session."""
        self._prefixes.forget(session)

    def alive(self) -> bool:
        """Whether the thread runs, or will with the first request."""
        return not self._closed and (self._thread is None or self._thread.is_alive())

    def close(self) -> None:
        """End the thread after the step it is at; requests that are not done get an error."""
        atexit.unregister(self.close)
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread not in (None, threading.current_thread()):
            self._thread.join()

    def _begin(self) -> None:
        if self._closed:
            raise _closed()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gonggam-model", daemon=True)
            self._thread.start()
            atexit.register(self.close)  # a thread that is cut off in the model takes the whole process down
        self._wake.notify()

    def _work(self) -> None:
        """The worker: take in what waits, read a chunk, decode one step, let go what is done, again and again."""
        running = Running(self.model, self._eos, self._pad)
        active: dict[Row, LocalStream] = {}
        while True:
            with self._wake:
                if not active and not self._waiting:
                    self._room = self.max_batch
                self._wake.wait_for(lambda: self._waiting or active or self._jobs or self._closed)
                room = max(0, self._room - len(active))
                joining, self._waiting = self._waiting[:room], self._waiting[room:]
                jobs, self._jobs = self._jobs, []
                closed = self._closed
            for job in jobs:
                job()
            if closed:
                _fail([*active.values(), *joining, *self._waiting], _closed())
                return
            for stream in joining:
                active[stream.row] = stream
                running.join(stream.row, self._take_prefix(stream))
            self._advance(running, active)

    def _advance(self, running: Running, active: dict[Row, LocalStream]) -> None:
        """Read and decode a little; whatever goes wrong is raised where the replies are awaited."""
        import torch

        try:
            self._settle(running, active)
            for work in (running.read, running.step):
                for step in work():
                    active[step.row].put((step.token, step.logprob))
                self._settle(running, active)
        except torch.OutOfMemoryError as error:
            self._out_of_memory(running, active, error)
        except Exception as error:  # the worker must live on
            _fail(list(active.values()), error)
            active.clear()
            running.clear()

    def _settle(self, running: Running, active: dict[Row, LocalStream]) -> None:
        """Let go of rows that are done or given up, and keep what was computed for their sessions."""
        for row, stream in list(active.items()):
            if row.done or stream.request.cancelled.is_set():
                row.done = True
                states = running.leave(row)
                del active[row]
                if stream.request.settings.session and states:
                    self._prefixes.keep(_key(stream), row.ids[: row.cached], states)
                stream.finish()

    def _out_of_memory(self, running: Running, active: dict[Row, LocalStream], error: torch.OutOfMemoryError) -> None:
        """Let all rows wait, of which at most half run again at once; one that does not even fit alone is told.

        Each goes on where it stood: what it has written is part of what it reads when it joins again.
        """
        import torch

        streams, room = list(active.values()), len(active) // 2
        active.clear()
        running.clear()
        self._prefixes.clear()
        torch.cuda.empty_cache()
        if room:
            with self._wake:
                self._room, self._waiting = room, streams + self._waiting
            return
        failure = BackendError("out of GPU memory", "set chat.quantization: nf4, or a smaller max_new_tokens")
        failure.__cause__ = error
        _fail(streams, failure)

    def _take_prefix(self, stream: LocalStream) -> States | None:
        """What this session's last turn computed of the prompt."""
        if not stream.request.settings.session:
            return None
        from pipeline.chat.block import length_of

        states = self._prefixes.take(_key(stream), stream.row.ids)
        stream.cached_tokens = length_of(states)
        return states


def _closed() -> BackendError:
    return BackendError("the model was closed", "load the counsellor again")


def _fail(streams: Sequence[LocalStream], error: BaseException) -> None:
    for stream in streams:
        stream.put(error)
        stream.finish()


def _key(stream: LocalStream) -> tuple[str, str | None]:
    return str(stream.request.settings.session), stream.row.adapter
