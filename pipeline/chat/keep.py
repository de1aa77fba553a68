"""What of a conversation is kept with a user's memory, and how a session goes on from it in another process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.chat.reply import Emotion
from pipeline.chat.safety import Kind, Risk, Standing
from pipeline.chat.session import Session, Turned

if TYPE_CHECKING:
    from rag.log import Exchange
    from rag.memory import MemoryStore

_ENDED = {"ended": True}


class Keeper:
    """Writes turns to users' memories and reads sessions from them.

    Of a turn of high risk only a mark is kept (its time, session and kind, no word of it), so that the concern outlives
    a restart; with ``remember_grave`` its words are kept as well. Without a memory nothing is kept at all.
    """

    def __init__(self, memory: MemoryStore | None, *, remember_grave: bool, mark_grave: bool) -> None:
        self.memory, self.remember_grave, self.mark_grave = memory, remember_grave, mark_grave

    def write(self, user: str, session: str | None, turn: Turned) -> str | None:
        """Keep a turn; its id in the memory, or None if it was not written with its words."""
        if self.memory is None:
            return None
        mind, grave, name = self.memory.for_user(user), turn.risk == "high", session or ""
        if not grave or self.remember_grave:
            return mind.add(turn.user, turn.reply, session=name, meta=_meta(turn))
        if self.mark_grave:
            turn.mark = mind.mark(_meta(turn), session=name)
        return None

    def catch_up(self, user: str | None, session: Session) -> None:
        """Bring a session up to what is remembered of it, by this process or another.

        A session that was taken up from elsewhere (``fresh`` False before the first message) is left alone.
        """
        if user and self.memory and (session.fresh or session.shared):
            told = self.memory.for_user(user).entries(session.name or "")
            ends = [place for place, entry in enumerate(told) if entry.mark and entry.meta.get("ended")]
            known = {id for turn in session.turns for id in (turn.exchange, turn.mark) if id}
            running = told[ends[-1] + 1 :] if ends else told
            session.turns += [_turned(entry) for entry in running if entry.id not in known]
            session.shared = True
        session.fresh = False

    def end(self, user: str | None, session: str | None) -> None:
        """Note that a session is over, so that one of the same name begins anew."""
        if user and self.memory and (mind := self.memory.for_user(user)).entries(session or ""):
            mind.mark(_ENDED, session=session or "")

    def forget(self, user: str, exchange: str | None) -> bool:
        """Erase one exchange (True if there was one of this id) or everything of a user."""
        if self.memory is None:
            return exchange is None
        if exchange is not None:
            return self.memory.for_user(user).forget(exchange)
        self.memory.forget(user)
        return True

    def export(self, user: str) -> dict[str, Any]:
        """Everything stored of a user, as plain JSON values."""
        return self.memory.for_user(user).export() if self.memory else {"format": 1, "user": user, "exchanges": []}


def _meta(turn: Turned) -> dict[str, Any]:
    found: dict[str, Any] = {
        "risk": turn.risk if turn.risk != "none" else None,
        "kind": turn.kind,
        "standing": turn.standing,
    }
    if turn.emotion:
        found |= {"emotion": turn.emotion.label, "emotion_score": turn.emotion.score}
    return {name: value for name, value in found.items() if value is not None}


def _turned(entry: Exchange) -> Turned:
    meta = entry.meta
    risk: Risk = meta.get("risk", "none")
    kind: Kind | None = meta.get("kind")
    standing: Standing | None = meta.get("standing")
    emotion = Emotion(label=meta["emotion"], score=meta.get("emotion_score", 0.0)) if "emotion" in meta else None
    ids = {"mark": entry.id} if entry.mark else {"exchange": entry.id}
    return Turned(entry.user, entry.reply, risk, emotion, kind=kind, standing=standing, **ids)
