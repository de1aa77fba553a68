"""The general ShareGPT form: ``conversations[{from, value}]``, with ``system`` where present."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation, Turn
from data_prep.sources.fields import checked, optional, text_of, turns_from

COLUMNS = (frozenset({"conversations"}),)


def parse(values: dict[str, Any]) -> Conversation:
    """One row."""
    turns = checked(turns_from(values.get("conversations"), "from", "value"))
    system = text_of(values.get("system"))
    if system:
        turns = (Turn("system", system), *turns)
    meta = optional(values, category="category", emotion="emotion")
    return Conversation(text_of(values.get("id")), turns, "", meta)
