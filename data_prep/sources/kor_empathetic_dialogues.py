"""KorEmpatheticDialogues: ``dialogue_id, dialogue[{utter_idx, utter, user_id}], situation, emotion``."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation, Turn
from data_prep.sources.fields import BadRow, checked, optional, text_of

COLUMNS = (frozenset({"dialogue"}), frozenset({"dialogue_id", "utter"}))


def parse(values: dict[str, Any]) -> Conversation:
    """One dialogue: who speaks first is the user, the other one listens."""
    items = values.get("dialogue")
    if not isinstance(items, (list, tuple)) or not items or not all(isinstance(item, dict) for item in items):
        raise BadRow("no list of utterances")
    if all(isinstance(item.get("utter_idx"), int) for item in items):
        items = sorted(items, key=lambda item: item["utter_idx"])
    first = items[0].get("user_id")
    turns = [
        Turn("user" if item.get("user_id") == first else "assistant", text_of(item.get("utter"))) for item in items
    ]
    meta = optional(values, emotion="emotion", situation="situation")
    return Conversation(text_of(values.get("dialogue_id")), checked(turns), "", meta)
