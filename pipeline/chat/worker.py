"""The thread that decodes: requests join and leave one running batch, and sessions keep their computed prefixes."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.chat.backends import BackendError, Piece, Request, Usage
from pipeline.chat.decode import Row, Running, Step

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

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
        max_batch: rows that are decoded together at most.
        keep_prefixes: sessions whose last computed prefix is kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos: frozenset[int],
        *,
        pad: int | None = None,
        max_batch: int,
        keep_prefixes: int,
    ) -> None:
        self.model, self.max_batch, self.keep_prefixes = model, max_batch, keep_prefixes
        self._eos, self._pad, self._room, self._closed = eos, pad, max_batch, False
        self._waiting: list[LocalStream] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._prefixes: OrderedDict[tuple[str, str | None], tuple[list[int], Cache]] = OrderedDict()

    def take(self, streams: Sequence[LocalStream]) -> None:
        """Begin work on requests.

        Raises:
            BackendError: the worker was closed.
        """
        with self._wake:
            if self._closed:
                raise _closed()
            self._waiting.extend(streams)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="gonggam-model", daemon=True)
                self._thread.start()
            self._wake.notify()

    def forget(self, session: str) -> None:
        """Drop what was computed for a session."""
        for key in [key for key in list(self._prefixes) if key[0] == session]:
            self._prefixes.pop(key, None)

    def alive(self) -> bool:
        """Whether the thread runs, or will with the first request."""
        return not self._closed and (self._thread is None or self._thread.is_alive())

    def close(self) -> None:
        """End the thread; requests that are not done get an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _work(self) -> None:
        """The worker: take in what waits, decode one step, let go what is done, again and again."""
        running = Running(self.model, self._eos, self._pad)
        active: dict[Row, LocalStream] = {}
        while True:
            with self._wake:
                if not active and not self._waiting:
                    self._room = self.max_batch
                self._wake.wait_for(lambda: self._waiting or active or self._closed)
                room = max(0, self._room - len(active))
                joining, self._waiting = self._waiting[:room], self._waiting[room:]
                if self._closed:
                    _fail([*active.values(), *joining, *self._waiting], _closed())
                    return
            self._settle(running, active)
            for stream in joining:
                self._admit(running, active, stream)
            self._settle(running, active)
            if active:
                self._advance(running, active)

    def _admit(self, running: Running, active: dict[Row, LocalStream], stream: LocalStream) -> None:
        """Read a request's prompt and let it join; whatever goes wrong is raised where the reply is awaited."""
        import torch

        try:
            steps = running.join(stream.row, self._take_prefix(stream))
        except torch.OutOfMemoryError as error:
            self._out_of_memory([stream], running, len(active), error)
        except Exception as error:  # the worker must live on; whoever awaits the reply is told
            _fail([stream], error)
        else:
            active[stream.row] = stream
            self._hand_out(active, steps)

    def _advance(self, running: Running, active: dict[Row, LocalStream]) -> None:
        import torch

        try:
            self._hand_out(active, running.step())
        except torch.OutOfMemoryError as error:
            # Every row goes on where it stood: what it has written is part of what it reads when it joins again.
            streams = list(active.values())
            active.clear()
            running.clear()
            self._out_of_memory(streams, running, len(streams) // 2, error)
        except Exception as error:  # the worker must live on; whoever awaits the replies is told
            _fail(list(active.values()), error)
            active.clear()
            running.clear()

    def _hand_out(self, active: dict[Row, LocalStream], steps: Sequence[Step]) -> None:
        for step in steps:
            active[step.row].put((step.token, step.logprob))

    def _settle(self, running: Running, active: dict[Row, LocalStream]) -> None:
        """Let go of rows that are done or given up, and keep what was computed for their sessions."""
        for row, stream in list(active.items()):
            if row.done or stream.request.cancelled.is_set():
                row.done = True
                cache = running.leave(row)
                del active[row]
                if stream.request.settings.session:
                    self._prefixes[_key(stream)] = (row.ids[: row.cached], cache)
                    while len(self._prefixes) > self.keep_prefixes:
                        self._prefixes.popitem(last=False)
                stream.finish()

    def _out_of_memory(
        self, streams: list[LocalStream], running: Running, room: int, error: torch.OutOfMemoryError
    ) -> None:
        """Let ``streams`` wait until at most ``room`` rows run; one that does not even fit alone is told."""
        import torch

        self._prefixes.clear()
        torch.cuda.empty_cache()
        if room:
            with self._wake:
                self._room, self._waiting = room, streams + self._waiting
            return
        failure = BackendError("out of GPU memory", "set chat.quantization: nf4, or a smaller max_new_tokens")
        failure.__cause__ = error
        _fail(streams, failure)

    def _take_prefix(self, stream: LocalStream) -> Cache | None:
        """A cache that holds as much of the prompt as this session's last turn computed; None: nothing of it."""
        if not stream.request.settings.session:
            return None
        ids, cache = self._prefixes.pop(_key(stream), ([], None))
        prompt = stream.row.ids
        shared = 0
        while shared < min(len(ids), len(prompt) - 1) and ids[shared] == prompt[shared]:
            shared += 1
        if cache is None or not shared:
            return None
        cache.crop(shared - len(ids))
        stream.cached_tokens = shared
        return cache


def _closed() -> BackendError:
    return BackendError("the model was closed", "load the counsellor again")


def _fail(streams: Sequence[LocalStream], error: BaseException) -> None:
    for stream in streams:
        stream.put(error)
        stream.finish()


def _key(stream: LocalStream) -> tuple[str, str | None]:
    return str(stream.request.settings.session), stream.row.adapter
