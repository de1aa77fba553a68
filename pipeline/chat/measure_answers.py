"""Measures whether human-written answers fit the feeling of messages that were held out: `gonggam bench answers`."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.chat.answers import HumanAnswers, opposite
from pipeline.chat.classifier import NgramClassifier
from pipeline.chat.fit import SAMPLES, dialogues, fit_emotion, read_tsv
from pipeline.chat.options import GateOptions
from pipeline.chat.reply import Emotion
from pipeline.chat.resources import DATA

FOLDS = 3


def main() -> None:
    """Print, over three folds of the sample dialogues, how often an answer to the opposite feeling is given."""
    talks = dialogues()
    random.Random(0).shuffle(talks)
    found = {"by vectors alone": [0, 0], "not to the opposite feeling": [0, 0]}
    for fold in range(FOLDS):
        held_out = talks[fold::FOLDS]
        for way, wrong in _given([talk for place, talk in enumerate(talks) if place % FOLDS != fold], held_out):
            found[way][0] += 1
            found[way][1] += wrong
    for way, (given, hurtful) in found.items():
        print(f"{way}: {given} of {len(talks)} first messages answered by people,", end=" ")
        print(f"{hurtful} ({hurtful / given:.3f}) of them with an answer to the opposite feeling")


def _given(known: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """For every message that gets a human-written answer: the way, and whether that was given to the opposite."""
    from rag.embedders import fit_static
    from rag.knowledge import KnowledgeBase

    rows, emotions = [], {}
    for talk in known:
        texts = [turn["content"] for turn in talk["turns"]]
        for number, (said, reply) in enumerate(zip(texts[::2], texts[1::2], strict=False)):
            rows.append({"question": said, "answer": reply, "meta": {"turn": number, "emotion": talk["emotion"]}})
            emotions[reply] = talk["emotion"]
    firsts = [(talk["turns"][0]["content"], talk["emotion"]) for talk in known]
    model = fit_emotion([*read_tsv(SAMPLES / "emotion.tsv"), *firsts, *read_tsv(DATA / "emotion_phrases.tsv")])
    with tempfile.TemporaryDirectory() as folder:
        embedder = fit_static([(row["question"], row["answer"]) for row in rows], Path(folder) / "embedder")
        base = KnowledgeBase.build(rows, embedder, Path(folder) / "knowledge")
        for way, least in (("by vectors alone", 1.0), ("not to the opposite feeling", GateOptions().min_feeling)):
            answers = HumanAnswers(base, GateOptions(min_feeling=least), _Feel(model))
            for talk in held_out:
                answer, source = answers(talk["turns"][0]["content"], ())
                if source == "knowledge":
                    yield way, opposite(talk["emotion"], emotions[answer])


class _Feel:
    """The emotion of a message by one classifier."""

    def __init__(self, model: NgramClassifier) -> None:
        self.model = model

    def __call__(self, text: str) -> Emotion:
        label, score = max(self.model.probabilities(text).items(), key=lambda pair: pair[1])
        return Emotion(label=label, score=score)
