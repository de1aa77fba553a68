"""What comes out of the store and goes into it: plain values, texts opened, fit to be sent as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.chat.reply import Emotion, Reply, Source
from pipeline.chat.safety import Risk

Role = Literal["user", "admin"]
Kind = Literal["web", "api"]
Choice = Literal["a", "b"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Person(_Record):
    """An account."""

    id: str
    name: str
    role: Role
    created_at: datetime


class Agreement(_Record):
    """What a user agreed to, or took back."""

    kind: str = Field(description="terms: first use; training: chosen replies may be used to improve the model")
    version: str
    granted: bool
    created_at: datetime


class Manner(_Record):
    """A character (말투)."""

    name: str
    description: str


class Room(_Record):
    """A counselling room."""

    id: str
    title: str | None
    character: str
    created_at: datetime
    ended_at: datetime | None
    dialogs: int = Field(0, description="how many exchanges it holds")


class Draft(_Record):
    """An exchange as it is to be written."""

    message: str
    reply: str
    source: Source
    risk: Risk
    character: str
    emotion: Emotion | None = None
    exchange: str | None = None
    reasons: list[str] = []
    recalled: list[str] = Field([], description="ids of the remembered exchanges that were in view")
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, message: str, reply: Reply) -> Draft:
        """The counsellor's reply to a message; of what was recalled only the ids are kept."""
        return cls(
            message=message,
            reply=reply.text,
            source=reply.source,
            risk=reply.risk,
            character=reply.persona,
            emotion=reply.emotion,
            exchange=reply.exchange,
            reasons=list(reply.reasons),
            recalled=[note.id for note in reply.recalled],
            prompt_tokens=reply.usage.prompt_tokens,
            completion_tokens=reply.usage.completion_tokens,
            seconds=reply.usage.seconds,
        )


class Exchanged(Draft):
    """An exchange as it stands in a room."""

    id: str
    room: str
    position: int = Field(description="place in the room, growing; there may be gaps where one was deleted")
    created_at: datetime
    replied_at: datetime
    rating: Literal[-1, 1] | None = None
    comment: str | None = Field(None, description="what the user said of the reply")


class Pair(_Record):
    """Two replies to one message, waiting to be chosen from."""

    id: str
    a: Draft
    b: Draft
    created_at: datetime


class Preferred(_Record):
    """A preference pair for training: what was said up to and with the message, the reply taken and the other one."""

    messages: list[dict[str, str]]
    chosen: str
    rejected: str


class Felt(_Record):
    """The emotion of one message."""

    dialog: str
    at: datetime
    label: str
    score: float


class Counts(_Record):
    """How much there is, without a word of what it says."""

    users: int
    rooms: int
    open_rooms: int
    dialogs: int
    dialogs_last_day: int
    risk: dict[str, int]
    source: dict[str, int]
    ratings: dict[str, int]
    choices: int
