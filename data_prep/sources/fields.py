"""What readers share: taking values out of rows whose cells may hold anything."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from data_prep.conversation import Conversation, Role, Turn

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


#: Halves of a character pair, which JSON escapes can produce and no file can hold.
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class BadRow(ValueError):
    """A row that holds no conversation; the message says why."""


def text_of(value: Any) -> str:
    """A cell as stripped text; empty for missing cells (None, NaN, 'nan') and for nested values."""
    if (
        value is None
        or isinstance(value, (bool, list, dict, bytes))
        or (isinstance(value, float) and math.isnan(value))
    ):
        return ""
    text = _SURROGATE.sub("", str(value)).strip()
    return "" if text.lower() in ("nan", "none", "null", "<na>") else text


def need(values: dict[str, Any], *names: str) -> str:
    """The first non-empty of the named cells.

    Raises:
        BadRow: all of them are empty.
    """
    for name in names:
        text = text_of(values.get(name))
        if text:
            return text
    raise BadRow(f"empty {names[0]}")


def optional(values: dict[str, Any], **names: str) -> dict[str, str]:
    """Those of the named cells that hold text: ``optional(values, emotion="label")``."""
    found = {key: text_of(values.get(column)) for key, column in names.items()}
    return {key: text for key, text in found.items() if text}


def single(question: str, answer: str, **rest: Any) -> Conversation:
    """A conversation of one exchange."""
    return Conversation("", (Turn("user", question), Turn("assistant", answer)), "", **rest)


def split_line(text: str) -> list[str]:
    """The fields of a line in which they are parted by four spaces or a tab."""
    return [field.strip() for field in re.split(r" {4,}|\t", text) if field.strip()]


def turns_from(items: Any, role_key: str, content_key: str) -> tuple[Turn, ...]:
    """Turns out of a list of objects with a role and a content under the named keys.

    Raises:
        BadRow: it is no such list, or a role is unknown.
    """
    if not isinstance(items, (list, tuple)) or not items:
        raise BadRow("no list of turns")
    turns = []
    for item in items:
        if not isinstance(item, dict):
            raise BadRow("a turn is no object")
        role = ROLES.get(text_of(item.get(role_key)).lower())
        if role is None:
            raise BadRow(f"unknown role {text_of(item.get(role_key))[:40]!r}")
        turns.append(Turn(role, text_of(item.get(content_key))))
    return tuple(turns)


def checked(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """The turns, if something is said and a user is among the speakers.

    Raises:
        BadRow: otherwise.
    """
    kept = tuple(turns)
    if not any(turn.content for turn in kept):
        raise BadRow("all turns are empty")
    if not any(turn.role == "user" and turn.content for turn in kept):
        raise BadRow("no user turn")
    return kept
