"""What the counsellor gives back: a typed reply that goes into JSON as it is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.chat.safety import Kind, Risk

Source = Literal["model", "reviewed", "knowledge", "safety", "notice"]


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

    ``source``: ``model`` (generated), ``reviewed`` (an answer of the message's category), ``knowledge`` (the best
    human-written answer, where the gate withdrew what was generated or the run only retrieves), ``safety`` (the fixed
    words for a message of high risk) or ``notice`` (other fixed words: goodbye, what this is, nothing to read, unsure).
    """

    text: str
    source: Source
    risk: Risk
    kind: Kind | None = Field(None, description="what kind of danger was seen, where one was")
    emotion: Emotion | None = None
    recalled: tuple[Note, ...] = ()
    usage: TokenUsage = TokenUsage()
    category: str | None = Field(None, description="what the message was taken for, where answers are chosen by it")
    index: int | None = Field(None, description="number of that category in the classifier's list")
    score: float | None = Field(None, description="probability of the category, or likeness of the question found")
    reasons: tuple[str, ...] = Field((), description="why the gate or the safety layer stepped in; never user text")
    persona: str = "기본"
    session: str | None = None
    exchange: str | None = Field(None, description="id under which the exchange is remembered; None: it is not")
    memorable: bool = Field(False, description="what belongs into a memory: no notice, nothing of high risk")
    introduction: str | None = Field(None, description="at the start of a session: what this is, to be shown first")
    ended: bool = Field(False, description="the user said goodbye: the session is closed")
