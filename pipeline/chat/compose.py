"""What is asked of the model for one turn: the prompt that fits, the notes in it, the settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.chat.backends import Backend, Request, Settings
from pipeline.chat.context import build
from pipeline.chat.options import ChatOptions
from pipeline.chat.reply import Note
from pipeline.chat.resources import data
from pipeline.chat.sentiment import Sentiments
from pipeline.chat.turn import Turn

if TYPE_CHECKING:
    from rag.memory import MemoryStore


class Composer:
    """Composes requests.

    Args:
        backend: counts tokens and knows its context.
        options: the recipe's `chat:` section.
        system: the system prompt.
        memory: where users are remembered, if anywhere.
        sentiments: what replies answer to beside the message; None: to the message alone.
        converts: whether replies are rewritten in the persona's manner afterwards, so that the prompt leaves it out.
    """

    def __init__(
        self,
        backend: Backend,
        options: ChatOptions,
        system: str | None,
        memory: MemoryStore | None,
        *,
        sentiments: Sentiments | None = None,
        converts: bool,
    ) -> None:
        self.backend, self.options, self.system = backend, options, system
        self.memory, self.sentiments, self.converts = memory, sentiments, converts

    def compose(self, turn: Turn) -> None:
        """Fill in the turn's request and notes, or fixed words where the message alone is too long for the model."""
        settings, options = self._settings(turn), self.options
        manner = turn.persona.system(self.system) if not self.converts else self.system
        manner = "\n\n".join(filter(None, [manner, turn.ask.system])) or None
        keep = self.memory.settings.recent_turns if self.memory else options.recent_turns
        # The window moves in strides, not with every turn, so that the prompt's beginning stays the same for a while.
        turns = [past for past in turn.session.turns if past.user]  # a mark has no words
        start = max(0, (len(turns) - keep) // keep * keep) if keep else len(turns)
        window = turns[start:]
        shown = [(past.user, past.reply) for past in window]
        room = max(1, self.backend.context - min(options.max_new_tokens, self.backend.context // 2))
        count = self.backend.count
        messages, kept, noted = build(manner, shown, turn.ask.text, (), count, room)
        notes = self._recall(turn, [past.exchange for past in window[len(window) - kept :] if past.exchange])
        if notes:
            messages, _, noted = build(manner, shown[len(shown) - kept :], turn.ask.text, notes, count, room)
        turn.notes = tuple(notes[:noted])
        if not (kept or noted) and count(messages) >= self.backend.context:
            limit = max(1, len(turn.ask.text) // 2)
            turn.fixed = data("texts")["too_long"].format(limit=limit), "notice"
            return
        if self.sentiments:
            messages = self.sentiments.mark(messages, turn.ask.sentiment)
        turn.request = Request(messages, settings, said=turn.ask.text)

    def _recall(self, turn: Turn, shown: list[str]) -> list[Note]:
        if not (turn.ask.user and self.memory):
            return []
        found = self.memory.for_user(turn.ask.user).recall(turn.ask.text, exclude=[*shown, *turn.ask.unseen])
        return [
            Note(
                id=e.id, session=e.session, when=e.when.isoformat(), user=e.user, reply=e.reply, score=round(e.score, 4)
            )
            for e in found
        ]

    def _settings(self, turn: Turn) -> Settings:
        wanted = {name: value for name, value in asdict(turn.ask.sampling).items() if value is not None}
        longest = self.options.max_new_tokens
        wanted["max_new_tokens"] = min(wanted.get("max_new_tokens") or longest, longest)
        wanted["avoid"] = turn.ask.avoid
        if turn.ask.adapter:
            wanted["adapter"] = turn.ask.adapter
        if turn.session.name:
            wanted["session"] = session_key(turn.ask.user, turn.session.name)
        return Settings.of(self.options, **wanted)


def session_key(user: str | None, session: str | None) -> str:
    """What a backend knows a session by."""
    return json.dumps([user, session], ensure_ascii=False)
