"""Preference pairs: ``prompt, chosen, rejected``, each a text or a list of messages."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation, Role, Turn
from data_prep.sources.fields import BadRow, checked, optional, text_of, turns_from

COLUMNS = (frozenset({"prompt", "chosen", "rejected"}), frozenset({"chosen", "rejected"}))


def parse(values: dict[str, Any]) -> Conversation:
    """One pair: the conversation ends with the chosen reply, the rejected one stands beside it."""
    prompt = _turns(values.get("prompt"), "user") if values.get("prompt") else ()
    chosen, rejected = (_turns(values.get(name), "assistant") for name in ("chosen", "rejected"))
    if not prompt:
        if chosen[:-1] != rejected[:-1]:
            raise BadRow("chosen and rejected do not share a prompt")
        prompt = chosen[:-1]
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise BadRow("chosen or rejected does not end with a reply")
    if not chosen[-1].content or not rejected[-1].content:
        raise BadRow("empty chosen or rejected")
    meta = optional(values, category="category", emotion="emotion", made_by="made_by")
    turns = checked([*prompt, chosen[-1]])
    return Conversation(text_of(values.get("id")), turns, "", meta, (rejected[-1].content,))


def _turns(value: Any, role: Role) -> tuple[Turn, ...]:
    return turns_from(value, "role", "content") if isinstance(value, (list, tuple)) else (Turn(role, text_of(value)),)
