"""Korean personal data: found by patterns, replaced by placeholders that say what stood there.

The patterns are data (``privacy.yaml``). How well they find what they should is measured on a hand-labelled file by
``bench/privacy.py``; the figures stand in ``docs/data.md``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.conversation import Conversation, Turn


class Finding(NamedTuple):
    """Personal data at ``text[start:end]``."""

    start: int
    end: int
    kind: str
    placeholder: str


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    placeholder: str
    pattern: re.Pattern[str]
    near: re.Pattern[str] | None
    not_near: re.Pattern[str] | None
    check: Callable[[str], bool] | None
    digits: bool


#: Cheap tests that nearly all texts fail: only then the patterns are tried.
_MAYBE_NUMBER = re.compile(r"\d|@|골뱅이|[공영]일[공영]|://|www|\.[a-z]", re.I)
_MAYBE_NAME = re.compile(r"이름|성함|성명|본명|실명|저는|나는|난 |전 |라고 ")


@lru_cache(maxsize=1)
def _kinds() -> tuple[_Kind, ...]:
    import yaml

    data = yaml.safe_load((Path(__file__).parent / "privacy.yaml").read_text("utf-8"))
    parts = {name: data[name] for name in ("surnames", "region", "house", "brand")}
    checks: dict[str, Callable[[str], bool]] = {
        "birth_date": _birth_date,
        "card": _card,
        "account": _account,
        "name": lambda text: not text.startswith(tuple(data["not_names"])),
        "full_name": lambda text: (
            not text.startswith(tuple(data["not_names"])) and not text.endswith(tuple(data["not_name_endings"]))
        ),
    }
    return tuple(
        _Kind(
            name=kind.get("kind", name),
            placeholder=kind["placeholder"],
            pattern=_compile(kind["pattern"], parts, re.X if kind.get("case") else re.X | re.I),
            near=_words(kind.get("near")),
            not_near=_words(kind.get("not_near")),
            check=checks[kind["check"]] if "check" in kind else None,
            digits=kind.get("kind", name) != "name",
        )
        for name, kind in data["kinds"].items()
    )


def _compile(pattern: str, parts: Mapping[str, str], flags: re.RegexFlag) -> re.Pattern[str]:
    for name, part in parts.items():
        pattern = pattern.replace(f"{{{name}}}", part)
    return re.compile(pattern, flags)


def _words(words: list[str] | None) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, words)), re.I) if words else None


def find(text: str) -> list[Finding]:
    """Personal data in ``text``, from left to right, without overlaps."""
    number, name = _MAYBE_NUMBER.search(text), _MAYBE_NAME.search(text)
    if not number and not name:
        return []
    found: list[Finding] = []
    for kind in _kinds():
        if not (number if kind.digits else name):
            continue
        for match in kind.pattern.finditer(text):
            start, end = match.span(match.lastgroup or 0)  # the only named group, `it`, is what is masked
            if _fits(kind, text, start, end) and all(end <= f.start or start >= f.end for f in found):
                found.append(Finding(start, start + len(text[start:end].rstrip(" ,-(")), kind.name, kind.placeholder))
    return sorted(found)


def _fits(kind: _Kind, text: str, start: int, end: int) -> bool:
    if kind.near and not kind.near.search(text, max(0, start - 20), start):
        return False
    if kind.not_near and kind.not_near.search(text, max(0, start - 14), start):
        return False
    return kind.check is None or kind.check(text[start:end])


def mask(text: str) -> str:
    """``text`` with placeholders such as [전화번호] in place of personal data."""
    for finding in reversed(find(text)):
        text = text[: finding.start] + finding.placeholder + text[finding.end :]
    return text


class Privacy:
    """Applies ``mask``, ``drop``, ``report`` or ``off`` to conversations; ``counts`` holds what was found by kind."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.counts: Counter[str] = Counter()
        self._find = lru_cache(maxsize=200_000)(lambda text: tuple(find(text)))

    def __call__(self, conversation: Conversation) -> Conversation | str:
        """The conversation to go on with, or the reason (str) why it is dropped."""
        if self.mode == "off":
            return conversation
        texts = [turn.content for turn in conversation.turns] + list(conversation.rejected)
        found = [self._find(text) for text in texts]
        if not any(found):
            return conversation
        self.counts.update(finding.kind for findings in found for finding in findings)
        if self.mode == "drop":
            return "personal data"
        return conversation if self.mode == "report" else _masked(conversation, texts, found)


def _masked(conversation: Conversation, texts: list[str], found: list[Any]) -> Conversation:
    """All findings replaced; a name said once is also replaced where somebody is called by it (민지님, 민지야)."""
    names = {t[f.start : f.end] for t, findings in zip(texts, found, strict=True) for f in findings if f.kind == "name"}
    given = names | {name[1:] for name in names if len(name) == 3}
    called = (
        re.compile(rf"(?<![가-힣])(?:{'|'.join(sorted(given, key=len, reverse=True))})(?=님|씨|야|아[ ,!?~])")
        if given
        else None
    )
    masked = []
    for text in texts:
        text = mask(text)
        masked.append(called.sub("[이름]", text) if called else text)
    split = len(conversation.turns)
    turns = tuple(Turn(turn.role, text) for turn, text in zip(conversation.turns, masked[:split], strict=True))
    return replace(conversation, turns=turns, rejected=tuple(masked[split:]))


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _birth_date(text: str) -> bool:
    """Whether the first six digits are a date; check digits ended with the numbers given out since October 2020."""
    return 1 <= int(text[2:4]) <= 12 and 1 <= int(text[4:6]) <= 31


def _card(text: str) -> bool:
    """Four groups of four are taken as they stand; a bare run of digits must pass the Luhn check."""
    digits = _digits(text)
    if len(digits) < len(text):
        return True
    doubled = [int(d) * (2 if place % 2 else 1) for place, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _account(text: str) -> bool:
    """10 to 16 digits that are no date (2024-01-15-…)."""
    return 10 <= len(_digits(text)) <= 16 and not re.match(r"(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:[0-2]\d|3[01])\b", text)
