"""songys/Chatbot_data: ``Q, A, label`` (0 everyday, 1 parting, 2 love)."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation
from data_prep.sources.fields import need, single, text_of

COLUMNS = (frozenset({"q", "a"}),)

CATEGORIES = {"0": "일상", "1": "이별", "2": "사랑"}


def parse(values: dict[str, Any]) -> Conversation:
    """One row."""
    label = text_of(values.get("label")).removesuffix(".0")
    meta = {"category": CATEGORIES[label], "sentiment": label} if label in CATEGORIES else {}
    return single(need(values, "q"), need(values, "a"), meta=meta)
