"""Emotion sets, such as EC_data and the data of the 11-class Korean sentiment models: a text and its label.

They hold no replies: what is prepared from them goes to ``labelled/`` and serves classifiers.
"""

from __future__ import annotations

from typing import Any

from data_prep.conversation import Conversation, Turn
from data_prep.sources.fields import need

_TEXTS = ("text", "sentence", "utterance", "content", "발화", "문장")
_LABELS = ("emotion", "label", "감정", "class")
COLUMNS = tuple(frozenset({text, label}) for text in _TEXTS for label in _LABELS)


def parse(values: dict[str, Any]) -> Conversation:
    """One utterance with its label."""
    return Conversation("", (Turn("user", need(values, *_TEXTS)),), "", {"emotion": need(values, *_LABELS)})
