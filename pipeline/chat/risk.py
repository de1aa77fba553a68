"""The risk of one message by itself: rules and a small classifier, either of which may raise it.

The rules are ``data/safety.yaml``. What earlier messages add is told in `pipeline.chat.safety`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pipeline.chat.classifier import NgramClassifier
from pipeline.chat.resources import DATA, data, squeeze

_LETTERS = re.compile("([ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅ-ㅎ])([ㅏ-ㅣ])(?:([ㄱ-ㄷㄹ-ㅂㅄ-ㅆㅇㅈㅊ-ㅎ])(?![ㅏ-ㅣ]))?")
_LOOSE_TAIL = re.compile("([가-힣])([ㄱㄴㄷㄹㅁㅂㅅㅈㅍ])(?=[가-힣])")

Risk = Literal["none", "low", "high"]
Kind = Literal["suicide", "self_harm", "danger", "asking", "other"]
_ENOUGH = 3
"""Weight of weak signs that together are taken for a goodbye."""
_FEW = 6
"""Letters up to which the classifier needs a cue."""
Standing = Literal["affirmed", "denied", "withdrawn"]


@dataclass(frozen=True)
class Assessment:
    """Risk of a message. ``reasons`` name rules and scores, never the user's words.

    ``kind`` chooses the text (``asking``: signs that may mean danger, so that the text asks first). ``standing`` is set
    where the danger was told before and this message neither repeats it nor moves on: how it answers.
    """

    risk: Risk
    reasons: tuple[str, ...] = ()
    kind: Kind | None = None
    standing: Standing | None = None


@dataclass(frozen=True)
class _Rule:
    id: str
    kind: Kind
    any: re.Pattern[str]
    unless: re.Pattern[str] | None


def weigh(text: str, odds: Mapping[str, float], threshold: float | None = None) -> Assessment:
    """What rules and classifier say together; where the rules see another person or the past, they are believed."""
    ruled = by_rules(text)
    if ruled.risk == "high" or ruled.reasons in (("other_person",), ("past",)):
        return ruled
    if odds["high"] >= needed(text, threshold):
        return Assessment("high", (f"classifier {odds['high']:.2f}", *ruled.reasons), "asking")
    if ruled.risk == "none" and odds["low"] > odds["none"] + odds.get("calm", 0.0):
        return Assessment("low", (f"classifier low {odds['low']:.2f}",))
    return ruled


def by_rules(text: str) -> Assessment:
    """What the rules alone say."""
    plain = telling(text)
    if _found("other", plain):
        return Assessment("low", ("other_person",), "other")
    if _found("past", plain):
        return Assessment("low", ("past",))
    hits = [rule for rule in _rules() if rule.any.search(plain) and not (rule.unless and rule.unless.search(plain))]
    if hits:
        return Assessment("high", tuple(rule.id for rule in hits), hits[-1].kind if len(hits) == 1 else hits[0].kind)
    if (weight := sum(signs(text).values())) >= _ENOUGH:
        return Assessment("high", ("several_signs",), "asking")
    if _low().search(plain):
        return Assessment("low", ("hopeless",))
    return Assessment("low", ("weak_signs",)) if weight == _ENOUGH - 1 else Assessment("none")


def signs(text: str) -> dict[str, int]:
    """Weak signs of a goodbye (things given away, a room cleared ...) with their weights; none in an everyday frame."""
    plain, found = spelled(text), data("safety")["signs"]
    if re.search(found["everyday"], plain):
        return {}
    return {name: weight for name, (weight, pattern) in found["weights"].items() if re.search(pattern, plain)}


def needed(text: str, threshold: float | None = None) -> float:
    """The probability of ``high`` from which the classifier is believed: higher where no cue stands.

    A word or two without any cue ("그냥요") are never enough for it.
    """
    settings, plain = data("safety"), telling(text)
    if re.search(settings["cues"], plain):
        return threshold or settings["threshold"]
    return max(threshold or 0, settings["threshold_without_cue"]) if len(squeeze(text)) > _FEW else math.inf


def telling(text: str) -> str:
    """`spelled` without everyday words and idioms that tell of no danger; that it is a story stays told."""
    return _harmless().sub(lambda found: f" {found['story'] or ''} ", spelled(text))


def spelled(text: str) -> str:
    """The message without spaces and signs, typed sounds and slang turned into the words they stand for."""
    plain = _LETTERS.sub(_composed, squeeze(unicodedata.normalize("NFC", text)))
    plain = _LOOSE_TAIL.sub(_closed, plain)
    plain = re.sub(r"([^0-9])\1{2,}", r"\1\1", plain)
    for pattern, word in _spellings():
        plain = pattern.sub(word, plain)
    return plain


def _composed(match: re.Match[str]) -> str:
    """One syllable typed as separate letters (``ㅈㅜㄱ``) put together (Unicode chapter 3.12)."""
    first, vowel, last = match.groups()
    lead = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ".index(first)
    tail = "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ".index(last) + 1 if last else 0
    return chr(0xAC00 + (lead * 21 + ord(vowel) - ord("ㅏ")) * 28 + tail)


def _closed(match: re.Match[str]) -> str:
    """An open syllable and the letter after it as one (``주ㄱ고`` is 죽고); a closed one keeps the letter apart."""
    syllable, tail = match.groups()
    if (ord(syllable) - 0xAC00) % 28:
        return match[0]
    return chr(ord(syllable) + "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ".index(tail) + 1)


def _found(key: str, plain: str) -> bool:
    found = data("safety")[key]
    return any(re.search(p, plain) for p in found["any"]) and not any(re.search(p, plain) for p in found["unless"])


@cache
def _rules() -> tuple[_Rule, ...]:
    frames = data("safety")["frames"]

    def compiled(entry: dict[str, Any]) -> _Rule:
        unless = "|".join(frames.get(name, name) for name in entry.get("unless", ()))
        return _Rule(
            entry["id"], entry["kind"], re.compile("|".join(entry["any"])), re.compile(unless) if unless else None
        )

    return tuple(map(compiled, data("safety")["rules"]))


@cache
def _spellings() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), word) for pattern, word in data("safety")["spellings"])


@cache
def _harmless() -> re.Pattern[str]:
    return re.compile("|".join(data("safety")["harmless"]))


@cache
def _low() -> re.Pattern[str]:
    return re.compile("|".join(data("safety")["low"]))


@cache
def classifier() -> NgramClassifier:
    """The shipped classifier."""
    return NgramClassifier.load(DATA / "safety.npz")
