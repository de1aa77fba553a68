"""Gated generation: sentences are let out one by one, and a human-written answer steps in where the model fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import TypeVar

from pipeline.chat import gate
from pipeline.chat.backends import Backend, Message, PieceStream, Request, Settings, Usage
from pipeline.chat.options import GateOptions
from pipeline.chat.reply import Source
from pipeline.chat.reviewed import Picked, PickedStream
from pipeline.chat.safety import check_output

logger = logging.getLogger("gonggam.chat")

T = TypeVar("T")


@dataclass(frozen=True)
class Spoken:
    """What was said, by whom, and what it cost."""

    text: str
    source: Source
    usage: Usage
    reasons: tuple[str, ...] = ()
    picked: Picked | None = None


@dataclass(frozen=True)
class Speaker:
    """A backend behind the gate.

    Args:
        backend: the model.
        options: the gate's limits.
        floor: lowest mean token log-probability in nats, None if unknown.
        answer: gives the human-written answer (and where it comes from) to a message, other than those just given.
    """

    backend: Backend
    options: GateOptions
    floor: float | None
    answer: Callable[..., tuple[str, Source]]

    def speak(
        self,
        messages: Sequence[Message],
        said: str,
        settings: Settings,
        cancelled: Event,
        begun: PieceStream | None = None,
        *,
        grave: bool = False,
    ) -> Generator[str, None, Spoken]:
        """Yield passed sentences; the generator's value is a `Spoken`.

        Args:
            begun: a stream that is under way for the first attempt (see `Counselor.reply_many`).
            grave: whether a danger was told before.
        """
        usage = Usage()
        reasons: tuple[str, ...] = ()
        for attempt in range(1 + self.options.retries):
            tried = replace(settings, seed=None if settings.seed is None else settings.seed + attempt)
            stream = begun or self.backend.stream([Request(messages, tried, said=said)])[0]
            begun = None
            if isinstance(stream, PickedStream) and not check_output(stream.picked.text, said):
                return (yield from _as_reviewed(stream.picked))
            text, found = yield from self._passed(stream, messages, said, settings, cancelled)
            usage, reasons = _sum(usage, stream.usage), reasons + found
            if text or cancelled.is_set():
                return Spoken(text, "model", usage, reasons)
            if settings.temperature == 0:
                break  # it would say the same again
        logger.info("reply withdrawn: %s", ", ".join(dict.fromkeys(reasons)))
        before = [message["content"] for message in messages if message["role"] == "assistant"]
        text, source = self.answer(said, before, grave=grave)
        yield text
        return Spoken(text, source, usage, reasons)

    def _passed(
        self, stream: PieceStream, messages: Sequence[Message], said: str, settings: Settings, cancelled: Event
    ) -> Generator[str, None, tuple[str, tuple[str, ...]]]:
        """Yield sentences as they pass; the value is the text let out and why it ended early."""
        text, out, tokens, stopped = "", "", 0, False
        logprob: float | None = 0.0
        pieces = iter(stream)
        try:
            for piece in pieces:
                if cancelled.is_set():
                    return out, ("cancelled",)
                text, tokens = text + piece.text, tokens + piece.tokens
                logprob = None if logprob is None or piece.logprob is None else logprob + piece.logprob
                text, stopped = before_stop(text, settings.stop)
                if stopped:
                    break
                *ready, rest = gate.sentences(without_begun(text, settings.stop).lstrip()) or [""]
                candidate = "".join(ready)
                if len(candidate) > len(out):
                    reasons = self._judge(candidate, out, messages, said, settings, logprob, tokens)
                    if reasons == ("too short",):
                        continue
                    if reasons:
                        return out, reasons
                    yield candidate[len(out) :] if out else candidate.lstrip()
                    out = candidate
                if hopeless := gate.lost(rest, self.options):
                    return out.rstrip(), hopeless
        finally:
            pieces.close()
        text = text.strip()
        if not stopped and not gate.whole(text):
            *ready, _rest = gate.sentences(text) or [""]
            text = "".join(ready).rstrip()
            if len(text) <= len(out.rstrip()):
                return out.rstrip(), ("unfinished",)
        if len(text) > len(out):
            reasons = self._judge(text, out, messages, said, settings, logprob, tokens)
            if reasons:
                return out.rstrip(), reasons
            yield text[len(out) :]
            return text, ()
        return out.rstrip(), () if out else ("empty",)

    def _judge(
        self,
        candidate: str,
        out: str,
        messages: Sequence[Message],
        said: str,
        settings: Settings,
        logprob: float | None,
        tokens: int,
    ) -> tuple[str, ...]:
        mean = None if logprob is None or not tokens else logprob / tokens
        candidate = candidate.rstrip()
        unsafe = check_output(candidate, said)
        if unsafe:
            return tuple(f"unsafe: {kind}" for kind in unsafe)
        verdict = gate.check(candidate, said, self.options, mean_logprob=mean, floor=self.floor)
        if verdict.ok and not out and self.options.enabled and self.options.min_relevance is not None:
            gain = relevance(self.backend, messages, candidate, settings.adapter)
            if gain is not None and gain < self.options.min_relevance:
                return ("irrelevant",)
        return verdict.reasons


def _as_reviewed(picked: Picked) -> Generator[str, None, Spoken]:
    """What people wrote and reviewed passes no gate made for models."""
    yield picked.text
    return Spoken(picked.text, picked.source, Usage(), () if picked.sure else ("unsure",), picked)


def rewritten(
    steps: Generator[str, None, Spoken], rewrite: Callable[[str], str], max_repetition: float
) -> Generator[str, None, Spoken]:
    """`Speaker.speak` with the whole reply rewritten; it stays as it was where that is unsafe or runs in circles."""
    spoken = _exhausted(steps)
    text = rewrite(spoken.text)
    if check_output(text) or gate.repetition(text) > max_repetition:
        text = spoken.text
    yield text
    return replace(spoken, text=text)


def _exhausted(steps: Generator[str, None, T]) -> T:
    """A generator's value; what it yields is passed over."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def relevance(backend: Backend, messages: Sequence[Message], reply: str, adapter: str | None) -> float | None:
    """What the conversation adds to the reply's mean token log-probability, in nats.

    A reply that fits any message as well as this one gains nothing from it (the idea of maximum mutual information,
    Li et al. 2016, https://arxiv.org/abs/1510.03055).
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    with_it = backend.score(messages, reply, adapter)
    without = backend.score([*system, {"role": "user", "content": "…"}], reply, adapter)
    return None if with_it is None or without is None else with_it - without


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """``text`` up to the first of ``stops`` in it, and whether there is one."""
    ends = [end for stop in stops if (end := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def without_begun(text: str, stops: Sequence[str]) -> str:
    """``text`` without an end that may become one of ``stops``."""
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: -max(begun)] if begun else text


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.cached_tokens + b.cached_tokens,
    )
