"""Conversations that are going on: what was said, bounded in number, one message of a user at a time."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pipeline.chat.reply import Emotion
from pipeline.chat.safety import Risk


@dataclass
class Turned:
    """One exchange of a running session."""

    user: str
    reply: str
    risk: Risk = "none"
    emotion: Emotion | None = None
    exchange: str | None = None
    """Id in the user's memory, where it was written there."""


@dataclass
class Session:
    """One conversation with one user."""

    name: str | None = None
    turns: list[Turned] = field(default_factory=list)
    fresh: bool = True
    """Not yet filled with what is remembered of it."""
    introduced: bool = False
    other_told: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def said(self) -> list[str]:
        """The user's messages."""
        return [turn.user for turn in self.turns]

    @property
    def crises(self) -> int:
        """How often the fixed words for high risk were spoken."""
        return sum(turn.risk == "high" for turn in self.turns)

    def feeling(self) -> str | None:
        """The emotion that was met most often, everyday talk aside."""
        labels = Counter(turn.emotion.label for turn in self.turns if turn.emotion and turn.emotion.label != "일상적인")
        return labels.most_common(1)[0][0] if labels else None


class Sessions:
    """The newest ``limit`` sessions; older ones are let go (a user's memory has them on disk)."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._sessions: OrderedDict[tuple[str | None, str | None], Session] = OrderedDict()

    def get(self, user: str | None, name: str | None) -> Session:
        """The session of this name, a new one if there is none."""
        with self._lock:
            key = (user, name)
            self._sessions[key] = session = self._sessions.pop(key, None) or Session(name)
            while len(self._sessions) > self._limit:
                self._sessions.popitem(last=False)
            return session

    def drop(self, user: str | None, name: str | None = None) -> None:
        """Forget a user's session, or with ``name`` None all of them."""
        with self._lock:
            for key in [key for key in self._sessions if key[0] == user and name in (None, key[1])]:
                del self._sessions[key]

    def names(self, user: str | None) -> list[str | None]:
        """Names of a user's running sessions."""
        with self._lock:
            return [name for owner, name in self._sessions if owner == user]


def exchanges(messages: Sequence[Mapping[str, str]]) -> list[Turned]:
    """Each user message with the reply that follows it; messages of other roles are left out."""
    turns = [m for m in messages if m["role"] in ("user", "assistant")]
    return [
        Turned(a["content"], b["content"])
        for a, b in pairwise(turns)
        if (a["role"], b["role"]) == ("user", "assistant")
    ]
