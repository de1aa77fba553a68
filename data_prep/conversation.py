"""The one type everything in this room passes on: a conversation of turns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]

#: An opener shorter than this many letters ("안녕하세요") says nothing about which conversation it opens.
SHORT_OPENER = 12


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks and what is said."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Ordered turns with their provenance.

    Attributes:
        id: unique inside one prepared set; empty until known, see `identified`.
        turns: an optional system turn, then user and assistant by turns once cleaned.
        source: name of the source it came from.
        meta: what else the source knew (``category``, ``emotion``, ``file``, ``row`` ...).
        rejected: worse alternatives to the last reply; each makes a preference pair with it.
        given: number of leading turns that are context only, because another conversation of the set
            already teaches the replies in them (see `data_prep.reassemble`).
    """

    id: str
    turns: tuple[Turn, ...]
    source: str
    meta: dict[str, Any] = field(default_factory=dict)
    rejected: tuple[str, ...] = ()
    given: int = 0

    def messages(self) -> list[dict[str, str]]:
        """The turns as ``[{"role": ..., "content": ...}]``, the form in which rooms exchange conversations."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns]

    def exchanges(self) -> list[tuple[str, str]]:
        """Each user turn with the reply that follows it."""
        pairs = zip(self.turns, self.turns[1:], strict=False)
        return [(a.content, b.content) for a, b in pairs if (a.role, b.role) == ("user", "assistant")]

    def targets(self) -> list[tuple[tuple[Turn, ...], str]]:
        """What a model is taught by it: (context, reply) for each reply outside ``given``."""
        return [
            (self.turns[:index], turn.content)
            for index, turn in enumerate(self.turns)
            if turn.role == "assistant" and index >= self.given
        ]

    def prefix_hashes(self) -> list[int]:
        """For each turn, a 64-bit number that stands for the conversation up to and including it."""
        chain, hashes = b"", []
        for turn in self.turns:
            text = f"{turn.role}\0{turn.content}".encode(errors="replace")
            chain = blake2b(text, digest_size=8, key=chain).digest()
            hashes.append(int.from_bytes(chain, "big"))
        return hashes

    def root(self) -> int:
        """64-bit hash of how the conversation begins; conversations of one root belong in one split.

        The first user turn counts, letters and digits only; where that is too short to tell conversations apart,
        the reply to it counts too.
        """
        spoken = [turn for turn in self.turns if turn.role != "system"]
        opener = letters(spoken[0].content) if spoken else ""
        if len(opener) < SHORT_OPENER and len(spoken) > 1:
            opener += "\0" + letters(spoken[1].content)
        return int.from_bytes(
            blake2b(opener.encode(errors="replace"), digest_size=8, person=b"gonggam").digest(), "big"
        )

    def text(self) -> str:
        """All turns, one a line."""
        return "\n".join(turn.content for turn in self.turns)


def letters(text: str) -> str:
    """Letters and digits of ``text`` in lower case: what is left when spacing and marks do not count."""
    return re.sub(r"[\W_]+", "", text).lower()
