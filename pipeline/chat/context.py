"""The prompt of a turn: system text, whole exchanges as far as they fit, recalled notes beside the newest message."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.chat.reply import Note
from pipeline.chat.resources import data

Exchange = tuple[str, str]


def build(
    system: str | None,
    exchanges: Sequence[Exchange],
    text: str,
    notes: Sequence[Note],
    count: Callable[[list[dict[str, str]]], int],
    room: int,
) -> tuple[list[dict[str, str]], int, int]:
    """The longest prompt of whole exchanges that leaves the reply its room.

    Oldest exchanges go first; if the newest message alone is too long with its notes, the notes go, worst first.
    Nothing is ever cut in half.

    Args:
        count: tokens of a prompt.
        room: tokens the prompt may have.

    Returns:
        the messages, how many of ``exchanges`` (the newest ones) and how many of ``notes`` (the best ones) are in.
    """
    for kept_notes in range(len(notes), -1, -1):
        newest = with_notes(text, notes[:kept_notes])
        for dropped in range(len(exchanges) + 1):
            messages = assemble(system, exchanges[dropped:], newest)
            if count(messages) <= room:
                return messages, len(exchanges) - dropped, kept_notes
    return assemble(system, (), text), 0, 0


def assemble(system: str | None, exchanges: Sequence[Exchange], newest: str) -> list[dict[str, str]]:
    """System text, exchanges and the newest message as messages."""
    messages = [{"role": "system", "content": system}] if system else []
    for user, reply in exchanges:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    return [*messages, {"role": "user", "content": newest}]


def with_notes(text: str, notes: Sequence[Note]) -> str:
    """The newest message with what is recalled in front of it; the message itself where there is nothing."""
    if not notes:
        return text
    texts = data("texts")
    lines = "\n".join(texts["recalled_note"].format(when=note.when[:10], text=note.user) for note in notes)
    return texts["recalled"].format(notes=lines, text=text)
