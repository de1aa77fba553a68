"""A text classifier of transformers, as `pipeline.train.classify` leaves it: labels, answers, calibrated confidence.

One folder holds all of it and may be moved anywhere: the model's safetensors and configuration, its tokenizer, and
``labels.json``. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gonggam.errors import UserError
from gonggam.files import read_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LABELS = "labels.json"
PADDING, FREE = 0.2, 64
"""What padding may add to a batch: a share of its own length, or so many characters whatever its length."""


@dataclass(frozen=True)
class Labels:
    """What ``labels.json`` holds.

    Attributes:
        names: labels in the order of the model's outputs.
        answers: reviewed answers by label; empty for a classifier that answers nothing, such as one of emotions.
        temperature: what logits are divided by before softmax (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
        confidence: probability from which the likeliest label is believed.
        max_length: longest text in tokens.
    """

    names: tuple[str, ...]
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    temperature: float = 1.0
    confidence: float = 0.5
    max_length: int = 128

    def save(self, folder: Path) -> None:
        """Write ``folder/labels.json``."""
        write_text(folder / LABELS, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Labels:
        """Read ``folder/labels.json``.

        Raises:
            UserError: it is missing or is no such file.
        """
        file = folder / LABELS
        found = read_json(file)
        try:
            labels = cls(**{**found, "names": tuple(found["names"])})
            strange = set(labels.answers) - set(labels.names)
        except (TypeError, KeyError) as error:
            raise UserError(f"not a labels file ({error})", "train the classifier again", file=file) from error
        if strange:
            known = f"labels are {', '.join(labels.names[:5])} ..."
            raise UserError(f"answers for {sorted(strange)[0]!r}, which is no label", known, file=file)
        return labels


@dataclass
class _Asked:
    """One text on its way, with the error or the probabilities that came of it."""

    text: str
    row: np.ndarray | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether nobody has to work on it any more."""
        return self.row is not None or self.error is not None


class CategoryClassifier:
    """A classifier over its labels.

    Texts asked about while a batch is worked on make up the next batch, whoever asks (see `ask`).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: Labels, *, max_batch: int = 64
    ) -> None:
        self.model, self.tokenizer, self.labels, self.max_batch = model.eval(), tokenizer, labels, max_batch
        self._waiting: list[_Asked] = []
        self._turn, self._busy = threading.Condition(), False

    @classmethod
    def load(cls, folder: str | Path) -> CategoryClassifier:
        """Load a trained classifier onto the best device there is.

        Raises:
            UserError: no classifier lies there, or its labels file belongs to another model.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        from pipeline.model import hub_errors

        disable_progress_bar()
        folder = Path(folder)
        labels = Labels.load(folder)
        with hub_errors(str(folder.resolve())):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
        own = tuple(model.config.id2label[number] for number in range(model.config.num_labels))
        if own != labels.names:
            differ = next((i for i, (a, b) in enumerate(zip(own, labels.names, strict=False)) if a != b), None)
            what = f"{len(labels.names)} labels in the file, {len(own)} in the model"
            if differ is not None:
                what += f"; number {differ} is {labels.names[differ]!r} in the file and {own[differ]!r} in the model"
            raise UserError(
                f"labels and model do not match ({what})", "take both from the same training", file=folder / LABELS
            )
        return cls(_placed(model), tokenizer, labels)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities of shape (texts, labels), float32. Texts of like length are batched together.

        Raises:
            UserError: a text is empty.
        """
        import numpy as np

        _check(texts)
        found = np.empty((len(texts), len(self.labels.names)), dtype=np.float32)
        for places in _alike([len(text) for text in texts], self.max_batch):
            found[places] = self._batch([texts[place] for place in places])
        return found

    def ask(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `probabilities`, but together with whatever other threads ask about at the same time.

        There is no thread of its own: whoever finds nobody at work works for all who wait.
        """
        _check(texts)
        asked = [_Asked(text) for text in texts]
        with self._turn:
            self._waiting += asked
            while not all(one.done for one in asked):
                if self._busy:
                    self._turn.wait()
                else:
                    self._work()
        for one in asked:
            if one.error:
                raise one.error
        return [one.row for one in asked if one.row is not None]

    def best(self, text: str) -> tuple[int, float]:
        """Number of the likeliest label and its probability."""
        row = self.ask([text])[0]
        number = int(row.argmax())
        return number, float(row[number])

    def _work(self) -> None:
        """Answer what waits, as far as it fits a batch; the lock is held when this is called and when it returns."""
        batch, self._waiting = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
        self._busy = True
        self._turn.release()
        try:
            self._answer(batch)
        finally:
            self._turn.acquire()
            self._busy = False
            self._turn.notify_all()

    def _answer(self, batch: Sequence[_Asked]) -> None:
        try:
            rows = self.probabilities([one.text for one in batch])
        except Exception as error:  # raised again where each answer is awaited
            for one in batch:
                one.error = error
        else:
            for one, row in zip(batch, rows, strict=True):
                one.row = row

    def _batch(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        inputs: Any = self.tokenizer(
            list(texts), truncation=True, max_length=self.labels.max_length, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self.model(**inputs.to(self.model.device)).logits.float()
        return (logits / self.labels.temperature).softmax(-1).cpu().numpy()


def _check(texts: Sequence[str]) -> None:
    if not all(text.strip() for text in texts):
        raise UserError("an empty text has no label", "leave empty texts out")


def _alike(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of at most ``most`` texts each, so that padding to the longest of them adds little (`PADDING`)."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        filled = sum(lengths[other] for other in batch) + lengths[place]
        padding = lengths[place] * (len(batch) + 1) - filled
        if len(batch) == most or padding > max(FREE, PADDING * filled):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _placed(model: PreTrainedModel) -> PreTrainedModel:
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model
