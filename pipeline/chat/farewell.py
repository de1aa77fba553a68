"""Saying goodbye: notices that a conversation is ended, and closes it with a short summary."""

from __future__ import annotations

import re

from pipeline.chat.resources import data, patterns, squeeze
from pipeline.chat.session import Session

_CLAUSE = re.compile(r"[.!?~…\n]|(?:,\s)")


def is_goodbye(text: str) -> bool:
    """Whether the message ends the conversation ("고마워, 이만 종료할게")."""
    return len(text) <= 60 and bool(patterns("texts", "goodbye_phrases").search(squeeze(text)))


def asks_whether_ai(text: str) -> bool:
    """Whether the message asks what it is talking to ("너 사람이야?")."""
    return len(text) <= 60 and bool(patterns("texts", "ai_questions").search(squeeze(text)))


def goodbye(session: Session) -> str:
    """The closing words, with what the session was about; after a crisis the numbers once more instead."""
    texts = data("texts")
    if session.crises:
        return texts["goodbye_after_crisis"]
    greeting = patterns("texts", "greetings")
    topics = [short for said in session.said if (short := clause(said)) and not greeting.search(squeeze(short))]
    summary = ""
    if topics:
        last = topics[-1] if topics[-1] != topics[0] else None
        summary = texts["goodbye_more" if last else "goodbye_one"].format(first=topics[0], last=last)
        if feeling := session.feeling():
            summary += texts["goodbye_feeling"].format(emotion=texts["feelings"].get(feeling, feeling))
    return texts["goodbye"].format(summary=summary)


def clause(text: str, longest: int = 28) -> str:
    """The first clause of a message, without the tears and laughter around it; cut at a word, not within one."""
    parts = [part.strip(" ㅋㅎㅠㅜ^'\"") for part in _CLAUSE.split(text)]
    first = next((part for part in parts if len(part) >= 4), "")
    if len(first) <= longest:
        return first
    cut = first[:longest].rsplit(" ", 1)[0]
    return f"{cut}…"
