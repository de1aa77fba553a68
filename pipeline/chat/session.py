"""Conversations that are going on: what was said, bounded in number, one message of a user at a time."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from typing import Any

from gonggam.errors import UserError
from pipeline.chat.reply import Emotion
from pipeline.chat.resources import data
from pipeline.chat.safety import Kind, Risk, Standing, fixed_text


@dataclass
class Turned:
    """One exchange of a running session; without words where only a mark of high risk is left of it."""

    user: str
    reply: str
    risk: Risk = "none"
    emotion: Emotion | None = None
    exchange: str | None = None
    """Id in the user's memory, where it was written there."""
    mark: str | None = None
    """Id of its mark there, where only that was kept."""
    kind: Kind | None = None
    """Of a message of high risk: what kind of danger."""
    standing: Standing | None = None
    """How it answered to a danger told before (see `pipeline.chat.safety.Assessment`)."""

    def __post_init__(self) -> None:
        """Read kind and standing off the fixed words where a caller keeps only what was said."""
        if self.risk == "high" and self.kind is None:
            kind, standing = fixed_text(self.reply)
            self.kind, self.standing = kind or "suicide", self.standing or standing

    @property
    def grave(self) -> bool:
        """Whether the message told of a danger by itself."""
        return self.risk == "high" and self.standing is None


@dataclass
class Session:
    """One conversation with one user."""

    name: str | None = None
    turns: list[Turned] = field(default_factory=list)
    fresh: bool = True
    """Not yet filled with what is remembered of it."""
    shared: bool = False
    """Its exchanges are remembered, so that another process may have added some."""
    introduced: bool = False
    other_told: bool = False
    assessed: bool = True
    """The risk of its exchanges is known; False where they come from elsewhere."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def held(self, timeout_s: float) -> Iterator[None]:
        """One message of a session at a time.

        Raises:
            UserError: another is still being answered after so many seconds.
        """
        if not self.lock.acquire(timeout=timeout_s):
            raise UserError("this session's last message is still being answered", "wait for its reply")
        try:
            yield
        finally:
            self.lock.release()

    @property
    def said(self) -> list[str]:
        """The user's messages."""
        return [turn.user for turn in self.turns if turn.user]

    @property
    def crises(self) -> int:
        """How many messages told of a danger."""
        return sum(turn.grave for turn in self.turns)

    def asked_on(self, standing: Standing) -> int:
        """How often an answer of this kind was asked on."""
        return sum(turn.standing == standing for turn in self.turns)

    def in_view(self, count: int) -> tuple[list[str], Kind | None]:
        """The newest ``count`` messages of the user, and the danger told before them, if one was.

        After a danger only what followed it is in view, and at least four messages of that.
        """
        last = max((place for place, turn in enumerate(self.turns) if turn.grave), default=None)
        since = self.turns if last is None else self.turns[last + 1 :]
        count = count if last is None else max(count, 4)
        said = [turn.user for turn in since if turn.user]
        return said[max(0, len(said) - count) :], None if last is None else self.turns[last].kind

    def checked_in(self, words: str) -> bool:
        """Whether these words were said since a danger was told."""
        last = max((place for place, turn in enumerate(self.turns) if turn.grave), default=-1)
        return any(words in turn.reply for turn in self.turns[last + 1 :])

    def feeling(self) -> str | None:
        """The emotion that was met most often, everyday talk aside."""
        labels = Counter(turn.emotion.label for turn in self.turns if turn.emotion and turn.emotion.label != "일상적인")
        return labels.most_common(1)[0][0] if labels else None


class Sessions:
    """The newest ``limit`` sessions; older ones are let go (a user's memory has them on disk)."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._sessions: OrderedDict[tuple[str | None, str | None], Session] = OrderedDict()

    def of(
        self, user: str | None, session: str | None, history: Sequence[Mapping[str, str] | Turned] | None = None
    ) -> Session:
        """The session a message belongs to; one that is not kept where the caller brings its history or names none."""
        name = name_of(user, session)
        if history is not None:
            turns, told = exchanges(history), data("crisis")["other"].strip()
            other_told = any(told in turn.reply for turn in turns)
            known = all(isinstance(message, Turned) for message in history)
            begun = bool(turns)
            return Session(name, turns, fresh=False, introduced=begun, other_told=other_told, assessed=known)
        return Session(fresh=False) if name is None else self.get(user, name)

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


def exchanges(messages: Sequence[Mapping[str, Any] | Turned]) -> list[Turned]:
    """Each user message with the reply that follows it; messages of other roles are left out.

    Where a message comes without its risk, fixed words of high risk that answered it tell it.
    """
    turns = [m for m in messages if not isinstance(m, Turned) and m["role"] in ("user", "assistant")]
    return [m for m in messages if isinstance(m, Turned)] or [
        Turned(a["content"], b["content"], a.get("risk") or ("high" if any(fixed_text(b["content"])) else "none"))
        for a, b in pairwise(turns)
        if (a["role"], b["role"]) == ("user", "assistant")
    ]


def name_of(user: str | None, session: str | None) -> str | None:
    """Name of the session a message belongs to: today's, where a user names none."""
    return session or (date.today().isoformat() if user else None)
