"""What the chat page shows, as plain values: rooms, a conversation, a manner of speech, feelings, notes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from starlette.datastructures import State

from pipeline.chat.personas import DEFAULT, persona, personas
from pipeline.serve.erasure import Member
from pipeline.serve.native.dialogs import Two
from pipeline.serve.refused import Refused
from pipeline.serve.store.models import now
from pipeline.serve.store.records import Room
from pipeline.serve.web.curve import room_curve, weeks_curve
from pipeline.serve.web.looks import html, words

ZONE = ZoneInfo("Asia/Seoul")
WEEKS = 8
SHOWN, MOST = 50, 2000
"""How many exchanges, rooms or notes are shown at first and with every "more"; how many rooms or notes at most."""

Shown = tuple[dict[str, Any], dict[str, Any], str, str]
"""Values of: the list of rooms, the conversation, the chosen manner, its preview."""


class Scenes:
    """Answers the page's events. Every method begins with the member who asks and what the event said.

    Args:
        state: the application's state with ``store`` and ``talks``.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.manners = tuple(personas())

    def first(self, who: Member, said: Any) -> Shown:
        """The newest room that is open; a first one for whoever never had any."""
        rooms = self._state.store.rooms.of(who.person.id, limit=SHOWN)
        if not rooms:
            return self.start(who, said, None)
        return self._shown(who, next((room for room in rooms if room.ended_at is None), None))

    def open(self, who: Member, said: Any, listed: Any) -> Shown:
        """The room that was chosen."""
        wanted = said.get("room") if isinstance(said, dict) else None
        return self._shown(who, self._room(who, {"open": wanted}), _length(listed, "rooms"))

    def more_rooms(self, who: Member, said: Any, listed: Any) -> dict[str, Any]:
        """A longer list of rooms."""
        return self._listed(who, self._room(who, listed), _length(listed, "rooms") + SHOWN)

    def start(self, who: Member, said: Any, manner: str | None) -> Shown:
        """A new room in the manner of the last one."""
        room = self._state.store.rooms.start(who.person.id, manner if manner in self.manners else DEFAULT)
        return self._shown(who, room)

    def said(self, who: Member, said: Any, listed: Any) -> dict[str, Any]:
        """The list of rooms after something was said in one."""
        return self._listed(who, self._room(who, listed), _length(listed, "rooms"))

    def speak(self, who: Member, said: Any, listed: Any, manner: str | None) -> str:
        """Change the manner of the open room; returns its preview."""
        if manner not in self.manners:
            raise Refused("no_character")
        if room := self._room(who, listed):
            self._state.store.rooms.change(who.person.id, room.id, title=None, character=manner)
        return preview(manner)

    def moods(self, who: Member, said: Any, listed: Any) -> str:
        """The curves of the open room and of the last weeks."""
        insight, room = self._state.store.insight, self._room(who, listed)
        here = insight.emotions(who.person.id, room=room.id) if room else []
        lately = insight.emotions(who.person.id, since=now() - timedelta(weeks=WEEKS))
        return html("moods", room=room_curve(here, ZONE), weeks=weeks_curve(lately, ZONE))

    def notes(self, who: Member, said: Any) -> dict[str, Any]:
        """What is remembered, the newest first."""
        return self._notes(who, SHOWN)

    def more_notes(self, who: Member, said: Any, noted: Any) -> dict[str, Any]:
        """More of what is remembered."""
        return self._notes(who, _length(noted, "notes") + SHOWN)

    def forget(self, who: Member, said: Any, noted: Any) -> dict[str, Any]:
        """Forget one note; returns the others."""
        note = said.get("note") if isinstance(said, dict) else None
        if isinstance(note, str):
            self._state.talks.erasure.memory_of(who, note)
        return self._notes(who, _length(noted, "notes"))

    def _notes(self, who: Member, count: int) -> dict[str, Any]:
        newest = self._state.talks.counselor.export(who.memory)["exchanges"][::-1]
        notes = [{key: row[key] for key in ("id", "when", "user")} for row in newest[:count]]
        return {"notes": notes, "more": len(newest) > count}

    def _room(self, who: Member, listed: Any) -> Room | None:
        """The open room as the browser names it, if it is this user's."""
        wanted = listed.get("open") if isinstance(listed, dict) else None
        return self._state.store.rooms.get(who.person.id, wanted) if isinstance(wanted, str) else None

    def _shown(self, who: Member, room: Room | None, count: int = SHOWN) -> Shown:
        manner = room.character if room and room.character in self.manners else DEFAULT
        return self._listed(who, room, count), self._talk(who, room), manner, preview(manner)

    def _listed(self, who: Member, chosen: Room | None, count: int) -> dict[str, Any]:
        rooms = self._state.store.rooms.of(who.person.id, limit=count + 1)
        named = [{"id": room.id, "name": _name(room), "ended": bool(room.ended_at)} for room in rooms[:count]]
        return {"open": chosen.id if chosen else None, "rooms": named, "more": len(rooms) > count}

    def _talk(self, who: Member, room: Room | None) -> dict[str, Any]:
        if room is None:
            return {"room": None, "title": None, "ended": False, "more": False, "dialogs": [], "pending": []}
        newest = self._state.store.rooms.dialogs(who.person.id, room.id, limit=SHOWN + 1)
        dialogs = newest[-SHOWN:]
        pending = self._state.store.preferences.pending_in(who.person.id, room.id)
        introduction = None if dialogs else self._state.counselor.greeting
        return {
            "room": room.id,
            "title": room.title,
            "more": len(newest) > SHOWN,
            "ended": room.ended_at is not None,
            "dialogs": [dialog.model_dump(mode="json") for dialog in dialogs],
            "pending": [Two.of(pair, introduction).model_dump() for pair in pending],
        }


def _length(value: Any, name: str) -> int:
    """How much the browser shows of a list, as it says itself; never less than at first."""
    shown = value.get(name) if isinstance(value, dict) else None
    return min(MOST, max(SHOWN, len(shown))) if isinstance(shown, list) else SHOWN


def preview(manner: str) -> str:
    """How a manner of speech sounds: the same words as usual and in this manner."""
    chosen = persona(manner)
    usual = [(None, plain) for other in personas().values() for plain, _ in other.examples[:1]]
    return html("manner", manner=chosen, examples=chosen.examples[:2] or usual[:1])


def _name(room: Room) -> str:
    texts, moment = words()["chat"], room.created_at.astimezone(ZONE)
    name = room.title or texts["room"].format(when=f"{moment.month}월 {moment.day}일 {moment:%H:%M}")
    return texts["room_ended"].format(name=name) if room.ended_at else name
