"""The general messages form: ``messages[{role, content}]``."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation
from data_prep.sources.fields import checked, optional, text_of, turns_from

COLUMNS = (frozenset({"messages"}),)


def parse(values: dict[str, Any]) -> Conversation:
    """One row."""
    turns = checked(turns_from(values.get("messages"), "role", "content"))
    meta = optional(values, origin="origin", type="type", category="category", emotion="emotion")
    return Conversation(text_of(values.get("id")), turns, text_of(values.get("source")), meta)
