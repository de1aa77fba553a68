"""One message on its way to a reply: cleaned, assessed, and answered with fixed words where no model is asked."""

from __future__ import annotations

import re
import time
import unicodedata
from dataclasses import dataclass, field

from pipeline.chat import safety
from pipeline.chat.backends import Request
from pipeline.chat.farewell import asks_whether_ai, goodbye, is_goodbye
from pipeline.chat.options import ChatOptions
from pipeline.chat.personas import Persona
from pipeline.chat.reply import Emotion, Note, Source
from pipeline.chat.resources import data
from pipeline.chat.session import Session

# What is typed but not seen: control characters, marks of direction and width, halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Ask:
    """One message for `Counselor.reply_many`; fields as in `Counselor.reply`."""

    text: str
    user: str | None = None
    persona: str | None = None
    session: str | None = None
    adapter: str | None = None


@dataclass
class Turn:
    """A message on its way to a reply; ``fixed`` are words that need no model, and where they come from."""

    ask: Ask
    text: str
    session: Session
    persona: Persona
    risk: safety.Assessment
    emotion: Emotion | None = None
    introduction: str | None = None
    fixed: tuple[str, Source] | None = None
    ended: bool = False
    notes: tuple[Note, ...] = ()
    request: Request | None = None
    began: float = field(default_factory=time.perf_counter)

    def answer_fixed(self, options: ChatOptions) -> None:
        """Fill in ``fixed`` where no model is to answer: safety first, then goodbyes and what cannot be read."""
        texts = data("texts")
        if self.risk.risk == "high":
            self.fixed = safety.crisis_text(self.risk.kind, self.session.crises), "safety"
        elif not self.text:
            self.fixed = texts["empty"], "notice"
        elif len(self.text) > options.max_message_chars:
            self.fixed = texts["too_long"].format(limit=options.max_message_chars), "notice"
        elif asks_whether_ai(self.text):
            self.fixed = texts["is_ai"], "notice"
        elif is_goodbye(self.text):
            self.fixed, self.ended = (goodbye(self.session), "notice"), True
        elif not any(unicodedata.category(letter)[0] in "LN" for letter in self.text):
            self.fixed = texts["no_words"], "notice"


def clean(text: str) -> str:
    """The message as it is read and remembered: composed Hangul, nothing unseen, no space around it."""
    return _UNSEEN.sub("", unicodedata.normalize("NFC", text)).strip()
