"""What the counsellor gives back: a typed reply that goes into JSON as it is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.chat.safety import Risk

Source = Literal["model", "knowledge", "safety", "notice"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Emotion(_Value):
    """What the user's message sounds like: one of 11 labels and its probability."""

    label: str
    score: float


class Note(_Value):
    """An earlier exchange that was recalled for this reply."""

    id: str
    session: str
    when: str = Field(description="ISO 8601, with zone")
    user: str = Field(description="what the user said then")
    reply: str = Field(description="what was answered then")
    score: float


class TokenUsage(_Value):
    """What the reply cost; tries that the gate withdrew are counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = Field(0, description="prompt tokens that did not have to be read again")
    seconds: float = 0.0


class Reply(_Value):
    """One answer.

    ``source``: ``model`` (generated), ``knowledge`` (the best human-written answer, where the gate withdrew what was
    generated), ``safety`` (the fixed words for a message of high risk) or ``notice`` (other fixed words: goodbye, what
    this is, nothing to read).
    """

    text: str
    source: Source
    risk: Risk
    emotion: Emotion | None = None
    recalled: tuple[Note, ...] = ()
    usage: TokenUsage = TokenUsage()
    reasons: tuple[str, ...] = Field((), description="why the gate or the safety layer stepped in; never user text")
    persona: str = "기본"
    session: str | None = None
    exchange: str | None = Field(None, description="id under which the exchange is remembered; None: it is not")
    introduction: str | None = Field(None, description="at the start of a session: what this is, to be shown first")
    ended: bool = Field(False, description="the user said goodbye: the session is closed")
