"""The project's own sample corpus: ``id, category, emotion, turns[{role, content}], rejected``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.conversation import Conversation
from data_prep.sources.fields import checked, optional, text_of, turns_from

COLUMNS = (frozenset({"turns"}),)
DEFAULT = Path(__file__).parent.parent / "samples" / "counsel_ko" / "dialogues.jsonl"


def parse(values: dict[str, Any]) -> Conversation:
    """One dialogue; ``rejected`` is a worse last reply, or a list of such."""
    worse = values.get("rejected")
    rejected = tuple(text for text in map(text_of, worse if isinstance(worse, list) else [worse]) if text)
    meta = optional(values, category="category", emotion="emotion")
    turns = checked(turns_from(values.get("turns"), "role", "content"))
    return Conversation(text_of(values.get("id")), turns, "", meta, rejected)
