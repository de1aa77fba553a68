"""One message on its way to a reply: cleaned, assessed, and answered with fixed words where no model is asked."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from pipeline.chat import safety
from pipeline.chat.backends import Message, Request
from pipeline.chat.farewell import asks_whether_ai, goodbye, is_goodbye
from pipeline.chat.options import ChatOptions
from pipeline.chat.personas import Persona
from pipeline.chat.reply import Emotion, Note, Reply, Source, TokenUsage
from pipeline.chat.resources import data
from pipeline.chat.session import Session, Turned
from pipeline.chat.speak import Spoken

# What is typed but not seen: control characters, marks of direction and width, halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Sampling:
    """What one request wants otherwise than the recipe's `chat:` section; None: as there.

    ``stop`` are texts before which the reply ends; ``max_new_tokens`` can only shorten what the recipe allows.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Who(TypedDict, total=False):
    """Who asks and how, as in `Counselor.reply`."""

    user: str | None
    persona: str | None
    session: str | None
    adapter: str | None
    sentiment: str | None


@dataclass(frozen=True)
class Ask:
    """One message for `Counselor.reply_many`; the first fields as in `Counselor.reply`.

    Attributes:
        text: what the user writes, without what is typed but not seen (see `clean`).
        history: the conversation so far where the caller keeps it, as messages with an optional ``risk`` or as
            exchanges (`Turned`); None: the counsellor keeps it. With a history nothing of the session stays in this
            process but its computed prefix.
        system: instructions of the caller, added to the counsellor's own.
        sampling: what this request wants otherwise.
        remember: whether the exchange is written to the user's memory; if not, `Counselor.remember` can do it later.
        unseen: ids of remembered exchanges that are not to be recalled.
        avoid: replies that are not wanted, as the first of two that are to be chosen from.
    """

    text: str
    user: str | None = None
    persona: str | None = None
    session: str | None = None
    adapter: str | None = None
    sentiment: str | None = None
    history: Sequence[Message | Turned] | None = None
    system: str | None = None
    sampling: Sampling = Sampling()
    remember: bool = True
    unseen: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Clean the text, whoever hands it over."""
        object.__setattr__(self, "text", clean(self.text))


@dataclass
class Turn:
    """A message on its way to a reply; ``fixed`` are words that need no model, and where they come from."""

    ask: Ask
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
            standing = self.risk.standing
            self.fixed = (
                safety.standing_text(standing, self.session.asked_on(standing))
                if standing
                else safety.crisis_text(self.risk.kind, self.session.crises),
                "safety",
            )
        elif not self.ask.text:
            self.fixed = texts["empty"], "notice"
        elif len(self.ask.text) > options.max_message_chars:
            self.fixed = texts["too_long"].format(limit=options.max_message_chars), "notice"
        elif asks_whether_ai(self.ask.text):
            self.fixed = texts["is_ai"], "notice"
        elif is_goodbye(self.ask.text):
            self.fixed, self.ended = (goodbye(self.session), "notice"), True
        elif not any(unicodedata.category(letter)[0] in "LN" for letter in self.ask.text):
            self.fixed = texts["no_words"], "notice"

    def afterword(self) -> str | None:
        """What follows the model's reply, once: where to ask for someone else, or how it is after a danger was told."""
        texts = data("crisis")
        if self.risk.kind == "other" and not self.session.other_told:
            self.session.other_told = True
            return texts["other"].strip()
        check_in = texts["check_in"].strip()
        if self.risk.reasons == ("earlier_high",) and not self.session.checked_in(check_in):
            return check_in
        return None

    def past(self, spoken: Spoken) -> Turned:
        """The exchange as the session goes on from it."""
        risk = self.risk
        kind = risk.kind if risk.risk == "high" else None
        return Turned(self.ask.text, spoken.text, risk.risk, self.emotion, kind=kind, standing=risk.standing)

    def replied(self, spoken: Spoken, exchange: str | None, *, memorable: bool) -> Reply:
        """The typed reply; ``exchange``: its id in the user's memory, if it was written there."""
        usage, seconds, picked = spoken.usage, time.perf_counter() - self.began, spoken.picked
        return Reply(
            text=spoken.text,
            source=spoken.source,
            risk=self.risk.risk,
            kind=self.risk.kind,
            emotion=self.emotion,
            recalled=self.notes,
            usage=TokenUsage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                seconds=round(seconds, 3),
            ),
            category=picked.category if picked else None,
            index=picked.index if picked else None,
            score=round(picked.score, 4) if picked else None,
            reasons=(*self.risk.reasons, *dict.fromkeys(spoken.reasons)),
            persona=self.persona.name,
            session=self.session.name,
            exchange=exchange,
            memorable=memorable,
            introduction=self.introduction,
            ended=self.ended,
        )


def waves(asks: Sequence[Ask]) -> Iterator[dict[int, Ask]]:
    """The messages in groups of place → message, in which no session occurs twice and each one's order is kept."""
    waiting = dict(enumerate(asks))
    while waiting:
        now: dict[int, Ask] = {}
        taken = set()
        for place, ask in waiting.items():
            key = (ask.user, ask.session)
            if key not in taken or key == (None, None):
                now[place] = ask
            taken.add(key)
        yield now
        waiting = {place: ask for place, ask in waiting.items() if place not in now}


def clean(text: str) -> str:
    """The message as it is read and remembered: composed Hangul, nothing unseen, no space around it."""
    return unicodedata.normalize("NFC", _UNSEEN.sub("", text)).strip()
