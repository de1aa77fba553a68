"""Emotion sets, such as EC_data and the data of the 11-class Korean sentiment models: a text and its label.

They hold no replies: what is prepared from them goes to ``labelled/`` and serves classifiers.
"""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation, Turn
from data_prep.sources.fields import BadRow, need, split_line, text_of

_TEXTS = ("text", "sentence", "utterance", "content", "발화", "문장")
_LABELS = ("emotion", "label", "감정", "class")
COLUMNS = tuple(frozenset({text, label}) for text in _TEXTS for label in _LABELS)


def parse(values: dict[str, Any]) -> Conversation:
    """One utterance with its label; where a file has no header, the two are parted by four spaces or a tab."""
    if set(values) == {"text"}:
        fields = split_line(text_of(values["text"]))
        if len(fields) != 2:
            raise BadRow("no text with a label behind it, parted by four spaces or a tab")
        values = dict(zip(("text", "label"), fields, strict=True))
    return Conversation("", (Turn("user", need(values, *_TEXTS)),), "", {"emotion": need(values, *_LABELS)})
