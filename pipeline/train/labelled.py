"""From the prepared files to texts with labels, and to the answers of each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from gonggam.errors import UserError
from gonggam.files import read_jsonl

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """A text and its label."""

    text: str
    label: str


@dataclass(frozen=True)
class Labelled:
    """The examples of a run.

    Attributes:
        labels: those of the training split, sorted; a label's number is its place here.
        splits: examples of ``train``, ``validation`` and ``test``, all with known labels.
        unknown: label → held-out examples that were left out because no training example has their label.
        single: labels that one training example has to speak for.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, Sequence[Example]]
    unknown: Mapping[str, int] = field(default_factory=dict)
    single: tuple[str, ...] = ()

    def numbers(self, split: str) -> list[int]:
        """The labels of a split's examples as places in ``labels``."""
        place = {label: number for number, label in enumerate(self.labels)}
        return [place[example.label] for example in self.splits[split]]

    def part(self, share: float) -> Labelled:
        """The same with a share of the training examples, told by their hashes: smaller parts lie in larger ones."""
        order = sorted(self.splits["train"], key=lambda example: sha256(example.text.encode()).digest())
        return replace(self, splits={**self.splits, "train": order[: max(1, round(share * len(order)))]})


@dataclass(frozen=True)
class Naming:
    """How a row's label is told: its ``by`` (category or emotion), merged under a common name, then its first parts."""

    by: str = "category"
    merge: Mapping[str, str] = field(default_factory=dict)
    levels: int | None = None

    def label(self, row: Mapping[str, str], key: str | None = None) -> str:
        """The label of a row of prepared data, or nothing; ``key`` where it does not stand under ``by``."""
        told = str(row.get(key or self.by) or "")
        return "/".join(self.merge.get(told, told).split("/")[: self.levels])


def read_labelled(prepared: Path, naming: Naming) -> Labelled:
    """First messages with their conversation's label, and texts that came with one.

    Raises:
        UserError: no training example has a label, all have the same, or nothing is held out.
    """
    found = {split: [e for e in _examples(prepared, split, naming) if e.text and e.label] for split in _SPLITS}
    counts = Counter(example.label for example in found["train"])
    if len(counts) < 2:
        what = f"the training split holds {len(counts)} labels where two are needed"
        raise UserError(what, f"prepare data whose rows have a {naming.by}", file=prepared)
    held_out = {split: [e for e in found[split] if e.label in counts] for split in _SPLITS}
    unknown = Counter(e.label for split in _SPLITS for e in found[split] if e.label not in counts)
    for split in _SPLITS[1:]:
        if not held_out[split]:
            what, hint = f"the {split} split holds no labelled row", f"raise prepare.split.{split}"
            if found[split]:
                what = f"no training text has a label of the {len(found[split]):,} {split} texts"
                hint = "give labels more texts, or join them with classify.levels or classify.merge"
            raise UserError(what, hint, file=prepared)
    single = tuple(sorted(label for label, count in counts.items() if count == 1))
    return Labelled(tuple(sorted(counts)), held_out, dict(unknown), single)


def read_replies(prepared: Path, naming: Naming) -> dict[str, list[str]]:
    """The replies that people wrote to the training examples of each label, each once."""
    answers: dict[str, dict[str, None]] = {}
    for row in _rows(prepared / "messages" / "train.jsonl"):
        first = next((m["content"] for m in row["messages"] if m["role"] == "assistant"), "")
        label = naming.label(row)
        if label and first:
            answers.setdefault(label, {})[first] = None
    return {label: list(found) for label, found in answers.items()}


def _examples(prepared: Path, split: str, naming: Naming) -> Iterator[Example]:
    for row in _rows(prepared / "messages" / f"{split}.jsonl"):
        said = next(m["content"] for m in row["messages"] if m["role"] == "user")
        yield Example(said.strip(), naming.label(row))
    for row in _rows(prepared / "labelled" / f"{split}.jsonl"):
        yield Example(row["text"].strip(), naming.label(row, "label"))


def _rows(path: Path) -> Iterator[dict]:
    yield from read_jsonl(path) if path.is_file() else ()
