"""What more data would buy: the classifier trained on shares of its training texts too, each measured alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from gonggam.files import read_json, write_json
from pipeline.chat.categories import CategoryClassifier, Labels
from pipeline.train.calibrate import judged
from pipeline.train.judged import figures
from pipeline.train.labelled import Labelled

Fit = Callable[[Labelled, Path], tuple[Trainer, PreTrainedModel, dict[str, Any]]]


def learning_curve(
    shares: Sequence[float],
    data: Labelled,
    fit: Fit,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    folder: Path,
) -> list[dict[str, float]]:
    """Texts, accuracy and macro-F1 on the test split for each share, smallest first.

    Finished points stay in ``folder/learning``, so that training that goes on after a stop does not repeat them.
    """
    return [_point(data.part(share), fit, tokenizer, max_length, folder / "learning") for share in sorted(shares)]


def _point(
    part: Labelled, fit: Fit, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: Path
) -> dict[str, float]:
    texts = len(part.splits["train"])
    done = folder / f"{texts}.json"
    if done.is_file():
        return read_json(done)
    trainer, model, _ = fit(part, folder / str(texts))
    classifier = CategoryClassifier(model, tokenizer, Labels(part.labels, max_length=max_length))
    test = figures(judged(classifier, part, "test"))
    point = {"texts": texts, "accuracy": test["accuracy"], "macro_f1": test["macro_f1"]}
    if trainer.accelerator.is_main_process:
        write_json(done, point)
        shutil.rmtree(folder / str(texts))
    trainer.accelerator.wait_for_everyone()
    return point
