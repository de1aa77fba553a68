"""Everything that is stored of one person, as plain JSON values."""

from __future__ import annotations

from typing import Any

from pipeline.chat.counselor import Counselor
from pipeline.serve.erasure import Member
from pipeline.serve.store import Store


def everything(store: Store, counselor: Counselor, member: Member) -> dict[str, Any]:
    """Account, consents, rooms with what was said in them, choices and memories."""
    user = member.person.id
    rooms = [{**room.model_dump(mode="json"), "dialogs": _said(store, user, room.id)} for room in store.rooms.of(user)]
    return {
        "format": 1,
        "person": member.person.model_dump(mode="json"),
        "consents": [row.model_dump(mode="json") for row in store.people.agreements(user)],
        "rooms": rooms,
        "choices": store.preferences.of(user),
        "memory": counselor.export(member.memory),
        "api_memories": [counselor.export(name) for name in store.people.memories(user)],
    }


def _said(store: Store, user: str, room: str) -> list[dict[str, Any]]:
    return [dialog.model_dump(mode="json") for dialog in store.rooms.dialogs(user, room)]
