"""The general Alpaca form: ``instruction, input, output``, with ``system`` and ``history`` where present."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation, Turn
from data_prep.sources.fields import BadRow, checked, need, optional, text_of

COLUMNS = (frozenset({"instruction", "output"}),)


def parse(values: dict[str, Any]) -> Conversation:
    """One row; ``history`` is a list of [user, assistant] pairs."""
    said = "\n".join(text for text in (need(values, "instruction"), text_of(values.get("input"))) if text)
    turns = [Turn("system", text_of(values.get("system")))] if text_of(values.get("system")) else []
    for pair in values.get("history") or []:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow("history is no list of [user, assistant] pairs")
        turns += [Turn("user", text_of(pair[0])), Turn("assistant", text_of(pair[1]))]
    turns += [Turn("user", said), Turn("assistant", need(values, "output"))]
    return Conversation("", checked(turns), "", optional(values, category="category", emotion="emotion"))
