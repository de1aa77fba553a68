"""Cleaning: each rule can be switched off, and each says how many turns or conversations it changed."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.conversation import Conversation, Turn

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff9-\uffff]")
_BREAKS = re.compile(r"\r\n?|\u2028|\u2029|\x85")
_SPACES = re.compile(r"[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\u3164\uffa0]")
_TAG = re.compile(
    r"</?(?:p|br|b|i|u|s|em|strong|span|div|font|a|ul|ol|li|h[1-6]|table|t[rdh]|img|code|pre)\b[^<>]*>", re.I
)
_ENTITY = re.compile(r"&(?:#\d{1,6}|#x[0-9a-f]{1,5}|[a-z]{2,8});", re.I)
_HANGUL = re.compile(r"[가-힣]")


class Cleaner:
    """Applies the rules of a `CleanOptions` (anything with its attributes) and counts what they change.

    ``counts`` maps each rule to the number of distinct turn texts or conversations it changed.
    """

    def __init__(self, options: Any) -> None:
        self.counts: Counter[str] = Counter()
        self.options = options
        self._rules = [(name, rule) for name, rule in text_rules().items() if getattr(options, name)]
        self._text = lru_cache(maxsize=200_000)(self._clean_text)

    def __call__(self, conversation: Conversation) -> Conversation | str:
        """The cleaned conversation, or the reason (str) why nothing of it is left."""
        turns = tuple(Turn(turn.role, self._text(turn.content)) for turn in conversation.turns)
        rejected = tuple(self._text(text) for text in conversation.rejected)
        if self.options.empty_turns:
            kept = tuple(turn for turn in turns if turn.content)
            self.counts["empty_turns"] += kept != turns
            turns = kept
        if self.options.role_order:
            ordered = in_order(turns, keep_single=not any(turn.role == "assistant" for turn in turns))
            self.counts["role_order"] += ordered != turns
            if ordered[-1:] != turns[-1:]:
                rejected = ()  # they answered a turn that is gone
            turns = ordered
        if not any(turn.role == "user" for turn in turns):
            return "nothing left after cleaning"
        replies = [turn.content for turn in turns if turn.role == "assistant"]
        if self.options.hangul != "off" and not all(map(_HANGUL.search, replies)):
            self.counts["hangul"] += 1
            if self.options.hangul == "drop":
                return "a reply without Hangul"
        if turns == conversation.turns and rejected == conversation.rejected:
            return conversation
        return replace(conversation, turns=turns, rejected=tuple(text for text in rejected if text))

    def _clean_text(self, text: str) -> str:
        for name, rule in self._rules:
            cleaned = rule(text)
            if cleaned != text:
                self.counts[name] += 1
                text = cleaned
        return _tidy(text)


def in_order(turns: tuple[Turn, ...], *, keep_single: bool = False) -> tuple[Turn, ...]:
    """System turn first if any, then user and assistant by turns, a reply last.

    Neighbouring turns of one speaker are joined by a line break. Replies before the first user turn and a user turn
    that nobody answers are dropped; ``keep_single`` keeps the latter (utterances that were never meant to be answered).
    """
    system = "\n".join(turn.content for turn in turns if turn.role == "system")
    ordered: list[Turn] = []
    for turn in turns:
        if turn.role == "system" or (not ordered and turn.role == "assistant"):
            continue
        if ordered and ordered[-1].role == turn.role:
            ordered[-1] = Turn(turn.role, f"{ordered[-1].content}\n{turn.content}")
        else:
            ordered.append(turn)
    if ordered and ordered[-1].role == "user" and not keep_single:
        ordered.pop()
    return (Turn("system", system), *ordered) if system and ordered else tuple(ordered)


@lru_cache(maxsize=1)
def text_rules() -> Mapping[str, Callable[[str], str]]:
    """The rules that work on the text of a turn, in the order in which they are applied."""
    import yaml

    data = yaml.safe_load((Path(__file__).parent / "clean.yaml").read_text("utf-8"))
    units = "|".join(map(re.escape, data["not_a_helpline_before"]))
    lines = "|".join(data["helplines"])
    helpline = re.compile(rf"(?<![\d.,-])(?:{lines})(?![\d-]|[.,]\d|\s?(?:{units}))")
    run = re.compile(rf"([{data['runs']}])\1{{3,}}|([가-힣])\2{{5,}}")
    return {
        "markup": _markup,
        "unicode": lambda text: text if text.isascii() else unicodedata.normalize("NFC", _SPACES.sub(" ", text)),
        "control": lambda text: _CONTROL.sub("", _BREAKS.sub("\n", text)),
        "repeats": lambda text: run.sub(lambda match: (match[1] or match[2]) * 3, text),
        "helplines": lambda text: helpline.sub(lambda match: data["helplines"][match[0]], text),
    }


def _markup(text: str) -> str:
    if "\\n" in text:
        text = text.replace("\\r", "").replace("\\n", "\n")
    if "<" in text:
        text = _TAG.sub(lambda tag: "\n" if tag[0].lower().startswith(("<br", "</p", "</div", "</li")) else "", text)
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text


def _tidy(text: str) -> str:
    """Surrounding space off every line, no more than one empty line in a row."""
    if "\n" not in text and "  " not in text:
        return text.strip()
    lines = re.sub(" {2,}", " ", text).split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in lines)).strip()
