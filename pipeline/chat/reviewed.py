"""Backends that write nothing themselves: they choose among answers that people wrote and reviewed.

`CategoryAnswers` tells the category of a message and gives one of its answers; `NearestAnswer` gives the answer to the
most similar question. Both look at the newest message only. Where they are unsure they hand over to a fallback, or say
so and ask back.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gonggam.errors import UserError
from pipeline.chat.backends import Backend, Message, Piece, PieceStream, Request, Usage
from pipeline.chat.reply import Source
from pipeline.chat.resources import data

if TYPE_CHECKING:
    from pipeline.chat.categories import CategoryClassifier
    from rag.knowledge import KnowledgeBase

_CONTEXT = 1 << 20
_TRIES = 20


@dataclass(frozen=True)
class Picked:
    """A chosen answer.

    Attributes:
        text: the answer, or the words that ask back.
        source: ``reviewed`` (a category's answer), ``knowledge`` (the most similar question's) or ``notice`` (unsure).
        category: what the message was taken for.
        index: number of the category; None where there is no list of categories.
        score: probability of the category, or cosine of the questions.
    """

    text: str
    source: Source
    category: str | None
    index: int | None
    score: float

    @property
    def sure(self) -> bool:
        """Whether this is an answer, not a question back."""
        return self.source != "notice"


class PickedStream:
    """A chosen answer in one piece."""

    def __init__(self, picked: Picked) -> None:
        self.picked, self.usage = picked, Usage()

    def __iter__(self) -> Generator[Piece, None, None]:
        yield Piece(self.picked.text, 0, None)

    def close(self) -> None:
        """Nothing is under way."""


class ReviewedBackend:
    """What both kinds share: unsure answers go to the fallback, where there is one."""

    adapters: tuple[str, ...] = ()

    def __init__(self, name: str, fallback: Backend | None = None) -> None:
        self.name, self.fallback = name, fallback
        self.context = fallback.context if fallback else _CONTEXT

    def pick(self, requests: Sequence[Request]) -> list[Picked]:
        """The answers to the newest messages, in order."""
        raise NotImplementedError

    def stream(self, requests: Sequence[Request]) -> list[PieceStream]:
        """See `pipeline.chat.backends.Backend.stream`."""
        chosen = self.pick(requests)
        unsure = [request for request, one in zip(requests, chosen, strict=True) if not one.sure]
        handed_over = iter(self.fallback.stream(unsure) if self.fallback and unsure else ())
        return [PickedStream(one) if one.sure or not self.fallback else next(handed_over) for one in chosen]

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, as far as anyone reads them."""
        return self.fallback.count(messages) if self.fallback else 0

    def score(self, messages: Sequence[Message], reply: str, adapter: str | None = None) -> float | None:
        """The fallback's; a list of answers has no likelihoods."""
        return self.fallback.score(messages, reply, adapter) if self.fallback else None

    def forget(self, session: str) -> None:
        """Drop whatever the fallback keeps of a session."""
        if self.fallback:
            self.fallback.forget(session)

    def alive(self) -> bool:
        """Whether the fallback could answer; a list of answers always can."""
        return self.fallback.alive() if self.fallback else True

    def close(self) -> None:
        """Let go of the fallback."""
        if self.fallback:
            self.fallback.close()


class CategoryAnswers(ReviewedBackend):
    """The category of the newest message, and one of its answers that was not just given.

    Args:
        classifier: tells categories; its labels file holds the answers.
        name: how the backend is called.
        confidence: probability from which a category is believed; None: as calibrated in training.
        fallback: who answers where it is lower; None: the counsellor asks back.

    Raises:
        UserError: the classifier holds no answers.
    """

    def __init__(
        self,
        classifier: CategoryClassifier,
        name: str = "categories",
        *,
        confidence: float | None = None,
        fallback: Backend | None = None,
    ) -> None:
        super().__init__(name, fallback)
        if not classifier.labels.answers:
            hint = "give the recipe classify.answers; one of emotions is used as chat.emotion_model"
            raise UserError("this classifier tells labels but holds no answers", hint)
        self.classifier = classifier
        self.confidence = classifier.labels.confidence if confidence is None else confidence
        self._given: dict[int, str] = {}
        self._lock = threading.Lock()

    def pick(self, requests: Sequence[Request]) -> list[Picked]:
        """See `ReviewedBackend.pick`."""
        rows = self.classifier.ask([said(request) for request in requests])
        return [
            self._pick(request, int(row.argmax()), float(row.max()))
            for request, row in zip(requests, rows, strict=True)
        ]

    def _pick(self, request: Request, number: int, score: float) -> Picked:
        category = self.classifier.labels.names[number]
        answers = self.classifier.labels.answers.get(category, ())
        if score < self.confidence or not answers:
            return Picked(_unsure(request), "notice", category, number, score)
        return Picked(self._choose(request, number, answers), "reviewed", category, number, score)

    def _choose(self, request: Request, number: int, answers: Sequence[str]) -> str:
        """By chance among the answers that this conversation has not heard, nor anyone just now."""
        heard = _heard(request)
        seed = request.settings.seed
        with self._lock:
            last = self._given.get(number) if seed is None else None
            fresh = [a for a in answers if a not in heard and a != last]
            fresh = fresh or [a for a in answers if a not in (last, *heard[-1:])]
            fresh = fresh or [a for a in answers if a not in heard[-1:]] or list(answers)
            chance = random.Random(None if seed is None else f"{seed} {said(request)}")
            self._given[number] = chosen = chance.choice(fresh)
        return chosen


class NearestAnswer(ReviewedBackend):
    """The answer people gave to the question most like the newest message: retrieval alone, nothing is generated.

    Args:
        knowledge: the index of human-written answers.
        name: how the backend is called.
        min_cosine: likeness below which the counsellor is unsure.
        fallback: who answers then; None: the counsellor asks back.
    """

    def __init__(
        self, knowledge: KnowledgeBase, name: str = "answers", *, min_cosine: float, fallback: Backend | None = None
    ) -> None:
        super().__init__(name, fallback)
        self.knowledge, self.min_cosine = knowledge, min_cosine

    def pick(self, requests: Sequence[Request]) -> list[Picked]:
        """See `ReviewedBackend.pick`."""
        return [self._pick(request) for request in requests]

    def _pick(self, request: Request) -> Picked:
        heard = _heard(request)
        # Only answers to a first message: later ones speak of what their own conversation had told before.
        hits = [hit for hit in self.knowledge.search(said(request), k=_TRIES) if not hit.meta.get("turn")]
        hit = next((hit for hit in hits if hit.answer not in heard), None)
        category = (hit.meta.get("category") or None) if hit else None
        if hit is None or hit.cosine < self.min_cosine:
            return Picked(_unsure(request), "notice", category, None, hit.cosine if hit else 0.0)
        return Picked(hit.answer, "knowledge", category, None, hit.cosine)


def load_categories(
    folder: Path, name: str, *, confidence: float | None = None, fallback: Backend | None = None
) -> CategoryAnswers:
    """The backend of a classifier's folder.

    Raises:
        UserError: no classifier lies there, it does not match its labels file, or it holds no answers.
    """
    from pipeline.chat.categories import CategoryClassifier

    return CategoryAnswers(CategoryClassifier.load(folder), name, confidence=confidence, fallback=fallback)


def said(request: Request) -> str:
    """The newest message without what is recalled beside it."""
    return request.said or request.messages[-1]["content"]


def _heard(request: Request) -> list[str]:
    """What this conversation has been answered, and last what is not wanted."""
    said = [m["content"] for m in request.messages if m["role"] == "assistant"]
    return [*said, *request.settings.avoid]


def _unsure(request: Request) -> str:
    """Words that ask back, other than those just spoken."""
    heard = _heard(request)
    words = data("texts")["unsure"]
    return next((text for text in words if text not in heard), words[0])
