"""Preference pairs: ``prompt, chosen, rejected``, each a text or a list of messages; several rejected make a list."""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation, Role, Turn
from data_prep.sources.fields import BadRow, checked, optional, text_of, turns_from

COLUMNS = (frozenset({"prompt", "chosen", "rejected"}), frozenset({"chosen", "rejected"}))


def parse(values: dict[str, Any]) -> Conversation:
    """A pair for each rejected reply: the conversation ends with the chosen one, these stand beside it."""
    prompt = _turns(values.get("prompt"), "user") if values.get("prompt") else ()
    chosen = _turns(values.get("chosen"), "assistant")
    rejected = [_turns(one, "assistant") for one in _several(values.get("rejected"))]
    if not prompt:
        if any(chosen[:-1] != one[:-1] for one in rejected):
            raise BadRow("chosen and rejected do not share a prompt")
        prompt = chosen[:-1]
    last = [chosen[-1], *(one[-1] for one in rejected)]
    if any(turn.role != "assistant" for turn in last):
        raise BadRow("chosen or rejected does not end with a reply")
    if not all(turn.content for turn in last):
        raise BadRow("empty chosen or rejected")
    meta = optional(values, category="category", emotion="emotion", made_by="made_by")
    turns = checked([*prompt, chosen[-1]])
    return Conversation(text_of(values.get("id")), turns, "", meta, tuple(turn.content for turn in last[1:]))


def _several(value: Any) -> list[Any]:
    """The rejected replies of a row: a list of texts, or of lists of messages, is several; all else is one."""
    return value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]


def _turns(value: Any, role: Role) -> tuple[Turn, ...]:
    return turns_from(value, "role", "content") if isinstance(value, (list, tuple)) else (Turn(role, text_of(value)),)
