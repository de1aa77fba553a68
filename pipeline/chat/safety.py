"""The safety layer outside the model: the risk of what a user writes, and what a model must never say.

Rules (``data/safety.yaml``) and a small trained classifier look at every message; either may raise the risk, neither
can lower what the other saw. On ``high`` the texts of ``data/crisis.yaml`` answer instead of the model.
What it was measured to catch and to miss stands in ``docs/safety.md``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pipeline.chat.classifier import NgramClassifier
from pipeline.chat.resources import DATA, data, squeeze

_LETTERS = re.compile("([ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅ-ㅎ])([ㅏ-ㅣ])(?:([ㄱ-ㄷㄹ-ㅂㅄ-ㅆㅇㅈㅊ-ㅎ])(?![ㅏ-ㅣ]))?")

Risk = Literal["none", "low", "high"]
Kind = Literal["suicide", "self_harm", "danger", "other"]


@dataclass(frozen=True)
class Assessment:
    """Risk of a message. ``reasons`` name rules and scores, never the user's words; ``kind`` chooses the text."""

    risk: Risk
    reasons: tuple[str, ...] = ()
    kind: Kind | None = None


@dataclass(frozen=True)
class _Rule:
    id: str
    kind: Kind
    any: re.Pattern[str]
    unless: re.Pattern[str] | None


def assess(text: str, history: Sequence[str] = (), *, threshold: float | None = None) -> Assessment:
    """Risk of ``text``, with the user's earlier messages in view.

    Args:
        text: the message, any length.
        history: the user's earlier messages of this session, oldest first.
        threshold: probability from which the classifier alone calls a message high; None: as shipped.
    """
    if not re.search(r"\w", text):
        return _carried(text, history) or Assessment("none")
    found = weigh(text, classifier().probabilities(text[:1000]), threshold)
    if found.risk != "high" and history and (carried := _carried(text, history)):
        return carried
    return found


def weigh(text: str, odds: Mapping[str, float], threshold: float | None = None) -> Assessment:
    """What rules and classifier say together; where the rules see another person or the past, they are believed."""
    ruled = by_rules(text)
    if ruled.risk == "high" or ruled.reasons in (("other_person",), ("past",)):
        return ruled
    if odds["high"] >= needed(text, threshold):
        return Assessment("high", (f"classifier {odds['high']:.2f}", *ruled.reasons), "suicide")
    if ruled.risk == "none" and odds["low"] > odds["none"] + odds.get("calm", 0.0):
        return Assessment("low", (f"classifier low {odds['low']:.2f}",))
    return ruled


def by_rules(text: str) -> Assessment:
    """What the rules alone say."""
    plain = spelled(text)
    if _found("other", plain):
        return Assessment("low", ("other_person",), "other")
    if _found("past", plain):
        return Assessment("low", ("past",))
    hits = [rule for rule in _rules() if rule.any.search(plain) and not (rule.unless and rule.unless.search(plain))]
    if hits:
        return Assessment("high", tuple(rule.id for rule in hits), hits[-1].kind if len(hits) == 1 else hits[0].kind)
    return Assessment("low", ("hopeless",)) if _low().search(plain) else Assessment("none")


def needed(text: str, threshold: float | None = None) -> float:
    """The probability of ``high`` from which the classifier is believed: higher where no cue stands."""
    settings = data("safety")
    if re.search(settings["cues"], spelled(text)):
        return threshold or settings["threshold"]
    return max(threshold or 0, settings["threshold_without_cue"])


def spelled(text: str) -> str:
    """The message without spaces and signs, typed sounds and slang turned into the words they stand for."""
    plain = _LETTERS.sub(_composed, squeeze(unicodedata.normalize("NFC", text)))
    plain = re.sub(r"([^0-9])\1{2,}", r"\1\1", plain)
    for pattern, word in _spellings():
        plain = pattern.sub(word, plain)
    return plain


def check_output(reply: str, said: str = "") -> tuple[str, ...]:
    """What in a model's reply must not be said: names of the kinds found (methods, diagnosis, contact data ...)."""
    allowed = "|".join(map(re.escape, data("safety")["numbers"]))
    text = re.sub(rf"(?<![\d-])(?:{allowed})(?![\d-])", "", reply)
    return tuple(kind for kind, pattern in _output().items() if pattern.search(text))


def crisis_text(kind: Kind | None, times: int) -> str:
    """The words people wrote for a message of high risk; ``times``: how often the session has heard them."""
    texts = data("crisis")[kind if kind in ("suicide", "self_harm", "danger") else "suicide"]
    return (texts["first"] if times == 0 else texts["again"][(times - 1) % len(texts["again"])]).strip()


def _carried(text: str, history: Sequence[str]) -> Assessment | None:
    """What only shows together with earlier messages: words broken over several of them, or a danger not yet past."""
    for count in range(1, min(len(history), 3) + 1):
        *_, last = parts = [*history[-count:], text]
        if all(len(part) <= 12 for part in parts) and last and by_rules("".join(parts)).risk == "high":
            found = by_rules("".join(parts))
            if all(by_rules(part).risk != "high" for part in parts):
                return Assessment("high", ("across_messages", *found.reasons), found.kind)
    earlier = next((found for found in map(by_rules, reversed(history)) if found.risk == "high"), None)
    return Assessment("low", ("earlier_high",), earlier.kind) if earlier else None


def _composed(match: re.Match[str]) -> str:
    """One syllable typed as separate letters (``ㅈㅜㄱ``) put together (Unicode chapter 3.12)."""
    first, vowel, last = match.groups()
    lead = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ".index(first)
    tail = "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ".index(last) + 1 if last else 0
    return chr(0xAC00 + (lead * 21 + ord(vowel) - ord("ㅏ")) * 28 + tail)


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
def _low() -> re.Pattern[str]:
    return re.compile("|".join(data("safety")["low"]))


@cache
def _output() -> dict[str, re.Pattern[str]]:
    return {kind: re.compile(pattern) for kind, pattern in data("safety")["output"].items()}


@cache
def classifier() -> NgramClassifier:
    """The shipped classifier."""
    return NgramClassifier.load(DATA / "safety.npz")
