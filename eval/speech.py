"""Korean speech levels from sentence endings (Kiwi): does a reply stay polite from its first sentence to its last?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kiwipiepy import Kiwi, Token

Level = Literal["polite", "plain"]

_FORMAL = ("니다", "니까", "십시오", "시오", "시다")


@dataclass(frozen=True)
class Morphemes:
    """One reply taken apart: its morphemes as ``form/tag``, and the level of each sentence that has one."""

    forms: tuple[str, ...]
    levels: tuple[Level, ...]


@lru_cache(maxsize=1)
def _analyser() -> Kiwi:
    """Made once (a second or two), never changed, safe to share between threads."""
    from kiwipiepy import Kiwi

    return Kiwi(num_workers=1)


def analyse(texts: Sequence[str]) -> list[Morphemes]:
    """Take each text apart."""
    return [_morphemes(_analyser().tokenize(text)) for text in texts]


def _morphemes(tokens: Sequence[Token]) -> Morphemes:
    sentences: dict[int, list[Token]] = {}
    for token in tokens:
        sentences.setdefault(token.sent_position, []).append(token)
    levels = [level for sentence in sentences.values() if (level := speech_level(sentence))]
    return Morphemes(tuple(f"{token.form}/{token.tag}" for token in tokens), tuple(levels))


def speech_level(sentence: Sequence[Token]) -> Level | None:
    """The level of a sentence by its last final ending: 해요체 and 하십시오체 are polite, the rest plain.

    None for a sentence without a final ending ("네", "오늘도 힘내기") unless it ends in the particle 요.
    """
    endings = [(token.form, token.tag) for token in sentence if token.tag in ("EF", "JX") and token.form != ""]
    for form, tag in reversed(endings):
        if form.endswith(("요", "죠")) and (tag == "EF" or form == "요"):
            return "polite"
        if tag == "EF":
            return "polite" if form.endswith(_FORMAL) else "plain"
    return None
