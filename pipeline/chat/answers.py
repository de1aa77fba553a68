"""What people wrote, for where the model's reply was withdrawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.chat.emotion import Feel
from pipeline.chat.options import GateOptions
from pipeline.chat.reply import Source
from pipeline.chat.resources import data

if TYPE_CHECKING:
    from rag.knowledge import KnowledgeBase

_TRIES = 20


@dataclass(frozen=True)
class HumanAnswers:
    """The nearest answer of the index, else general words that fit the feeling."""

    knowledge: KnowledgeBase | None
    options: GateOptions
    feel: Feel

    def __call__(self, said: str, before: Sequence[str], *, grave: bool = False) -> tuple[str, Source]:
        """The best answer people wrote to something like this that was not just given.

        After a danger was told (``grave``) general words only: a light answer to something like it would hurt.
        """
        texts, options = data("texts"), self.options
        if not re.search("[가-힣ㄱ-ㅎ]", said):
            return texts["not_korean"], "notice"
        feeling = self.feel(said)
        sure = feeling.score >= options.min_feeling
        # Only answers to a first message: later ones speak of what their own conversation had told before.
        hits = self.knowledge.search(said, k=_TRIES) if self.knowledge and not grave else []
        near = [hit for hit in hits if hit.cosine >= options.min_cosine and not hit.meta.get("turn")]
        for hit in near:
            hurts = sure and opposite(feeling.label, hit.meta.get("emotion"))
            if not hurts and hit.answer not in before:
                return hit.answer, "knowledge"
        words = [*(texts["fallback_by_feeling"].get(feeling.label, ()) if sure else ()), *texts["fallback"]]
        return next((text for text in words if text not in before), words[0]), "notice"


def opposite(feeling: str, other: str | None) -> bool:
    """Whether one of two emotions is bright and the other heavy, so that an answer to one would hurt in the other."""
    tones = {label: tone for tone, labels in data("texts")["tones"].items() for label in labels}
    return {tones.get(feeling), tones.get(other or "")} == {"bright", "heavy"}
