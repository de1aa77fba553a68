"""What the counsellor needs of a language model: one small protocol, spoken by local models and model servers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, Protocol

from gonggam.errors import UserError
from pipeline.chat.options import ChatOptions

Message = Mapping[str, str]


class BackendError(UserError):
    """The model cannot answer now: server down or slow, out of memory, wrong model name."""


@dataclass(frozen=True)
class Settings:
    """How one reply is generated; fields as in `pipeline.chat.options.ChatOptions`.

    ``adapter`` is an adapter's name, ``"none"`` for the base model, or None for the backend's own choice;
    ``session`` names a conversation whose computed prefix may be kept and reused; before a text of ``stop`` the reply
    ends (see `pipeline.chat.speak`: backends need not look at it); ``avoid`` are replies that are not wanted again, for
    backends that choose among ready ones.
    """

    max_new_tokens: int = 160
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 50
    repetition_penalty: float = 1.1
    seed: int | None = None
    adapter: str | None = None
    session: str | None = None
    stop: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: ChatOptions, **changed: Any) -> Settings:
        """What the recipe says; its adapter ``auto`` is the backend's own choice."""
        return replace(
            cls(
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                repetition_penalty=options.repetition_penalty,
                seed=options.seed,
                adapter=None if options.adapter == "auto" else options.adapter,
            ),
            **changed,
        )


@dataclass(frozen=True)
class Piece:
    """A bit of generated text; ``logprob`` is the sum over its ``tokens`` in nats, None where a server tells none."""

    text: str
    tokens: int
    logprob: float | None


@dataclass(frozen=True)
class Usage:
    """Tokens read and written for one reply."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Generation:
    """A whole reply as the model gave it; ``mean_logprob`` in nats a token."""

    text: str
    mean_logprob: float | None
    usage: Usage


@dataclass(frozen=True)
class Request:
    """One conversation to go on with, and a flag by which the caller gives up.

    ``said`` is the newest message as the user wrote it, without what is recalled beside it; empty if not told.
    """

    messages: Sequence[Message]
    settings: Settings = field(default_factory=Settings)
    cancelled: Event = field(default_factory=Event)
    said: str = ""


class PieceStream(Protocol):
    """Pieces as they are generated; ``usage`` is complete once the pieces are exhausted."""

    usage: Usage

    def __iter__(self) -> Generator[Piece, None, None]: ...
    def close(self) -> None:
        """Give up: the model stops working on this reply."""


class Backend(Protocol):
    """A language model that goes on with a conversation."""

    name: str
    context: int
    """Tokens that prompt and reply may have together."""
    adapters: tuple[str, ...]
    """Names that `Settings.adapter` may have besides ``none``."""

    def stream(self, requests: Sequence[Request]) -> Sequence[PieceStream]:
        """Begin replies to all requests at once; they are worked on together where the backend can."""

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that `messages` make."""

    def score(self, messages: Sequence[Message], reply: str, adapter: str | None = None) -> float | None:
        """Mean token log-probability in nats of ``reply`` after ``messages``; None where it cannot be known."""

    def forget(self, session: str) -> None:
        """Drop whatever is kept of a session."""

    def alive(self) -> bool:
        """Whether the model could answer now."""

    def close(self) -> None:
        """Let go of the model."""


def collect(stream: PieceStream) -> Generation:
    """Wait for a whole reply."""
    pieces = list(stream)
    tokens = sum(piece.tokens for piece in pieces)
    known = [piece.logprob for piece in pieces if piece.logprob is not None]
    mean = sum(known) / tokens if tokens and len(known) == len(pieces) else None
    return Generation("".join(piece.text for piece in pieces).strip(), mean, stream.usage)


def replies(backend: Backend, talks: Iterable[Sequence[Message]], settings: Settings) -> list[Generation]:
    """A whole reply to each conversation, worked on together where the backend can."""
    return [collect(stream) for stream in backend.stream([Request(talk, settings) for talk in talks])]
