"""The sentiment that a reply is to answer to, for models trained on P(answer | utterance, sentiment)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gonggam.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.chat.backends import Message
    from pipeline.chat.categories import CategoryClassifier
    from pipeline.chat.options import ChatOptions


@dataclass(frozen=True)
class Sentiments:
    """Given by the caller, else predicted, else the first.

    Args:
        values: label -> what the chat template is told.
        classifier: tells the label of a message; None: nothing is predicted.
    """

    values: Mapping[str, str]
    classifier: CategoryClassifier | None = None

    def __call__(self, text: str, given: str | None = None) -> str:
        """What the template is told about ``text``; ``given`` is a label or a value.

        Raises:
            UserError: ``given`` is neither.
        """
        if given is not None:
            if not self.knows(given):
                raise UserError(f"unknown sentiment {given!r}", f"name one of: {', '.join(self.values)}")
            return self.values.get(given, given)
        first = next(iter(self.values.values()))
        if self.classifier is None or not text.strip():
            return first
        number, _ = self.classifier.best(text)
        return self.values.get(self.classifier.labels.names[number], first)

    def knows(self, given: str) -> bool:
        """Whether ``given`` is a label or a value."""
        return given in self.values or given in self.values.values()

    def mark(self, messages: Sequence[Message], given: str | None = None) -> list[dict[str, str]]:
        """The messages, the newest one with its sentiment, unless it brings one."""
        *past, newest = (dict(message) for message in messages)
        if "sentiment" not in newest:
            newest["sentiment"] = self(newest["content"], given)
        return [*past, newest]


def load_sentiments(run: Path, options: ChatOptions) -> Sentiments | None:
    """What the replies of a run answer to, predicted by its classify stage where there is one; None: to nothing."""
    if options.sentiment is None:
        return None
    from pipeline.chat.categories import CategoryClassifier

    model = run / "classify" / "model"
    return Sentiments(options.sentiment, CategoryClassifier.load(model) if model.is_dir() else None)
